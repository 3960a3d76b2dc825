"""Images inside of uncompressed tars, as class folders or as WebDataset shards."""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np

from pareco.data.class_folders import Labels, kept, labelled
from pareco.data.pixels import HIDDEN, image_extensions, is_hidden
from pareco.data.sources import Part, Remainder, counted_classes
from pareco.data.tar_index import TarIndex, kept_index

_BLOCK = 512
_FIELD = "a field that is not read"
_REPLACED = "replaced by a later file of the same name"
_DEAD_LINK = "a link that leads to no file of its tar"
_NO_FILE = "no file of the ordinary kind"

Place = tuple[int, int]
"""Where a file lies in a tar: its offset and size in bytes."""


class PackedReader:
    """Reads files inside of uncompressed tars in any order, as saved splits and resume need it.

    Nothing stays open, so that processes share no position in a tar.
    """

    def __init__(self, tars: Sequence[Path], names: Sequence[str], numbers: np.ndarray) -> None:
        """Take the names of files, and where each is: its tar's number, and its place there."""
        self._tars, self._names = list(tars), names
        self._numbers, self._bounds = numbers[:, 0], numbers[:, 1:3]

    def __getitem__(self, index: int) -> tuple[io.BytesIO]:
        """Return a file's content."""
        with self._tars[self._numbers[index]].open("rb") as file:
            return (io.BytesIO(_content(file, self._bounds[index])),)

    def filename(self, index: int, basename: bool = False) -> str:
        """Return a file's name, with its folders unless `basename`."""
        name = self._names[index]
        return name.rpartition("/")[2] if basename else name


def tar_part(tar: Path, listed: Labels) -> Part:
    """Return the images in a tar of class folders, or of a tar for each class.

    Folders that hold all others, such as the one that was packed, are no classes. Raises
    `FileNotFoundError` if there are no images, `ValueError` if some have no class, or the tar is
    damaged.
    """
    index = kept_index("class folders", [tar], lambda: _index_of(tar))
    rest = Remainder(tar.name)
    rows = {name: row for row, name in enumerate(index.names) if kept(name, rest)}
    depth = _depth_of_classes(rows)
    inner = {name.split("/", depth)[depth]: row for name, row in rows.items()}
    names, labels, classes = labelled(inner, listed, str(tar))
    reader = PackedReader([tar], names, index.numbers[[inner[name] for name in names]])
    return Part(reader, labels, classes, tar.name, (*index.left_out, *rest.listed()))


def _index_of(tar: Path) -> TarIndex:
    """Return the files in a tar, each with the tar's number, which is 0, its offset and size."""
    rest = Remainder(tar.name)
    files = _files_in(tar, rest, nested=True)
    numbers = np.array([(0, *place) for place in files.values()]).reshape(-1, 3)
    return TarIndex([*files], numbers, rest.listed())


def _depth_of_classes(names: Iterable[str]) -> int:
    """Return how many folders lie around those of the classes: each holds all images."""
    folders = [name.split("/")[:-1] for name in names]
    least, greatest = min(folders, default=[]), max(folders, default=[])
    pairs = zip(least, greatest, strict=False)  # what these two share, all share
    common = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    return max(0, min(common, min(map(len, folders), default=0) - 1))


def shard_part(shards: Sequence[Path]) -> Part:
    """Return the images in WebDataset shards.

    A sample is `KEY.jpg` (or what else Pillow reads) with `KEY.cls` (a whole number) or else
    `KEY.json` (with "label"); the key ends at the first dot of the file's name, and other fields
    are not read. Raises `ValueError`, naming the shard, where something else is found.
    """
    index = kept_index("shards", shards, lambda: _index_of_shards(shards))
    if not index.names:
        raise ValueError(f"{shards[0]}: there are no images in it, or in those beside it")
    labels, classes = counted_classes(index.numbers[:, 3], None, shards[0].name)
    reader = PackedReader(shards, index.names, index.numbers)
    return Part(reader, labels, classes, shards[0].parent.name, index.left_out)


def _index_of_shards(shards: Sequence[Path]) -> TarIndex:
    """Return the images in shards, each with the shard's number, its offset, size, and label."""
    rest, names, numbers = Remainder(shards[0].parent.name), list[str](), list[tuple[int, ...]]()
    for number, shard in enumerate(shards):
        for name, place, label in _samples(shard, rest):
            names.append(f"{shard.name}/{name}")
            numbers.append((number, *place, label))
    return TarIndex(names, np.array(numbers).reshape(-1, 4), rest.listed())


