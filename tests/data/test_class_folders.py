"""Class folders as people have them: nested, linked, with leftovers, in any script and order."""

import os
import subprocess
import sys
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from torchvision.datasets import ImageFolder

from pareco.data.class_folders import READ_ALREADY, folder_part
from pareco.data.locations import located
from pareco.data.pixels import HIDDEN, NO_IMAGE
from pareco.data.sources import LeftOut, Part
from tests.data.pictures import picture, pixels_of, written_tar

ROOT = Path(__file__).parents[2]


def written(folder: Path, names: Sequence[str], content: bytes | None = None) -> Path:
    """Write files of these names, pictures by their place in the list, and return their folder."""
    for number, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(number) if content is None else content)
    return folder


def split(folder: Path) -> Part:
    return folder_part(folder, {})


def read(part: Part) -> list[tuple[str, str]]:
    """Return the name and class of each image, in order."""
    return [
        (part.name(index), part.classes[label]) for index, label in enumerate(part.labels.tolist())
    ]


def left_out(part: Part) -> dict[str, str]:
    return {each.name: each.reason for each in part.left_out}


DEEP = ["cat/indoor/x.png", "cat/outdoor/night/y.png", "dog/indoor/y.png", "dog/z.png"]


def test_a_class_is_the_folder_under_the_split_at_any_depth(tmp_path: Path) -> None:
    """As in torchvision."""
    train = written(tmp_path / "train", DEEP)
    theirs = ImageFolder(str(train))
    found = split(train)
    assert found.classes == tuple(theirs.classes) == ("cat", "dog")
    assert {f"{train.parent}/{name}": kind for name, kind in read(found)} == {
        path: theirs.classes[label] for path, label in theirs.samples
    }
    assert [name for name, _ in read(found)] == [f"train/{name}" for name in DEEP]


CASES = ["A", "a", "B", "b", "\u2460", "²", "٣", "Ä", "3", "03", "10", "9", "a b", "é", "名前"]


