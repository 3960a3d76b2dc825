"""scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels in ten classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from pareco.data.images import Images


def digits(image_size: int) -> Images:
    """Return all digits, grey, scaled bilinearly to `image_size` x `image_size`.

    The pixels' 17 levels are spread over 0-240; mean and standard deviation are rounded from the
    whole set. (E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI.)
    """
    loaded = load_digits()
    levels = torch.tensor(loaded.images, dtype=torch.float32)[:, None]  # type: ignore[attr-defined]
    scaled = F.interpolate(levels * 15, size=(image_size, image_size), mode="bilinear")
    labels = torch.tensor(loaded.target, dtype=torch.int64)  # type: ignore[attr-defined]
    return Images(scaled.round().to(torch.uint8), labels, mean=73.0, std=90.0)
