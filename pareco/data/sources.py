"""Undecoded images: the splits that a data set brings, and both of them as one."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from PIL import Image
from timm.data.readers.reader_image_in_tar import extract_tarinfos


@dataclass(frozen=True)
class LeftOut:
    """Files that lie among the images and are not read: one of them by name, and why.

    Of many with one reason only some are named; `count` is then more than 1 for the last of these,
    and stands for it and all that are not named. So the counts add up to all that is left out.
    """

    name: str
    """Where it lies in its data set, for people."""

    reason: str
    """The same words for all that is left out for the same reason."""

    count: int = 1


@dataclass(frozen=True)
class Part:
    """The images of one split, which have files of their own."""

    reader: Any
    """Of timm's kind: `reader[index]` gives a file, or an image, first."""

    labels: np.ndarray
    """The labels `n`, from 0."""

    classes: tuple[str, ...]
    """The names of the classes, in the order of their labels."""

    place: str
    """What precedes an image's name, for people."""

    left_out: tuple[LeftOut, ...] = ()
    """What lies among the images and is not read."""

    def image(self, index: int) -> Image.Image:
        """Return an image, decoded to RGB; raises anything if it is damaged or missing."""
        opened = self.reader[index][0]
        if isinstance(opened, Image.Image):
            return opened.convert("RGB")
        with opened:
            return Image.open(opened).convert("RGB")

    def name(self, index: int) -> str:
        """Return where an image is, for people."""
        return f"{self.place}/{self.reader.filename(index)}"

    def key(self, index: int) -> str:
        """Return what tells an image from others of its class: its file's name, without folders."""
        return self.reader.filename(index, basename=True)

    def form(self, index: int) -> tuple[tuple[int, int], str]:
        """Return an image's width and height, and its mode, as it is stored; it is not decoded."""
        opened = self.reader[index][0]
        if isinstance(opened, Image.Image):
            return opened.size, opened.mode
        with opened, Image.open(opened) as image:
            return image.size, image.mode


class NumberedPart(Part):
    """A split whose images have numbers in place of names."""

    def name(self, index: int) -> str:
        """Return the split's place and the image's number."""
        return f"{self.place}/{index}"

    def key(self, index: int) -> str:
        """Return the image's number."""
        return str(index)


def counted_classes(
    numbers: np.ndarray, names: Sequence[str] | None, place: str
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the labels `n` counted from 0 without gaps, and the names of the classes they mean.

    Without `names`, classes are called by their numbers. Raises `ValueError` for negative numbers,
    which stand for none.
    """
    if len(numbers) and numbers.min() < 0:
        raise ValueError(f"{place}: some images have no label")
    present, labels = np.unique(numbers, return_inverse=True)
    called = [str(each) if names is None else names[int(each)] for each in present]
    return labels, tuple(called)


def numbered_part(
    reader: Any, numbers: Sequence[int] | np.ndarray, names: Sequence[str], place: str
) -> Part:
    """Return a split with the images of a reader, which have no files, and their classes."""
    return NumberedPart(reader, *counted_classes(np.asarray(numbers), names, place), place)


class Source:
    """Training images, then test images, as one."""

    def __init__(
        self,
        train: Part,
        test: Part,
        where: str,
        layout: str = "",
        left_out: tuple[LeftOut, ...] = (),
    ) -> None:
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
        self.layout = layout
        """How the images are arranged, for people."""
        self.left_out = (*train.left_out, *test.left_out, *left_out)
        """What lies among or beside the images and is not read."""

    def image(self, index: int) -> Image.Image:
        """Return an image, decoded to RGB; raises anything if it is damaged or missing."""
        part, position = self._placed(index)
        return part.image(position)

    def name(self, index: int) -> str:
        """Return where an image is, for people."""
        part, position = self._placed(index)
        return part.name(position)

    def form(self, index: int) -> tuple[tuple[int, int], str]:
        """Return an image's width and height, and its mode, as it is stored; it is not decoded."""
        part, position = self._placed(index)
        return part.form(position)

    def part_of(self, index: int) -> range:
        """Return the indices of the split that an image belongs to."""
        border = len(self._train.labels)
        return range(border) if index < border else range(border, len(self.labels))

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
    alone = {"training": sorted({*train} - {*test}), "test": sorted({*test} - {*train})}
    parts = [
        f"{', '.join(names[:10])}{', ...' * (len(names) > 10)} only in {which}"
        for which, names in alone.items()
        if names
    ]
    return "; ".join(parts) or "their order"


_IMAGES = frozenset(("jpg", "jpeg", "png", "webp"))
_LABELS = frozenset(("cls", "json"))


class PackedReader:
    """Reads files inside of uncompressed tars in any order, as saved splits and resume need it.

    Nothing stays open, so that processes share no position in a tar.
    """

    def __init__(self, tars: Sequence[Path], places: Iterable[tuple[int, str, int, int]]) -> None:
        """Take the place of each file: its tar's number, its name, offset and size in bytes."""
        numbers, names, *bounds = zip(*places, strict=True)
        self._tars, self._names = list(tars), names
        self._numbers, self._offsets, self._sizes = map(np.array, (numbers, *bounds))

    def __getitem__(self, index: int) -> tuple[io.BytesIO]:
        """Return a file's content."""
        with self._tars[self._numbers[index]].open("rb") as file:
            file.seek(self._offsets[index])
            return (io.BytesIO(file.read(self._sizes[index])),)

    def filename(self, index: int, basename: bool = False) -> str:
        """Return a file's name, with its folders unless `basename`."""
        name = self._names[index]
        return PurePosixPath(name).name if basename else name


def tar_part(tar: Path) -> Part:
    """Return the images in a tar of class folders, or of a tar for each class, as timm finds them.

    Raises `ValueError` or `TarError` if there are none.
    """
    found, labels, classes, _ = extract_tarinfos(str(tar), cache_tarinfo=False)  # in a pickle
    places = [
        (0, file.name, file.offset_data + (outer.offset_data if outer else 0), file.size)
        for file, _, outer in found
    ]
    return Part(PackedReader([tar], places), labels, tuple(classes or ()), tar.name)


def shard_part(shards: Sequence[Path]) -> Part:
    """Return the images in WebDataset shards.

    A sample is `KEY.jpg` (jpeg, png, webp) with `KEY.cls` (a whole number) or `KEY.json` (with
    "label"); the key ends at the first dot of the file's name, and other fields are not read.
    Raises `ValueError`, naming the shard, where something else is found.
    """
    samples = [
        ((number, f"{shard.name}/{name}", offset, size), label)
        for number, shard in enumerate(shards)
        for name, offset, size, label in _samples(shard)
    ]
    if not samples:
        raise ValueError(f"{shards[0]}: there are no images in it, or in those beside it")
    places, numbers = zip(*samples, strict=True)
    labels, classes = counted_classes(np.array(numbers), None, shards[0].name)
    return Part(PackedReader(shards, places), labels, classes, shards[0].parent.name)


def _samples(shard: Path) -> Iterator[tuple[str, int, int, int]]:
    """Yield the name, offset, size and label of a shard's images, in order."""
    images: dict[str, tuple[str, int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(shard, "r:") as tar:
            for member in tar:
                key, extension = _key(member.name)
                if not member.isfile():
                    continue
                if extension in _IMAGES:
                    images[key] = (member.name, member.offset_data, member.size)
                elif extension in _LABELS:
                    labels[key] = _label(tar, member, extension)
    except (tarfile.TarError, EOFError) as error:  # a compressed one has no random access
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
