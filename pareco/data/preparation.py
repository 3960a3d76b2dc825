"""What happens to a batch on the device: padded crops, mirroring, lighting, normalization."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from pareco.config import DataConfig

# Krizhevsky et al. 2012, section 4.1: the principal components of ImageNet's RGB values, on the
# 0-1 scale, as in fb.resnet.torch and US-Net.
_EIGENVALUES = torch.tensor([0.2175, 0.0188, 0.0045])
_EIGENVECTORS = torch.tensor(
    [
        [-0.5675, 0.7192, 0.4009],
        [-0.5808, -0.0045, -0.8140],
        [-0.5836, -0.6948, 0.4203],
    ]
)


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
            return drawn[..., own].to(pixels.device)

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
        mean = torch.tensor(self.config.mean, device=images.device)[:, None, None]
        std = torch.tensor(self.config.std, device=images.device)[:, None, None]
        return (images - mean) / std


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
    values, vectors = _EIGENVALUES.to(strengths), _EIGENVECTORS.to(strengths)
    return (vectors @ (strengths * values[:, None])).T
