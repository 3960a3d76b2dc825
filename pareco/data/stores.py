"""Where the pixels of a data set are: in memory, or in files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Protocol

import torch
from torch import Tensor


class Store(Protocol):
    """All images of a data set: those to learn from, then the test images it brings, if any."""

    @property
    def labels(self) -> Tensor:
        """The labels `n`, int64, on the CPU."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        ...

    @property
    def channels(self) -> int:
        """The number of colour channels."""
        ...

    @property
    def own_test(self) -> int:
        """How many of the images, the last ones, are the data set's own test images."""
        ...

    @property
    def damaged(self) -> list[str]:
        """Names of the images that this process could not read, and replaced by the next ones."""
        ...

    def read(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the pixels `b x c x h x w` (uint8) and labels `b` at each batch of indices.

        `seeds`, one for each image, decide how it is cropped and coloured for training; None
        gives what evaluation sees.
        """
        ...

    def only(self, indices: Tensor) -> Store:
        """Return a store of the same indices that is read at these alone, sorted `k`."""
        ...

    def fingerprint(self) -> str:
        """Return what tells this data set from others, wherever it lies: pixels, or names."""
        ...


@dataclass(frozen=True)
class MemoryStore:
    """Images `n x c x h x w` (uint8) and labels `n` (int64); in training nothing is decoded."""

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    own_test: int = 0
    damaged: list[str] = field(default_factory=list)

    @property
    def channels(self) -> int:
        """The number of colour channels."""
        return self.pixels.shape[1]

    def read(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels at each batch of indices, on the device of the pixels."""
        device = self.pixels.device
        for indices in batches:
            yield self.pixels[indices.to(device)], self.labels[indices].to(device)

    def only(self, indices: Tensor) -> MemoryStore:
        """Return the store itself: the others cost nothing more."""
        return self

    def to(self, device: torch.device) -> MemoryStore:
        """Return the same images with their pixels on this device."""
        return replace(self, pixels=self.pixels.to(device))

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels, labels and classes."""
        digest = hashlib.sha256(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        digest.update(repr((tuple(self.pixels.shape), self.classes, self.own_test)).encode())
        return digest.hexdigest()
