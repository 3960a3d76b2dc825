from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from sklearn.datasets import load_digits

from pareco.data import load_data
from pareco.data.splits import stratified_splits
from tests.experiments import TINY

LABELS = load_digits().target  # type: ignore[attr-defined]


def test_splits_are_disjoint_and_stratified() -> None:
    splits = stratified_splits(LABELS, search_images=300, test_images=597, seed=0, holdout=True)
    train, search, test = set(splits.train), set(splits.search), set(splits.test)
    assert (len(train), len(search), len(test)) == (900, 300, 597)
    assert len(train | search | test) == 1797
    for split in (splits.train, splits.search, splits.test):
        shares = Counter(LABELS[list(split)])
        expected = np.bincount(LABELS) * len(split) / 1797
        assert max(abs(shares[digit] - expected[digit]) for digit in range(10)) < 2


def test_without_holdout_the_search_images_are_training_images() -> None:
    held = stratified_splits(LABELS, search_images=300, test_images=597, seed=0, holdout=True)
    part = stratified_splits(LABELS, search_images=300, test_images=597, seed=0, holdout=False)
    assert len(part.train) == 1200
    assert set(part.search) < set(part.train)
    assert part.test == held.test
    assert part.search == held.search


def test_the_split_seed_changes_the_splits() -> None:
    first, again, other = (
        stratified_splits(LABELS, search_images=300, test_images=597, seed=seed, holdout=True)
        for seed in (0, 0, 1)
    )
    assert first == again
    assert first.test != other.test


def test_digits_keep_their_pixels() -> None:
    data = load_data(TINY.data)
    raw = load_digits().images[data.splits.test[0]]  # type: ignore[attr-defined]
    assert data.test.pixels[0, 0].numpy().tolist() == (raw * 15).tolist()
    assert data.num_classes == 10
    assert data.in_chans == 1
    normalized = data.train.normalized(np.arange(len(data.train)))[0]  # type: ignore[arg-type]
    assert abs(float(normalized.mean())) < 0.05  # mean and deviation are rounded to whole levels
    assert abs(float(normalized.std()) - 1) < 0.05


def test_larger_digits_have_the_asked_size() -> None:
    assert load_data(replace(TINY.data, image_size=16)).test.pixels.shape[1:] == (1, 16, 16)


def test_unknown_names_and_impossible_splits_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown data set 'digit'; known: digits"):
        load_data(replace(TINY.data, name="digit"))
    with pytest.raises(ValueError, match="test_images"):
        load_data(replace(TINY.data, test_images=None))
    with pytest.raises(ValueError, match=r"data.test_images \(1797\)"):
        load_data(replace(TINY.data, test_images=1797))
