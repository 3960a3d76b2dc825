"""Data sets by name, split into training, search and test images."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass

from pareco.config import DataConfig
from pareco.data.digits import digits
from pareco.data.images import Batch, Images, TrainingLoader
from pareco.data.splits import Splits, stratified_splits

__all__ = ["Batch", "DataSet", "Images", "Splits", "TrainingLoader", "load_data"]

_DATA_SETS: dict[str, Callable[[int], Images]] = {"digits": digits}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set with its splits; `fingerprint` identifies pixels, labels and all indices."""

    train: Images
    search: Images
    test: Images
    splits: Splits
    num_classes: int
    fingerprint: str

    @property
    def in_chans(self) -> int:
        """The number of colour channels."""
        return self.train.pixels.shape[1]


def load_data(config: DataConfig) -> DataSet:
    """Return the data set of this configuration, split as it says.

    Raises `ValueError` for an unknown name (with the nearest known ones) or impossible splits.
    """
    if config.name not in _DATA_SETS:
        near = difflib.get_close_matches(config.name, _DATA_SETS, n=3, cutoff=0.0)
        raise ValueError(f"data.name: unknown data set {config.name!r}; known: {', '.join(near)}")
    if config.test_images is None:
        raise ValueError(
            f"data.test_images: {config.name} has no test split of its own; say how many"
        )
    everything = _DATA_SETS[config.name](config.image_size)
    splits = stratified_splits(
        everything.labels.numpy(),
        search_images=config.search_images,
        test_images=config.test_images,
        seed=config.split_seed,
        holdout=config.search_split == "holdout",
    )
    return DataSet(
        train=everything.subset(splits.train),
        search=everything.subset(splits.search),
        test=everything.subset(splits.test),
        splits=splits,
        num_classes=int(everything.labels.max()) + 1,
        fingerprint=f"{everything.fingerprint()}-{splits.fingerprint()}",
    )
