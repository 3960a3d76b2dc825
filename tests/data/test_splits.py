import json
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from pareco.config import DataConfig
from pareco.data.splits import Splits, stratified_splits

LABELS = load_digits().target  # type: ignore[attr-defined]


def splits(labels: np.ndarray = LABELS, own_test: int = 0, **options: Any) -> Splits:
    defaults = {"name": "digits", "image_size": 8, "search_images": 300, "test_images": 597}
    return stratified_splits(labels, own_test, DataConfig(**defaults | options))


def test_the_digits_splits_are_scikit_learns() -> None:
    """The published numbers rest on these indices."""
    rest, test = train_test_split(np.arange(1797), test_size=597, stratify=LABELS, random_state=0)
    train, search = train_test_split(rest, test_size=300, stratify=LABELS[rest], random_state=0)
    found = splits(search_split="holdout")
    assert found.test.tolist() == sorted(test)
    assert found.search.tolist() == sorted(search)
    assert found.train.tolist() == sorted(train)
    assert len({*train, *search, *test}) == 1797


def test_without_holdout_the_search_images_are_training_images() -> None:
    held, part = splits(search_split="holdout"), splits(search_split="batch")
    assert len(part.train) == 1200
    assert set(part.search.tolist()) < set(part.train.tolist())
    assert part.test.tolist() == held.test.tolist()
    assert part.search.tolist() == held.search.tolist()


def test_own_test_images_stay_apart() -> None:
    found = splits(own_test=397, test_images=None)
    assert found.test.tolist() == list(range(1400, 1797))
    assert found.train.tolist() == list(range(1400))
    some = splits(own_test=397, test_images=100)
    assert len(some.test) == 100
    assert some.test.min() >= 1400
    assert max(np.bincount(LABELS[some.test])) <= 12


@pytest.mark.parametrize("mode", ["batch", "holdout"])
def test_train_images_is_the_size_of_the_training_split(mode: str) -> None:
    found = splits(own_test=397, test_images=None, train_images=500, search_split=mode)
    assert len(found.train) == 500
    assert len(found.search) == 300
    overlap = set(found.train.tolist()) & set(found.search.tolist())
    assert len(overlap) == (300 if mode == "batch" else 0)
    assert max(np.bincount(LABELS[found.train])) <= 52


def test_the_split_seed_changes_the_splits() -> None:
    first, again, other = (splits(split_seed=seed) for seed in (0, 0, 1))
    assert first.fingerprint() == again.fingerprint()
    assert first.fingerprint() != other.fingerprint()


def test_splits_as_runs_of_indices() -> None:
    found = Splits(train=np.array([0, 1, 2, 5]), search=np.array([4]), test=np.array([6, 7, 9]))
    expected = {"train": [[0, 3], [5, 6]], "search": [[4, 5]], "test": [[6, 8], [9, 10]]}
    assert found.as_json() == expected
    again = Splits.from_json(json.loads(json.dumps(found.as_json())))
    for name in expected:
        assert getattr(again, name).tolist() == getattr(found, name).tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_images": None}, r"data\.test_images: digits has no test split of its own"),
        ({"test_images": 1797}, r"data\.test_images: 1797 of 1797 images"),
        ({"search_images": 5}, r"data\.search_images"),
        ({"train_images": 5}, r"data\.train_images: 5 of 1200 images"),
        ({"train_images": 5000}, r"data\.train_images: 5000 of 1200 images"),
        ({"own_test": 100, "test_images": 101}, r"data\.test_images: 101 of 100 images"),
    ],
)
def test_impossible_splits_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        splits(**options)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("many", [(3000,), (2000, 2000)])
@pytest.mark.parametrize("some", [{}, {"train_images": 200}])
def test_a_rare_class_is_in_every_split(
    many: tuple[int, ...], some: dict[str, int], seed: int
) -> None:
    """Its five images of thousands are in proportion to no image of a split, or to one."""
    labels = np.random.default_rng(seed).permutation(np.repeat(range(len(many) + 1), [*many, 5]))
    options = {"search_split": "holdout", "search_images": 100, "test_images": 50} | some
    found = splits(labels, split_seed=seed, **options)
    for split, size in ((found.train, some.get("train_images")), (found.search, 100)):
        assert np.bincount(labels[split], minlength=len(many) + 1).min() > 0
        assert size is None or len(split) == size
    assert np.bincount(labels[found.test]).min() > 0
    assert len(found.test) == 50
    assert len({*found.train, *found.search, *found.test}) == sum(
        map(len, (found.train, found.search, found.test))
    )


def test_a_class_that_is_too_small_for_all_splits_is_refused() -> None:
    labels = np.array([0] * 40 + [1] * 40 + [2] * 2)
    with pytest.raises(ValueError, match=r"data\.(test|search)_images"):
        splits(labels, search_split="holdout", search_images=4, test_images=4)


def test_a_class_with_one_image_is_refused() -> None:
    labels = np.array([0] * 20 + [1] * 20 + [2] + [0, 1, 2])
    with pytest.raises(ValueError, match=r"data\.search_images: 3 of 41 images .*only 1 member"):
        splits(labels, own_test=3, test_images=None, search_images=3)


def test_the_splits_of_a_million_labels_are_a_small_file() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat(np.arange(1000), 1281))
    labels = np.concatenate([labels, np.repeat(np.arange(1000), 50)])
    found = splits(labels, own_test=50_000, test_images=None, search_images=5000)
    size = len(json.dumps(found.as_json()))
    assert len(found.train) == 1_281_000
    assert size < 200_000
