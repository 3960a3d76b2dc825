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
_ALLOCATOR = "can't allocate memory"


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Raise `RunError` in place of a full disk, a folder that is read-only, or memory run out.

    `path` is the run's folder, named in the message.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunError(
                f"no space left for {path} ({error}): the last checkpoint is intact; "
                "make room, then start the same command again"
            ) from error
        if error.errno in _FORBIDDEN:
            raise RunError(
                f"{error.filename or path} cannot be written ({error.strerror}): "
                "make it writable, or choose another place with --runs FOLDER"
            ) from error
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise RunError(_out_of_memory(error)) from error
    except RuntimeError as error:
        if _ALLOCATOR not in str(error):
            raise
        raise RunError(_out_of_memory(error)) from error


def _out_of_memory(error: BaseException) -> str:
    reason = next(iter(str(error).splitlines()), "")
    return (
        f"memory ran out ({reason}): the last checkpoint is intact. Train on more devices, or "
        "lower training.batch_size or evaluation.batch_size under another --name"
    )
