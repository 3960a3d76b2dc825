"""Images held in memory, and the batches that training and evaluation take from them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pareco.randomness import derived_generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """Images `n x c x h x w` (uint8) with labels `n` (int64), and the normalization they need.

    `mean` and `std` are per channel, in units of the 0-255 scale.
    """

    pixels: Tensor
    labels: Tensor
    mean: float
    std: float

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def subset(self, indices: tuple[int, ...]) -> Images:
        """Return the images at these indices."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        return Images(self.pixels[chosen], self.labels[chosen], self.mean, self.std)

    def normalized(self, indices: Tensor) -> Batch:
        """Return images (float, normalized) and labels at these indices."""
        return (self.pixels[indices].float() - self.mean) / self.std, self.labels[indices]

    def batches(self, batch_size: int) -> Iterator[Batch]:
        """Yield all images in order; the last batch may be smaller."""
        for indices in torch.arange(len(self)).split(batch_size):
            yield self.normalized(indices)

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels, labels and normalization."""
        digest = hashlib.sha256(self.pixels.contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        digest.update(repr((tuple(self.pixels.shape), self.mean, self.std)).encode())
        return digest.hexdigest()


@dataclass(frozen=True, kw_only=True)
class TrainingLoader:
    """Shuffled, augmented batches that depend on the seed and the position alone.

    Any epoch can be started at any batch, so a resumed run sees what it would have seen. The last
    incomplete batch of an epoch is dropped.
    """

    images: Images
    batch_size: int
    seed: int
    crop_padding: int = 0
    flip: bool = False

    def __post_init__(self) -> None:
        """Check that there is at least one batch."""
        if len(self.images) < self.batch_size:
            count = len(self.images)
            raise ValueError(f"batch_size {self.batch_size} exceeds the {count} training images")

    @property
    def batches_per_epoch(self) -> int:
        """The number of gradient steps in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from the `start`-th on."""
        shuffling = derived_generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.images), generator=shuffling)
        for index in range(start, self.batches_per_epoch):
            chosen = order[index * self.batch_size : (index + 1) * self.batch_size]
            images, labels = self.images.normalized(chosen)
            generator = derived_generator(self.seed, "augmentation", epoch, index)
            yield augmented(images, generator, self.crop_padding, flip=self.flip), labels


def augmented(
    images: Tensor, generator: torch.Generator, crop_padding: int, *, flip: bool
) -> Tensor:
    """Return each image cropped at random out of a border of `crop_padding` and maybe mirrored.

    `images` is `n x c x h x w` (He et al. 2015, section 4.2); the border continues the image's
    edge, so that no value appears that normalization would have to know.
    """
    count, _, height, width = images.shape
    if flip:
        mirrored = torch.rand(count, generator=generator) < 0.5
        images = torch.where(mirrored[:, None, None, None], images.flip(-1), images)
    if not crop_padding:
        return images
    padded = torch.nn.functional.pad(images, (crop_padding,) * 4, mode="replicate")
    corners = torch.randint(0, 2 * crop_padding + 1, (2, count), generator=generator)
    rows = corners[0][:, None] + torch.arange(height)
    columns = corners[1][:, None] + torch.arange(width)
    which = torch.arange(count)[:, None, None]
    return padded[which, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
