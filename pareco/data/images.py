"""Images of a data set: in memory, or in files, decoded once or whenever they are needed."""

from __future__ import annotations

import hashlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pareco.config import DataConfig
from pareco.data.decoding import MOST_DAMAGED, Decoded, Decoders
from pareco.data.sources import Source
from pareco.data.transforms import Preparation
from pareco.processes import Share

Batch = tuple[Tensor, Tensor]

_LOGGER = logging.getLogger("pareco.data")
_NAMED = 20
_DECODED_AT_ONCE = 256


class DamagedImages(RuntimeError):
    """More than 0.1% of a data set's training or test images cannot be read."""


class Store(ABC):
    """All images of a data set: those to learn from, then the test images it brings, if any."""

    def __init__(
        self, labels: Tensor, classes: tuple[str, ...], own_test: int, channels: int
    ) -> None:
        """Keep what all stores tell of their images."""
        self.labels = labels
        """The labels `n`, int64, on the CPU."""
        self.classes = classes
        """The names of the classes, in the order of their labels."""
        self.own_test = own_test
        """How many of the images, the last ones, are the data set's own test images."""
        self.channels = channels
        """The number of colour channels."""
        self.damaged: list[str] = []
        """Names of the images that this process could not read, and replaced by the next ones."""
        self.pause: Callable[[], None] = lambda: None
        """Called between images that are decoded to be held; what it raises ends that."""

    @abstractmethod
    def read(self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None) -> Iterator[Batch]:
        """Yield the pixels `b x c x h x w` (uint8) and labels `b` at each batch of indices.

        `seeds`, one for each image, decide how it is cropped and coloured for training; None
        gives what evaluation sees. Raises `DamagedImages` once too many cannot be read.
        """

    def close(self) -> None:
        """End the processes that decode; reading begins them again."""
        return

    def held(self, indices: Tensor) -> Store:
        """Return a store to be read at these indices `k`, sorted, alone: it decodes none twice."""
        return self

    @abstractmethod
    def fingerprint(self) -> str:
        """Return what tells this data set from others, wherever it lies: pixels, or names."""


