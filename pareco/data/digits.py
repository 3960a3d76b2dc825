"""scikit-learn's handwritten digits: 1797 real images of 8 x 8 pixels in ten classes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits

from pareco.data.stores import MemoryStore


def digits(image_size: int, channels: int) -> MemoryStore:
    """Return all digits, grey in equal channels, scaled bilinearly to a square of this size.

    The pixels' 17 levels are spread over 0-240. (E. Alpaydin, C. Kaynak: Optical Recognition of
    Handwritten Digits, UCI.)
    """
    loaded = load_digits()
    levels = torch.tensor(loaded.images, dtype=torch.float32)[:, None]  # type: ignore[attr-defined]
    scaled = F.interpolate(levels * 15, size=(image_size, image_size), mode="bilinear")
    labels = torch.tensor(loaded.target, dtype=torch.int64)  # type: ignore[attr-defined]
    pixels = scaled.round().to(torch.uint8).expand(-1, channels, -1, -1)
    return MemoryStore(pixels, labels, tuple(map(str, loaded.target_names)))  # type: ignore[attr-defined]
