"""From a network of a bundle to a file that others read: ONNX, torch.export, or plain weights.

What is written is read again and run beside the network before it gets its name.
"""

from __future__ import annotations

import copy
import importlib
import json
import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, fx

from pareco.bundle.rebuilding import Builder
from pareco.bundle.standalone import load_narrowed
from pareco.config import ExportKind
from pareco.randomness import derived_generator, seeded_globally

_KEY = "pareco.json"  # of the description in each kind's own metadata
_NOISE = 8  # images, where none are given
_LEAST = 4  # images that show one and several at a time


class ExportError(ValueError):
    """A network that cannot be exported so, or whose file gives other scores."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """A network on its way out, and what is told of it.

    `weights` are its tensors by the names of the plain network; `build` returns that network at
    full width, with any weights.
    """

    network: fx.GraphModule
    weights: Mapping[str, Tensor]
    description: Mapping[str, Any]
    build: Builder

    @property
    def text(self) -> str:
        """The description in JSON."""
        return json.dumps(self.description)

    def noise(self, count: int) -> Tensor:
        """Return that many images of the network's size, drawn from a standard normal."""
        reading = self.description["reading"]
        size = count, len(reading["mean"]), reading["image_size"], reading["image_size"]
        floats = next(self.network.parameters()).dtype
        return torch.randn(size, generator=derived_generator(0, "export")).to(floats)


Read = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class _Form:
    """A kind of file: how its name ends, how it is written, and read to be checked."""

    ending: str
    write: Callable[[Exported, Path], None]
    read: Callable[[Exported, Path], Read]
    needs: tuple[str, ...] = ()


def _write_onnx(exported: Exported, path: Path) -> None:
    program = torch.onnx.export(
        exported.network,
        (exported.noise(2),),
        dynamo=True,
        verbose=False,
        input_names=["images"],
        output_names=["scores"],
        dynamic_shapes=({0: "batch"},),
    )
    assert program is not None
    for node in program.model.graph:
        node.metadata_props.clear()  # among which are the paths of this machine
    program.model.metadata_props[_KEY] = exported.text
    program.save(path, external_data=False)


def _read_onnx(exported: Exported, path: Path) -> Read:
    runtime: Any = importlib.import_module("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return lambda images: torch.from_numpy(session.run(["scores"], {"images": images.numpy()})[0])


def _write_program(exported: Exported, path: Path) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(
        exported.network, (exported.noise(2),), dynamic_shapes=({0: batch},)
    )
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)  # which has the paths of this machine
    torch.export.save(program, path, extra_files={_KEY: exported.text})


def _read_program(exported: Exported, path: Path) -> Read:
    return torch.export.load(path).module()  # written a moment ago, in a folder of our own


def _write_weights(exported: Exported, path: Path) -> None:
    held = {name: x.detach().contiguous().clone() for name, x in exported.weights.items()}
    path.write_bytes(save(held, {_KEY: exported.text}))


def _read_weights(exported: Exported, path: Path) -> Read:
    with seeded_globally(0, "export", device=torch.device("cpu")):  # weights that are replaced
        model = copy.deepcopy(exported.build())  # it may be the caller's own
    return load_narrowed(path, model)


_ONNX = ("onnx", "onnxscript", "onnxruntime")
_FORMS: dict[ExportKind, _Form] = {
    "onnx": _Form(ending=".onnx", write=_write_onnx, read=_read_onnx, needs=_ONNX),
    "torch": _Form(ending=".pt2", write=_write_program, read=_read_program),
    "safetensors": _Form(ending=".safetensors", write=_write_weights, read=_read_weights),
}


def ending(to: ExportKind) -> str:
    """Return how files of a kind are to end.

    Raises `ValueError` for another kind, and `ExportError` if a package that it needs is missing.
    """
    if to not in _FORMS:
        raise ValueError(f"to must be one of {', '.join(_FORMS)}, got {to!r}")
    for name in _FORMS[to].needs:
        try:
            importlib.import_module(name)
        except ImportError as error:
            packages = " ".join(_FORMS[to].needs)
            raise ExportError(f"{to} needs {name}: pip install {packages}") from error
    return _FORMS[to].ending


@torch.no_grad()
def write_checked(
    exported: Exported, path: Path, to: ExportKind, images: Tensor | None = None
) -> float:
    """Write a network, run what is read of it on images, and return how far its scores are off.

    That is the largest difference to the network's, as a part of the largest score; at most the
    square root of the precision of the network's numbers is let pass, which is half of their
    digits. Without `images` (`n x c x h x w`, normalized), it runs on noise.

    Raises `ExportError` if the network cannot be exported so, or the scores differ by more.
    """
    form = _FORMS[to]
    seen = exported.noise(_NOISE) if images is None else images
    seen = seen.repeat(math.ceil(_LEAST / len(seen)), 1, 1, 1)
    expected = exported.network(seen)
    largest = float(expected.abs().max())
    if not math.isfinite(largest):
        raise ExportError(f"{path.name}: the network's own scores are not finite on these images")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the exporters, about themselves
            form.write(exported, path)
            read = form.read(exported, path)
            found = torch.cat([read(seen[:1]), read(seen[1:])])
    except OSError:
        raise
    except Exception as error:  # whatever exporters and runtimes raise
        said = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        raise ExportError(
            f"{path.name}: the network cannot be exported to {to}, try another kind: {said.strip()}"
        ) from error
    off = float((found - expected).abs().max()) / (largest or 1.0)
    allowed = math.sqrt(torch.finfo(expected.dtype).eps)
    if not off <= allowed:
        raise ExportError(
            f"{path.name}: what {to} makes of the network gives scores that differ by {off:.1e} of "
            f"the largest one, more than {allowed:.1e}"
        )
    return off
