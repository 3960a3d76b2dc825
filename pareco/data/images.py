"""Where the pixels of a data set are: in memory, or in files, decoded once or whenever needed."""

from __future__ import annotations

import hashlib
import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol, TypeVar

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
from torch import Tensor

from pareco.config import DataConfig
from pareco.data.decoding import MOST_DAMAGED, Decoded, decoded_pieces
from pareco.data.sources import Source
from pareco.data.transforms import Views


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


_LOGGER = logging.getLogger("pareco.data")
_T = TypeVar("_T")
_PROCESSOR = torch.device("cpu").type
_NAMED = 20
_DECODED_AT_ONCE = 256
_SECONDS_WITHOUT_PROGRESS = 2.0


class DamagedImages(RuntimeError):
    """More than 0.1% of a data set's training or test images cannot be read."""


@dataclass(frozen=True)
class FileStore:
    """The images of a source, decoded anew each time that they are read."""

    source: Source
    config: DataConfig
    workers: int
    device: torch.device
    reasons: dict[int, str] = field(default_factory=dict)
    """Why images could not be read, by their index."""

    channels = 3

    @property
    def labels(self) -> Tensor:
        """The labels `n`, int64."""
        return torch.from_numpy(self.source.labels)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.source.classes

    @property
    def own_test(self) -> int:
        """The number of test images that the data set brings."""
        return self.source.own_test

    @property
    def damaged(self) -> list[str]:
        """Names of the images that could not be read."""
        return [self.source.name(index) for index in self.reasons]

    def read(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels at each batch of indices, on the device.

        Raises `DamagedImages` once too many cannot be read.
        """
        drawn = seeds or [None] * len(batches)
        # A batch is one worker's; where there are few, all share each of them.
        parts = self.workers if 0 < len(batches) < self.workers else 1
        divided = [_divided(*each, parts) for each in zip(batches, drawn, strict=True)]
        pieces = [piece for batch in divided for piece in batch]
        views, accelerated = Views(self.config), self.device.type != _PROCESSOR
        decoded = decoded_pieces(self.source, views, pieces, self.workers, accelerated)
        for batch in divided:
            yield self._batch([self._checked(next(decoded)) for _ in batch])

    def only(self, indices: Tensor) -> FileStore:
        """Return the store itself: nothing is decoded before it is read."""
        return self

    def fingerprint(self) -> str:
        """Return a SHA-256 of names, labels, classes and sizes; wherever the files lie."""
        size, crop = self.config.image_size, self.config.central_crop
        return f"{self.source.fingerprint()}-{size}-{crop}"

    def _batch(self, pieces: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
        pixels = [each.to(self.device, non_blocking=True) for each, _ in pieces]
        labels = self.labels[torch.cat([indices for _, indices in pieces])]
        return torch.cat(pixels), labels.to(self.device)

    def _checked(self, piece: Decoded) -> tuple[Tensor, Tensor]:
        """Return the pixels and indices of a piece; note and count what it could not read."""
        for index, reason in piece.damaged.items():
            if index not in self.reasons:
                self.reasons[index] = reason
                name = self.source.name(index)
                _LOGGER.warning("cannot read %s (%s): the next image stands in", name, reason)
        for part in {self.source.part_of(index) for index in piece.damaged}:
            bad = [index for index in self.reasons if index in part]
            if len(bad) > MOST_DAMAGED * len(part):
                raise DamagedImages(self._complaint(bad, len(part)))
        assert piece.pixels is not None  # as there are few damaged images
        return piece.pixels, piece.indices

    def _complaint(self, bad: Sequence[int], count: int) -> str:
        shown = [f"{self.source.name(index)} ({self.reasons[index]})" for index in bad[:_NAMED]]
        more = f"\n  and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        return (
            f"at least {len(bad)} of {count} images cannot be read, more than {MOST_DAMAGED:.1%}; "
            "get these files anew:\n  " + "\n  ".join(shown) + more
        )


@dataclass(frozen=True)
class DecodedStore:
    """The images of a file store that are needed, decoded once, when first read, and held.

    `only` says which.
    """

    files: FileStore
    needed: Tensor = field(default_factory=lambda: torch.arange(0))
    """The indices `k`, sorted, of the images that are read."""

    channels = FileStore.channels

    def __post_init__(self) -> None:
        """Raise `ValueError`, naming the field, if memory cannot hold the images."""
        needed = len(self.needed) * self.channels * self.files.config.image_size**2
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if needed > memory:
            raise ValueError(
                f"data.in_memory: {len(self.needed)} images of data.image_size "
                f"{self.files.config.image_size} take {needed / 2**30:.0f} GiB, more than this "
                "machine's memory; set in_memory=False"
            )

    @property
    def labels(self) -> Tensor:
        """The labels `n`, int64, as the files say."""
        return self.files.labels

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return self.files.classes

    @property
    def own_test(self) -> int:
        """The number of test images that the data set brings."""
        return self.files.own_test

    @property
    def damaged(self) -> list[str]:
        """Names of the images that could not be read."""
        return self.files.damaged

    @cached_property
    def memory(self) -> MemoryStore:
        """The images that are needed, decoded, in their order."""
        size, device = self.files.config.image_size, self.files.device
        shape = (len(self.needed), self.channels, size, size)
        pixels = torch.empty(shape, dtype=torch.uint8, device=device)
        labels = torch.empty_like(self.needed)
        parts = self.needed.split(_DECODED_AT_ONCE)
        read = with_progress(self.files.read(parts, None), len(parts))
        for number, (some, theirs) in enumerate(read):
            place = slice(number * _DECODED_AT_ONCE, number * _DECODED_AT_ONCE + len(some))
            pixels[place], labels[place] = some, theirs.cpu()
        return MemoryStore(pixels, labels, self.classes)

    def read(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels at each batch of indices, on the device."""
        return self.memory.read([self._places(indices) for indices in batches], seeds)

    def _places(self, indices: Tensor) -> Tensor:
        """Return where images are in memory. Raises `IndexError` for one that is not needed."""
        places = torch.searchsorted(self.needed, indices)
        if not torch.equal(self.needed[places.clamp(max=len(self.needed) - 1)], indices):
            raise IndexError("images are read that `only` left out")
        return places

    def only(self, indices: Tensor) -> DecodedStore:
        """Return a store that decodes these images alone."""
        return replace(self, needed=indices)

    def fingerprint(self) -> str:
        """Return that of the files."""
        return self.files.fingerprint()


def with_progress(items: Iterable[_T], total: int) -> Iterator[_T]:
    """Yield the items; show a bar on a terminal's stderr once it takes long."""
    console = Console(stderr=True)
    columns = ("decoding images", BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
    task = bar.add_task("", total=total)
    begun, shown = time.monotonic(), False
    try:
        for item in items:
            yield item
            bar.advance(task)
            if not shown and time.monotonic() - begun > _SECONDS_WITHOUT_PROGRESS:
                shown = True
                bar.start()
    finally:
        if shown:
            bar.stop()


def _divided(
    indices: Tensor, seeds: Tensor | None, parts: int
) -> list[tuple[Tensor, Tensor | None]]:
    """Return a batch in `parts` parts at most, for as many workers."""
    some_seeds = [None] * parts if seeds is None else seeds.chunk(parts)
    return list(zip(indices.chunk(parts), some_seeds, strict=False))