def _samples(shard: Path, rest: Remainder) -> Iterator[tuple[str, Place, int]]:
    """Yield the name, place and label of a shard's images, in order."""
    images: dict[str, str] = {}
    labels: dict[str, str] = {}
    files = _files_in(shard, rest, nested=False)
    for name in files:
        key, extension = _key(name)
        if extension in image_extensions():
            before = images.setdefault(key, name)
            if before != name:
                rest.add(f"{shard.name}/{name}", "another image of a sample that has one")
        elif extension in (".cls", ".json") and not (extension == ".json" and key in labels):
            if key in labels:
                rest.add(f"{shard.name}/{labels[key]}", _FIELD)
            labels[key] = name
        else:
            rest.add(f"{shard.name}/{name}", _FIELD)
    for key, name in labels.items():
        if key not in images:
            rest.add(f"{shard.name}/{name}", "a label without an image")
    with shard.open("rb") as file:
        for key, name in images.items():
            if key not in labels:
                raise ValueError(
                    f"{shard}: {name} has no label beside it ({key}.cls or .json). A tar of class "
                    "folders is called train.tar or val.tar"
                )
            try:
                label = _label(labels[key], _content(file, files[labels[key]]))
            except ValueError as error:
                raise ValueError(f"{shard}: {error}") from error
            yield name, files[name], label


def _key(name: str) -> tuple[str, str]:
    folders, _, file = name.rpartition("/")
    stem, dot, extension = file.partition(".")
    return f"{folders}/{stem}" if folders else stem, dot + extension.lower()


def _label(name: str, content: bytes) -> int:
    """Return the label in a file. Raises `ValueError`, naming it, if it is no whole number."""
    try:
        said = json.loads(content)["label"] if name.lower().endswith(".json") else content
        label = int(said)
        if isinstance(said, bool) or (isinstance(said, float) and label != said):
            raise ValueError("true, false or a fraction")
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ValueError(f"{name} holds no label (a whole number from 0)") from error
    if label < 0:
        raise ValueError(f"{name} has the label {label}: these images have none")
    return label


def _content(file: BinaryIO, place: Place) -> bytes:
    file.seek(place[0])
    return file.read(place[1])


@dataclass
class _Contents:
    """What a tar holds: its files, and where its links lead, by their names."""

    nested: bool
    """Whether tars inside of it count as folders."""
    rest: Remainder
    files: dict[str, Place] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)

    def read(self, file: BinaryIO, offset: int = 0, folder: str = "") -> None:
        """Add what is in a tar that begins at an offset. Raises `TarError` if it is damaged."""
        with tarfile.open(fileobj=file, mode="r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # type: ignore[attr-defined]  # a gigabyte for ImageNet
                self.add(tar, member, offset, folder)
            file.seek(tar.offset)
            # tarfile takes whatever is no header for the end.
            if file.read(_BLOCK) != bytes(_BLOCK):
                raise tarfile.ReadError(f"it is cut or damaged at byte {offset + tar.offset}")

    def add(self, tar: tarfile.TarFile, member: tarfile.TarInfo, offset: int, folder: str) -> None:
        """Add one member of a tar."""
        name = folder + _relative(member.name)
        if any(map(is_hidden, name.split("/"))):
            if not member.isdir():
                self.rest.add(name, HIDDEN)
        elif member.islnk():
            self.links[name] = folder + _relative(member.linkname)
        elif member.issym():
            beside = os.path.join(os.path.dirname(name), member.linkname)
            self.links[name] = _relative(os.path.normpath(beside))
        elif member.isfile() and not member.issparse():
            inner, extension = os.path.splitext(name)
            if self.nested and not folder and extension.lower() == ".tar":
                content = tar.extractfile(member)
                assert content is not None  # as it is a file
                self.read(content, offset + member.offset_data, inner + "/")  # type: ignore[arg-type]
                return
            if self.files.pop(name, None):
                self.rest.add(name, _REPLACED)
            self.files[name] = (offset + member.offset_data, member.size)
        elif not member.isdir():
            self.rest.add(name, _NO_FILE)

    def follow_links(self) -> None:
        """Add the files that links lead to, under the names of the links."""
        for name, target in self.links.items():
            passed = {name}
            while target in self.links and target not in passed:
                passed.add(target)
                target = self.links[target]
            if target in self.files:
                self.files.setdefault(name, self.files[target])
            else:
                self.rest.add(name, _DEAD_LINK)


def _files_in(path: Path, rest: Remainder, *, nested: bool) -> dict[str, Place]:
    """Return where the files of a tar are, by their names, in its order, none of them hidden.

    Only its headers are read. Raises `ValueError`, naming the tar, if it is compressed or damaged.
    """
    contents = _Contents(nested, rest)
    try:
        with path.open("rb") as file:
            contents.read(file)
    except (tarfile.TarError, EOFError, RecursionError) as error:
        raise ValueError(f"{path} is no whole, uncompressed tar: {error}") from error
    contents.follow_links()
    return contents.files


def _relative(name: str) -> str:
    """Return a member's name without what leads out of the tar, or nowhere."""
    return "/".join(part for part in name.split("/") if part not in ("", ".", ".."))
