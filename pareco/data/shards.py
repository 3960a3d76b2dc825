"""WebDataset shards with random access: tars of KEY.jpg beside KEY.cls."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from timm.data.readers.reader import Reader

_IMAGES = frozenset(("jpg", "jpeg", "png", "webp"))
_LABELS = frozenset(("cls", "json"))


class ShardReader(Reader):
    """Reads images of WebDataset shards in any order: saved splits and exact resume need that.

    A sample is `KEY.jpg` (jpeg, png, webp) with `KEY.cls` (a whole number) or `KEY.json` (with
    "label"); the key ends at the first dot of the file's name, and other fields are not read.
    `labels` is `n`. Raises `ValueError`, naming the shard, where something else is found.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        """Index the shards; images are not read."""
        super().__init__()
        found = [
            (number, *sample) for number, shard in enumerate(shards) for sample in _samples(shard)
        ]
        numbers, names, offsets, sizes, labels = zip(*found, strict=True) if found else ((),) * 5
        self._shards, self._names = list(shards), names
        self._numbers, self._offsets, self._sizes = map(np.array, (numbers, offsets, sizes))
        self.labels = np.array(labels, dtype=np.int64)

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        """Return an image's bytes and its label; the shard is opened anew, in any process."""
        with self._shards[self._numbers[index]].open("rb") as file:
            file.seek(self._offsets[index])
            return io.BytesIO(file.read(self._sizes[index])), int(self.labels[index])

    def _filename(  # type: ignore[override]
        self, index: int, basename: bool = False, absolute: bool = False
    ) -> str:
        name = self._names[index]
        if basename:
            return PurePosixPath(name).name
        shard = self._shards[self._numbers[index]]
        return f"{shard if absolute else shard.name}/{name}"


def _samples(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield the name, offset, size and label of a shard's images, in order."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:  # a compressed one has no random access
            for member in tar:
                key, extension = _key(member.name)
                if not member.isfile():
                    continue
                if extension in _IMAGES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif extension in _LABELS:
                    labels[key] = _label(tar, member, extension)
    except (tarfile.TarError, EOFError) as error:
        raise ValueError(f"{shard} is no uncompressed tar: {error}") from error
    except ValueError as error:
        raise ValueError(f"{shard}: {error}") from error
    for key, place in images.items():
        if key not in labels:
            raise ValueError(f"{shard}: {place[0]} has no label beside it ({key}.cls or .json)")
        yield *place, labels[key]


def _key(name: str) -> tuple[str, str]:
    path = PurePosixPath(name)
    stem, _, extension = path.name.partition(".")
    return str(path.with_name(stem or path.name)), extension.lower()


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, extension: str) -> int:
    """Return the label in a file. Raises `ValueError`, naming it, if it is no whole number."""
    file = tar.extractfile(member)
    content = file.read() if file else b""
    try:
        label = int(json.loads(content)["label"] if extension == "json" else content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{member.name} holds no label (a whole number from 0)") from error
    if label < 0:
        raise ValueError(f"{member.name} has the label {label}: these images have none")
    return label
