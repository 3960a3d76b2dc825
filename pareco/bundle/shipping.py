"""From a network of one's own to a bundle."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pareco.bundle.rebuilding import check_distinct, check_scores, checked_own, fitting
from pareco.bundle.sealed import BundleError, sealed
from pareco.config import COSTS, check_colours
from pareco.files import write_bytes
from pareco.slimmable import NormStatistics, SlimmableNet
from pareco.widths import Widths

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
MEASURED = ("search_loss", "test_top1_error", "test_top5_error")
"""The numbers that a network of the front was measured to have."""


@dataclass(frozen=True, kw_only=True)
class FrontNetwork:
    """A network of one's own that is shipped: its widths, batch norm, and what is known of it.

    `search_loss`, by which budgets choose, is any loss of which less is better, measured on images
    that no network was trained or is judged on. Errors are in percent, latency in milliseconds.
    """

    widths: Widths
    statistics: NormStatistics
    search_loss: float
    test_top1_error: float | None = None
    test_top5_error: float | None = None
    latency_ms: float | None = None


def save_bundle(
    path: str | Path,
    net: SlimmableNet,
    front: Iterable[FrontNetwork],
    *,
    builder: str,
    image_size: int,
    classes: Sequence[str],
    mean: Sequence[float] = _IMAGENET[0],
    std: Sequence[float] = _IMAGENET[1],
    central_crop: float = 1.0,
) -> None:
    """Write networks of a slimmable network that no registry knows, as a bundle.

    `builder` says, for people, what made the model that `make_slimmable` was given, such as
    "mypackage.networks:make_net"; whoever loads the file gives that, or the model. `image_size` is
    the height and width that costs hold for. `mean` and `std` are those of each colour on the
    0-255 scale, `central_crop` the crop's side in the resized image.

    Raises `BundleError` for what `load` would refuse: numbers, statistics of other widths, costs at
    another image size than the one that `net` was made with, classes that are not as many as its
    scores. Raises `ValueError` for widths that are not in the network's space.
    """
    networks = [replace(each, widths=Widths(each.widths)) for each in front]
    image_size = operator.index(image_size)
    mean, std = ([float(value) for value in each] for each in (mean, std))
    with fitting("reading"):
        check_colours(mean, std)
        if isinstance(classes, str):
            raise ValueError(f"classes must be a list of names, got {classes!r}")
    shape = (len(mean), image_size, image_size)
    if net.image_shape != shape:
        there, asked = (" x ".join(map(str, each)) for each in (net.image_shape, shape))
        raise BundleError(
            f"its costs are for an image of {there}, not {asked}: give make_slimmable an example "
            "of that size"
        )
    check_scores(net, len(classes))
    check_distinct([each.widths for each in networks])
    tensors = {f"weights/0/{name}": tensor for name, tensor in net.shared_weights().items()}
    shipped = []
    for index, each in enumerate(networks):
        net.space.check(each.widths)
        if not isinstance(each.statistics, NormStatistics):
            raise TypeError(f"front.{index}: statistics must be those that were calibrated")
        own = {**each.statistics.by_name, **net.private_weights(each.widths)}
        widths = dict(zip(net.space.names, each.widths, strict=True))
        with fitting(f"front.{index}"):
            each.statistics.check_of(each.widths)
            checked_own(net, widths, own)
        tensors |= {f"front/{index}/{name}": tensor for name, tensor in own.items()}
        costs = {name: int(net.cost.of(name, each.widths)) for name in COSTS}
        measured = {name: getattr(each, name) for name in (*MEASURED, "latency_ms")}
        numbers = {name: None if x is None else float(x) for name, x in measured.items()}
        shipped.append({"weights": 0, "widths": widths, **costs, **numbers})
    description = {
        "builder": builder,
        **({"whole": list(net.whole)} if net.whole else {}),
        "reading": {
            "image_size": image_size,
            "central_crop": central_crop,
            "mean": mean,
            "std": std,
            "classes": list(classes),
        },
        "front": shipped,
    }
    write_bytes(Path(path), sealed(description, tensors))
