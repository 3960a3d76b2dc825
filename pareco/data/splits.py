"""Splits of a data set by saved indices."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split


@dataclass(frozen=True, kw_only=True)
class Splits:
    """Indices into one data set: `train` to learn from, `search` to choose by, `test` to report."""

    train: tuple[int, ...]
    search: tuple[int, ...]
    test: tuple[int, ...]

    def fingerprint(self) -> str:
        """Return a SHA-256 of the indices."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Return the indices as JSON-ready lists."""
        return {name: list(indices) for name, indices in asdict(self).items()}


def stratified_splits(
    labels: np.ndarray, *, search_images: int, test_images: int, seed: int, holdout: bool
) -> Splits:
    """Return disjoint train and test splits with every class in proportion, and a search split.

    `labels` is `n`. With `holdout`, the search split is taken away from the training split;
    otherwise it is a part of it. Indices are sorted. Raises `ValueError` where a split would not
    hold every class.
    """
    classes = len(np.unique(labels))
    left = len(labels) - test_images - search_images
    if min(left, search_images, test_images) < classes:
        raise ValueError(
            f"data.search_images ({search_images}) and data.test_images ({test_images}) must leave "
            f"an image of each of the {classes} classes to every split of {len(labels)} images"
        )
    rest, test = train_test_split(
        np.arange(len(labels)), test_size=test_images, stratify=labels, random_state=seed
    )
    train, search = train_test_split(
        rest, test_size=search_images, stratify=labels[rest], random_state=seed
    )
    return Splits(
        train=_sorted(train if holdout else rest), search=_sorted(search), test=_sorted(test)
    )


def _sorted(indices: Any) -> tuple[int, ...]:
    return tuple(int(index) for index in np.sort(np.asarray(indices)))
