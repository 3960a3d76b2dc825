"""Signals that ask a run to save and end: SIGTERM (as Slurm sends it) and SIGINT."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_requested: int | None = None


class Interrupted(Exception):
    """A signal has asked the run to end; what could be saved is saved."""

    def __init__(self, signum: int) -> None:
        """Remember the signal."""
        super().__init__(signum)
        self.signum = signum

    def __str__(self) -> str:
        """Return what happened and how to go on."""
        name = signal.Signals(self.signum).name
        return f"interrupted by {name}; the same command goes on from the last checkpoint"

    @property
    def exit_status(self) -> int:
        """What a shell shows for a process ended by this signal: 143 or 130."""
        return 128 + self.signum


def requested() -> int | None:
    """Return the signal that has asked for an end, or None."""
    return _requested


def check() -> None:
    """Raise `Interrupted` if a signal has asked for an end."""
    if _requested is not None:
        raise Interrupted(_requested)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGINT only ask for an end, inside the block.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread nothing changes.
    """
    global _requested
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested = None
    before = {each: signal.signal(each, _ask) for each in _SIGNALS}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _ask(signum: int, frame: FrameType | None) -> None:
    global _requested
    if _requested is not None and signum == signal.SIGINT:
        raise KeyboardInterrupt
    _requested = signum
