"""What running a network does beside computing: the contexts it opens, what it remembers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_DEVICES = ("cpu", "cuda")


def context() -> tuple[object, ...]:
    """Return whether gradients and autocast are on: what changes a computation from outside."""
    numbers = ((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *numbers


@contextmanager
def surroundings(*, training: bool) -> Iterator[None]:
    """Turn gradients on and autocast off for training; for evaluation, the other way round.

    A network that opens a context of its own is in another one than this, in one of the two.
    """
    before = [torch.is_autocast_enabled(device) for device in _DEVICES]
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, not training)
        with torch.inference_mode(False), torch.set_grad_enabled(training):
            yield
    finally:
        for device, enabled in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, enabled)
