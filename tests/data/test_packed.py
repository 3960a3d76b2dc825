"""Tars of class folders and WebDataset shards, whole, odd and damaged."""

import gzip
import io
import json
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pareco.data.packed import shard_part, tar_part
from pareco.data.pixels import HIDDEN, NO_IMAGE
from pareco.data.sources import Part
from tests.data.pictures import contents, picture, sample, written_shards, written_tar


def test_images_of_shards_are_read_in_any_order(tmp_path: Path) -> None:
    folder = written_shards(tmp_path)
    found = shard_part(sorted(folder.glob("*train*.tar")))
    assert found.labels.tolist() == [each % 3 for each in range(30)]
    for index in (29, 0, 17, 17):
        assert found.reader[index][0].read() == picture(index)
    assert found.name(17) == f"{folder.name}/set-train-001.tar/0017.png"
    assert found.key(17) == "0017.png"


def test_fields_of_a_shards_sample(tmp_path: Path) -> None:
    """The key ends at the first dot; labels may be JSON; other fields are not opened."""
    files = {
        "a/x.JPG": picture(1, kind="JPEG"),
        "a/x.json": json.dumps({"label": 7}).encode(),
        "a/x.pkl": b"never opened",
        "a/x.seg.png": b"another field",
        **sample("b/x", 2, 3),
    }
    found = shard_part([written_tar(tmp_path / "train.tar", files)])
    assert (found.labels.tolist(), found.classes) == ([1, 0], ("3", "7"))
    assert found.reader[0][0].read() == files["a/x.JPG"]
    assert found.reader[1][0].read() == files["b/x.png"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "there are no images in it"),
        ({"x.png": b"image"}, r"x\.png has no label beside it"),
        ({"x.png": b"image", "x.cls": b"cat"}, r"x\.cls holds no label"),
        ({"x.png": b"image", "x.json": b'{"name": "cat"}'}, r"x\.json holds no label"),
        ({"x.png": b"image", "x.cls": b"-1"}, r"x\.cls has the label -1"),
    ],
)
def test_what_is_no_shard_sample_is_named(
    tmp_path: Path, files: dict[str, bytes], message: str
) -> None:
    shard = written_tar(tmp_path / "set-train-0.tar", files)
    with pytest.raises(ValueError, match=rf"set-train-0\.tar: {message}"):
        shard_part([shard])


def test_compressed_and_cut_shards_are_refused(tmp_path: Path) -> None:
    whole = written_tar(tmp_path / "whole.tar", sample("x", 1, 0) | sample("y", 2, 1)).read_bytes()
    for name, content in (("zip.tar", gzip.compress(whole)), ("cut.tar", whole[:1000])):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=name):
            shard_part([tmp_path / name])


def members(path: Path, *each: tarfile.TarInfo | tuple[str, bytes], **options: Any) -> Path:
    """Write a tar of these members, of which those without content may be links."""
    with tarfile.open(path, "w", **options) as tar:
        for member in each:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                info = tarfile.TarInfo(member[0])
                info.size = len(member[1])
                tar.addfile(info, io.BytesIO(member[1]))
    return path


