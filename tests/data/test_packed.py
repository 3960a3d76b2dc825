"""Tars of class folders and WebDataset shards, whole, odd and damaged."""

import gzip
import json
from pathlib import Path

import pytest

from pareco.data.packed import shard_part
from tests.data.pictures import picture, sample, written_shards, written_tar


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
