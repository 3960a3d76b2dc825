"""Signals that ask a run to save and end: SIGTERM (as Slurm sends it) and SIGINT (Ctrl-C)."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_OF_ONE_REQUEST = 1.0  # `timeout` signals a process by itself and with its group
_requested: int | None = None
_requested_at = 0.0
_insisted = False


class Interrupted(Exception):
    """A signal has asked for an end; what could be saved is saved."""

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


def insisted() -> bool:
    """Return whether a second signal has come, over a second after the first."""
    return _insisted


def check() -> None:
    """Raise `Interrupted` if a signal has asked for an end."""
    if _requested is not None:
        raise Interrupted(_requested)


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGINT only ask for an end, inside the block.

    Raises `Interrupted` at the end of the block if a signal has come that nobody has answered. A
    second SIGINT, over a second after the first signal, raises KeyboardInterrupt at once. A block
    inside another is a part of it; outside the main thread nothing changes; a signal that the
    process was told to ignore (as by `nohup ... &`) stays ignored.
    """
    global _requested, _insisted
    within = any(signal.getsignal(each) is _ask for each in _SIGNALS)
    if within or threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested, _insisted = None, False
    heard = [each for each in _SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, _ask) for each in heard}
    try:
        yield
        check()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)
        _requested, _insisted = None, False


def _ask(signum: int, frame: FrameType | None) -> None:
    global _requested, _requested_at, _insisted
    now = time.monotonic()
    if _requested is None:
        _requested, _requested_at = signum, now
    elif now - _requested_at > _SECONDS_OF_ONE_REQUEST:
        _insisted = True
        if signum == signal.SIGINT:
            raise KeyboardInterrupt