@pytest.mark.parametrize("packed", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_classes_have_one_order_whatever_the_hash_seed_and_the_disk(
    tmp_path: Path, packed: bool
) -> None:
    names = [f"{name}/{each}.png" for name in reversed(CASES) for each in ("b", "B", "a")]
    for part in ("train", "val"):
        if packed:
            written_tar(tmp_path / f"{part}.tar", dict.fromkeys(names, b"image"))
        else:
            written(tmp_path / part, names, b"image")
    code = (
        "import sys; from pareco.data.locations import located; s = located(sys.argv[1]);"
        "print(ascii(s.classes), s.fingerprint())"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    said = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONHASHSEED": other},
        check=True,
    ).stdout
    expected = ("03", "3", "٣", "9", "10", "A", "a", "a b", "B", "b", "²", "Ä", "é", "\u2460")
    source = located(str(tmp_path))
    assert source.classes == (*expected, "名前")
    assert said == f"{source.classes!a} {source.fingerprint()}\n".encode()


def test_a_folder_and_a_tar_hold_the_same_data(tmp_path: Path) -> None:
    names = [f"{name}/{deep}{each}.png" for name in CASES for each in "Bab" for deep in ("", "x/")]
    for part in ("train", "val"):
        written(tmp_path / "folders" / part, names, b"image")
        written_tar(tmp_path / "tars" / f"{part}.tar", {f"./{each}": b"image" for each in names})
    folders, tars = (located(str(tmp_path / each)) for each in ("folders", "tars"))
    assert folders.classes == tars.classes
    assert folders.fingerprint() == tars.fingerprint()


def test_leftovers_are_not_there_and_are_named(tmp_path: Path) -> None:
    hidden = [".DS_Store", ".ipynb_checkpoints/a.png", "__MACOSX/cat/a.png", "cat/._a.png"]
    deep = ["cat/.ipynb_checkpoints/a.png", "dog/@eaDir/a.png"]
    train = written(tmp_path / "train", ["cat/a.png", "dog/b.PNG", *hidden, *deep])
    found = split(train)
    assert read(found) == [("train/cat/a.png", "cat"), ("train/dog/b.PNG", "dog")]
    names = [".DS_Store", ".ipynb_checkpoints", "__MACOSX", "cat/._a.png", "cat/.ipynb_checkpoints"]
    expected = {f"train/{name}" for name in [*names, "dog/@eaDir"]}
    assert {name for name, reason in left_out(found).items() if reason == HIDDEN} == expected


def test_every_kind_of_image_is_read_and_the_rest_is_named(tmp_path: Path) -> None:
    images = ["a/1.webp", "a/2.bmp", "b/1.gif", "b/2.tif", "c/1.WebP", "c/2.jpeg", "c/3.j2k"]
    others = {"a/notes.txt", "b/Thumbs.db", "b/4.heic", "readme", "c/video.mp4"}
    train = written(written(tmp_path / "train", images), sorted(others))
    found = split(train)
    assert [name for name, _ in read(found)] == [f"train/{name}" for name in images]
    assert left_out(found) == {f"train/{name}": NO_IMAGE for name in others}


def test_of_many_files_that_are_left_out_some_are_named_and_all_counted(tmp_path: Path) -> None:
    train = written(tmp_path / "train", ["a/x.png", "b/x.png", ".hidden"])
    written(train, [f"a/{each:04}.txt" for each in range(1234)], b"")
    found = split(train)
    assert len(found.left_out) == 11
    assert found.left_out[-1] == LeftOut("train/a/0009.txt", NO_IMAGE, 1225)
    assert sum(each.count for each in found.left_out) == 1235


def test_a_class_folder_without_images_is_no_class_and_is_named(tmp_path: Path) -> None:
    train = written(tmp_path / "train", ["a/x.png", "b/x.png", "c/x.heic"])
    (train / "empty").mkdir()
    (train / "a" / "empty").mkdir()
    found = split(train)
    assert found.classes == ("a", "b")
    reason = "a class folder without an image that can be read"
    assert left_out(found) == {
        "train/c/x.heic": NO_IMAGE,
        "train/c": reason,
        "train/empty": reason,
    }


def test_each_real_folder_is_read_once(tmp_path: Path) -> None:
    train = written(tmp_path / "train", [f"{name}/{each}.png" for name in "ab" for each in "wxyz"])
    written(tmp_path / "val", ["a/secret.png"])
    (train / "a" / "loop").symlink_to(train / "a")
    (train / "a" / "up").symlink_to(train)
    (train / "b" / "out").symlink_to(tmp_path)  # where the other split lies
    (train / "b" / "itself").symlink_to("itself")
    (train / "0").symlink_to(train / "b")  # found before b: its own name counts
    found = split(train)
    assert len(found.labels) == 8
    assert found.classes == ("a", "b")
    expected = {f"train/{name}": READ_ALREADY for name in ("0", "a/loop", "a/up", "b/out")}
    dead = {"train/b/itself": "a link that leads nowhere"}
    assert left_out(found) == expected | dead


def test_links_to_images_and_to_folders_of_images_are_read(tmp_path: Path) -> None:
    """As on clusters, where the files lie elsewhere."""
    pool = written(tmp_path / "pool", ["one/x.png", "one/deep/y.png", "z.png", "w.png"])
    train = written(tmp_path / "real", ["b/x.png"])
    (train / "a").symlink_to(pool / "one")
    (train / "b" / "z.png").symlink_to(pool / "z.png")
    (train / "b" / "gone.png").symlink_to(pool / "gone.png")
    (tmp_path / "train").symlink_to(train)
    found = split(tmp_path / "train")
    names = ["a/deep/y.png", "a/x.png", "b/x.png", "b/z.png"]
    assert read(found) == [(f"train/{name}", name[0]) for name in names]
    assert left_out(found) == {"train/b/gone.png": "a link that leads nowhere"}
    assert np.array_equal(np.asarray(found.image(0)).transpose(2, 0, 1), pixels_of(picture(1)))


def test_what_is_no_ordinary_file_is_not_opened(tmp_path: Path) -> None:
    """Reading from a pipe would wait forever; a folder may be called like an image."""
    train = written(tmp_path / "train", ["a/x.png", "b/folder.png/x.png"])
    os.mkfifo(train / "a" / "pipe.png")
    found = split(train)
    assert [name for name, _ in read(found)] == ["train/a/x.png", "train/b/folder.png/x.png"]
    assert left_out(found) == {"train/a/pipe.png": "no file of the ordinary kind"}


def test_odd_names_are_names(tmp_path: Path) -> None:
    latin = b"caf\xe9".decode("utf-8", "surrogateescape")
    names = ["a b/x y.png", f"{latin}/{latin}.png", "cat.png/x.png", "-rf/*.png", "new\nline/x.png"]
    found = split(written(tmp_path / "train", names))
    assert len(found.classes) == 5
    assert latin in found.classes
    assert "train/caf\\xe9/caf\\xe9.png" in [name for name, _ in read(found)]
    for index in range(5):
        found.image(index)


def test_an_accent_is_the_same_however_it_is_written(tmp_path: Path) -> None:
    """macOS writes é as e and an accent; a class must not differ from itself."""
    written(tmp_path / "train", [unicodedata.normalize("NFD", "café/x.png"), "tea/x.png"])
    written(tmp_path / "val", [unicodedata.normalize("NFC", "café/x.png"), "tea/x.png"])
    assert located(str(tmp_path)).classes == (unicodedata.normalize("NFC", "café"), "tea")


def test_images_without_a_class_are_named(tmp_path: Path) -> None:
    train = written(tmp_path / "train", ["a/x.png", "b/x.png", "stray.png"])
    with pytest.raises(ValueError, match=r"train: there are images outside .*, such as stray\.png"):
        split(train)
    (tmp_path / "empty" / "a").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="empty holds no images in class folders"):
        split(tmp_path / "empty")


def test_a_folder_that_cannot_be_read_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A class must not vanish for want of a permission."""
    train = written(tmp_path / "train", ["a/x.png", "b/x.png", "c/x.png"])
    scandir = os.scandir

    def refusing(path: Path) -> object:
        if path == train / "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(PermissionError, match="train/b"):
        split(train)
