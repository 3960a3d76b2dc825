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

    def as_json(self) -> dict[str, list[list[int]]]:
        """Return each split as its runs of indices, `[first, one past the last]`."""
        return {each.name: _runs(getattr(self, each.name)) for each in fields(self)}

    @classmethod
    def from_json(cls, runs: dict[str, Any]) -> Self:
        """Return the splits that `as_json` described."""
        parts = {
            name: [np.arange(first, end) for first, end in pairs] for name, pairs in runs.items()
        }
        return cls(**{name: np.concatenate(each) for name, each in parts.items()})


def stratified_splits(labels: np.ndarray, own_test: int, config: DataConfig) -> Splits:
    """Return the splits of a data set as its configuration says, every class in proportion.

    `labels` is `n`; the last `own_test` images are the test images that the data set brings.
    Without these, the test split is taken from the others. The search split is held out of the
    training split, or a part of it. Raises `ValueError`, naming the field, where a split would
    not hold every class.
    """
    pool = np.arange(len(labels) - own_test)
    if own_test:
        test = _part(labels, np.arange(len(pool), len(labels)), config, "test_images")
    elif config.test_images is None:
        raise ValueError(
            f"data.test_images: {config.name} has no test split of its own; say how many"
        )
    else:
        _check(labels, pool, config, "test_images")
        pool, test = _divided(labels, pool, config.test_images, config, "test_images")
    if config.train_images is not None:
        held_out = config.search_images if config.search_split == "holdout" else 0
        pool = _part(labels, pool, config, "train_images", held_out)
    _check(labels, pool, config, "search_images")
    rest, search = _divided(labels, pool, config.search_images, config, "search_images")
    train = rest if config.search_split == "holdout" else pool
    return Splits(train=np.sort(train), search=np.sort(search), test=np.sort(test))


def _part(
    labels: np.ndarray, indices: np.ndarray, config: DataConfig, field: str, more: int = 0
) -> np.ndarray:
    """Return as many of the indices as the field says, and `more`; all where it is None."""
    wanted = getattr(config, field)
    if wanted is None or wanted + more == len(indices):
        return indices
    classes = len(np.unique(labels[indices]))
    if not classes <= wanted + more <= len(indices) - classes:
        raise ValueError(
            f"data.{field}: {wanted} of {len(indices) - more} images in {classes} classes are "
            f"impossible; leave it out for all, or take at most {len(indices) - more - classes}"
        )
    return _divided(labels, indices, wanted + more, config, field)[1]


def _check(labels: np.ndarray, pool: np.ndarray, config: DataConfig, field: str) -> None:
    """Raise `ValueError` unless each part that the field divides the pool into has each class."""
    classes = len(np.unique(labels[pool]))
    wanted = getattr(config, field)
    if min(wanted, len(pool) - wanted) < classes:
        raise ValueError(
            f"data.{field} ({wanted}) must leave an image of each of the {classes} classes to "
            f"every split of {len(pool)} images"
        )


def _divided(
    labels: np.ndarray, indices: np.ndarray, count: int, config: DataConfig, field: str
) -> tuple[np.ndarray, np.ndarray]:
    """Return the rest and `count` of the indices, every class in proportion."""
    if np.unique(labels[indices], return_counts=True)[1].min() < 2:
        raise ValueError(f"data.{field}: a class with one image cannot be divided")
    rest, part = train_test_split(
        indices, test_size=count, stratify=labels[indices], random_state=config.split_seed
    )
    return np.asarray(rest), np.asarray(part)


def _runs(indices: np.ndarray) -> list[list[int]]:
    starts = np.flatnonzero(np.diff(indices, prepend=-2) != 1)
    ends = np.append(starts[1:], len(indices))
    return [[int(indices[a]), int(indices[b - 1]) + 1] for a, b in zip(starts, ends, strict=True)]
