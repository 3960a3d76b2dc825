"""Decoding images of a source, in processes of their own or in this one."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pareco.data.sources import Source
from pareco.data.transforms import Views

MOST_DAMAGED = 0.001

# The index of a large data set is not copied to a process that is forked, and it starts at once;
# elsewhere (macOS) forking is unsafe. Python's own default depends on its version.
_START_METHOD = "fork" if sys.platform == "linux" else None

Key = tuple[int, int | None]


@dataclass(frozen=True)
class Decoded:
    """Some images: pixels `b x c x h x w`, the indices `b` of those seen, reasons of the damaged.

    `pixels` is None where too many images in a row were damaged.
    """

    pixels: Tensor | None
    indices: Tensor
    damaged: dict[int, str]


def decoded_pieces(
    source: Source,
    views: Views,
    pieces: Sequence[tuple[Tensor, Tensor | None]],
    workers: int,
    pin_memory: bool,
) -> Iterator[Decoded]:
    """Yield the images at the indices of each piece, in the views of its seeds, if it has any.

    Each piece is decoded by one of the worker processes, ahead of its use; without any, in this
    process.
    """
    several = min(workers, len(pieces))
    source.close()  # processes must not share its files
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than processors
        loader = DataLoader(
            _Images(source, views),
            batch_sampler=_Keys(pieces),
            num_workers=several,
            collate_fn=_joined,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            multiprocessing_context=_START_METHOD if several else None,
            generator=torch.Generator(),  # else it draws from the global stream
        )
        decoded = iter(loader)
    try:
        for pixels, indices, damaged in decoded:
            yield Decoded(pixels, indices, damaged)
    finally:
        source.close()


@dataclass(frozen=True)
class _Keys:
    """The keys of the images in each piece."""

    pieces: Sequence[tuple[Tensor, Tensor | None]]

    def __len__(self) -> int:
        return len(self.pieces)

    def __iter__(self) -> Iterator[list[Key]]:
        for indices, seeds in self.pieces:
            drawn = [None] * len(indices) if seeds is None else seeds.tolist()
            yield list(zip(indices.tolist(), drawn, strict=True))


@dataclass(frozen=True)
class _Images(Dataset[Any]):
    """Decodes the image of a key; in place of a damaged one, the next of the same split."""

    source: Source
    views: Views

    def __getitem__(self, key: Key) -> tuple[Tensor | None, int, dict[int, str]]:
        index, seed = key
        damaged: dict[int, str] = {}
        part = self.source.part_of(index)
        for candidate in chain(range(index, part.stop), range(part.start, index)):
            try:
                return self._pixels(candidate, seed), candidate, damaged
            except MemoryError:
                raise
            except Exception as error:  # decoders raise anything on damaged bytes
                damaged[candidate] = f"{type(error).__name__}: {error}"
                if len(damaged) > MOST_DAMAGED * len(part):
                    break
        return None, index, damaged

    def _pixels(self, index: int, seed: int | None) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on metadata, palettes and huge images
            return self.views.pixels(self.source.image(index), seed)


def _joined(
    images: Sequence[tuple[Tensor | None, int, dict[int, str]]],
) -> tuple[Tensor | None, Tensor, dict[int, str]]:
    pixels = [each for each, _, _ in images if each is not None]
    damaged = {index: reason for _, _, bad in images for index, reason in bad.items()}
    complete = torch.stack(pixels) if len(pixels) == len(images) else None
    return complete, torch.tensor([index for _, index, _ in images]), damaged


def _begin_worker(number: int) -> None:
    """Leave signals to the main process: it still needs images to end a step and save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
