"""What is seen at a location before anything is trained on it."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pareco.config import Machine
from pareco.data import load_data
from pareco.data.contents import contents_of
from pareco.data.locations import located
from tests.data.pictures import (
    CLASSES,
    contents,
    picture,
    small,
    written_folders,
    written_shards,
    written_tars,
)


def written_unsplit(folder: Path, per_class: int = 10) -> Path:
    """Write class folders that no split divides and return their folder."""
    for name, content in contents(per_class).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("write", "layout"),
    [
        (written_folders, "class folders"),
        (written_tars, "tars of class folders"),
        (written_shards, "WebDataset shards"),
    ],
)
def test_every_layout_is_counted_alike(tmp_path: Path, write, layout: str) -> None:  # type: ignore[no-untyped-def]
    found = contents_of(str(write(tmp_path)), 100)
    assert found.layout == layout
    assert len(found.classes) == 3
    assert (found.train_counts, found.test_counts) == ((10,) * 3, (4,) * 3)
    assert (found.train_images, found.test_images, found.opened) == (30, 12, 42)
    assert (found.sizes, found.modes) == ({"16 x 16": 42}, {"RGB": 42})
    assert (found.unreadable, found.left_out) == ((), ())


def test_sizes_and_modes_are_those_that_are_stored(tmp_path: Path) -> None:
    folder = written_folders(tmp_path, train=2, test=1)
    Image.fromarray(np.zeros((5, 7), np.uint8)).save(folder / "train" / "ant" / "000.png")
    (folder / "train" / "bee" / "000.png").write_bytes(b"no image")
    Image.new("F", (16, 16)).save(folder / "train" / "cow" / "000.tiff")  # of an unknown white
    cut = folder / "val" / "ant" / "000.png"
    cut.write_bytes(cut.read_bytes()[:-40])
    (folder / "train" / "bee" / "notes.txt").write_text("not read")
    found = contents_of(str(folder), 100)
    assert found.opened == 10
    assert found.sizes == {"16 x 16": 6, "7 x 5": 1}  # width x height
    assert found.modes == {"RGB": 6, "L": 1}
    assert found.unreadable == ("train/bee/000.png", "train/cow/000.tiff", "val/ant/000.png")
    assert [(each.name, each.count) for each in found.left_out] == [("train/bee/notes.txt", 1)]


def test_a_sample_is_opened_and_never_more(tmp_path: Path) -> None:
    folder = str(written_folders(tmp_path))
    assert contents_of(folder, 5).opened == sum(contents_of(folder, 5).sizes.values()) == 5
    unopened = contents_of(folder)
    assert (unopened.opened, unopened.sizes, unopened.train_images) == (0, {}, 30)


def test_json_names_everything(tmp_path: Path) -> None:
    told = json.loads(json.dumps(contents_of(str(written_folders(tmp_path)), 10).as_json()))
    assert {"layout", "classes", "train_images", "test_images", "left_out"} <= set(told)
    assert (told["classes"], told["train_images"], told["test_images"]) == (list(CLASSES), 30, 12)
    assert told["test_images_of_class"] == [4, 4, 4]


def test_class_folders_without_a_split_are_all_to_learn_from(tmp_path: Path) -> None:
    """The test images are held out of them, of every class alike, by --data.test-images."""
    folder = written_unsplit(tmp_path)
    (folder / "README.txt").write_text("left out")
    found = contents_of(str(folder))
    assert found.layout == "class folders without a test split"
    assert (found.classes, found.train_counts, found.test_counts) == (CLASSES, (10,) * 3, (0,) * 3)
    assert [each.name.rpartition("/")[2] for each in found.left_out] == ["README.txt"]
    machine = Machine(images=str(folder), decoding_workers=0)
    with pytest.raises(ValueError, match=r"data\.test_images: pictures has no test split"):
        load_data(small(), machine)
    data = load_data(small(test_images=9), machine)
    assert (len(data.train), len(data.test)) == (21, 9)
    assert data.store.labels[data.test.indices].bincount().tolist() == [3, 3, 3]
    assert not set(data.splits.train) & set(data.splits.test)


@pytest.mark.parametrize("stray", ["train", "val", "Test"])
def test_a_half_of_a_split_is_not_taken_for_classes(tmp_path: Path, stray: str) -> None:
    folder = written_unsplit(tmp_path)
    (folder / stray / "ant").mkdir(parents=True)
    (folder / stray / "ant" / "1.png").write_bytes(picture(1))
    with pytest.raises(FileNotFoundError, match="which is no data set"):
        located(str(folder))


def test_images_beside_class_folders_are_refused_by_name(tmp_path: Path) -> None:
    (written_unsplit(tmp_path) / "stray.png").write_bytes(picture(1))
    with pytest.raises(ValueError, match=r"outside of class folders, such as stray\.png"):
        located(str(tmp_path))
