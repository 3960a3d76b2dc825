"""From a finished run, or from a network of one's own, to a bundle."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pareco.bundle.rebuilding import rebuilt
from pareco.bundle.sealed import BundleError, opened, sealed
from pareco.bundle.serving import Bundle
from pareco.config import COSTS, completed
from pareco.data.pixels import printable
from pareco.files import write_bytes
from pareco.models import create_model
from pareco.randomness import global_streams_kept
from pareco.schema import CONFIGURATION, FRONT_TYPES, RESULT, SESSIONS
from pareco.slimmable import NormStatistics, SlimmableNet
from pareco.widths import Widths

_IMAGENET = ((123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
_OF_RUN = ("experiment", "method", "seed")
_OF_SESSION = ("commit", "dirty", "python", "packages", "data_fingerprint")
_NUMBERS = ("search_loss", "test_top1_error", "test_top5_error")


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

    Raises `BundleError` for what `load` would refuse, and `ValueError` for other widths.
    """
    networks = list(front)
    private = {widths: net.private_weights(widths) for widths in net.switches}
    owned = {id(parameter) for own in private.values() for parameter in own.values()}
    state = net.state_dict(keep_vars=True)
    tensors = {f"weights/0/{name}": x for name, x in state.items() if id(x) not in owned}
    shipped = []
    for index, each in enumerate(networks):
        net.space.check(each.widths)
        own = {**each.statistics.by_name, **private.get(each.widths, {})}
        tensors |= {f"front/{index}/{name}": tensor for name, tensor in own.items()}
        costs = {name: int(net.cost.of(name, each.widths)) for name in COSTS}
        numbers = {name: getattr(each, name) for name in (*_NUMBERS, "latency_ms")}
        widths = dict(zip(net.space.names, each.widths, strict=True))
        shipped.append({"weights": 0, "widths": widths, **costs, **numbers})
    description = {
        "builder": builder,
        "reading": {
            "image_size": image_size,
            "central_crop": central_crop,
            "mean": list(mean),
            "std": list(std),
            "classes": list(classes),
        },
        "front": shipped,
    }
    write_bytes(Path(path), sealed(description, tensors))


def write_bundle(folder: Path, path: Path) -> Bundle:
    """Write the front of the finished run in a folder as one file, and return it as loaded.

    The run's own configuration says what its network is. Raises `BundleError` where the run has
    not finished or has kept no statistics, `InvalidRecord` for a damaged file of it.
    """
    from pareco.reporting.records import blaming, read_json, read_latency, read_table

    if not (folder / "DONE").exists():
        raise BundleError(f"{folder} holds no finished run")
    config = completed(read_json(folder / "config.json", CONFIGURATION))
    result = read_json(folder / "result.json", RESULT)
    if result.class_names is None or not (folder / "statistics").is_dir():
        raise BundleError(
            f"{folder} was run before runs kept the batch-norm statistics of their fronts: run it "
            "again"
        )
    latency = read_latency(folder.parents[1] / "latency.json") or {}
    times = latency.get("milliseconds", {})
    front = read_table(folder / "front.csv", FRONT_TYPES)
    names = [group.name for group in result.groups]
    architecture = {
        "name": config["network.name"].partition(".")[0],  # a tag names weights that are replaced
        "num_classes": len(result.class_names),
        "in_chans": len(config["data.mean"]),
        "base_width": config["network.base_width"],
    }
    tensors, places = _tensors_of(folder, _state_names(architecture))
    if [widths for _, widths in places] != list(front["widths"]):
        raise BundleError(f"{folder}: statistics/ is not of the networks in front.csv")
    shipped = []
    with blaming(folder / "front.csv"):
        for (index, text), row in zip(places, front.to_dict("records"), strict=True):
            shipped.append(
                {
                    "weights": index,
                    "widths": dict(zip(names, Widths.parse(text), strict=True)),
                    **{name: int(row[name]) for name in COSTS},
                    "latency_ms": times.get(text),
                    **{name: float(row[name]) for name in _NUMBERS},
                }
            )
    session = read_json(folder / "env.json", SESSIONS)[-1]
    description = {
        "architecture": architecture,
        "reading": {
            "image_size": config["data.image_size"],
            "central_crop": config["data.central_crop"],
            "mean": config["data.mean"],
            "std": config["data.std"],
            "classes": list(map(printable, result.class_names)),
        },
        "origin": {
            **{name: getattr(result, name) for name in _OF_RUN},
            "data": result.data,
            **{name: session.get(name) for name in _OF_SESSION},
        },
        "latency": {name: each for name, each in latency.items() if name != "milliseconds"},
        "front": shipped,
    }
    content = sealed(description, tensors)
    bundle = Bundle(read := opened(content)[0], rebuilt(read, tensors))
    write_bytes(path, content)
    return bundle


def _state_names(architecture: Mapping[str, Any]) -> set[str]:
    """Return the names of the state dict of the network, without private batch norm."""
    with global_streams_kept():
        return set(create_model(**architecture).state_dict())


def _tensors_of(folder: Path, names: set[str]) -> tuple[dict[str, Tensor], list[tuple[int, str]]]:
    """Return the tensors of a run as a bundle has them, and set and widths of each network."""
    tensors: dict[str, Tensor] = {}
    places: list[tuple[int, str]] = []
    for index in range(len(list((folder / "weights").glob("*.safetensors")))):
        weights, _ = _read(folder / "weights" / f"{index}.safetensors")
        own, metadata = _read(folder / "statistics" / f"{index}.safetensors")
        tensors |= {f"weights/{index}/{n}": each for n, each in weights.items() if n in names}
        for name, tensor in own.items():
            place, _, rest = name.partition("/")
            tensors[f"front/{len(places) + int(place)}/{rest}"] = tensor
        places += [(index, widths) for widths in json.loads(metadata["widths"])]
    return tensors, places


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is damaged or not there ({error})") from error
