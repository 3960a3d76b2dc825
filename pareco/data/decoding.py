"""Decoding images of a source, in processes of their own or in this one."""

from __future__ import annotations

import io
import os
import pickle
import signal
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import islice, repeat
from multiprocessing import parent_process
from multiprocessing.util import Finalize
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.multiprocessing  # so that tensors travel between processes in shared memory
from torch import Tensor
from torch.utils.data import Dataset

from pareco.config import DataConfig
from pareco.data.sources import Source
from pareco.data.transforms import view
from pareco.processes import worker_context

_MOST_DAMAGED = 0.001
_ALWAYS_ALLOWED = 3

_AHEAD = 2  # pieces for each worker


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


Piece = tuple[Tensor, Tensor | None]  # indices, and seeds of their views, if they have any


class Decoders:
    """Decodes images of a source, in so many worker processes, or without any in this one.

    The workers begin when they are first needed and stay until `close`. They come from a fork
    server: this process may hold threads and an accelerator, which no fork survives. The source is
    sent to each of them once.
    """

    def __init__(
        self, source: Source, config: DataConfig, workers: int, device: torch.device
    ) -> None:
        """Keep what is needed to begin; for an accelerator, memory is pinned."""
        self._pieces, self._workers, self._device = _Pieces(source, config), workers, device
        self._finish: Callable[[], object] = lambda: None

    @cached_property
    def _executor(self) -> ProcessPoolExecutor:
        executor = ProcessPoolExecutor(
            self._workers,
            worker_context(__name__),
            initializer=_begin_worker,
            initargs=([_sent(self._pieces)],),
        )
        end = partial(executor.shutdown, wait=True, cancel_futures=True)
        # Before multiprocessing waits for its children, which would never end by themselves.
        self._finish = Finalize(self, end, exitpriority=100)
        return executor

    @cached_property
    def _pinning(self) -> ThreadPoolExecutor:
        index = self._device.index or torch.accelerator.current_device_index()
        return ThreadPoolExecutor(1, "pinning", torch.accelerator.set_device_index, (index,))

    def decoded(self, pieces: Sequence[Piece]) -> Generator[Decoded, None, None]:
        """Yield the images at the indices of each piece, in the views of its seeds, if it has any.

        Each piece is decoded by one of the worker processes, ahead of its use. Several readings may
        be under way at a time. Raises `ChildProcessError` if a worker is killed.
        """
        if not self._workers:
            yield from (self._pieces[_keys(piece)] for piece in pieces)
            return
        waiting, ahead = iter(pieces), deque[Future[Decoded]]()
        try:
            while True:
                for piece in islice(waiting, _AHEAD * self._workers - len(ahead)):
                    ahead.append(self._begun(piece))
                if not ahead:
                    return
                yield ahead.popleft().result()
        except BrokenProcessPool as error:
            self.close()
            raise ChildProcessError(
                "a process that decodes images was killed (out of memory?): the same command goes "
                "on from the last checkpoint; fewer --decoding-workers take less memory"
            ) from error
        finally:
            for each in ahead:
                each.cancel()

    def _begun(self, piece: Piece) -> Future[Decoded]:
        future = self._executor.submit(_decoded, _keys(piece))
        if self._device.type == "cpu":
            return future
        return self._pinning.submit(lambda: _pinned(future.result()))

    def close(self) -> None:
        """End the workers; they begin again when they are needed."""
        self._finish()
        for name in ("_executor", "_pinning"):
            vars(self).pop(name, None)


def _keys(piece: Piece) -> list[tuple[int, int | None]]:
    at, seeds = piece
    return [*zip(at.tolist(), repeat(None) if seeds is None else seeds.tolist(), strict=False)]


def _pinned(decoded: Decoded) -> Decoded:
    pixels = decoded.pixels
    return decoded if pixels is None else decoded._replace(pixels=pixels.pin_memory())


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


_of_this_worker: list[_Pieces] = []


def _begin_worker(sent: list[bytes]) -> None:
    """Take what decodes; end with the parent, but leave signals to it: it ends a step and saves."""
    for each in (signal.SIGTERM, signal.SIGINT):
        signal.signal(each, signal.SIG_IGN)
    parent = parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    _of_this_worker.append(_Received(io.BytesIO(sent.pop())).load())


def _decoded(keys: list[tuple[int, int | None]]) -> Decoded:
    return _of_this_worker[0][keys]


class _Packed:
    """Many texts, or pairs of a text and a number, in little memory."""

    def __init__(self, items: Sequence[str] | Sequence[tuple[str, int]]) -> None:
        pairs = isinstance(items[0], tuple)
        texts = [each[0] for each in items] if pairs else items
        encoded = [each.encode(errors="surrogateescape") for each in cast("list[str]", texts)]
        self._text = b"".join(encoded)
        self._ends = np.cumsum([0, *map(len, encoded)])
        self._numbers = np.array([each[1] for each in items]) if pairs else None

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, index: int) -> str | tuple[str, int]:
        index = range(len(self))[index]
        text = self._text[self._ends[index] : self._ends[index + 1]]
        name = text.decode(errors="surrogateescape")
        return name if self._numbers is None else (name, int(self._numbers[index]))


_MANY = 10_000


class _Sending(pickle.Pickler):
    """Packs long lists of names: a million take a worker seconds to read and 500 MB to hold."""

    def persistent_id(self, obj: Any) -> _Packed | None:
        """Return what stands in for a list; None for all that is sent as it is."""
        if type(obj) not in (list, tuple) or len(obj) < _MANY:
            return None
        texts = all(type(each) is str for each in obj)
        pairs = all(type(each) is tuple and [*map(type, each)] == [str, int] for each in obj)
        return _Packed(obj) if texts or pairs else None


class _Received(pickle.Unpickler):
    def persistent_load(self, pid: _Packed) -> _Packed:
        return pid


def _sent(pieces: _Pieces) -> bytes:
    file = io.BytesIO()
    _Sending(file, pickle.HIGHEST_PROTOCOL).dump(pieces)
    return file.getvalue()
