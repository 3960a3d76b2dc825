"""Data sets by name, split into images, and the batches that training and evaluation take."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from pareco.config import DataConfig, Machine, check_location
from pareco.data.images import Batch, FileStore, Images, MemoryStore, Store
from pareco.data.locations import imagenet_source, located, torchvision_source
from pareco.data.sources import Source, summary
from pareco.data.splits import Splits, stratified_splits
from pareco.data.transforms import Preparation
from pareco.processes import Share, usable_cores
from pareco.randomness import derived_generator

_TIMED_BATCH = 64
_TIMED_BATCHES = 8  # of each process, at least
_LOGGER = logging.getLogger("pareco.data")


class KnownSize(NamedTuple):
    """How much a known data set holds; `test_images` are those that it brings beside `images`."""

    classes: int
    channels: int
    images: int
    test_images: int


KNOWN_SIZES = {
    "digits": KnownSize(10, 1, 1_797, 0),
    "digits_rgb": KnownSize(10, 3, 1_797, 0),
    "cifar10": KnownSize(10, 3, 50_000, 10_000),
    "cifar100": KnownSize(100, 3, 50_000, 10_000),
    "imagenet": KnownSize(1_000, 3, 1_281_167, 50_000),
}
"""Of the data sets that are known by name, before any image is there."""


@dataclass(frozen=True, kw_only=True)
class TrainingLoader:
    """Shuffled, augmented batches that depend on the seed and the position alone.

    Any epoch can be started at any batch, so a resumed run sees what it would have seen. The last
    incomplete batch of an epoch is dropped. A share gets its part of every batch: all parts
    together are the batch of one process.
    """

    images: Images
    batch_size: int
    """Of all shares together."""
    seed: int
    share: Share = Share()

    def __post_init__(self) -> None:
        """Check that there is at least one batch, and that it can be shared."""
        size, count = self.batch_size, len(self.images)
        if count < size:
            raise ValueError(f"training.batch_size {size} exceeds the {count} training images")
        if size % self.share.count:
            raise ValueError(
                f"training.batch_size {size} cannot be shared by {self.share.count} processes"
            )

    @property
    def batches_per_epoch(self) -> int:
        """The number of gradient steps in an epoch."""
        return len(self.images) // self.batch_size

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Yield the batches of an epoch from the `start`-th on."""
        size, part = self.batch_size, self.batch_size // self.share.count
        own = slice(self.share.rank * part, (self.share.rank + 1) * part)
        shuffling = derived_generator(self.seed, "order", epoch)
        order = torch.randperm(len(self.images), generator=shuffling)
        drawing = derived_generator(self.seed, "views", epoch)
        views = torch.randint(2**62, (len(self.images),), generator=drawing)
        steps = range(start, self.batches_per_epoch)
        positions = [order[step * size : (step + 1) * size][own] for step in steps]
        batches = [self.images.indices[each] for each in positions]
        seeds = [views[step * size : (step + 1) * size][own] for step in steps]
        read = self.images.store.read(batches, seeds)
        for step, (pixels, labels) in zip(steps, read, strict=True):
            generator = derived_generator(self.seed, "augmentation", epoch, step)
            yield self.images.preparation.training(pixels, generator, size, own), labels


def _digits(
    channels: int, config: DataConfig, _machine: Machine, device: torch.device
) -> MemoryStore:
    """Return all digits, grey in equal channels, scaled bilinearly to the configured size.

    The pixels' 17 levels are spread over 0-240. (E. Alpaydin, C. Kaynak: Optical Recognition of
    Handwritten Digits, UCI.)
    """
    values, numbers = load_digits(return_X_y=True)
    _check_memory(len(numbers), 4, config)  # scaled as floats of four bytes
    levels = torch.tensor(values, dtype=torch.float32).view(-1, 1, 8, 8)
    scaled = F.interpolate(levels * 15, size=(config.image_size,) * 2, mode="bilinear")
    pixels = scaled.round().to(torch.uint8).expand(-1, channels, -1, -1).to(device)
    return MemoryStore(pixels, torch.tensor(numbers, dtype=torch.int64), tuple("0123456789"))


def _from_files(
    find: Callable[[], Source] | None,
    config: DataConfig,
    machine: Machine,
    device: torch.device,
) -> Store:
    """Return images where they lie, or where they are found; of as many classes as are known."""
    source = find() if find and machine.images is None else located(str(machine.images))
    known = KNOWN_SIZES.get(config.name)
    if known is not None and len(source.classes) != known.classes:
        raise ValueError(
            f"--images {machine.images}: holds {len(source.classes)} classes, {config.name} has "
            f"{known.classes}; a data set of your own needs a name of its own: --data.name NAME "
            "(make: DATA_NAME=NAME)"
        )
    return FileStore(source, config, decoding_workers(machine), device)


