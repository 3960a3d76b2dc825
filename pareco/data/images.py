"""Images of a data set, and the batches that training and evaluation take from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pareco.data.preparation import Preparation
from pareco.data.share import Share
from pareco.data.stores import MemoryStore, Store
from pareco.randomness import derived_generator

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Images:
    """The images of a store at some indices, and how they are prepared for a network."""

    store: Store
    indices: Tensor
    preparation: Preparation

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    @property
    def labels(self) -> Tensor:
        """The labels `n`, int64, on the CPU."""
        return self.store.labels[self.indices]

    def subset(self, positions: Sequence[int] | Tensor) -> Images:
        """Return the images at these positions among these."""
        chosen = torch.as_tensor(positions, dtype=torch.int64)
        return Images(self.store, self.indices[chosen], self.preparation)

    def normalized(self, positions: Tensor) -> Batch:
        """Return images (float, normalized) and labels at these positions, for evaluation."""
        (batch,) = self._evaluated([self.indices[positions]])
        return batch

    def batches(self, batch_size: int, share: Share = Share()) -> Iterator[Batch]:
        """Yield all images in order, for evaluation; the last batch may be smaller.

        A share takes every `share.count`-th batch.
        """
        return self._evaluated(self._parts(batch_size, share))

    def held(self, batch_size: int, share: Share = Share()) -> Images:
        """Return the images that `batches` yields for this share, decoded once and held."""
        parts = self._parts(batch_size, share)
        if isinstance(self.store, MemoryStore):
            nothing = self.indices[:0]
            return Images(self.store, torch.cat([nothing, *parts]), self.preparation)
        size = self.preparation.config.image_size
        none = (torch.empty(0, self.store.channels, size, size, dtype=torch.uint8), self.labels[:0])
        read = list(self.store.read(parts, None)) or [none]
        pixels = torch.cat([pixels for pixels, _ in read])
        labels = torch.cat([labels.cpu() for _, labels in read])
        held = MemoryStore(pixels, labels, self.store.classes)
        return Images(held, torch.arange(len(labels)), self.preparation)

    def _parts(self, batch_size: int, share: Share) -> list[Tensor]:
        parts = [part for part in self.indices.split(batch_size) if len(part)]
        return parts[share.rank :: share.count]

    def _evaluated(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        for pixels, labels in self.store.read(parts, None):
            yield self.preparation.evaluation(pixels), labels


@dataclass(frozen=True, kw_only=True)
class TrainingLoader:
    """Shuffled, augmented batches that depend on the seed and the position alone.

    Any epoch can be started at any batch, so a resumed run sees what it would have seen. The last
    incomplete batch of an epoch is dropped. A share gets its part of every batch: all parts
    together are the batch of one process.
    """

    images: Images
    batch_size: int
    """Of all shares together."""
    seed: int
    share: Share = Share()

    def __post_init__(self) -> None:
        """Check that there is at least one batch, and that it can be shared."""
        size, count = self.batch_size, len(self.images)
        if count < size:
            raise ValueError(f"training.batch_size {size} exceeds the {count} training images")
        if size % self.share.count:
            raise ValueError(
                f"training.batch_size {size} cannot be shared by {self.share.count} processes"
            )

    @property
    def batches_per_epoch(self) -> int:
        """The number of gradient steps in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from the `start`-th on."""
        size, part = self.batch_size, self.batch_size // self.share.count
        own = slice(self.share.rank * part, (self.share.rank + 1) * part)
        shuffling = derived_generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.images), generator=shuffling)
        drawing = derived_generator(self.seed, "views", epoch)
        views = torch.randint(2**62, (len(self.images),), generator=drawing)
        steps = range(start, self.batches_per_epoch)
        positions = [order[step * size : (step + 1) * size][own] for step in steps]
        batches = [self.images.indices[each] for each in positions]
        seeds = [views[step * size : (step + 1) * size][own] for step in steps]
        read = self.images.store.read(batches, seeds)
        for step, (pixels, labels) in zip(steps, read, strict=True):
            generator = derived_generator(self.seed, "augmentation", epoch, step)
            yield self.images.preparation.training(pixels, generator, size, own), labels
