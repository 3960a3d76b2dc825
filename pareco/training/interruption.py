"""What stops a run: signals that ask it to save and end, and what goes wrong around it."""

from __future__ import annotations

import errno
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch

from pareco.processes import SIGNALS


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_OF_THE_CPU = "can't allocate memory"  # torch's error on the CPU is a RuntimeError like any other


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise `RunError` in place of a full disk, a folder that is read-only, or memory run out.

    `path` is the run's folder, named in the message. Other errors pass.
    """
    try:
        yield
    except (OSError, MemoryError, RuntimeError) as error:
        message = _explanation(error, path)
        if message is None:
            raise
        raise RunError(message) from error


def _explanation(error: OSError | MemoryError | RuntimeError, path: Path) -> str | None:
    """Return what has happened and how to go on; None for an error of another kind."""
    out_of_memory = isinstance(error, torch.OutOfMemoryError | MemoryError)
    if not isinstance(error, OSError):
        return _about_memory(error, path) if out_of_memory or _OF_THE_CPU in str(error) else None
    reason, name = error.strerror, Path(error.filename or path)
    if error.errno == errno.ENOMEM:
        return _about_memory(error, path)
    if error.errno in _FULL:
        return (
            f"{path} could not be written: {reason}. What was saved before, the last checkpoint "
            "too, is intact: make room, then the same command goes on from there"
        )
    if error.errno not in _FORBIDDEN:
        return None
    if path not in (name, *name.parents):
        return f"{name} cannot be used: {reason}. Nothing of the run in {path} is lost"
    return (
        f"{path} cannot be written: {reason} ({name}). What it holds is intact: make it writable "
        "and give the same command again, or choose another place with --runs FOLDER"
    )


def _about_memory(error: Exception, path: Path) -> str:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        f"memory ran out during {path} ({reason}). What was saved before, the last checkpoint too, "
        "is intact: the same command goes on from there, on a larger or more devices, or with "
        "fewer --workers. If one run alone is too large, lower training.batch_size or "
        "evaluation.batch_size under another --name"
    )


_SECONDS_OF_ONE_REQUEST = 1.0  # `timeout` signals a process by itself and with its group
_heard: list[tuple[int, float]] = []  # the signals that have come, and when


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
    return _heard[0][0] if _heard else None


def insisted() -> bool:
    """Return whether a second signal has come, over a second after the first."""
    return bool(_heard) and _heard[-1][1] - _heard[0][1] > _SECONDS_OF_ONE_REQUEST


def check() -> None:
    """Raise `Interrupted` if a signal has asked for an end."""
    if _heard:
        raise Interrupted(_heard[0][0])


@contextmanager
def interruptible() -> Iterator[None]:
    """Let SIGTERM and SIGINT only ask for an end, inside the block.

    Raises `Interrupted` at the end of the block if a signal has come that nobody has answered. A
    second SIGINT, over a second after the first signal, raises KeyboardInterrupt at once. A block
    inside another is a part of it; outside the main thread nothing changes; a signal that the
    process was told to ignore (as by `nohup ... &`) stays ignored.
    """
    within = any(signal.getsignal(each) is _ask for each in SIGNALS)
    if within or threading.current_thread() is not threading.main_thread():
        yield
        return
    _heard.clear()
    asking = [each for each in SIGNALS if signal.getsignal(each) is not signal.SIG_IGN]
    before = {each: signal.signal(each, _ask) for each in asking}
    try:
        yield
        check()
    finally:
        for each, handler in before.items():
            signal.signal(each, handler or signal.SIG_DFL)
        _heard.clear()


def _ask(signum: int, frame: FrameType | None) -> None:
    _heard.append((signum, time.monotonic()))
    if insisted() and signum == signal.SIGINT:
        raise KeyboardInterrupt
