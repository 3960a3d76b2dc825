"""Finding a data set: at a location, by its layout; or at its publisher's."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path

from filelock import FileLock

from pareco.data.layouts import (
    LAYOUTS,
    hugging_face,
    layout_of,
    shard_folder,
    torchvision_splits,
)
from pareco.data.sources import Source

_NETWORK_SECONDS = 30


def located(location: str) -> Source:
    """Return the data set at a location: a folder of any known layout, or a prefix and a name.

    Raises `FileNotFoundError` where there is none, with what was found and the layouts that are
    known; `ValueError` where its images cannot be told apart.
    """
    prefix, _, name = location.partition("/")
    if name and (find := _PREFIXES.get(prefix.lower())):
        return find(name)
    folder = Path(location).expanduser()
    if folder.is_dir():
        source = layout_of(folder)
        if source is not None:
            return source
        what = f"holds {_content(folder)}, which is no data set"
    else:
        what = "is a file: give its folder" if folder.exists() else "there is no such folder"
    raise FileNotFoundError(f"--images {location}: {what}. Known layouts:\n{LAYOUTS}")


def imagenet_source(location: str | None) -> Source:
    """Return the data set at a location. Raises `FileNotFoundError` with what helps."""
    if location is not None:
        return located(location)
    raise FileNotFoundError(
        "ImageNet is not downloaded: say where it lies with --images FOLDER (make: "
        f"IMAGENET=FOLDER). It comes from image-net.org, on request. Known layouts:\n{LAYOUTS}"
    )


def torchvision_source(name: str, location: str | None) -> Source:
    """Return the data set at a location, or torchvision's of this name, downloaded at first.

    Raises `FileNotFoundError` if the download fails.
    """
    if location is not None:
        return located(location)
    cache = _cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"), _limited_waiting():
            return torchvision_splits(name, cache, download=True)
    except (OSError, RuntimeError, HTTPException, AssertionError) as error:
        raise FileNotFoundError(
            f"{name} is not in {cache} and could not be downloaded ({error}). Say where it lies "
            f"with --images FOLDER (make: DATA=FOLDER). Known layouts:\n{LAYOUTS}"
        ) from error


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pareco"


@contextmanager
def _limited_waiting() -> Iterator[None]:
    """Let a silent network fail in the block: torchvision itself waits forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _content(folder: Path) -> str:
    names = sorted(path.name for path in folder.iterdir())
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8) or "nothing"


def _shards_at(name: str) -> Source:
    source = shard_folder(Path(name).expanduser())
    if source is None:
        raise FileNotFoundError(f"--images wds/{name}: no WebDataset shards. Layouts:\n{LAYOUTS}")
    return source


_PREFIXES: dict[str, Callable[[str], Source]] = {
    "hfds": partial(hugging_face, where="--images hfds/"),
    "wds": _shards_at,
    "torch": partial(torchvision_source, location=None),
}