def decoding_workers(machine: Machine, runs: int = 1) -> int:
    """Return how many processes decode images for one of so many runs on this machine.

    Those of the configuration or, unless set, the cores that this process may use, divided among
    the runs and among the processes that share them, as `joined_processes` or torchrun tells.
    """
    if machine.decoding_workers is not None:
        return machine.decoding_workers
    local = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, usable_cores() // (runs * max(1, int(local) if local.isdigit() else 1)))


_DATA_SETS: dict[str, Callable[[DataConfig, Machine, torch.device], Store]] = {
    "digits": partial(_digits, 1),
    "digits_rgb": partial(_digits, 3),
    "cifar10": partial(_from_files, partial(torchvision_source, "cifar10")),
    "cifar100": partial(_from_files, partial(torchvision_source, "cifar100")),
    "imagenet": partial(_from_files, imagenet_source),
}
_OWN = partial(_from_files, None)


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
    def num_classes(self) -> int:
        """The number of classes."""
        return len(self.train.store.classes)

    @property
    def in_chans(self) -> int:
        """The number of colour channels."""
        return self.train.store.channels

    def close(self) -> None:
        """End the processes that decode images; reading begins them again."""
        self.train.store.close()

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of classes and of images, as a record has them."""
        return {"classes": self.num_classes, **self.splits.counts()}

    @property
    def store(self) -> Store:
        """The images of all splits."""
        return self.train.store


def _check_memory(images: int, channels: int, config: DataConfig) -> None:
    """Raise `ValueError`, naming the field, if memory cannot hold so many decoded images."""
    needed = images * channels * config.image_size**2
    if needed > os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"):
        raise ValueError(
            f"data.in_memory: {images} images of data.image_size {config.image_size} take "
            f"{needed / 2**30:.0f} GiB, more than this machine's memory; lower image_size, or set "
            "in_memory=False"
        )


def decoding_speed(
    location: str, processes: int, image_size: int, images: int, data: DataConfig | None = None
) -> float:
    """Return how many images a second so many processes decode, as for this training on `data`.

    By default in random crops of `image_size` pixels, with colour jitter, as on ImageNet; timed
    over so many images or more, in batches of 64, once each process has begun: eight for each
    process, which end at about the same time. Raises as of `load_data`.
    """
    config = data or DataConfig(
        name="speed",
        image_size=image_size,
        in_memory=False,
        crop_scale=0.25,
        colour_jitter=0.4,
    )
    store = FileStore(located(location), config, processes, torch.device("cpu"))
    drawing = derived_generator(0, "speed")
    count = len(store.labels)

    def batches(number: int) -> list[Tensor]:
        return [torch.randint(count, (_TIMED_BATCH,), generator=drawing) for _ in range(number)]

    with closing(store):
        timed = max(images // _TIMED_BATCH, _TIMED_BATCHES * processes)
        for some in (batches(2 * processes), batches(timed)):
            began = time.perf_counter()
            for _ in store.read(some, some):
                pass
    return len(some) * _TIMED_BATCH / (time.perf_counter() - began)


@lru_cache(maxsize=1)  # for the runs that one process does
def load_data(
    config: DataConfig,
    machine: Machine = Machine(),
    device: torch.device = torch.device("cpu"),
) -> DataSet:
    """Return the data set of this configuration, split as it says, for this device.

    Raises `ValueError` for an unknown name without a location, impossible splits, or images that
    cannot be told apart; `FileNotFoundError`, saying what helps, where there are none.
    """
    check_location(config, machine.images)
    store = _DATA_SETS.get(config.name, _OWN)(config, machine, device)
    for line in summary(store.left_out):
        _LOGGER.warning("%s: %s", config.name, line)
    preparation = Preparation(config)
    preparation.check(store.channels)
    splits = stratified_splits(store.labels.numpy(), store.own_test, config)
    store = store.divided((splits.train, splits.search, splits.test))
    if config.in_memory:
        used = np.unique(np.concatenate([splits.train, splits.search, splits.test]))
        _check_memory(len(used), store.channels, config)
        store = store.held(torch.from_numpy(used))
    train, search, test = (
        Images(store, torch.from_numpy(indices), preparation)
        for indices in (splits.train, splits.search, splits.test)
    )
    fingerprint = f"{store.fingerprint()}-{splits.fingerprint()}"
    return DataSet(train=train, search=search, test=test, splits=splits, fingerprint=fingerprint)
