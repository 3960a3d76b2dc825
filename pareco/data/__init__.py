"""Data sets by name, split into training, search and test images."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
import torch

from pareco.config import DataConfig, Machine
from pareco.data.digits import digits
from pareco.data.files import DamagedImages, DecodedStore, FileStore
from pareco.data.images import Batch, Images, TrainingLoader
from pareco.data.locations import imagenet_source, torchvision_source
from pareco.data.preparation import Preparation
from pareco.data.share import Share
from pareco.data.sources import Source
from pareco.data.splits import Splits, stratified_splits
from pareco.data.stores import MemoryStore, Store

__all__ = [
    "Batch",
    "DamagedImages",
    "DataSet",
    "Images",
    "MemoryStore",
    "Share",
    "Splits",
    "TrainingLoader",
    "load_data",
]


def _embedded(channels: int, config: DataConfig, machine: Machine, device: torch.device) -> Store:
    if machine.images is not None:
        raise ValueError(f"{config.name} is embedded in scikit-learn: it takes no --images")
    return digits(config.image_size, channels).to(device)


def _from_files(
    find: Callable[[str | None], Source],
    classes: int | None,
    config: DataConfig,
    machine: Machine,
    device: torch.device,
) -> Store:
    source = find(machine.images)
    if classes is not None and len(source.classes) != classes:
        raise ValueError(
            f"--images {machine.images}: holds {len(source.classes)} classes, {config.name} has "
            f"{classes}"
        )
    files = FileStore(source, config, machine.decoding_workers, device)
    return DecodedStore(files) if config.in_memory else files


_DATA_SETS: dict[str, Callable[[DataConfig, Machine, torch.device], Store]] = {
    "digits": partial(_embedded, 1),
    "digits_rgb": partial(_embedded, 3),
    "cifar10": partial(_from_files, partial(torchvision_source, "cifar10"), 10),
    "cifar100": partial(_from_files, partial(torchvision_source, "cifar100"), 100),
    "imagenet": partial(_from_files, imagenet_source, None),
}


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """A data set with its splits; `fingerprint` tells it from others.

    It covers labels and all indices, and pixels (embedded images) or names (files).
    """

    train: Images
    search: Images
    test: Images
    splits: Splits
    fingerprint: str

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes, in the order of their labels."""
        return self.train.store.classes

    @property
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def in_chans(self) -> int:
        """The number of colour channels."""
        return self.train.store.channels

    @property
    def damaged(self) -> list[str]:
        """Names of the images that this process could not read, and replaced by others."""
        return self.train.store.damaged


@lru_cache(maxsize=1)  # for the runs that one process does
def load_data(
    config: DataConfig,
    machine: Machine = Machine(),
    device: torch.device = torch.device("cpu"),
) -> DataSet:
    """Return the data set of this configuration, split as it says, for this device.

    Raises `ValueError` for an unknown name (with the nearest known ones), impossible splits, or
    images that cannot be told apart; `FileNotFoundError`, saying what helps, where there are none.
    """
    if config.name not in _DATA_SETS:
        near = difflib.get_close_matches(config.name, _DATA_SETS, n=3, cutoff=0.0)
        raise ValueError(f"data.name: unknown data set {config.name!r}; known: {', '.join(near)}")
    store = _DATA_SETS[config.name](config, machine, device)
    preparation = Preparation(config)
    preparation.check(store.channels)
    splits = stratified_splits(store.labels.numpy(), store.own_test, config)
    used = np.unique(np.concatenate([splits.train, splits.search, splits.test]))
    store = store.only(torch.from_numpy(used))

    def images(indices: np.ndarray) -> Images:
        return Images(store, torch.from_numpy(indices), preparation)

    return DataSet(
        train=images(splits.train),
        search=images(splits.search),
        test=images(splits.test),
        splits=splits,
        fingerprint=f"{store.fingerprint()}-{splits.fingerprint()}",
    )
