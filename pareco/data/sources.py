"""Undecoded images: the splits that a data set brings, and both of them as one."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from copy import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image

from pareco.data.pixels import as_rgb, decoded, printable, readable_formats

_NAMED, _NAMED_IN_A_LINE = 10, 3


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


def summary(left_out: Sequence[LeftOut]) -> list[str]:
    """Return a line for each reason: how many files are not read, some of them, and why."""
    reasons = dict.fromkeys(each.reason for each in left_out)
    alike = {reason: [each for each in left_out if each.reason == reason] for reason in reasons}
    return [
        f"{sum(each.count for each in those)} not read ({reason}): "
        + ", ".join(each.name for each in those[:_NAMED_IN_A_LINE])
        + ", ..." * (sum(each.count for each in those) > _NAMED_IN_A_LINE)
        for reason, those in alike.items()
    ]


class Remainder:
    """Collects what is left out of a split; of many with one reason it keeps some names."""

    def __init__(self, place: str) -> None:
        """Begin with nothing; `place` precedes all names."""
        self._place, self._names = place, dict[str, list[str]]()
        self._counts = Counter[str]()

    def add(self, name: str, reason: str) -> None:
        """Note a file or folder that is not read, and why."""
        names = self._names.setdefault(reason, [])
        self._counts[reason] += 1
        if len(names) < _NAMED:
            names.append(printable(f"{self._place}/{name}" if self._place else name))

    def listed(self) -> tuple[LeftOut, ...]:
        """Return what was noted, by reason, in the order in which it was found."""
        return tuple(
            LeftOut(name, reason, 1 + (name == names[-1]) * (self._counts[reason] - len(names)))
            for reason, names in self._names.items()
            for name in names
        )


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
            return as_rgb(opened)
        with opened:
            return decoded(opened)

    def name(self, index: int) -> str:
        """Return where an image is, for people."""
        return printable(f"{self.place}/{self.reader.filename(index)}")

    def key(self, index: int) -> str:
        """Return what tells an image from others of its class: its file's name, without folders."""
        return self.reader.filename(index, basename=True)

    def form(self, index: int) -> tuple[tuple[int, int], str]:
        """Return an image's width and height, and its mode, as it is stored."""
        opened = self.reader[index][0]
        if isinstance(opened, Image.Image):
            return opened.size, opened.mode
        with opened, Image.open(opened, formats=readable_formats()) as image:
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
        if len(train.classes) < 2:
            found = ", ".join(train.classes) or "none"
            raise ValueError(
                f"{where}: fewer than two classes (found: {found}); each is a folder under it"
            )
        if train.classes != test.classes:
            raise ValueError(
                f"{where}: training and test images have different classes: "
                f"{_difference(train.classes, test.classes)}"
            )
        self._train, self._test = train, test
        self.classes = train.classes
        self.labels = np.concatenate([train.labels, test.labels]).astype(np.int64)
        self.own_test = len(test.labels)
        self._splits = tuple(np.split(np.arange(len(self.labels)), [len(train.labels)]))
        self._split_of = np.repeat(np.arange(2, dtype=np.int8), [*map(len, self._splits)])
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
        """Return an image's width and height, and its mode, as it is stored."""
        part, position = self._placed(index)
        return part.form(position)

    def divided(self, splits: Sequence[np.ndarray]) -> Source:
        """Return this source with other splits: sorted indices, an image is of the first it is in.

        Images in none of them stay in the split that the data set brings.
        """
        divided = copy(self)
        divided._splits = (*self._splits[:2], *splits)
        divided._split_of = self._split_of.clip(max=1)
        for number, split in reversed([*enumerate(divided._splits)][2:]):
            divided._split_of[split] = number
        return divided

    def split_of(self, index: int) -> np.ndarray:
        """Return the sorted indices of the split that an image belongs to, always one array."""
        return self._splits[self._split_of[index]]

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
