"""Splits of a data set by saved indices."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from sklearn.model_selection import train_test_split

from pareco.config import DataConfig


@dataclass(frozen=True, kw_only=True, eq=False)
class Splits:
    """Sorted indices `n` into one data set: to learn from, to choose by, to report on."""

    train: np.ndarray
    search: np.ndarray
    test: np.ndarray

    def fingerprint(self) -> str:
        """Return a SHA-256 of the indices."""
        return hashlib.sha256(json.dumps(self.as_json()).encode()).hexdigest()

    def counts(self) -> dict[str, int]:
        """Return the numbers of images: of each split, and of those held out for the search."""
        return {
            "train_images": len(self.train),
            "search_images": len(self.search),
            "held_out_images": len(np.setdiff1d(self.search, self.train)),
            "test_images": len(self.test),
        }

    def as_json(self) -> dict[str, list[list[int]]]:
        """Return each split as its runs of indices, `[first, one past the last]`."""
        return {each.name: _runs(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_json(cls, runs: dict[str, Any]) -> Self:
        """Return the splits that `as_json` described."""
        parts = {name: [np.arange(*each) for each in pairs] for name, pairs in runs.items()}
        return cls(**{name: np.concatenate(each) for name, each in parts.items()})


def split_sizes(images: int, own_test: int, config: DataConfig) -> tuple[int, int, int]:
    """Return how many images `stratified_splits` gives to train, search and test.

    Of `images`, and of `own_test` more that the data set brings for the test.
    """
    test = config.test_images or own_test
    held_out = config.search_images * (config.search_split == "holdout")
    learned = images - (0 if own_test else test) - held_out
    return config.train_images or learned, config.search_images, test


def stratified_splits(labels: np.ndarray, own_test: int, config: DataConfig) -> Splits:
    """Return the splits of a data set as its configuration says, every class in proportion.

    `labels` is `n`; the last `own_test` images are the test images that the data set brings.
    Without these, the test split is taken from the others. The search split is held out of the
    training split, or a part of it. A class that is too rare for a part in proportion has one image
    in it all the same. Raises `ValueError`, naming the field, where a split would not hold every
    class.
    """

    def divided(
        indices: np.ndarray, count: int, field: str, least: tuple[int, int] = (1, 1)
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the rest and `count` of the indices, with at least so many of each class."""
        options = {"stratify": labels[indices], "random_state": config.split_seed}
        try:
            rest, part = train_test_split(indices, test_size=count, **options)
            rest, part = _completed(np.asarray(rest), np.asarray(part), labels, *least)
            part, rest = _completed(part, rest, labels, *reversed(least))
        except ValueError as error:
            raise ValueError(
                f"data.{field}: {getattr(config, field)} of {len(indices)} images are impossible, "
                f"with every class on both sides ({error})"
            ) from error
        return rest, part

    def part(indices: np.ndarray, count: int | None, field: str, least: int) -> np.ndarray:
        """Return `count` of the indices, with `least` of each class; all where it is None."""
        if count is None or count == len(indices):
            return indices
        return divided(indices, count, field, (0, least))[1]

    pool, own = np.split(np.arange(len(labels)), [len(labels) - own_test])
    if own_test:
        test = part(own, config.test_images, "test_images", 1)
    elif config.test_images is None:
        raise ValueError(
            f"data.test_images: {config.name} has no test split of its own; say how many"
        )
    else:
        pool, test = divided(pool, config.test_images, "test_images", (2, 1))
    holdout = config.search_split == "holdout"
    if config.train_images is not None:
        learned = config.train_images + holdout * config.search_images
        pool = part(pool, learned, "train_images", 2)
    rest, search = divided(pool, config.search_images, "search_images")
    train = rest if holdout else pool
    return Splits(train=np.sort(train), search=np.sort(search), test=np.sort(test))


def _completed(
    rest: np.ndarray, part: np.ndarray, labels: np.ndarray, kept: int, wanted: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return two parts after an exchange: the second has as many as are wanted of each class.

    Of each the first keeps so many; images of the most frequent class go back for those that come.
    Nothing is exchanged where nothing lacks. Raises `ValueError` if a class is too small.
    """
    rest, part = rest.copy(), part.copy()
    counts = np.bincount(labels[part], minlength=int(labels.max()) + 1)
    for label in np.unique(labels[np.concatenate([rest, part])]):
        if counts[label] >= wanted:
            continue
        there = np.flatnonzero(labels[rest] == label)
        for place in there[: max(0, min(wanted - counts[label], len(there) - kept))]:
            frequent = int(counts.argmax())
            other = np.flatnonzero(labels[part] == frequent)[-1]
            rest[place], part[other] = part[other], rest[place]
            counts[[label, frequent]] += [1, -1]
        if counts[label] < min(wanted, 1):
            raise ValueError(f"a class has only {len(there)} images")
    return rest, part


def _runs(indices: np.ndarray) -> list[list[int]]:
    starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
    ends = np.append(starts[1:], len(indices))
    return [[int(indices[a]), int(indices[b - 1]) + 1] for a, b in zip(starts, ends, strict=True)]