class MemoryStore(Store):
    """Images `n x c x h x w` (uint8) and labels `n` (int64); nothing is decoded, or damaged."""

    def __init__(
        self, pixels: Tensor, labels: Tensor, classes: tuple[str, ...], own_test: int = 0
    ) -> None:
        """Keep the images; they are read on the device of their pixels."""
        super().__init__(labels, classes, own_test, pixels.shape[1])
        self.pixels = pixels

    def read(self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None) -> Iterator[Batch]:
        """Yield pixels and labels at each batch of indices; the seeds change nothing."""
        device = self.pixels.device
        for indices in batches:
            yield self.pixels[indices.to(device)], self.labels[indices].to(device)

    def fingerprint(self) -> str:
        """Return a SHA-256 of pixels, labels and classes."""
        digest = hashlib.sha256(self.pixels.cpu().contiguous().numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        digest.update(repr((tuple(self.pixels.shape), self.classes, self.own_test)).encode())
        return digest.hexdigest()


class FileStore(Store):
    """The images of a source, decoded anew each time that they are read."""

    def __init__(
        self, source: Source, config: DataConfig, workers: int, device: torch.device
    ) -> None:
        """Keep what decodes them, in so many processes, for this device."""
        super().__init__(torch.from_numpy(source.labels), source.classes, source.own_test, 3)
        self.source, self.config, self.workers, self.device = source, config, workers, device
        self._decoders = Decoders(source, config, workers, device)
        self.reasons: dict[int, str] = {}
        """Why images could not be read, by their index."""

    def read(self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None) -> Iterator[Batch]:
        """Yield pixels and labels at each batch of indices, on the device."""
        # A batch is one worker's; where there are few, all share each of them.
        parts = self.workers if 0 < len(batches) < self.workers else 1
        divided = [
            list(
                zip(indices.chunk(parts), own.chunk(parts) if seeds else repeat(None), strict=False)
            )
            for indices, own in zip(batches, seeds or batches, strict=True)
        ]
        decoded = self._decoders.decoded(list(chain.from_iterable(divided)))
        with closing(decoded):  # else an error that is kept would keep what is decoded ahead
            for batch in divided:
                yield self._batch([self._checked(next(decoded)) for _ in batch])

    def close(self) -> None:
        """End the processes that decode."""
        self._decoders.close()

    def held(self, indices: Tensor) -> DecodedStore:
        """Return a store that decodes these images once, when first read."""
        return DecodedStore(self, indices)

    def fingerprint(self) -> str:
        """Return a SHA-256 of names, labels, classes and sizes; wherever the files lie."""
        return f"{self.source.fingerprint()}-{self.config.image_size}-{self.config.central_crop}"

    def _batch(self, pieces: Sequence[Batch]) -> Batch:
        pixels = [each.to(self.device, non_blocking=True) for each, _ in pieces]
        labels = self.labels[torch.cat([indices for _, indices in pieces])]
        return torch.cat(pixels), labels.to(self.device)

    def _checked(self, piece: Decoded) -> Batch:
        """Return the pixels and indices of a piece; note and count what it could not read."""
        for index, reason in piece.damaged.items():
            if index not in self.reasons:
                self.reasons[index], name = reason, self.source.name(index)
                self.damaged.append(name)
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


class DecodedStore(Store):
    """Images of a file store, decoded once, when first read, and held."""

    def __init__(self, files: FileStore, needed: Tensor) -> None:
        """Hold the images at the indices `k`, sorted, that are needed."""
        super().__init__(files.labels, files.classes, files.own_test, files.channels)
        self.damaged = files.damaged
        self.pause = lambda: files.pause()  # that of then
        self._files, self._needed = files, needed

    @cached_property
    def memory(self) -> MemoryStore:
        """The images that are needed, decoded, in their order."""
        count, size, device = len(self._needed), self._files.config.image_size, self._files.device
        pixels = torch.empty(count, self.channels, size, size, dtype=torch.uint8, device=device)
        labels = torch.empty_like(self._needed)
        places = range(0, count, _DECODED_AT_ONCE)
        parts = [self._needed[place : place + _DECODED_AT_ONCE] for place in places]
        shown = track(
            zip(places, self._files.read(parts, None), strict=True),
            "decoding images",
            len(parts),
            console=Console(stderr=True),
            transient=True,
            disable=not sys.stderr.isatty(),
        )
        for place, (some, theirs) in shown:
            self.pause()
            pixels[place : place + len(some)] = some
            labels[place : place + len(some)] = theirs.cpu()
        if self._files.config.in_memory:  # so nothing else is read
            self._files.close()
        return MemoryStore(pixels, labels, self.classes)

    def close(self) -> None:
        """End the processes that decode."""
        self._files.close()

    def read(self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None) -> Iterator[Batch]:
        """Yield pixels and labels at each batch of indices, as evaluation sees them."""
        return self.memory.read([self._places(indices) for indices in batches], None)

    def _places(self, indices: Tensor) -> Tensor:
        """Return where images are in memory. Raises `IndexError` for one that is not needed."""
        places = torch.searchsorted(self._needed, indices)
        if not torch.equal(self._needed[places.clamp(max=len(self._needed) - 1)], indices):
            raise IndexError("images are read that are not held")
        return places

    def fingerprint(self) -> str:
        """Return that of the files."""
        return self._files.fingerprint()


@dataclass(frozen=True)
class Images:
    """The images of a store at some indices, and how they are prepared for a network."""

    store: Store
    indices: Tensor
    preparation: Preparation

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.indices)

    def subset(self, positions: Sequence[int] | Tensor) -> Images:
        """Return the images at these positions among these."""
        return replace(self, indices=self.indices[torch.as_tensor(positions, dtype=torch.int64)])

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
        indices = torch.cat([self.indices[:0], *self._parts(batch_size, share)])
        return replace(self, store=self.store.held(indices.unique()), indices=indices)

    def _parts(self, batch_size: int, share: Share) -> list[Tensor]:
        parts = [part for part in self.indices.split(batch_size) if len(part)]
        return parts[share.rank :: share.count]

    def _evaluated(self, parts: Sequence[Tensor]) -> Iterator[Batch]:
        for pixels, labels in self.store.read(parts, None):
            yield self.preparation.evaluation(pixels), labels
