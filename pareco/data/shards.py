"""WebDataset shards with random access: tars of KEY.jpg beside KEY.cls."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from timm.data.readers.reader import Reader

_IMAGES = frozenset((".jpg", ".jpeg", ".png", ".webp"))


@dataclass(frozen=True)
class _Place:
    """Where an image's bytes are in an uncompressed tar."""

    shard: Path
    offset: int
    size: int
    name: str


class ShardReader(Reader):
    """Reads images of WebDataset shards in any order; saved splits and exact resume need that.

    A sample is `KEY.jpg` (jpeg, png, webp) with `KEY.cls` (a number) or `KEY.json` (with "label").
    Raises `ValueError`, naming shard and key, where one is missing.
    """

    def __init__(self, shards: Sequence[Path]) -> None:
        """Index the shards; images are not read."""
        super().__init__()
        self._places: list[_Place] = []
        labels: list[int] = []
        for shard in shards:
            for place, label in _samples(shard):
                self._places.append(place)
                labels.append(label)
        self.labels = np.array(labels, dtype=np.int64)
        self.classes = tuple(str(label) for label in range(max(labels, default=-1) + 1))

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._places)

    def __getitem__(self, index: int) -> tuple[io.BytesIO, int]:
        """Return an image's bytes and its label; the shard is opened anew, in any process."""
        place = self._places[index]
        with place.shard.open("rb") as file:
            file.seek(place.offset)
            return io.BytesIO(file.read(place.size)), int(self.labels[index])

    def _filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        place = self._places[index]
        return f"{place.shard.name}/{place.name}"


def _samples(shard: Path) -> list[tuple[_Place, int]]:
    """Return the images of one shard and their labels, in order."""
    images: dict[str, _Place] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in filter(tarfile.TarInfo.isfile, tar):
                path = Path(member.name)
                key, suffix = str(path.with_suffix("")), path.suffix.lower()
                if suffix in _IMAGES:
                    images[key] = _Place(shard, member.offset_data, member.size, member.name)
                elif suffix in (".cls", ".json"):
                    labels[key] = _label(tar, member, suffix)
    except (tarfile.TarError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{shard} is no uncompressed WebDataset shard: {error}") from error
    if missing := sorted(images.keys() ^ labels.keys()):
        raise ValueError(f"{shard}: {missing[0]} lacks its image or its label (.cls or .json)")
    return [(place, labels[key]) for key, place in images.items()]


def _label(tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> int:
    file = tar.extractfile(member)
    assert file is not None  # it is a regular file
    content = file.read().decode()
    label = int(json.loads(content)["label"] if suffix == ".json" else content)
    if label < 0:
        raise ValueError(f"{member.name} has the label {label}")
    return label
