"""What training and evaluation see of a decoded image; runs in the processes that decode."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms.v2 import functional

from pareco.config import DataConfig


class Views:
    """Crops and colours images to squares of `config.image_size` pixels."""

    def __init__(self, config: DataConfig) -> None:
        """Prepare the transforms."""
        size, bilinear = config.image_size, InterpolationMode.BILINEAR
        central = [v2.Resize(round(size / config.central_crop), bilinear), v2.CenterCrop(size)]
        self._evaluation = v2.Compose(central)
        crop, jitter = config.crop_scale, config.colour_jitter
        drawn = central if crop is None else [v2.RandomResizedCrop(size, (crop, 1.0))]
        coloured = [v2.ColorJitter(jitter, jitter, jitter)] if jitter else []
        self._training = v2.Compose([*drawn, *coloured])

    def pixels(self, image: Image.Image, seed: int | None) -> Tensor:
        """Return the bytes `3 x h x w` of an image: its random view of this seed, or the fixed one.

        Size and colours as in US-Net (arXiv 1903.05134): random resized crop and colour jitter in
        training, a central crop in evaluation.
        """
        coloured = image.convert("RGB")
        if seed is None:
            return functional.pil_to_tensor(self._evaluation(coloured))
        with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global stream
            torch.manual_seed(seed)
            return functional.pil_to_tensor(self._training(coloured))
