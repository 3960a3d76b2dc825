"""Random generators derived from a seed and a purpose, so that no two uses share a stream."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of the purpose."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for this purpose; equal arguments give equal streams."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))


@contextmanager
def seeded_globally(seed: int, *purpose: str | int, device: torch.device) -> Iterator[None]:
    """Seed torch's global streams inside the block, for layers that draw from them.

    Such are initial weights and dropout. Afterwards the streams of the CPU and of `device` go on as
    if nothing had been drawn.
    """
    accelerators = [] if device.type == "cpu" else [device]
    kind = "cuda" if device.type == "cpu" else device.type
    with torch.random.fork_rng(devices=accelerators, device_type=kind):
        seeded = torch.manual_seed if accelerators else torch.default_generator.manual_seed
        seeded(derived_seed(seed, *purpose))
        yield


@contextmanager
def global_streams_kept() -> Iterator[Callable[[], bool]]:
    """Put back the global streams of Python, NumPy and torch's CPU after the block.

    The value is a function that returns whether numbers have been drawn inside so far.
    """
    python, torch_cpu = random.getstate(), torch.get_rng_state()
    numpy = np.random.get_state()  # noqa: NPY002 - the stream that others draw from

    def drawn() -> bool:
        now: Any = np.random.get_state()  # noqa: NPY002
        same = python == random.getstate() and torch.equal(torch_cpu, torch.get_rng_state())
        return not (same and all(map(np.array_equal, numpy, now)))

    try:
        yield drawn
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(torch_cpu)


def seed_global_streams(seed: int) -> None:
    """Seed the global streams of Python, NumPy and torch's CPU, for modules that draw from them."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    torch.default_generator.manual_seed(seed)
