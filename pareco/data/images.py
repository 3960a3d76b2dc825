"""Images of a data set: in memory, or in files, decoded once or whenever they are needed."""

from __future__ import annotations

import hashlib
import logging
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import chain, repeat

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from pareco.config import DataConfig
from pareco.data.decoding import Decoded, Decoders, most_damaged
from pareco.data.pixels import RULES
from pareco.data.sources import LeftOut, Source
from pareco.data.transforms import Preparation, sent
from pareco.processes import Processes, Share

Batch = tuple[Tensor, Tensor]

_LOGGER = logging.getLogger("pareco.data")
_NAMED = 20
_DECODED_AT_ONCE = 256


class DamagedImages(RuntimeError):
    """More than 0.1% of the images of a split, and more than three, cannot be read, or none can."""


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
        self.reasons: dict[int, str] = {}
        """Why images could not be read, and the next ones of their split stand in, by index."""
        self._told = 0
        self.left_out: tuple[LeftOut, ...] = ()
        """What lies among the images and is not read."""
        self.pause: Callable[[], None] = lambda: None
        """Called between images that are decoded to be held; what it raises ends that."""

    @property
    def untold(self) -> int:
        """How many images could not be read since all processes knew of the same ones."""
        return len(self.reasons) - self._told

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

    def divided(self, splits: Sequence[np.ndarray]) -> Store:
        """Return a store in which a damaged image is replaced within its split.

        `splits` are sorted indices; an image is of the first that it is in.
        """
        return self

    def learn(self, reasons: Mapping[int, str]) -> None:
        """Take up images that another process, or an earlier one, could not read.

        Raises `DamagedImages` if these are too many.
        """
        self.reasons.update(
            {each: why for each, why in reasons.items() if each not in self.reasons}
        )

    def tell(self, processes: Processes) -> None:
        """Let all processes, which call this alike, know of the images that any could not read.

        Raises `DamagedImages` in all of them if these are too many.
        """
        for theirs in processes.everyones(self.reasons):
            self.learn(theirs)
        self._told = len(self.reasons)

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
            yield self.pixels[sent(indices, device)], sent(self.labels[indices], device)

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
        self.left_out = source.left_out
        self._decoders = Decoders(source, config, workers, device)

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

    def divided(self, splits: Sequence[np.ndarray]) -> FileStore:
        """Return a store in which a damaged image is replaced within its split."""
        return FileStore(self.source.divided(splits), self.config, self.workers, self.device)

    def learn(self, reasons: Mapping[int, str]) -> None:
        """Take up images that another process, or an earlier one, could not read.

        Raises `DamagedImages` if these are too many.
        """
        super().learn(reasons)
        self._check(reasons)

    def close(self) -> None:
        """End the processes that decode."""
        self._decoders.close()

    def held(self, indices: Tensor) -> DecodedStore:
        """Return a store that decodes these images once, when first read."""
        return DecodedStore(self, indices)

    def fingerprint(self) -> str:
        """Return a SHA-256 of names, labels, classes and sizes; wherever the files lie."""
        seen = f"{self.config.image_size}-{self.config.central_crop}-{RULES}"
        return f"{self.source.fingerprint()}-{seen}"

    def _batch(self, pieces: Sequence[Batch]) -> Batch:
        pixels = [sent(each, self.device) for each, _ in pieces]
        labels = self.labels[torch.cat([indices for _, indices in pieces])]
        return torch.cat(pixels), sent(labels, self.device)

    def _checked(self, piece: Decoded) -> Batch:
        """Return the pixels and indices of a piece; note and count what it could not read."""
        for index, reason in piece.damaged.items():
            if index not in self.reasons:
                self.reasons[index], name = reason, self.source.name(index)
                _LOGGER.warning("cannot read %s (%s): the next image stands in", name, reason)
        self._check(piece.damaged, all_are=piece.pixels is None)
        assert piece.pixels is not None  # as there are few damaged images
        return piece.pixels, piece.indices

    def _check(self, indices: Iterable[int], *, all_are: bool = False) -> None:
        """Raise `DamagedImages` if too many are damaged in the splits of these images, or all."""
        for split in {id(each): each for each in map(self.source.split_of, indices)}.values():
            bad = [index for index in self.reasons if self.source.split_of(index) is split]
            if all_are or len(bad) > most_damaged(len(split)):
                raise DamagedImages(self._complaint(bad, len(split)))

    def _complaint(self, bad: Sequence[int], count: int) -> str:
        shown = [f"{self.source.name(index)} ({self.reasons[index]})" for index in bad[:_NAMED]]
        more = f"\n  and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
        return (
            f"at least {len(bad)} of {count} images cannot be read, {most_damaged(count)} may be "
            "damaged; get these files anew:\n  " + "\n  ".join(shown) + more
        )


class DecodedStore(Store):
    """Images of a file store, decoded once, when first read, and held."""

    def __init__(self, files: FileStore, needed: Tensor) -> None:
        """Hold the images at the indices `k`, sorted, that are needed."""
        super().__init__(files.labels, files.classes, files.own_test, files.channels)
        self.pause = lambda: files.pause()  # that of then
        self._files, self._needed = files, needed
        self.reasons = files.reasons

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

    def learn(self, reasons: Mapping[int, str]) -> None:
        """Take up images that another process, or an earlier one, could not read."""
        self._files.learn(reasons)

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
