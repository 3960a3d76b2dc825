"""Images in folders of classes: the folder directly under a split is an image's class."""

from __future__ import annotations

import os
import unicodedata
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pareco.data.pixels import HIDDEN, is_hidden, name_order, printable, reason_to_leave_out
from pareco.data.sources import Part, Remainder

READ_ALREADY = "a folder that is read by another name"
_NO_FILE = "no file of the ordinary kind"
_DEAD_LINK = "a link that leads nowhere"
_EMPTY_CLASS = "a class folder without an image that can be read"
Labels = Mapping[str, str]
"""Classes of images by the names of their files, where a list says them and no folder."""


class NoClass(ValueError):
    """There are images outside of class folders, such as `example`."""

    def __init__(self, example: str, place: str) -> None:
        """Say so."""
        shown = printable(example)
        super().__init__(f"{place}: there are images outside of class folders, such as {shown}")
        self.example = example


@dataclass(frozen=True)
class FolderReader:
    """Reads the files of a folder, named in the order of their indices."""

    root: str
    names: Sequence[str]

    def __getitem__(self, index: int) -> tuple[BinaryIO]:
        """Return a file, opened."""
        return (open(os.path.join(self.root, self.names[index]), "rb"),)

    def filename(self, index: int, basename: bool = False) -> str:
        """Return a file's name, with its folders unless `basename`."""
        name = self.names[index]
        return name.rpartition("/")[2] if basename else name


def folder_part(root: Path, listed: Labels) -> Part:
    """Return the images under a folder, which follows links, to each real folder once.

    Raises `FileNotFoundError` if there are none, `ValueError` if some have no class, `OSError` if a
    folder cannot be read.
    """
    rest, folders = Remainder(root.name), list[str]()
    images = [name for name in _files(root, rest, folders) if kept(name, rest)]
    names, labels, classes = labelled(images, listed, str(root))
    for folder in folders:
        top = bool(folder) and "/" not in folder
        if top and class_name(folder) not in classes and not listed:
            rest.add(folder, _EMPTY_CLASS)
    return Part(FolderReader(str(root), names), labels, classes, root.name, rest.listed())


def labelled(
    images: Iterable[str], listed: Labels, place: str
) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    """Return images `n` in their order, their labels `n` and the names of the classes.

    `images` are names relative to a split. Where they lie in no class folders, or in a single
    folder, and all of them are `listed`, the list says their classes. Raises `FileNotFoundError`,
    naming the place, if there are none, `ValueError` if some have no class.
    """
    names = sorted(images, key=name_order)
    if not names:
        raise FileNotFoundError(f"{place} holds no images in class folders")
    parts = [name.split("/") for name in names]  # of a million names pathlib takes a minute
    in_one_folder = len({each[0] if len(each) > 1 else "" for each in parts}) == 1
    if in_one_folder and all(each[-1] in listed for each in parts):
        return _numbered(names, [listed[each[-1]] for each in parts])
    outside = [name for name, each in zip(names, parts, strict=True) if len(each) == 1]
    if outside:
        raise NoClass(outside[0], place)
    return _numbered(names, [class_name(each[0]) for each in parts])


def class_name(folder: str) -> str:
    """Return the class of a folder: its name, of which macOS writes accents in another way."""
    return unicodedata.normalize("NFC", folder)


def _numbered(names: list[str], called: list[str]) -> tuple[list[str], np.ndarray, tuple[str, ...]]:
    classes = sorted({*called}, key=name_order)
    numbers = {name: number for number, name in enumerate(classes)}
    return names, np.array([numbers[name] for name in called]), tuple(classes)


def kept(name: str, rest: Remainder) -> bool:
    """Return whether a file is an image by its name; note it if it is none."""
    reason = reason_to_leave_out(name)
    if reason is not None:
        rest.add(name, reason)
    return reason is None


def _files(root: Path, rest: Remainder, folders: list[str]) -> Iterator[str]:
    """Yield the names of the files under a folder, relative to it, and note its folders.

    What is reached by a link comes last, so that a folder is known by its own name. The folders
    around `root` are not entered: they hold the other split.
    """
    seen = {_identity(parent) for parent in root.resolve().parents}
    real, linked = deque([""]), deque[str]()
    while real or linked:
        folder = (real or linked).popleft()
        identity = _identity(root / folder)
        if identity in seen:
            rest.add(folder, READ_ALREADY)
            continue
        seen.add(identity)
        folders.append(folder)
        with os.scandir(root / folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
        for entry in entries:
            name = f"{folder}/{entry.name}" if folder else entry.name
            # Only of a link is asked where it leads: on a network each question takes its time.
            link = entry.is_symlink()
            if is_hidden(entry.name):
                rest.add(name, HIDDEN)
            elif os.path.isdir(entry.path) if link else entry.is_dir():
                (linked if link else real).append(name)
            elif os.path.isfile(entry.path) if link else entry.is_file():
                yield name
            else:
                rest.add(name, _DEAD_LINK if link and not os.path.exists(entry.path) else _NO_FILE)


def _identity(folder: Path) -> tuple[int, int]:
    """Return what tells a real folder from others, by whatever name it is reached."""
    status = folder.stat()
    return status.st_dev, status.st_ino
