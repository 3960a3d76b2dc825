"""What goes wrong around a run, in words that say what helps."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_OUT_OF_MEMORY = (
    *("can't allocate memory", "not enough memory", "bad_alloc"),  # torch on the CPU
    *("out of memory", "_ALLOC_FAILED"),  # CUDA, its libraries, other accelerators
)


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise `RunError` in place of a full disk, a folder that is read-only, or memory run out.

    `path` is the run's folder, named in the message. Other errors pass.
    """
    try:
        yield
    except OSError as error:
        message = _about_files(error, path)
        if message is None:
            raise
        raise RunError(message) from error
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        raise RunError(_about_memory(error, path)) from error


def _about_files(error: OSError, path: Path) -> str | None:
    """Return what to say of a failed access to a file; None for other errors."""
    reason, name = error.strerror, error.filename or path
    if error.errno == errno.ENOMEM:
        return _about_memory(error, path)
    if error.errno in _FULL:
        return (
            f"{path} could not be written: {reason}. What was saved before, the last checkpoint "
            "too, is intact: make room, then the same command goes on from there"
        )
    if error.errno not in _FORBIDDEN:
        return None
    if path not in (Path(str(name)), *Path(str(name)).parents):
        return f"{name} cannot be used: {reason}. Nothing of the run in {path} is lost"
    return (
        f"{path} cannot be written: {reason} ({name}). What it holds is intact: make it writable "
        "and give the same command again, or choose another place with --runs FOLDER"
    )


def _is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(words in str(error) for words in _OUT_OF_MEMORY)


def _about_memory(error: Exception, path: Path) -> str:
    reason = next(iter(str(error).splitlines()), "") or type(error).__name__
    return (
        f"memory ran out during {path} ({reason}). What was saved before, the last checkpoint too, "
        "is intact: the same command goes on from there, on a larger or more devices, or with "
        "fewer --workers. If one run alone is too large, lower training.batch_size or "
        "evaluation.batch_size under another --name"
    )
