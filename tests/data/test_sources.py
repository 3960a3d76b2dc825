import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pareco.data.packed import shard_part
from pareco.data.sources import Part, Source, counted_classes, numbered_part
from tests.data.pictures import picture, pixels_of, sample, written_shards, written_tar


class Files(list[io.BytesIO]):
    """Files in memory, with timm's way of naming them."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return super().__getitem__(index), 0

    def filename(self, index: int, basename: bool = False) -> str:
        return f"{index}.png" if basename else f"folder/{index}.png"


def part(labels: list[int], classes: tuple[str, ...] = ("a", "b"), place: str = "train"):  # type: ignore[no-untyped-def]
    files = Files(io.BytesIO(picture(number)) for number in range(len(labels)))
    return Part(files, np.array(labels), classes, place)


def test_two_splits_are_one_index_space() -> None:
    source = Source(part([0, 1, 1]), part([1, 0], place="val"), where="here")
    assert source.labels.tolist() == [0, 1, 1, 1, 0]
    assert source.own_test == 2
    assert source.name(2) == "train/folder/2.png"
    assert source.name(3) == "val/folder/0.png"
    assert source.part_of(2) == range(3)
    assert source.part_of(3) == range(3, 5)
    assert np.array_equal(np.asarray(source.image(4)).transpose(2, 0, 1), pixels_of(picture(1)))


def test_a_file_is_closed_once_its_image_is_read() -> None:
    images = part([0, 1])
    images.image(0)
    assert list.__getitem__(images.reader, 0).closed


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_kind_of_image_becomes_rgb(mode: str) -> None:
    image = Image.fromarray(np.full((4, 4, 3), 200, np.uint8)).convert("L").convert(mode)
    images = numbered_part([(image, 0)], [0], ("a",), "train")
    found = images.image(0)
    assert found.mode == "RGB"
    assert found.size == (4, 4)


@pytest.mark.parametrize(
    ("train", "test", "message"),
    [
        ("a", "a", r"here: fewer than two classes \(found: a\)"),
        ("", "", r"here: fewer than two classes \(found: none\)"),
        ("abc", "ab", r"different classes: c only in training$"),
        ("ab", "bz", r"a only in training; z only in test$"),
    ],
)
def test_splits_that_do_not_fit_are_refused(
    train: Sequence[str], test: Sequence[str], message: str
) -> None:
    parts = [part([*range(len(names))], tuple(names)) for names in (train, test)]
    with pytest.raises(ValueError, match=message):
        Source(*parts, where="here")


def test_the_fingerprint_is_of_names_and_labels_and_not_of_places() -> None:
    def fingerprint(labels: list[int], classes: tuple[str, ...] = ("a", "b"), **options) -> str:  # type: ignore[no-untyped-def]
        return Source(part(labels, classes, **options), part([0, 1], classes), "x").fingerprint()

    first = fingerprint([0, 1, 1])
    assert fingerprint([0, 1, 1], place="elsewhere") == first
    assert fingerprint([0, 1, 0]) != first
    assert fingerprint([0, 1, 1], ("a", "c")) != first
    assert fingerprint([0, 1, 1, 1]) != first


def test_only_present_classes_count() -> None:
    labels, classes = counted_classes(np.array([7, 3, 7]), None, "set")
    assert (labels.tolist(), classes) == ([1, 0, 1], ("3", "7"))
    labels, classes = counted_classes(np.array([2, 0]), ["ant", "bee", "cow"], "set")
    assert (labels.tolist(), classes) == ([1, 0], ("ant", "cow"))
    with pytest.raises(ValueError, match="set: some images have no label"):
        counted_classes(np.array([0, -1]), None, "set")


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
