"""From the folder of a finished run to a bundle."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from pareco.bundle.rebuilding import rebuilt
from pareco.bundle.recalibration import Recalibration
from pareco.bundle.sealed import BundleError, opened, sealed
from pareco.bundle.serving import Bundle
from pareco.bundle.shipping import MEASURED
from pareco.config import COSTS, Machine, completed
from pareco.data.pixels import printable
from pareco.files import write_bytes
from pareco.models import create_model
from pareco.randomness import global_streams_kept
from pareco.reporting.reading import blaming, read_json, read_table
from pareco.reporting.records import read_latency
from pareco.schema import CONFIGURATION, FRONT_TYPES, RESULT, SESSIONS
from pareco.widths import Widths

_OF_RUN = ("experiment", "method", "seed")
_OF_SESSION = ("commit", "dirty", "python", "packages", "data_fingerprint")


def write_bundle(folder: Path, path: Path, machine: Machine = Machine()) -> Bundle:
    """Write the front of the finished run in a folder as one file, and return it as loaded.

    The run's own configuration says what its network is. Where an earlier version kept no
    statistics, they are measured again on the images that the run took, which lie where `machine`
    says. Raises `BundleError` where the run has not finished or kept too little, `InvalidRecord`
    for a damaged file of it.
    """
    if not (folder / "DONE").exists():
        raise BundleError(f"{folder} holds no finished run")
    config = completed(read_json(folder / "config.json", CONFIGURATION))
    result = read_json(folder / "result.json", RESULT)
    latency = read_latency(folder.resolve().parents[1] / "latency.json") or {}
    times = latency.get("milliseconds", {})
    front = read_table(folder / "front.csv", FRONT_TYPES)
    names, class_names = [group.name for group in result.groups], result.class_names
    again = None
    if class_names is None or not (folder / "statistics").is_dir():
        again = Recalibration(folder, machine)
        class_names = again.class_names
    architecture = {
        "name": config["network.name"].partition(".")[0],  # a tag names weights that are replaced
        "num_classes": len(class_names),
        "in_chans": len(config["data.mean"]),
        "base_width": config["network.base_width"],
        "undone_strides": config["network.undone_strides"],
    }
    networks = [*again.networks([*map(Widths.parse, front["widths"])])] if again else _kept(folder)
    tensors = _weights(folder, _state_names(architecture))
    for place, (_, _, own) in enumerate(networks):
        tensors |= {f"front/{place}/{name}": tensor for name, tensor in own.items()}
    if [str(widths) for _, widths, _ in networks] != list(front["widths"]):
        raise BundleError(f"{folder}: statistics/ is not of the networks in front.csv")
    shipped = []
    with blaming(folder / "front.csv"):
        for (index, widths, _), row in zip(networks, front.to_dict("records"), strict=True):
            shipped.append(
                {
                    "weights": index,
                    "widths": dict(zip(names, widths, strict=True)),
                    **{name: int(row[name]) for name in COSTS},
                    "latency_ms": times.get(str(widths)),
                    **{name: float(row[name]) for name in MEASURED},
                }
            )
    session = read_json(folder / "env.json", SESSIONS)[-1]
    description = {
        "architecture": architecture,
        **({"whole": config["network.whole"]} if config["network.whole"] else {}),
        "reading": {
            "image_size": config["data.image_size"],
            "central_crop": config["data.central_crop"],
            "mean": config["data.mean"],
            "std": config["data.std"],
            "classes": list(map(printable, class_names)),
        },
        "origin": {
            **{name: getattr(result, name) for name in _OF_RUN},
            "data": result.data,
            "started_from": result.started_from,
            **{name: session.get(name) for name in _OF_SESSION},
        },
        "latency": {name: each for name, each in latency.items() if name != "milliseconds"},
        "front": shipped,
    }
    content = sealed(description, tensors)
    read, tensors = opened(content)
    built = rebuilt(read, tensors)
    for index, (each, told) in enumerate(zip(built, read.front, strict=True)):
        if (macs := each.net.cost.macs_at(each.widths)) != told.macs:
            raise BundleError(f"{folder}/front.csv: row {index} has {told.macs} MACs, not {macs}")
    write_bytes(path, content)
    return Bundle(read, built)


def _state_names(architecture: Mapping[str, Any]) -> set[str]:
    """Return the names of the state dict of the network, without private batch norm."""
    with global_streams_kept():
        return set(create_model(**architecture).state_dict())


def _weights(folder: Path, names: set[str]) -> dict[str, Tensor]:
    """Return the sets of weights of a run as a bundle has them, of these names."""
    tensors: dict[str, Tensor] = {}
    for index in range(len(list((folder / "weights").glob("*.safetensors")))):
        weights, _ = _read(folder / "weights" / f"{index}.safetensors")
        tensors |= {f"weights/{index}/{name}": x for name, x in weights.items() if name in names}
    return tensors


def _kept(folder: Path) -> list[tuple[int, Widths, dict[str, Tensor]]]:
    """Return the set of weights, widths and own batch norm of each network of a run's front."""
    networks = []
    for index in range(len(list((folder / "statistics").glob("*.safetensors")))):
        path = folder / "statistics" / f"{index}.safetensors"
        own, metadata = _read(path)
        with blaming(path):
            texts = json.loads(metadata["widths"])
            found: list[dict[str, Tensor]] = [{} for _ in texts]
            for name, tensor in own.items():
                place, _, rest = name.partition("/")
                found[int(place)][rest] = tensor
            networks += [(index, Widths.parse(t), x) for t, x in zip(texts, found, strict=True)]
    return networks


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise BundleError(f"{path} is damaged or not there ({error})") from error
