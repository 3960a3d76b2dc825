"""Finding a data set: at a location, by the layout of its folder, or at its publisher's."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.client import HTTPException
from itertools import product
from pathlib import Path
from typing import Any

from filelock import FileLock
from timm.data import create_dataset
from timm.data.readers.reader_factory import create_reader

from pareco.data.class_folders import Labels, NoClass, folder_part
from pareco.data.label_lists import BESIDE, are_official, listed_labels, without_devkit
from pareco.data.packed import shard_part, tar_part
from pareco.data.pixels import HIDDEN, is_hidden, name_order
from pareco.data.sources import LeftOut, Part, Remainder, Source, numbered_part
from pareco.data.tar_index import ENDING
from pareco.files import cache_folder

_NETWORK_SECONDS = 30
_TEST_NAMES = ("val", "validation", "test")
_SPLIT_WORDS = (
    {"train", "training", "trainset"},
    {"test", "testing", "testset", "val", "valid", "validation", "eval", "dev", "holdout"},
)
"""First or last words of folders that are splits, and no classes, where there are no others."""
_CIFAR = {"cifar-10-batches-py": "cifar10", "cifar-100-python": "cifar100"}
LAYOUTS = """\
  train/CLASS/IMAGE and val/CLASS/IMAGE (or validation/, test/): class folders
  train.tar and val.tar (or validation.tar, test.tar): tars of class folders
  ILSVRC2012_img_train.tar and _val.tar, ILSVRC2012_devkit_t12.tar.gz: ImageNet as downloaded
  *train*.tar and *val*.tar (or *test*.tar): uncompressed WebDataset shards
  cifar-10-batches-py/ or cifar-100-python/: torchvision's CIFAR
  *.parquet or data/*.parquet: a Hugging Face data set (needs: pip install datasets)
  CLASS/IMAGE: class folders, of which test images are held out
or a name of timm's: hfds/NAME (the Hugging Face hub), wds/FOLDER, torch/NAME (torchvision)"""


@dataclass(frozen=True)
class _Packing:
    """One of the ways in which class folders are kept."""

    layout: str
    pattern: str
    """The name of a split's place: `{}` is the split."""
    exists: Callable[[Path], bool]
    part: Callable[[Path, Labels], Part]


_PACKINGS = (
    _Packing("class folders", "{}", Path.is_dir, folder_part),
    _Packing("tars of class folders", "{}.tar", Path.is_file, tar_part),
    _Packing("ImageNet's official tars", "ILSVRC2012_img_{}.tar", Path.is_file, tar_part),
)


def _class_folders(folder: Path) -> Source | None:
    """Return class folders, packed or not; the splits may be packed in different ways."""

    def places(names: Sequence[str]) -> list[tuple[_Packing, Path]]:
        return [
            (packing, place)
            for packing in _PACKINGS
            for name in names
            if packing.exists(place := folder / packing.pattern.format(name))
        ]

    pairs = [*product(places(("train",)), places(_TEST_NAMES))]
    if not pairs:
        return None
    chosen = min(pairs, key=lambda pair: pair[0][0] is not pair[1][0])
    layout = " and ".join(dict.fromkeys(packing.layout for packing, _ in chosen))
    parts = [_class_part(folder, packing, place) for packing, place in chosen]
    beside = _beside(folder, [place for _, place in chosen])
    return Source(*parts, where=str(folder), layout=layout, left_out=beside)


def _class_part(folder: Path, packing: _Packing, place: Path) -> Part:
    """Return the images of one split."""
    try:
        return packing.part(place, listed_labels(folder, place))
    except NoClass as error:
        if are_official(error.example):
            raise FileNotFoundError(without_devkit(folder, place)) from error
        raise


def _beside(folder: Path, places: Sequence[Path]) -> tuple[LeftOut, ...]:
    """Return what lies in the folder of a data set beside its splits, and is not read."""
    rest = Remainder("")
    for path in sorted(folder.iterdir()):
        known = path in places or path.name in BESIDE or path.name.endswith(ENDING)
        if not known:
            rest.add(path.name, HIDDEN if is_hidden(path.name) else "neither of the two splits")
    return rest.listed()


def _shards(folder: Path) -> Source | None:
    def shards(name: str) -> list[Path]:
        found = sorted(folder.glob(f"*{name}*.tar"), key=lambda path: name_order(path.name))
        return [path for path in found if not is_hidden(path.name)]

    train = shards("train")
    tests = [[path for path in shards(name) if path not in train] for name in _TEST_NAMES]
    found = [paths for paths in tests if paths]
    if not train or not found:
        return None
    parts, beside = (shard_part(train), shard_part(found[0])), _beside(folder, [*train, *found[0]])
    return Source(*parts, where=str(folder), layout="WebDataset shards", left_out=beside)


def _cifar(folder: Path) -> Source | None:
    for inner, name in _CIFAR.items():
        if (place := folder / inner).is_dir():
            try:
                return _torchvision_splits(name, folder, download=False)
            except RuntimeError as error:
                raise FileNotFoundError(f"{place} is damaged or incomplete: {error}") from error
    return None


def _torchvision_splits(name: str, folder: Path, *, download: bool) -> Source:
    """Return a data set of torchvision in a folder. Raises `RuntimeError` if it is not there.

    CIFAR's files are pickles, which can run code; torchvision compares the MD5 of each with the
    published one before it opens it, so that only the published files are ever opened.
    """

    def part(split: str) -> Part:
        dataset: Any = create_dataset(
            f"torch/{name}", root=str(folder), split=split, download=download
        )
        return numbered_part(dataset, dataset.targets, dataset.classes, f"{name}/{split}")

    return Source(part("train"), part("validation"), where=name, layout="torchvision CIFAR")


def _parquet(folder: Path) -> Source | None:
    patterns = ("*.parquet", "data/*.parquet")
    found = any(not is_hidden(path.name) for each in patterns for path in folder.glob(each))
    return _hugging_face(str(folder)) if found else None


def _hugging_face(name: str) -> Source:
    """Return a data set of the Hugging Face hub, or of their format in a folder.

    Raises `FileNotFoundError` if it is not there, or has no images and classes.
    """
    try:
        import datasets
    except ImportError as error:
        raise FileNotFoundError(f"{name} needs: pip install datasets") from error
    try:
        splits = datasets.get_dataset_split_names(name)
        tests = [split for split in _TEST_NAMES if split in splits]
        if "train" not in splits or not tests:
            raise FileNotFoundError(f"needs train and validation or test, has {', '.join(splits)}")
        parts = [_hugging_face_part(name, split) for split in ("train", tests[0])]
    except (OSError, ValueError, KeyError) as error:
        raise FileNotFoundError(f"{name}, as a Hugging Face data set: {error}") from error
    return Source(*parts, where=name, layout="Hugging Face data set")


def _hugging_face_part(name: str, split: str) -> Part:
    import datasets

    features = datasets.load_dataset(name, split=split).features
    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    keys = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    if not (images and keys):
        raise ValueError(f"needs an image and a class label, has {', '.join(features)}")
    options = {"split": split, "input_key": images[0], "target_key": keys[0]}
    reader: Any = create_reader(f"hfds/{name}", **options)
    numbers = reader.dataset.data.column(keys[0]).to_numpy()
    return numbered_part(reader, numbers, features[keys[0]].names, split)


def _unsplit(folder: Path) -> Source | None:
    """Return class folders that no split divides: all images are to learn from, none to test on."""
    names = {path.name.lower() for path in folder.iterdir() if path.is_dir()}
    if not names or names & {"train", *_TEST_NAMES} or _misnamed(folder):
        return None
    try:
        part = _class_part(folder, _PACKINGS[0], folder)
    except FileNotFoundError:
        return None
    no_test = replace(part, labels=part.labels[:0], left_out=())
    return Source(part, no_test, where=str(folder), layout="class folders without a test split")


def _misnamed(folder: Path) -> list[str]:
    """Return the names of all folders where they look like splits, but are called otherwise."""
    names = [path.name for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]
    sorts = [[name for name in sorted(names) if _ends(name) & words] for words in _SPLIT_WORDS]
    found = [*sorts[0], *sorts[1]]
    misnamed = not {*found} <= {"train", *_TEST_NAMES}
    return found if all(sorts) and len(found) == len(names) and misnamed else []


def _ends(name: str) -> set[str]:
    """Return the first and the last word of a name, in small letters."""
    words = re.findall(r"[A-Z]*[a-z]+|[A-Z]+", name)
    return {words[0].lower(), words[-1].lower()} if words else set()


def _half(folder: Path) -> str:
    """Return what helps where there is one split of two, or a class that is called as a split."""
    if misnamed := _misnamed(folder):
        return (
            f": {' and '.join(misnamed)} look like splits: call them train and val (or test) or, "
            "if they are classes, otherwise"
        )
    splits = [each for each in ("train", *_TEST_NAMES) if (folder / each).is_dir()]
    if not splits:
        return ""
    return (
        f": {', '.join(splits)} is taken for one of two splits. If it holds all images, give "
        f"{folder / splits[0]}; if it is a class, rename it"
    )


def located(location: str) -> Source:
    """Return the data set at a location: a folder of any known layout, or a prefix and a name.

    Raises `FileNotFoundError` where there is none, with what was found and the layouts that are
    known; `ValueError` where its images cannot be told apart.
    """
    prefix, _, name = location.partition("/")
    if name and (find := _PUBLISHERS.get(prefix.lower())):
        return find(name)
    shards_alone = bool(name) and prefix.lower() == "wds"
    folder = Path(name if shards_alone else location).expanduser()
    if folder.is_dir():
        for layout in (_shards,) if shards_alone else (*_LAYOUTS, _unsplit):
            if (source := layout(folder)) is not None:
                return source
        names = sorted(path.name for path in folder.iterdir())
        content = ", ".join(names[:8]) + ", ..." * (len(names) > 8) or "nothing"
        what = f"holds {content}, which is no data set{_half(folder)}"
    else:
        what = "is a file: give its folder" if folder.exists() else "there is no such folder"
    raise FileNotFoundError(f"--images {location}: {what}. Known layouts:\n{LAYOUTS}")


def imagenet_source() -> Source:
    """Raise `FileNotFoundError` with what helps."""
    raise FileNotFoundError(
        "ImageNet is not downloaded: say where it lies with --images FOLDER (make: "
        f"IMAGENET=FOLDER). It comes from image-net.org, on request. Known layouts:\n{LAYOUTS}"
    )


def torchvision_source(name: str) -> Source:
    """Return torchvision's data set of this name, downloaded at first.

    Raises `FileNotFoundError` if the download fails.
    """
    cache = cache_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f".{name}.lock"), _limited_waiting():
            return _torchvision_splits(name, cache, download=True)
    except (OSError, RuntimeError, HTTPException, AssertionError) as error:
        raise FileNotFoundError(
            f"{name} is not in {cache} and could not be downloaded ({error}). Say where it lies "
            f"with --images FOLDER (make: DATA=FOLDER). Known layouts:\n{LAYOUTS}"
        ) from error


@contextmanager
def _limited_waiting() -> Iterator[None]:
    """Let a silent network fail in the block: torchvision itself waits forever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_NETWORK_SECONDS)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


_LAYOUTS = (_class_folders, _shards, _cifar, _parquet)
_PUBLISHERS = {"hfds": _hugging_face, "torch": torchvision_source}
