"""Finding a data set: at a location, by the layout of its folder, or at its publisher's."""

from __future__ import annotations

import os
import socket
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from timm.data import create_dataset

from pareco.data.sources import (
    NumberedPart,
    Part,
    ReaderPart,
    ShardReader,
    Source,
    TarPart,
    present_classes,
)

_TEST_NAMES = ("val", "validation", "test")
_CIFAR = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
LAYOUTS = """\
  train/CLASS/IMAGE and val/CLASS/IMAGE (or validation/, test/): class folders
  train.tar and val.tar (or validation.tar, test.tar): tars of class folders
  *train*.tar and *val*.tar (or *test*.tar): uncompressed WebDataset shards
  cifar-10-batches-py/ or cifar-100-python/: torchvision's CIFAR
  *.parquet or data/*.parquet: a Hugging Face data set (needs: pip install datasets)
or a name of timm's: hfds/NAME (the Hugging Face hub), wds/FOLDER, torch/NAME (torchvision)"""


def layout_of(folder: Path) -> Source | None:
    """Return the data set in a folder, or None if it has none of the known layouts.

    Raises `FileNotFoundError` if it has, but holds no images, `ValueError` if these cannot be
    told apart.
    """
    for layout in (_class_folders, _tars, shard_folder, _cifar, _parquet):
        if (source := layout(folder)) is not None:
            return source
    return None


def _pair(folder: Path, suffix: str, test: Callable[[Path], bool]) -> tuple[Path, Path] | None:
    """Return the places of the training and of the test images, if both are there."""
    train = folder / f"train{suffix}"
    tests = [path for name in _TEST_NAMES if test(path := folder / f"{name}{suffix}")]
    return (train, tests[0]) if test(train) and tests else None


def _class_folders(folder: Path) -> Source | None:
    pair = _pair(folder, "", Path.is_dir)
    return pair and Source(*map(_folder_part, pair), where=str(folder))


def _folder_part(folder: Path) -> Part:
    try:
        reader = _timm_reader("", root=str(folder), search_split=False)
    except RuntimeError as error:
        raise FileNotFoundError(f"{folder} holds no images in class folders") from error
    labels = np.array([label for _, label in reader.samples])
    return ReaderPart(reader, labels, tuple(reader.class_to_idx), folder.name)


def _tars(folder: Path) -> Source | None:
    pair = _pair(folder, ".tar", Path.is_file)
    return pair and Source(*map(_tar_part, pair), where=str(folder))


def _tar_part(file: Path) -> Part:
    try:  # without timm's cache of the tar's index, which is a pickle
        reader = _timm_reader("", root=str(file), cache_tarinfo=False)
    except (ValueError, tarfile.TarError) as error:
        reason = f" ({error})" if isinstance(error, tarfile.TarError) else ""
        raise FileNotFoundError(f"{file} holds no images in class folders{reason}") from error
    return TarPart(reader, reader.targets, tuple(reader.class_name_to_idx), file.name)


def shard_folder(folder: Path) -> Source | None:
    """Return the WebDataset in a folder of shards, or None if there are none."""
    train = sorted(folder.glob("*train*.tar"))
    tests = [sorted({*folder.glob(f"*{name}*.tar")} - {*train}) for name in _TEST_NAMES]
    found = [shards for shards in tests if shards]
    if not train or not found:
        return None
    parts = [_shard_part(shards) for shards in (train, found[0])]
    return Source(*parts, where=str(folder))


def _shard_part(shards: list[Path]) -> Part:
    reader = ShardReader(shards)
    labels, classes = present_classes(reader.labels, None, shards[0].name)
    return ReaderPart(reader, labels, classes, str(shards[0].parent.name))


def _cifar(folder: Path) -> Source | None:
    for inner, name in _CIFAR.items():
        if (folder / inner).is_dir():
            try:
                return torchvision_splits(name, folder, download=False)
            except RuntimeError as error:
                raise FileNotFoundError(
                    f"{folder / inner} is damaged or incomplete: {error}"
                ) from error
    return None


def torchvision_splits(name: str, folder: Path, *, download: bool) -> Source:
    """Return a data set of torchvision in a folder. Raises `RuntimeError` if it is not there.

    CIFAR's files are pickles, which can run code; torchvision compares the MD5 of each with the
    published one before it opens it, so that only the published files are ever opened.
    """

    def part(split: str) -> Part:
        dataset: Any = create_dataset(
            f"torch/{name}", root=str(folder), split=split, download=download
        )
        targets = np.asarray(dataset.targets)
        labels, classes = present_classes(targets, dataset.classes, f"{name}, {split}")
        return NumberedPart(dataset, labels, classes, f"{name}/{split}")

    return Source(part("train"), part("validation"), where=name)


def _parquet(folder: Path) -> Source | None:
    if not any(any(folder.glob(pattern)) for pattern in ("*.parquet", "data/*.parquet")):
        return None
    return hugging_face(str(folder))


def hugging_face(name: str, where: str = "") -> Source:
    """Return a data set of the Hugging Face hub, or of their format in a folder.

    `where` precedes its name in errors: `FileNotFoundError` if it is not there, or has no images
    and classes.
    """
    where = f"{where}{name}"
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError(f"{where} needs: pip install datasets") from error
    try:
        splits = datasets.get_dataset_split_names(name)
        tests = [split for split in _TEST_NAMES if split in splits]
        if "train" not in splits or not tests:
            raise FileNotFoundError(f"needs train and validation or test, has {', '.join(splits)}")
        parts = [_hugging_face_part(name, split) for split in ("train", tests[0])]
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{where}, as a Hugging Face data set: {error}") from error
    return Source(*parts, where=where)


def _hugging_face_part(name: str, split: str) -> Part:
    import datasets

    features = datasets.load_dataset(name, split=split).features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    keys = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not (images and keys):
        raise ValueError(f"needs an image and a class label, has {', '.join(features)}")
    reader = _timm_reader(f"hfds/{name}", split=split, input_key=images[0], target_key=keys[0])
    numbers = reader.dataset.data.column(keys[0]).to_numpy()
    labels, classes = present_classes(numbers, features[keys[0]].names, split)
    return NumberedPart(reader, labels, classes, split)


def _timm_reader(name: str, **options: Any) -> Any:
    """Return the reader of a timm data set; its data set would skip damaged images silently."""
    dataset: Any = create_dataset(name, **options)
    return dataset.reader


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
