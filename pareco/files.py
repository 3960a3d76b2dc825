"""Files that are written as a whole or not at all, and what identifies one."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

_ENDING = ".tmp"


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) so that a reader sees the old content or the new one."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file so that a reader, even after a crash, sees the old content or the new one.

    If it fails, the old file stays. If the process is killed meanwhile, a temporary file beside it
    may be left: see `remove_leftovers`.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_ENDING}")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    sync(path.parent)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Yield where to write a file or a folder, which becomes `path` once the block has ended well.

    If it fails, nothing is left, and an old file stays. If the process is killed meanwhile, a
    hidden folder beside it may be left. Raises `OSError` before, if `path` is a folder or in none.
    """
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "no such folder", str(path.parent))
    if path.is_dir():
        raise FileExistsError(errno.EEXIST, "a folder is there already", str(path))
    with TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        partial = Path(folder) / path.name
        yield partial
        for each in (partial, *partial.rglob("*")):
            sync(each)
        partial.replace(path)
    sync(path.parent)


def file_identity(path: Path) -> str:
    """Return `sha256:` and the digest of a file's content: what it is, wherever it lies."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def cache_folder() -> Path:
    """Return the folder of what is kept for this user and can be had again; it may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pareco"


def sync(path: Path) -> None:
    """Bring a file, or the names in a folder, to the disk, so that they survive a power cut."""
    if path.is_dir() and os.name != "posix":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path) -> None:
    """Remove what killed writers have left in a folder; no other process may be writing there."""
    for leftover in folder.glob(f".*{_ENDING}"):
        leftover.unlink(missing_ok=True)
