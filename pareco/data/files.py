"""Images that are decoded from files, by processes of their own, whenever they are needed."""

from __future__ import annotations

import logging
import signal
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pareco.config import DataConfig
from pareco.data.sources import Source
from pareco.data.stores import MemoryStore
from pareco.data.views import Views

_LOGGER = logging.getLogger(__name__)
_MOST_DAMAGED = 0.001
_NAMED = 20
_DECODED_AT_ONCE = 250

Key = tuple[int, int | None]
Piece = tuple[Tensor, Tensor, list[str]]


class DamagedImages(RuntimeError):
    """More images than 0.1% of a data set's part cannot be read."""


@dataclass(frozen=True)
class FileStore:
    """The images of a source, decoded anew each time that they are read."""

    source: Source
    config: DataConfig
    workers: int
    device: torch.device
    damaged: list[str] = field(default_factory=list)

    channels = 3

    @cached_property
    def labels(self) -> Tensor:
        """The labels `n`, int64."""
        return torch.from_numpy(self.source.labels.astype(np.int64))

    @property
    def own_test(self) -> int:
        """The number of test images that the data set brings."""
        return self.source.own_test

    def read(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels at each batch of indices, on the device.

        Raises `DamagedImages` once too many cannot be read.
        """
        if not batches:
            return
        few = len(batches) <= self.workers
        pieces = _Pieces(batches, seeds, per_batch=self.workers if few else 1)
        accelerated = self.device.type != "cpu"
        loader = DataLoader(
            _Decoded(self.source, self.config),
            batch_sampler=pieces,
            num_workers=min(self.workers, len(pieces)),
            collate_fn=_joined,
            pin_memory=accelerated,
            worker_init_fn=_begin_worker,
        )
        read = iter(loader)
        for count in pieces.counts:
            pixels, labels = [], []
            for _ in range(count):
                some_pixels, some_labels, bad = next(read)
                self._note(bad)
                pixels.append(some_pixels.to(self.device, non_blocking=True))
                labels.append(some_labels.to(self.device, non_blocking=True))
            yield torch.cat(pixels), torch.cat(labels)

    def fingerprint(self) -> str:
        """Return a SHA-256 of names, labels and classes; where the files lie plays no part."""
        return self.source.fingerprint()

    def _note(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in self.damaged:
                self.damaged.append(name)
                _LOGGER.warning("cannot read %s: the next image stands in", name)
        if len(self.damaged) > _MOST_DAMAGED * len(self.labels):
            shown = ", ".join(self.damaged[:_NAMED])
            more = f" and {len(self.damaged) - _NAMED} more" if len(self.damaged) > _NAMED else ""
            raise DamagedImages(
                f"{len(self.damaged)} of {len(self.labels)} images cannot be read, more than "
                f"{_MOST_DAMAGED:.1%}: {shown}{more}. Get these files anew"
            )


@dataclass(frozen=True)
class DecodedStore:
    """The images of a file store, all decoded once, when first read, and held on the device."""

    files: FileStore

    channels = FileStore.channels

    @property
    def labels(self) -> Tensor:
        """The labels `n`, int64, as the files say."""
        return self.files.labels

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
        """All images, decoded."""
        parts = list(torch.arange(len(self.labels)).split(_DECODED_AT_ONCE))
        _LOGGER.info("decoding %d images into memory", len(self.labels))
        read = list(self.files.read(parts, None))
        pixels, labels = (torch.cat(tensors) for tensors in zip(*read, strict=True))
        return MemoryStore(pixels, labels.cpu(), self.own_test)

    def read(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield pixels and labels at each batch of indices, on the device."""
        return self.memory.read(batches, seeds)

    def fingerprint(self) -> str:
        """Return that of the files."""
        return self.files.fingerprint()


class _Pieces:
    """Keys of the images to decode, in pieces, each of them one worker's at a time."""

    def __init__(
        self, batches: Sequence[Tensor], seeds: Sequence[Tensor] | None, per_batch: int
    ) -> None:
        self._batches, self._seeds = batches, seeds
        self._per_batch = max(per_batch, 1)
        self.counts = [len(batch.chunk(self._per_batch)) for batch in batches]

    def __len__(self) -> int:
        return sum(self.counts)

    def __iter__(self) -> Iterator[list[Key]]:
        for number, batch in enumerate(self._batches):
            seeds = None if self._seeds is None else self._seeds[number].tolist()
            keys = list(zip(batch.tolist(), seeds or [None] * len(batch), strict=True))
            size = -(-len(keys) // self._per_batch)
            for start in range(0, len(keys), size):
                yield keys[start : start + size]


class _Decoded(Dataset[Any]):
    """Decodes one image for each key; what cannot be read is replaced by the next one."""

    def __init__(self, source: Source, config: DataConfig) -> None:
        self._source, self._views = source, Views(config)

    def __getitem__(self, key: Key) -> tuple[Tensor, int, list[str]]:
        index, seed = key
        bad: list[str] = []
        part = self._source.part_of(index)
        for candidate in (*range(index, part.stop), *range(part.start, index)):
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # Pillow's on metadata and huge images
                    pixels = self._views.pixels(self._source.image(candidate), seed)
                return pixels, int(self._source.labels[candidate]), bad
            except Exception:  # whatever a decoder makes of damaged bytes
                bad.append(self._source.name(candidate))
                if len(bad) > max(_NAMED, _MOST_DAMAGED * len(part)):
                    break
        raise DamagedImages(f"{len(bad)} images in a row cannot be read: {', '.join(bad[:_NAMED])}")


def _joined(items: Sequence[tuple[Tensor, int, list[str]]]) -> Piece:
    pixels, labels, bad = zip(*items, strict=True)
    return torch.stack(pixels), torch.tensor(labels), [name for names in bad for name in names]


def _begin_worker(number: int) -> None:
    """Let a terminal's interrupt reach the main process alone, and SIGTERM end this one."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
