"""Decoding images of a source, in processes of their own or in this one."""

from __future__ import annotations

import signal
import sys
import warnings
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pareco.config import DataConfig
from pareco.data.sources import Source
from pareco.data.transforms import view

_MOST_DAMAGED = 0.001
_ALWAYS_ALLOWED = 3

# The index of a large data set is not copied to a process that is forked, and it starts at once;
# elsewhere (macOS) forking is unsafe. Python's own default depends on its version.
_START_METHOD = "fork" if sys.platform == "linux" else None


def most_damaged(images: int) -> int:
    """Return how many images of a split of so many may be damaged: 0.1%, or three if that is more.

    Few of them may be bad luck; many mean that the files are not what they should be.
    """
    return max(_ALWAYS_ALLOWED, int(_MOST_DAMAGED * images))


class Decoded(NamedTuple):
    """Some images: pixels `b x c x h x w`, the indices `b` of those seen, reasons of the damaged.

    `pixels` is None where too many images of a split were damaged, or all.
    """

    pixels: Tensor | None
    indices: Tensor
    damaged: dict[int, str]


def decoded_pieces(
    source: Source,
    config: DataConfig,
    pieces: Sequence[tuple[Tensor, Tensor | None]],
    workers: int,
    pin_memory: bool,
) -> Generator[Decoded, None, None]:
    """Yield the images at the indices of each piece, in the views of its seeds, if it has any.

    Each piece is decoded by one of the worker processes, ahead of its use; without any, in this
    process.
    """
    several = min(workers, len(pieces))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "This DataLoader will create")  # more than processors
        loader = DataLoader(
            _Pieces(source, config),
            batch_size=None,
            sampler=(
                [*zip(at.tolist(), repeat(None) if seeds is None else seeds.tolist(), strict=False)]
                for at, seeds in pieces
            ),
            num_workers=several,
            pin_memory=pin_memory,
            worker_init_fn=_begin_worker,
            multiprocessing_context=_START_METHOD if several else None,
            generator=torch.Generator(),  # else it draws from the global stream
        )
        decoded = iter(loader)
    yield from decoded


@dataclass(frozen=True)
class _Pieces(Dataset[Decoded]):
    """Decodes images; in place of a damaged one, the next of the same split."""

    source: Source
    config: DataConfig

    def __getitem__(self, keys: list[tuple[int, int | None]]) -> Decoded:
        damaged: dict[int, str] = {}
        found = [self._nearest(index, seed, damaged) for index, seed in keys]
        pixels = [each for each, _ in found if each is not None]
        complete = torch.stack(pixels) if len(pixels) == len(found) else None
        return Decoded(complete, torch.tensor([index for _, index in found]), damaged)

    def _nearest(
        self, index: int, seed: int | None, damaged: dict[int, str]
    ) -> tuple[Tensor | None, int]:
        """Return the first image from the index on that is whole, and where it is; note others."""
        split = self.source.split_of(index)
        start = int(np.searchsorted(split, index))
        for step in range(len(split)):
            candidate = int(split[(start + step) % len(split)])
            try:
                return self._pixels(candidate, seed), candidate
            except MemoryError:
                raise
            except Exception as error:  # decoders raise anything on damaged bytes
                damaged[candidate] = f"{type(error).__name__}: {error}"
                bad = sum(self.source.split_of(each) is split for each in damaged)
                if bad > most_damaged(len(split)):
                    break
        return None, index

    def _pixels(self, index: int, seed: int | None) -> Tensor:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, on metadata, palettes and huge images
            return view(self.source.image(index), seed, self.config)


def _begin_worker(number: int) -> None:
    """Leave signals to the main process: it still needs images to end a step and save."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
