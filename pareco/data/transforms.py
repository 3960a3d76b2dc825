"""What training and evaluation see of an image: as it is decoded, then on the device."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from pareco.config import DataConfig

_ASPECT_RATIOS = (3 / 4, 4 / 3)
_TRIES = 10
_pillow: Any = functional  # declared for tensors alone


def view(image: Image.Image, seed: int | None, config: DataConfig) -> Tensor:
    """Return the bytes `3 x h x w` of an RGB image: the view of this seed, or evaluation's (None).

    A square of `config.image_size` pixels, as in US-Net (arXiv 1903.05134): random resized crop
    and colour jitter, or a central crop. Mirroring and lighting follow on the device.
    """
    generator = torch.Generator().manual_seed(seed or 0)
    if seed is None or config.crop_scale is None:
        seen = _pillow.resize(image, [round(config.image_size / config.central_crop)])
        seen = _pillow.center_crop(seen, [config.image_size])
    else:
        box = random_box(image.height, image.width, config.crop_scale, generator)
        seen = _pillow.resized_crop(image, *box, [config.image_size] * 2)
    if seed is not None and config.colour_jitter:
        seen = jittered(seen, config.colour_jitter, generator)
    return _pillow.pil_to_tensor(seen).contiguous()


def random_box(
    height: int, width: int, least: float, generator: torch.Generator
) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a crop of `least` to all of an image's area.

    The distribution, and the draws, are those of torchvision's `RandomResizedCrop`: after ten
    boxes that do not fit, the largest central one of a permitted aspect ratio.
    """
    narrow, wide = _ASPECT_RATIOS
    for _ in range(_TRIES):
        area = height * width * _uniform(least, 1.0, generator)
        ratio = math.exp(_uniform(math.log(narrow), math.log(wide), generator))
        box_width, box_height = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < box_width <= width and 0 < box_height <= height:
            top = int(torch.randint(0, height - box_height + 1, (1,), generator=generator))
            left = int(torch.randint(0, width - box_width + 1, (1,), generator=generator))
            return top, left, box_height, box_width
    box_height = min(height, max(1, round(width / narrow)))
    box_width = min(width, max(1, round(height * wide)))
    return (height - box_height) // 2, (width - box_width) // 2, box_height, box_width


def jittered(image: Image.Image, most: float, generator: torch.Generator) -> Image.Image:
    """Return an image with brightness, contrast and saturation changed, in random order.

    Each by a factor drawn from `1 - most` to `1 + most`, as in torchvision's `ColorJitter`.
    """
    kinds = (_pillow.adjust_brightness, _pillow.adjust_contrast, _pillow.adjust_saturation)
    for which in torch.randperm(len(kinds), generator=generator).tolist():
        image = kinds[which](image, _uniform(1 - most, 1 + most, generator))
    return image


def _uniform(low: float, high: float, generator: torch.Generator) -> float:
    return float(torch.empty(1).uniform_(low, high, generator=generator))


# Krizhevsky et al. 2012, section 4.1: the principal components of ImageNet's RGB values, on the
# 0-1 scale, as in fb.resnet.torch and US-Net.
_EIGENVALUES = (0.2175, 0.0188, 0.0045)
_EIGENVECTORS = (
    (-0.5675, 0.7192, 0.4009),
    (-0.5808, -0.0045, -0.8140),
    (-0.5836, -0.6948, 0.4203),
)


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return values of the CPU on a device, without waiting for it: they go from pinned memory."""
    if device.type in ("cpu", "mps"):  # which has no such memory
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)


@lru_cache(maxsize=64)
def _constant(values: tuple[Any, ...], device: torch.device) -> Tensor:
    """Return numbers that are the same for all batches, sent once."""
    return torch.tensor(values, device=device)


@dataclass(frozen=True)
class Preparation:
    """How pixels `n x c x h x w` (uint8) become what a network sees (float, normalized)."""

    config: DataConfig

    def check(self, channels: int) -> None:
        """Raise `ValueError`, naming the field, if images with these channels don't fit."""
        for name in ("mean", "std"):
            values = getattr(self.config, name)
            if len(values) != channels:
                raise ValueError(
                    f"data.{name} has {len(values)} values, the images have {channels} channels"
                )
        if self.config.lighting and channels != len(_EIGENVALUES):
            raise ValueError(f"data.lighting needs images with 3 channels, not {channels}")

    def evaluation(self, pixels: Tensor) -> Tensor:
        """Return the images as evaluation sees them."""
        return self._normalized(pixels.float())

    def training(
        self, pixels: Tensor, generator: torch.Generator, count: int, own: slice
    ) -> Tensor:
        """Return the images with random crops, mirroring and lighting.

        Everything is drawn for the whole batch of `count` images, `own` of which are given, so
        that processes that share a batch see what one alone would see.
        """

        def chosen(drawn: Tensor) -> Tensor:
            return sent(drawn[..., own], pixels.device)

        images = pixels.float()
        if self.config.flip:
            mirrored = chosen(torch.rand(count, generator=generator)) < 0.5
            images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
        if padding := self.config.crop_padding:
            corners = torch.randint(0, 2 * padding + 1, (2, count), generator=generator)
            images = padded_crops(images, chosen(corners), padding, self.config.crop_padding_mode)
        if self.config.lighting:
            strengths = torch.randn(3, count, generator=generator) * self.config.lighting
            images = images + 255 * lighting(chosen(strengths))[:, :, None, None]
        return self._normalized(images)

    def _normalized(self, images: Tensor) -> Tensor:
        mean, std = (_constant(each, images.device) for each in (self.config.mean, self.config.std))
        return (images - mean[:, None, None]) / std[:, None, None]


def padded_crops(images: Tensor, corners: Tensor, padding: int, mode: str) -> Tensor:
    """Return each image `n x c x h x w` shifted inside a border of `padding` pixels.

    `corners` is `2 x n`: row and column, from 0, where a crop of the image's size begins (He et
    al. 2015, section 4.2). The border is black in mode "constant", in mode "replicate" it
    continues the edge.
    """
    count, _, height, width = images.shape
    padded = F.pad(images, (padding,) * 4, mode=mode)
    rows = corners[0][:, None] + torch.arange(height, device=images.device)
    columns = corners[1][:, None] + torch.arange(width, device=images.device)
    which = torch.arange(count, device=images.device)[:, None, None]
    crops = padded[which, :, rows[:, :, None], columns[:, None, :]]
    return crops.permute(0, 3, 1, 2).contiguous()


def lighting(strengths: Tensor) -> Tensor:
    """Return the colours `n x 3` (0-1 scale) to add for strengths `3 x n` of the components."""
    device = strengths.device
    values, vectors = _constant(_EIGENVALUES, device), _constant(_EIGENVECTORS, device)
    return (vectors @ (strengths * values[:, None])).T
