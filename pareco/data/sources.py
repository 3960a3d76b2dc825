"""Data sets in files: found by their layout, read by timm's readers or torchvision."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.error import URLError

import numpy as np
from filelock import FileLock
from PIL import Image
from timm.data.readers.reader_image_folder import ReaderImageFolder
from timm.data.readers.reader_image_in_tar import ReaderImageInTar
from torchvision import datasets as torchvision_datasets

from pareco.data.shards import ShardReader

_TEST_NAMES = ("val", "validation", "test")
LAYOUTS = """\
  train/CLASS/IMAGE and val/CLASS/IMAGE (or validation/, test/): class folders
  train.tar and val.tar (or validation.tar, test.tar): tars of class folders
  *train*.tar and *val*.tar (or *test*.tar), several of each: WebDataset shards
  cifar-10-batches-py/ or cifar-100-python/: torchvision's CIFAR
  *.parquet or data/*.parquet: a Hugging Face data set (needs: pip install datasets)
or --images hfds/NAME, a data set of the Hugging Face hub"""


class Part(Protocol):
    """The images of one split: their labels and classes, and how to open one."""

    @property
    def labels(self) -> np.ndarray:
        """The labels `n`, from 0."""
        ...

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        ...

    def image(self, index: int) -> Image.Image:
        """Return an image, maybe not decoded yet."""
        ...

    def name(self, index: int) -> str:
        """Return what the image is called within its split."""
        ...


@dataclass(frozen=True)
class TimmPart:
    """A split that one of timm's readers opens."""

    reader: Any
    labels: np.ndarray
    classes: tuple[str, ...]

    def image(self, index: int) -> Image.Image:
        """Return an image, maybe not decoded yet."""
        return Image.open(self.reader[index][0])

    def name(self, index: int) -> str:
        """Return the file's name within the split."""
        return str(self.reader.filename(index))


@dataclass(frozen=True)
class TarPart(TimmPart):
    """A tar of class folders; every process has a file handle of its own."""

    def image(self, index: int) -> Image.Image:
        """Return an image, maybe not decoded yet."""
        state = self.reader.tar_state
        if getattr(state, "process", None) != os.getpid():
            state.process, state.tf = os.getpid(), None
        return super().image(index)


@dataclass(frozen=True)
class TorchvisionPart:
    """A split of a torchvision data set that is held in memory."""

    dataset: Any

    @cached_property
    def labels(self) -> np.ndarray:
        """The labels `n`."""
        return np.asarray(self.dataset.targets)

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes."""
        return tuple(self.dataset.classes)

    def image(self, index: int) -> Image.Image:
        """Return an image."""
        return self.dataset[index][0]

    def name(self, index: int) -> str:
        """Return the image's number."""
        return f"{index:05}"


class Source:
    """Training images, then test images, as one; raises `ValueError` if they don't fit."""

    def __init__(self, train: Part, test: Part, where: str) -> None:
        """Check the classes and join the labels."""
        if len(train.classes) < 2:
            raise ValueError(f"{where}: fewer than two classes: {', '.join(train.classes)}")
        if train.classes != test.classes:
            only = sorted(set(train.classes) ^ set(test.classes))
            raise ValueError(
                f"{where}: training and test images have different classes "
                f"({len(only)} are in one alone: {', '.join(only[:10])})"
            )
        self._train, self._test = train, test
        self.classes = train.classes
        self.labels = np.concatenate([train.labels, test.labels])
        self.own_test = len(test.labels)

    def image(self, index: int) -> Image.Image:
        """Return an image, maybe not decoded yet."""
        part, position = self._placed(index)
        return part.image(position)

    def name(self, index: int) -> str:
        """Return an image's split and its name there."""
        part, position = self._placed(index)
        return f"{'train' if part is self._train else 'test'}/{part.name(position)}"

    def part_of(self, index: int) -> range:
        """Return the indices of the split that an image belongs to."""
        border = len(self._train.labels)
        return range(border) if index < border else range(border, len(self.labels))

    def fingerprint(self) -> str:
        """Return a SHA-256 of classes, names and labels."""
        digest = hashlib.sha256(repr((self.classes, self.own_test)).encode())
        for index, label in enumerate(self.labels.tolist()):
            digest.update(f"{self.name(index)} {label}\n".encode())
        return digest.hexdigest()

    def _placed(self, index: int) -> tuple[Part, int]:
        border = len(self._train.labels)
        return (self._train, index) if index < border else (self._test, index - border)


def imagenet_source(location: str | None) -> Source:
    """Return the data set at a location. Raises `FileNotFoundError` with what helps."""
    if location is None:
        raise FileNotFoundError(
            "ImageNet is not downloaded: say where it lies with --images FOLDER (make: "
            f"IMAGENET=FOLDER). It comes from image-net.org, on request. Known layouts:\n{LAYOUTS}"
        )
    return located(location)


def cifar_source(classes: int, location: str | None) -> Source:
    """Return CIFAR-10 or CIFAR-100 at a location, or torchvision's, downloaded at first."""
    if location is not None:
        return located(location)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pareco"
    cache.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache / f".cifar{classes}.lock"):
            return _torchvision_cifar(cache, classes, download=True)
    except (URLError, RuntimeError, OSError) as error:
        raise FileNotFoundError(
            f"CIFAR-{classes} is not in {cache} and could not be downloaded ({error}). Say where "
            f"it lies with --images FOLDER (make: DATA=FOLDER). Known layouts:\n{LAYOUTS}"
        ) from error


def located(location: str) -> Source:
    """Return the data set at a location, whatever its layout.

    Raises `FileNotFoundError` where there is none, with the layouts that are known.
    """
    if location.startswith("hfds/"):
        return _hugging_face(location.removeprefix("hfds/"), location)
    folder = Path(location).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"--images {location}: no such folder. Known layouts:\n{LAYOUTS}")
    for layout in (_class_folders, _tars, _shards, _cifar_folder, _parquet):
        if (source := layout(folder)) is not None:
            return source
    content = sorted(path.name for path in folder.iterdir())
    shown = ", ".join(content[:8]) + (", ..." if len(content) > 8 else "") or "nothing"
    raise FileNotFoundError(
        f"--images {location}: holds {shown}, which is no data set. Known layouts:\n{LAYOUTS}"
    )


def _pair(folder: Path, suffix: str, test: Callable[[Path], bool]) -> tuple[Path, Path] | None:
    """Return the places of the training and of the test images, if both are there."""
    train = folder / f"train{suffix}"
    tests = [folder / f"{name}{suffix}" for name in _TEST_NAMES]
    found = [path for path in tests if test(path)]
    return (train, found[0]) if test(train) and found else None


def _class_folders(folder: Path) -> Source | None:
    pair = _pair(folder, "", Path.is_dir)
    return pair and Source(*map(_folder_part, pair), where=str(folder))


def _folder_part(folder: Path) -> Part:
    try:
        reader = ReaderImageFolder(str(folder))
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder} holds no images in class folders") from error
    labels = np.array([label for _, label in reader.samples])
    return TimmPart(reader, labels, tuple(reader.class_to_idx))


def _tars(folder: Path) -> Source | None:
    pair = _pair(folder, ".tar", Path.is_file)
    return pair and Source(*map(_tar_part, pair), where=str(folder))


def _tar_part(file: Path) -> Part:
    try:  # without timm's cache of the tar's index, which is a pickle
        reader = ReaderImageInTar(str(file), cache_tarinfo=False)
    except ValueError as error:
        raise FileNotFoundError(f"{file} holds no images in class folders") from error
    return TarPart(reader, reader.targets, tuple(reader.class_name_to_idx))


def _shards(folder: Path) -> Source | None:
    train = sorted(folder.glob("*train*.tar"))
    tests = [sorted(folder.glob(f"*{name}*.tar")) for name in _TEST_NAMES]
    found = [paths for paths in tests if paths]
    if not train or not found:
        return None
    parts = [
        TimmPart(reader, reader.labels, reader.classes)
        for reader in (ShardReader(train), ShardReader(found[0]))
    ]
    return Source(*parts, where=str(folder))


def _cifar_folder(folder: Path) -> Source | None:
    for classes, name in ((10, "cifar-10-batches-py"), (100, "cifar-100-python")):
        if (folder / name).is_dir():
            return _torchvision_cifar(folder, classes, download=False)
    return None


def _torchvision_cifar(folder: Path, classes: int, *, download: bool) -> Source:
    """Return CIFAR as torchvision reads it: pickles, whose MD5 it knows and checks before."""
    kind = {10: torchvision_datasets.CIFAR10, 100: torchvision_datasets.CIFAR100}[classes]
    try:
        train, test = (kind(str(folder), train=each, download=download) for each in (True, False))
    except RuntimeError as error:
        raise FileNotFoundError(f"CIFAR-{classes} in {folder} is damaged: {error}") from error
    return Source(TorchvisionPart(train), TorchvisionPart(test), where=str(folder))


def _parquet(folder: Path) -> Source | None:
    if not [*folder.glob("*.parquet"), *folder.glob("data/*.parquet")]:
        return None
    return _hugging_face(str(folder), str(folder))


def _hugging_face(name: str, where: str) -> Source:
    """Return a data set of the Hugging Face hub, or of their format in a folder."""
    try:
        import datasets
        from timm.data.readers.reader_hfds import ReaderHfds
    except ImportError as error:
        raise FileNotFoundError(f"{where} needs: pip install datasets") from error
    builder = datasets.load_dataset_builder(name)
    features, splits = builder.info.features or {}, builder.info.splits or {}
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    tests = [split for split in _TEST_NAMES if split in splits]
    if not (images and labels and "train" in splits and tests):
        raise FileNotFoundError(
            f"{where}: needs an image and a class label, and the splits train and validation or "
            f"test; found {', '.join(features)} and the splits {', '.join(splits)}"
        )

    def part(split: str) -> Part:
        reader = ReaderHfds(name, split=split, input_key=images[0], target_key=labels[0])
        return TimmPart(
            reader, np.asarray(reader.dataset[labels[0]]), tuple(features[labels[0]].names)
        )

    return Source(part("train"), part(tests[0]), where=where)
