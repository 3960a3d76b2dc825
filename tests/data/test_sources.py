import io
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from pareco.data.sources import NumberedPart, ReaderPart, Source, present_classes
from tests.data.pictures import picture, pixels_of


class Files(list[io.BytesIO]):
    """Files in memory, with timm's way of naming them."""

    def __getitem__(self, index):  # type: ignore[no-untyped-def]
        return super().__getitem__(index), 0

    def filename(self, index: int, basename: bool = False) -> str:
        return f"{index}.png" if basename else f"folder/{index}.png"


def part(labels: list[int], classes: tuple[str, ...] = ("a", "b"), place: str = "train"):  # type: ignore[no-untyped-def]
    files = Files(io.BytesIO(picture(number)) for number in range(len(labels)))
    return ReaderPart(files, np.array(labels), classes, place)


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
    images = NumberedPart([(image, 0)], np.array([0]), ("a",), "train")
    found = images.image(0)
    assert found.mode == "RGB"
    assert found.size == (4, 4)


@dataclass
class Case:
    train: tuple[str, ...]
    test: tuple[str, ...]
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Case(("a",), ("a",), r"here: fewer than two classes \(found: a\)"),
        Case((), (), r"here: fewer than two classes \(found: none\)"),
        Case(("a", "b", "c"), ("a", "b"), r"different classes: c only in training$"),
        Case(("a", "b"), ("b", "z"), r"a only in training; z only in test$"),
        Case(("", "b"), ("", "b"), r"here: there are images outside of class folders"),
    ],
)
def test_splits_that_do_not_fit_are_refused(case: Case) -> None:
    train, test = ([*range(len(names))] for names in (case.train, case.test))
    with pytest.raises(ValueError, match=case.message):
        Source(part(train, case.train), part(test, case.test), where="here")


def test_the_fingerprint_is_of_names_and_labels_and_not_of_places() -> None:
    def fingerprint(labels: list[int], classes: tuple[str, ...] = ("a", "b"), **options) -> str:  # type: ignore[no-untyped-def]
        return Source(part(labels, classes, **options), part([0, 1], classes), "x").fingerprint()

    first = fingerprint([0, 1, 1])
    assert fingerprint([0, 1, 1], place="elsewhere") == first
    assert fingerprint([0, 1, 0]) != first
    assert fingerprint([0, 1, 1], ("a", "c")) != first
    assert fingerprint([0, 1, 1, 1]) != first


def test_only_present_classes_count() -> None:
    labels, classes = present_classes(np.array([7, 3, 7]), None, "set")
    assert (labels.tolist(), classes) == ([1, 0, 1], ("3", "7"))
    labels, classes = present_classes(np.array([2, 0]), ["ant", "bee", "cow"], "set")
    assert (labels.tolist(), classes) == ([1, 0], ("ant", "cow"))
    with pytest.raises(ValueError, match="set: some images have no label"):
        present_classes(np.array([0, -1]), None, "set")