def link(name: str, target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def read(found: Part) -> dict[str, tuple[str, bytes]]:
    """Return class and content of each image by its name."""
    return {
        found.name(index): (found.classes[label], found.reader[index][0].read())
        for index, label in enumerate(found.labels.tolist())
    }


def left_out(found: Part) -> dict[str, str]:
    return {each.name: each.reason for each in found.left_out}


@pytest.mark.parametrize("prefix", ["", "./", "/", "../", "train/", "./data/set/train/", "/a/./b/"])
def test_a_class_is_the_folder_at_any_depth_in_a_tar_packed_in_any_way(
    tmp_path: Path, prefix: str
) -> None:
    names = ("cat/indoor/x.png", "cat/y.png", "dog/indoor/deep/x.png")
    tar = written_tar(tmp_path / "train.tar", {prefix + name: name.encode() for name in names})
    found = read(tar_part(tar, {}))
    assert found == {f"train.tar/{name}": (name[:3], name.encode()) for name in names}


def test_classes_of_one_image_each_are_not_taken_for_outer_folders(tmp_path: Path) -> None:
    found = tar_part(written_tar(tmp_path / "t.tar", {"a/x.png": b"1", "b/y/x.png": b"2"}), {})
    assert found.classes == ("a", "b")
    with pytest.raises(ValueError, match=r"outside of class folders, such as x\.png"):
        tar_part(written_tar(tmp_path / "u.tar", {"x.png": b"1", "b/x.png": b"2"}), {})
    with pytest.raises(FileNotFoundError, match=r"v\.tar holds no images"):
        tar_part(written_tar(tmp_path / "v.tar", {"a/x.txt": b"1"}), {})


def test_leftovers_in_a_tar_are_named(tmp_path: Path) -> None:
    hidden = ["a/._x.png", ".DS_Store", "__MACOSX/a/x.png", "PaxHeaders.1/x.png", "a/.x/y.png"]
    files = ["a/x.png", "b/x.WEBP", "notes.txt", *hidden]
    found = tar_part(written_tar(tmp_path / "t.tar", dict.fromkeys(files, b"1")), {})
    assert [*read(found)] == ["t.tar/a/x.png", "t.tar/b/x.WEBP"]
    expected = {f"t.tar/{name}": HIDDEN for name in hidden}
    assert left_out(found) == expected | {"t.tar/notes.txt": NO_IMAGE}


def test_links_in_a_tar_lead_to_its_files(tmp_path: Path) -> None:
    """GNU tar writes a file that it meets twice as a hard link."""
    tar = members(
        tmp_path / "t.tar",
        ("./a/x.png", b"1"),
        link("./b/x.png", "./a/x.png", tarfile.LNKTYPE),
        link("b/y.png", "../a/x.png"),
        link("b/z.png", "y.png"),
        link("b/loop.png", "loop.png"),
        link("b/out.png", "../../etc/passwd"),
        link("b/folder.png", "../a"),
    )
    found = tar_part(tar, {})
    names = ("a/x.png", "b/x.png", "b/y.png", "b/z.png")
    assert read(found) == {f"t.tar/{name}": (name[0], b"1") for name in names}
    dead = ("b/loop.png", "b/out.png", "b/folder.png")
    assert {name for name, why in left_out(found).items() if "leads to no file" in why} == {
        f"t.tar/{name}" for name in dead
    }


def test_a_file_that_was_added_again_counts_once_as_in_tar(tmp_path: Path) -> None:
    tar = members(tmp_path / "t.tar", ("a/x.png", b"old"), ("b/x.png", b"1"), ("a/x.png", b"new"))
    found = tar_part(tar, {})
    assert read(found) == {"t.tar/a/x.png": ("a", b"new"), "t.tar/b/x.png": ("b", b"1")}
    assert left_out(found) == {"t.tar/a/x.png": "replaced by a later file of the same name"}


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_in_a_tar(tmp_path: Path, kind: int) -> None:
    long = "n" * 5000 + "9" * 5000
    names = [f"①/{long}.png", f"{long}/é.png", f"9{'9' * 5000}/x.png"]
    tar = members(tmp_path / "t.tar", *[(name, name.encode()) for name in names], format=kind)
    found = tar_part(tar, {})
    assert len(found.classes) == 3
    assert {content.decode() for _, content in read(found).values()} == {*names}


def test_a_tar_inside_of_a_tar_is_a_class_and_one_inside_of_that_is_named(tmp_path: Path) -> None:
    innermost = written_tar(tmp_path / "i.tar", {"x.png": b"0"}).read_bytes()
    inner = written_tar(tmp_path / "i.tar", {"x.png": b"1", "y/x.png": b"2", "z.tar": innermost})
    files = {"a.tar": inner.read_bytes(), "b.TAR": inner.read_bytes(), "._a.tar": b"mac"}
    found = tar_part(written_tar(tmp_path / "t.tar", files), {})
    assert read(found) == {
        f"t.tar/{name}/{file}": (name, content)
        for name in "ab"
        for file, content in (("x.png", b"1"), ("y/x.png", b"2"))
    }
    assert left_out(found) == {
        "t.tar/a/z.tar": NO_IMAGE,
        "t.tar/b/z.tar": NO_IMAGE,
        "t.tar/._a.tar": HIDDEN,
    }
    for content, message in ((b"", "empty file"), (inner.read_bytes()[:700], "data|damaged")):
        tar = written_tar(tmp_path / "t.tar", {"a.tar": content})
        with pytest.raises(ValueError, match=rf"t\.tar is no whole, uncompressed tar: .*{message}"):
            tar_part(tar, {})


def test_a_tar_that_is_cut_or_damaged_anywhere_is_refused(tmp_path: Path) -> None:
    """tarfile itself takes whatever is no header for the end, so that images would vanish."""
    tar = written_tar(tmp_path / "t.tar", contents(2))
    whole = tar.read_bytes()
    with tarfile.open(tar) as opened:
        headers = [member.offset for member in opened]
    assert len(tar_part(tar, {}).labels) == 6
    end = headers[-1] + 512 + 1024  # of the last image, with its padding
    damaged = [whole[:cut] for cut in (100, 512, *headers[1:], headers[2] + 77, end - 3, end)]
    damaged += [whole[:at] + b"?" * 300 + whole[at + 300 :] for at in headers]
    assert tar_part(tar, {}).reader._bounds[-1].sum() <= end
    for content in [*damaged, gzip.compress(whole), b"no tar"]:
        tar.write_bytes(content)
        with pytest.raises(ValueError, match=r"t\.tar is no whole, uncompressed tar"):
            tar_part(tar, {})


def test_tars_of_gnu_tar(tmp_path: Path) -> None:
    """With hard links and holes in files, as that program writes them."""
    if shutil.which("tar") is None:
        pytest.skip("there is no tar program")
    for name, content in contents(2).items():
        (tmp_path / "set" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "set" / name).write_bytes(content)
    (tmp_path / "set/cow/link.png").hardlink_to(tmp_path / "set/ant/000.png")
    with (tmp_path / "set/bee/hole.png").open("wb") as file:
        file.truncate(2**20)
    command = ["tar", "--sparse", "-C", str(tmp_path), "-cf", str(tmp_path / "train.tar"), "./set"]
    subprocess.run(command, check=True)
    found = tar_part(tmp_path / "train.tar", {})
    expected = contents(2) | {"cow/link.png": contents(2)["ant/000.png"]}
    assert read(found) == {
        f"train.tar/{name}": (name[:3], content) for name, content in expected.items()
    }
    assert [*left_out(found).values()] == ["no file of the ordinary kind"]


def test_shards_hold_every_kind_of_image_and_name_the_rest(tmp_path: Path) -> None:
    files = {
        "x.webp": b"1",
        "x.cls": b"1\n",
        "x.txt": b"a caption",
        "x.json": b'{"width": 5}',  # as img2dataset writes it: the label is in .cls
        "y.json": b'{"label": 2.0}',
        "y.bmp": b"2",
        "y.png": b"another",
        "._y.bmp": b"mac",
        "z.heic": b"3",
        "z.cls": b"3",
    }
    shard = written_tar(tmp_path / "s-train-0.tar", files)
    found = shard_part([shard])
    place = f"{tmp_path.name}/s-train-0.tar"
    assert read(found) == {f"{place}/x.webp": ("1", b"1"), f"{place}/y.bmp": ("2", b"2")}
    reasons = {"x.txt": "a field that", "x.json": "a field that", "z.heic": "a field that"}
    reasons |= {"y.png": "another image", "._y.bmp": HIDDEN, "z.cls": "a label without"}
    found_reasons = {name.rpartition("/")[2]: why for name, why in left_out(found).items()}
    assert found_reasons.keys() == reasons.keys()
    for name, why in reasons.items():
        assert found_reasons[name].startswith(why), name


@pytest.mark.parametrize("label", ["1.5", "true", '"cat"', "null", "1e999", "[1]"])
def test_a_label_that_is_no_whole_number_is_refused(tmp_path: Path, label: str) -> None:
    files = {"x.png": b"1", "x.json": f'{{"label": {label}}}'.encode()}
    with pytest.raises(ValueError, match=r"x\.json holds no label"):
        shard_part([written_tar(tmp_path / "s-train-0.tar", files)])
