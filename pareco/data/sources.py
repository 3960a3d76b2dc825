"""Undecoded images: the splits that a data set brings, and both of them as one."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np
from PIL import Image
from timm.data.readers.reader import Reader


class Part(Protocol):
    """The images of one split."""

    @property
    def labels(self) -> np.ndarray:
        """The labels `n`, from 0."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return an image, decoded to RGB; raises anything if it is damaged or missing."""
        ...

    def name(self, index: int) -> str:
        """Return where the image is, for people."""
        ...

    def key(self, index: int) -> str:
        """Return what tells the image from others of its class, wherever they lie."""
        ...

    def close(self) -> None:
        """Close what is open; it is opened again when it is needed."""
        ...


@dataclass(frozen=True)
class ReaderPart:
    """A split with a reader of timm's kind: `reader[index]` gives a file or an image first."""

    reader: Any
    labels: np.ndarray
    classes: tuple[str, ...]
    place: str

    def image(self, index: int) -> Image.Image:
        """Return an image, decoded to RGB."""
        opened = self.reader[index][0]
        if isinstance(opened, Image.Image):
            return opened.convert("RGB")
        with opened:
            return Image.open(opened).convert("RGB")

    def name(self, index: int) -> str:
        """Return the split's place and the file's name in it."""
        return f"{self.place}/{self.reader.filename(index)}"

    def key(self, index: int) -> str:
        """Return the file's name without folders."""
        return self.reader.filename(index, basename=True)

    def close(self) -> None:
        """Do nothing: files are closed once they are read."""


class TarPart(ReaderPart):
    """A tar of class folders (or of a tar for each class), held open from image to image."""

    def close(self) -> None:
        """Close the tar, lest a process that is begun shares the position in it."""
        _close(self.reader.tar_state)


class NumberedPart(ReaderPart):
    """A split whose images have numbers in place of names."""

    def name(self, index: int) -> str:
        """Return the split's place and the image's number."""
        return f"{self.place}/{index}"

    def key(self, index: int) -> str:
        """Return the image's number."""
        return str(index)


def _close(state: Any) -> None:
    for child in state.children.values():
        _close(child)
    if state.tf is not None:
        state.tf.close()
        state.tf = None


def present_classes(
    labels: np.ndarray, names: Sequence[str] | None, place: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels `n` counted from 0 without gaps, and the names of the classes they mean.

    Without `names`, classes are called by their numbers. Raises `ValueError` for negative labels,
    which stand for none.
    """
    if len(labels) and labels.min() < 0:
        raise ValueError(f"{place}: some images have no label")
    present, counted = np.unique(labels, return_inverse=True)
    numbers: list[int] = present.tolist()
    called = [str(label) if names is None else names[label] for label in numbers]
    return counted, tuple(called)


class Source:
    """Training images, then test images, as one."""

    def __init__(self, train: Part, test: Part, where: str) -> None:
        """Join them. Raises `ValueError`, naming `where`, if their classes are none or differ."""
        if "" in (*train.classes, *test.classes):
            raise ValueError(f"{where}: there are images outside of class folders")
        if len(train.classes) < 2:
            found = ", ".join(train.classes) or "none"
            raise ValueError(f"{where}: fewer than two classes (found: {found})")
        if train.classes != test.classes:
            raise ValueError(
                f"{where}: training and test images have different classes: "
                f"{_difference(train.classes, test.classes)}"
            )
        self._train, self._test = train, test
        self.classes = train.classes
        self.labels = np.concatenate([train.labels, test.labels]).astype(np.int64)
        self.own_test = len(test.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image, decoded to RGB; raises anything if it is damaged or missing."""
        part, position = self._placed(index)
        return part.image(position)

    def name(self, index: int) -> str:
        """Return where an image is, for people."""
        part, position = self._placed(index)
        return part.name(position)

    def part_of(self, index: int) -> range:
        """Return the indices of the split that an image belongs to."""
        border = len(self._train.labels)
        return range(border) if index < border else range(border, len(self.labels))

    def close(self) -> None:
        """Close what is open: before other processes begin, and at the end."""
        self._train.close()
        self._test.close()

    def fingerprint(self) -> str:
        """Return a SHA-256 of classes, labels and the names of files, wherever they lie."""
        digest = hashlib.sha256(repr((self.classes, self.own_test)).encode())
        for part in (self._train, self._test):
            for index, label in enumerate(part.labels.tolist()):
                digest.update(f"{label}/{part.key(index)}\n".encode(errors="surrogateescape"))
        return digest.hexdigest()

    def _placed(self, index: int) -> tuple[Part, int]:
        border = len(self._train.labels)
        return (self._train, index) if index < border else (self._test, index - border)


def _difference(train: Sequence[str], test: Sequence[str]) -> str:
    """Return, for people, which classes are in one of the two alone."""
    missing = {"training": set(train) - set(test), "test": set(test) - set(train)}
    parts = [
        f"{', '.join(sorted(names)[:10])}{', ...' * (len(names) > 10)} only in {which}"
        for which, names in missing.items()
        if names
    ]
    return "; ".join(parts) or "their order"


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
