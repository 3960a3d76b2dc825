"""Data sets are found by their layout; what is none is refused with what helps."""

import importlib.util
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
from PIL import Image
from timm.data import dataset_factory

from pareco.data.locations import imagenet_source, located, torchvision_source
from pareco.data.pixels import HIDDEN
from pareco.data.sources import Source
from tests.data.pictures import (
    CLASSES,
    picture,
    pixels_of,
    written_folders,
    written_shards,
    written_tar,
    written_tars,
)


def shown(source: Source, index: int) -> np.ndarray:
    return np.asarray(source.image(index)).transpose(2, 0, 1)


@pytest.mark.parametrize("name", ["val", "validation", "test"])
def test_folders_and_tars_of_the_same_files_are_the_same_data(tmp_path: Path, name: str) -> None:
    folders = located(str(written_folders(tmp_path / "one" / "deep", test_name=name)))
    assert folders.name(30) == f"{name}/ant/000.png"
    tars = located(str(written_tars(tmp_path / "two")))
    for source in (folders, tars):
        assert (source.classes, source.own_test) == (CLASSES, 12)
        assert source.labels.tolist() == np.repeat([0, 1, 2, 0, 1, 2], [10] * 3 + [4] * 3).tolist()
    assert folders.fingerprint() == tars.fingerprint()
    (tmp_path / "one" / "deep" / "train" / "ant" / "000.png").unlink()
    assert located(str(tmp_path / "one" / "deep")).fingerprint() != tars.fingerprint()


def test_a_tar_of_a_tar_for_each_class(tmp_path: Path) -> None:
    """As ImageNet's own training images come."""
    for split, first in (("train", 0), ("val", 10_000)):
        inner = {}
        for number, name in enumerate(CLASSES):
            files = {f"{each}.png": picture(first + 5 * number + each) for each in range(5)}
            inner[f"{name}.tar"] = written_tar(tmp_path / "inner.tar", files).read_bytes()
        written_tar(tmp_path / f"{split}.tar", inner)
    (tmp_path / "inner.tar").unlink()
    source = located(str(tmp_path))
    assert source.classes == CLASSES
    labels = source.labels[:15].tolist()
    for index, label in enumerate(labels):
        number = 5 * label + labels[:index].count(label)
        assert np.array_equal(shown(source, index), pixels_of(picture(number)))
    assert np.array_equal(shown(source, 15), pixels_of(picture(10_000)))


@pytest.mark.parametrize("prefix", ["", "wds/"])
def test_webdataset_shards(tmp_path: Path, prefix: str) -> None:
    source = located(f"{prefix}{written_shards(tmp_path)}")
    assert source.classes == ("0", "1", "2")
    assert source.own_test == 12
    assert np.array_equal(shown(source, 25), pixels_of(picture(25)))
    assert np.array_equal(shown(source, 32), pixels_of(picture(10_002)))
    assert source.name(25).endswith("set-train-002.tar/0025.png")


def left_out(source: Source) -> dict[str, str]:
    return {each.name: each.reason for each in source.left_out}


def test_what_lies_beside_the_splits_is_named(tmp_path: Path) -> None:
    """macOS writes files beside all others that are called like shards and parquet."""
    folders, shards = written_folders(tmp_path / "one"), written_shards(tmp_path / "two")
    written_folders(tmp_path / "one", test_name="test")
    (folders / "labels.csv").touch()
    (folders / ".git").mkdir()
    reason, hidden = "neither of the two splits", HIDDEN
    source = located(str(folders))
    assert source.layout == "class folders"
    assert left_out(source) == {".git": hidden, "labels.csv": reason, "test": reason}
    for name in ("._set-train-000.tar", "._set-val-000.tar"):
        (shards / name).write_bytes(b"no tar")
    source = located(str(shards))
    assert source.layout == "WebDataset shards"
    assert left_out(source) == {"._set-train-000.tar": hidden, "._set-val-000.tar": hidden}
    (tmp_path / "three").mkdir()
    (tmp_path / "three" / "._train.parquet").touch()
    refused(tmp_path / "three", "which is no data set")


