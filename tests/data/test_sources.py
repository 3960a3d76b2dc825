import io
from collections.abc import Sequence

import numpy as np
import pytest

from pareco.data.sources import LeftOut, Part, Source, counted_classes, summary
from tests.data.pictures import picture, pixels_of


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
    assert source.split_of(2).tolist() == [0, 1, 2]
    assert source.split_of(3).tolist() == [3, 4]
    assert np.array_equal(np.asarray(source.image(4)).transpose(2, 0, 1), pixels_of(picture(1)))


def test_an_image_is_of_the_first_split_it_is_in() -> None:
    """Where nothing is held out, images to search by are training images."""
    source = Source(part([0, 1] * 3), part([1, 0], place="val"), where="here")
    held_out = source.divided([np.array([0, 3, 5]), np.array([1, 4]), np.array([7])])
    assert [held_out.split_of(each).tolist() for each in (3, 4, 7)] == [[0, 3, 5], [1, 4], [7]]
    assert held_out.split_of(2).tolist() == [0, 1, 2, 3, 4, 5]  # in none: it is not read
    together = source.divided([np.arange(6), np.array([1, 4]), np.array([6, 7])])
    assert [together.split_of(each)[0] for each in (1, 4, 6)] == [0, 0, 6]
    assert source.split_of(4).tolist() == [0, 1, 2, 3, 4, 5]  # and is as it was


def test_a_file_is_closed_once_its_image_is_read() -> None:
    images = part([0, 1])
    images.image(0)
    assert list.__getitem__(images.reader, 0).closed


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


def test_what_is_left_out_is_summed_up_in_a_line_for_each_reason() -> None:
    left_out = [LeftOut("a", "hidden"), LeftOut("b", "no image"), LeftOut("c", "hidden")]
    assert summary(left_out) == ["2 not read (hidden): a, c", "1 not read (no image): b"]
    many = [*left_out, LeftOut("d", "hidden"), LeftOut("e", "hidden", 7)]
    assert summary(many)[0] == "10 not read (hidden): a, c, d, ..."
    assert summary([]) == []


def test_only_present_classes_count() -> None:
    labels, classes = counted_classes(np.array([7, 3, 7]), None, "set")
    assert (labels.tolist(), classes) == ([1, 0, 1], ("3", "7"))
    labels, classes = counted_classes(np.array([2, 0]), ["ant", "bee", "cow"], "set")
    assert (labels.tolist(), classes) == ([1, 0], ("ant", "cow"))
    with pytest.raises(ValueError, match="set: some images have no label"):
        counted_classes(np.array([0, -1]), None, "set")
