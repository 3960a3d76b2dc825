"""What is seen at a location of images, before anything is trained on them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from pareco.data.locations import located
from pareco.data.sources import LeftOut, Source


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What a location holds."""

    layout: str
    """How the images are arranged, for people."""
    classes: tuple[str, ...]
    """The names of the classes, in the order of their labels."""
    train_counts: tuple[int, ...]
    """The images of each class to learn from."""
    test_counts: tuple[int, ...]
    """The test images of each class; all 0 where the data set brings none."""
    opened: int
    """How many images were opened for what follows, spread evenly over all of them."""
    sizes: Mapping[str, int]
    """How many of those opened have each size, such as `64 x 48` (width x height)."""
    modes: Mapping[str, int]
    """How many of those opened have each of Pillow's modes, such as RGB or L."""
    unreadable: tuple[str, ...]
    """The names of those opened that cannot be decoded, so that training would not have them."""
    left_out: tuple[LeftOut, ...]
    """What lies there and is not read."""

    @property
    def train_images(self) -> int:
        """The number of images to learn from."""
        return sum(self.train_counts)

    @property
    def test_images(self) -> int:
        """The number of test images that the data set brings."""
        return sum(self.test_counts)

    def as_json(self) -> dict[str, Any]:
        """Return everything, ready for JSON."""
        return {
            "layout": self.layout,
            "classes": list(self.classes),
            "train_images": self.train_images,
            "test_images": self.test_images,
            "train_images_of_class": list(self.train_counts),
            "test_images_of_class": list(self.test_counts),
            "opened": self.opened,
            "sizes": dict(self.sizes),
            "modes": dict(self.modes),
            "unreadable": list(self.unreadable),
            "left_out": [asdict(each) for each in self.left_out],
        }


def contents_of(location: str, most_opened: int = 0) -> Contents:
    """Return what is seen at a location; at most so many images are opened and decoded.

    Raises `FileNotFoundError` where there is no data set, `ValueError` where its images cannot be
    told apart; see `located`.
    """
    source = located(location)
    count, border = len(source.labels), len(source.labels) - source.own_test
    chosen = np.unique(np.linspace(0, count - 1, min(most_opened, count)).round().astype(int))
    sizes, modes, unreadable = _forms(source, chosen)
    train, test = (
        np.bincount(labels, minlength=len(source.classes)).tolist()
        for labels in (source.labels[:border], source.labels[border:])
    )
    return Contents(
        layout=source.layout,
        classes=source.classes,
        train_counts=tuple(train),
        test_counts=tuple(test),
        opened=len(chosen),
        sizes=dict(sizes.most_common()),
        modes=dict(modes.most_common()),
        unreadable=tuple(unreadable),
        left_out=source.left_out,
    )


def _forms(source: Source, chosen: np.ndarray) -> tuple[Counter[str], Counter[str], list[str]]:
    """Return how often each size and each mode is there, and the names of what is unreadable."""
    sizes, modes, unreadable = Counter[str](), Counter[str](), list[str]()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, on metadata and huge images
        for index in chosen.tolist():
            try:
                (width, height), mode = source.form(index)
                source.image(index)
            except MemoryError:
                raise
            except Exception:  # decoders raise anything on damaged bytes
                unreadable.append(source.name(index))
            else:
                sizes[f"{width} x {height}"] += 1
                modes[mode] += 1
    return sizes, modes, unreadable