def test_the_splits_may_be_packed_in_different_ways(tmp_path: Path) -> None:
    """But two that are packed alike belong together, whatever else lies there."""
    expected = located(str(written_tars(tmp_path / "tars"))).fingerprint()
    folder = written_tars(written_folders(tmp_path / "both"))
    (folder / "val.tar").unlink()
    assert located(str(folder)).layout == "class folders"
    shutil.rmtree(folder / "train")
    source = located(str(folder))
    assert source.layout == "tars of class folders and class folders"
    assert source.fingerprint() == expected
    written_tar(folder / "test.tar", {"ant/x.png": b"", "bee/x.png": b"", "cow/x.png": b""})
    assert located(str(folder)).name(30) == "test.tar/ant/x.png"


def test_a_class_in_one_split_alone_is_refused(tmp_path: Path) -> None:
    folder = written_folders(tmp_path)
    (folder / "val" / "dog").mkdir()
    assert located(str(folder)).classes == CLASSES
    (folder / "val" / "dog" / "x.png").write_bytes(picture(1))
    with pytest.raises(ValueError, match="different classes: dog only in test"):
        located(str(folder))


class Trap:
    """Runs code as soon as it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.mark,)


def test_a_pickle_beside_a_tar_is_never_opened(tmp_path: Path) -> None:
    """timm looks for such caches of a tar's index, and writes them beside large ones."""
    written_tars(tmp_path / "data")
    cache = tmp_path / "data" / "_train_tarinfos.pickle"
    cache.write_bytes(pickle.dumps(Trap(tmp_path / "mark")))
    before = cache.read_bytes()
    assert located(str(tmp_path / "data")).own_test == 12
    assert not (tmp_path / "mark").exists()
    assert cache.read_bytes() == before
    pickle.loads(before)
    assert (tmp_path / "mark").exists()  # the trap works


def refused(location: Path | str, message: str) -> None:
    with pytest.raises(FileNotFoundError, match=message):
        located(str(location))


def test_what_is_no_data_set_is_refused_with_the_layouts(tmp_path: Path) -> None:
    refused(tmp_path / "none", r"none: there is no such folder(.|\n)*train/CLASS/IMAGE")
    refused(tmp_path, r"holds nothing, which is no data set(.|\n)*train\.tar")
    (tmp_path / "readme.txt").write_text("hello")
    refused(tmp_path, r"holds readme\.txt, which is no data set")
    refused(tmp_path / "readme.txt", "is a file: give its folder")
    refused(f"wds/{tmp_path}", "holds readme.txt, which is no data set")


@pytest.mark.parametrize(
    "names", [("Training", "Testing"), ("training_set", "test_set"), ("train2017", "val2017"),
              ("Train", "Val"), ("seg_train", "seg_test"), ("TRAIN_1", "TEST_1"),
              ("trainSplit", "holdout"), ("Training", "Dev")],
)  # fmt: skip
def test_splits_of_other_names_are_no_classes(tmp_path: Path, names: tuple[str, str]) -> None:
    folder = written_folders(tmp_path / "data")
    for old, new in zip(("train", "val"), names, strict=True):
        (folder / old).rename(folder / new)
    refused(folder, f"{names[0]} and {names[1]} look like splits: call them train and val")


def test_classes_may_be_called_nearly_as_splits(tmp_path: Path) -> None:
    names = ("train_station", "valley", "trainers", "testing", "training")
    for name in names:
        (tmp_path / name).mkdir()
        (tmp_path / name / "0.png").write_bytes(picture(0))
    assert set(located(str(tmp_path)).classes) == {*names}


def test_incomplete_data_sets_are_refused(tmp_path: Path) -> None:
    folder = written_folders(tmp_path / "folders")
    shutil.rmtree(folder / "val")
    refused(folder, "holds train, which is no data set")
    (folder / "val").mkdir()
    refused(folder, "val holds no images in class folders")
    tars = written_tars(tmp_path / "tars")
    written_tar(tars / "val.tar", {})
    refused(tars, r"val\.tar holds no images in class folders")
    (tars / "val.tar").write_bytes(b"no tar at all")
    with pytest.raises(ValueError, match=r"val\.tar is no whole, uncompressed tar"):
        located(str(tars))


def test_images_outside_of_class_folders_are_refused(tmp_path: Path) -> None:
    for name in ("train.tar", "test.tar"):
        written_tar(tmp_path / name, {"a.png": b"", "b/c.png": b""})
    with pytest.raises(ValueError, match="outside of class folders"):
        located(str(tmp_path))


