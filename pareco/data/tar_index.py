"""What a split's tars hold, kept from one start to the next, so that they are read through once."""

from __future__ import annotations

import hashlib
import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import PIL

from pareco.data.sources import LeftOut
from pareco.files import cache_folder, write_bytes

ENDING = ".pareco-index.npz"
"""Of a file with an index, beside the tars."""
_FORMAT = 1
_KEPT_FROM = 10_000  # files; of fewer the tars are read through in a second
_LOGGER = logging.getLogger("pareco.data")


@dataclass(frozen=True)
class TarIndex:
    """The files in some tars, by name, each with a row of numbers; and what is left out there."""

    names: Sequence[str]
    numbers: np.ndarray
    """`n x k`: where each file is."""
    left_out: tuple[LeftOut, ...]


def kept_index(kind: str, tars: Sequence[Path], read: Callable[[], TarIndex]) -> TarIndex:
    """Return what `read` says is in these tars, or what it said before, if they are as then.

    That is kept beside the first tar or, where nothing can be written there, in the user's cache.
    It holds for tars of the same names, sizes and times of change, and for this `kind` of reading.
    One that is damaged is made again. Nothing is kept of few files.
    """
    read_by = [_FORMAT, kind, PIL.__version__]  # which says what is an image
    stamp = json.dumps([read_by, [[tar.name, *_state(tar)] for tar in tars]])
    places = list(_places(tars[0]))
    for place in places:
        if place.exists() and (found := _loaded(place, stamp)) is not None:
            return found
    index = read()
    if len(index.names) >= _KEPT_FROM:
        _keep(index, stamp, places)
    return index


def _state(tar: Path) -> tuple[int, int]:
    status = tar.stat()
    return status.st_size, status.st_mtime_ns


def _places(tar: Path) -> Iterator[Path]:
    """Yield where the index may lie of tars of which this is the first."""
    yield tar.with_name(f".{tar.name}{ENDING}")
    digest = hashlib.sha256(bytes(tar.resolve())).hexdigest()[:16]
    yield cache_folder() / "tars" / f"{digest}{ENDING}"


def _keep(index: TarIndex, stamp: str, places: Sequence[Path]) -> None:
    encoded = [each.encode(errors="surrogateescape") for each in index.names]
    about = {"stamp": stamp, "left_out": [asdict(each) for each in index.left_out]}
    file = io.BytesIO()
    np.savez_compressed(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        text=np.frombuffer(b"".join(encoded), np.uint8),
        lengths=np.array([*map(len, encoded)]),
        numbers=index.numbers,
    )
    for place in places:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            write_bytes(place, file.getvalue())
        except OSError:
            continue
        _LOGGER.info("the index of %d files in tars is kept in %s", len(encoded), place)
        return


def _loaded(place: Path, stamp: str) -> TarIndex | None:
    """Return an index; None where it is of other tars, or damaged."""
    try:
        with place.open("rb") as file, np.load(file, allow_pickle=False) as held:
            about: dict[str, Any] = json.loads(held["about"].tobytes())
            if about["stamp"] != stamp:
                return None
            text, lengths, numbers = (held[name] for name in ("text", "lengths", "numbers"))
        ends = np.cumsum(lengths)
        if len(numbers) != len(ends) or ends[-1] != len(text):
            return None
        bounds = zip((ends - lengths).tolist(), ends.tolist(), strict=True)
        whole = text.tobytes()
        names = [whole[first:end].decode(errors="surrogateescape") for first, end in bounds]
        return TarIndex(names, numbers, tuple(LeftOut(**each) for each in about["left_out"]))
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes raise anything
        _LOGGER.warning("%s is damaged and made again (%s)", place, error)
        return None
