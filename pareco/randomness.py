"""Random generators derived from a seed and a purpose, so that no two uses share a stream."""

from __future__ import annotations

import hashlib

import torch


def derived_seed(seed: int, *purpose: str | int) -> int:
    """Return a 63-bit seed that depends on `seed` and every part of the purpose."""
    text = "/".join(map(str, (seed, *purpose)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def derived_generator(seed: int, *purpose: str | int) -> torch.Generator:
    """Return a CPU generator for this purpose; equal arguments give equal streams."""
    return torch.Generator().manual_seed(derived_seed(seed, *purpose))