class Published:
    """Stands for torchvision's CIFAR: its real files cannot be made here, as it knows their MD5."""

    complete = True
    asked: list[tuple[str, bool, bool]]

    def __init__(self, root: str, train: bool = True, download: bool = False) -> None:
        self.asked.append((root, train, download))
        if not self.complete:
            raise RuntimeError("Dataset not found or corrupted.")
        self.targets = [each % 2 for each in range(20 if train else 6)]
        self.classes = ["cat", "dog"]

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.new("RGB", (32, 32), (index, 0, 0)), self.targets[index]


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch) -> type[Published]:
    monkeypatch.setattr(Published, "asked", [], raising=False)
    monkeypatch.setattr(Published, "complete", True)
    for name in ("cifar10", "cifar100"):
        monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, name, Published)
    return Published


@pytest.mark.parametrize("inner", ["cifar-10-batches-py", "cifar-100-python"])
def test_torchvisions_cifar_in_a_folder(
    tmp_path: Path, published: type[Published], inner: str
) -> None:
    (tmp_path / inner).mkdir()
    source = located(str(tmp_path))
    assert published.asked == [(str(tmp_path), True, False), (str(tmp_path), False, False)]
    assert (source.classes, source.own_test) == (("cat", "dog"), 6)
    assert shown(source, 22)[0, 0, 0] == 2
    published.complete = False
    refused(tmp_path, f"{inner} is damaged or incomplete")


def test_real_files_of_cifar_are_checked_before_they_are_opened(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    trap = pickle.dumps(Trap(tmp_path / "mark"))
    for name in ("test_batch", "batches.meta", *(f"data_batch_{each}" for each in range(1, 6))):
        (folder / name).write_bytes(trap)
    refused(tmp_path, "cifar-10-batches-py is damaged or incomplete")
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("location", [None, "torch/cifar10"])
def test_cifar_is_downloaded_into_the_cache_by_torchvision(
    tmp_path: Path,
    published: type[Published],
    monkeypatch: pytest.MonkeyPatch,
    location: str | None,
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = located(location) if location else torchvision_source("cifar10")
    assert source.own_test == 6
    cache = str(tmp_path / "pareco")
    assert published.asked == [(cache, True, True), (cache, False, True)]


@pytest.mark.parametrize("error", [URLError("no network"), TimeoutError("no network")])
def test_a_failed_download_says_what_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: Any, **options: Any) -> None:
        raise error

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setitem(dataset_factory._TORCH_BASIC_DS, "cifar100", fail)
    expected = r"cifar100 is not in .*could not be downloaded \(.*no network.*--images FOLDER"
    with pytest.raises(FileNotFoundError, match=expected):
        torchvision_source("cifar100")


def test_imagenet_is_never_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"--images FOLDER(.|\n)*image-net\.org(.|\n)*tar"):
        imagenet_source()
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        located("torch/imagenet")


def test_hugging_face_without_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "train-0.parquet").touch()
    refused(tmp_path, "needs: pip install datasets")
    refused("hfds/someone/something", "someone/something needs: pip install datasets")


@pytest.fixture
def hugging_face(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder for data of this kind; nothing is kept outside of it, or asked for."""
    if importlib.util.find_spec("datasets") is None:
        pytest.skip("the package datasets is not installed")
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    return tmp_path / "set"


def write_parquet(folder: Path, split: str, first: int, count: int, image: str = "img") -> None:
    import datasets

    names = ["unused", *CLASSES]
    features = {image: datasets.Image(), "kind": datasets.ClassLabel(names=names)}
    columns = {
        image: [{"bytes": picture(first + each), "path": None} for each in range(count)],
        "kind": [1 + each % 3 for each in range(count)],
    }
    folder.mkdir(parents=True, exist_ok=True)
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(features))
    made.to_parquet(str(folder / f"{split}-00000-of-00001.parquet"))


def test_a_hugging_face_data_set_on_disk(hugging_face: Path) -> None:
    write_parquet(hugging_face / "data", "train", 0, 9)
    write_parquet(hugging_face / "data", "test", 10_000, 6)
    for location in (str(hugging_face), f"hfds/{hugging_face}"):
        source = located(location)
        assert source.classes == CLASSES
        assert source.labels.tolist() == [0, 1, 2] * 5
        assert source.own_test == 6
        assert np.array_equal(shown(source, 7), pixels_of(picture(7)))
        assert np.array_equal(shown(source, 10), pixels_of(picture(10_001)))
        assert source.name(10) == "test/1"
    write_parquet(hugging_face, "train", 0, 9)
    shutil.rmtree(hugging_face / "data")
    refused(hugging_face, "needs train and validation or test, has train")
