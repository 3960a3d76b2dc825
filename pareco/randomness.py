"""Random generators derived from a seed and a purpose, so that no two uses share a stream."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

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
        torch.manual_seed(derived_seed(seed, *purpose))
        yield
