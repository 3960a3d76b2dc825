"""What one image takes in a deployed network: extracted, switched, compiled and in ONNX Runtime."""

from __future__ import annotations

import csv
import importlib.util
import json
import math
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pareco.reporting.rendering import Cell
from pareco.reporting.rendering import Table as Cells

if TYPE_CHECKING:
    from torch import Tensor

    from pareco.bundle import Bundle

T = TypeVar("T")

NETWORKS = {"cifar_resnet20": 32, "mobilenetv2_100": 224}
"""The networks by name, and the side of the image that each sees."""
MULTIPLIERS = (0.42, 0.7, 1.0)
"""Of all channel groups: the three budgets."""
GOALS = {"switched": 1.1, "switch (ms)": 5.0}
"""Of the switched network's time beside the extracted one's, and the milliseconds of a switch."""
UNTIMED = 3


@dataclass(frozen=True, kw_only=True)
class DeployedRow:
    """The median over repetitions of a time beside the extracted network's, with its quartiles.

    Of the switch itself they are milliseconds. NaN for what could not be measured: `skipped` says
    why.
    """

    what: str
    network: str
    image_size: int
    images: int
    macs: int
    milliseconds: float
    median: float
    lower: float
    upper: float
    repetitions: int
    goal: float | None = None
    skipped: str = ""

    @property
    def met(self) -> bool:
        """Whether the median reaches its goal, where there is one."""
        return self.goal is None or self.median <= self.goal


def measured_networks(repetitions: int) -> list[DeployedRow]:
    """Return the rows of all networks, by one thread's time on the processor.

    They are of bundles with drawn weights, by the ways that a user has: `for_budget`, `switch`,
    `torch.compile`, and `export` to ONNX.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            each = NETWORKS.items()
            return [row for of in each for row in _rows(*of, Path(folder), repetitions)]
    finally:
        torch.set_num_threads(threads)


def _rows(name: str, size: int, folder: Path, repetitions: int) -> Iterator[DeployedRow]:
    import torch

    bundle = _bundle(name, size, folder / f"{name}.pareco")
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    budgets = sorted(map(int, bundle.front.macs))
    for macs in budgets:
        common: dict[str, Any] = {"network": name, "image_size": size, "images": 1, "macs": macs}
        passes, skipped = _passes(bundle, macs, image, folder / f"{name}-{macs}.onnx")
        times = in_turns(passes, repetitions)
        for way, found in times.items():
            ratios = [a / b for a, b in zip(found, times["extracted"], strict=True)]
            yield _row(way, found, ratios, **common)
        for way, reason in skipped.items():
            unknown = [math.nan] * repetitions
            yield _row(way, unknown, unknown, skipped=reason, **common)
        other = next(each for each in budgets if each != macs)
        switches = {each: partial(bundle.switch, macs=each) for each in (other, macs)}
        took = in_turns(switches, repetitions)[macs]
        yield _row("switch (ms)", took, took, **common)


def _bundle(name: str, size: int, path: Path) -> Bundle:
    """Return networks of three uniform widths, written as a bundle and read again."""
    import torch

    from pareco.bundle import FrontNetwork, load, save_bundle
    from pareco.models import create_model
    from pareco.slimmable import calibrated_statistics, make_slimmable

    create = partial(create_model, name, num_classes=10, in_chans=3)
    net = make_slimmable(create(), torch.zeros(1, 3, size, size))
    noise = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(1))
    front = [
        FrontNetwork(
            widths=widths,
            statistics=calibrated_statistics(net, widths, [noise]),
            search_loss=-sum(widths),
        )
        for widths in map(net.space.uniform, MULTIPLIERS)
    ]
    classes = [str(index) for index in range(10)]
    save_bundle(path, net, front, builder=name, image_size=size, classes=classes)
    return load(path, model=create())


def _passes(
    bundle: Bundle, macs: int, image: Tensor, file: Path
) -> tuple[dict[str, Callable[[], object]], dict[str, str]]:
    """Return a forward pass in each way, and why a way is left out."""
    import torch

    switched = bundle.switch(macs=macs)
    passes = {
        "extracted": partial(bundle.for_budget(macs=macs), image),
        "switched": partial(switched, image),
    }
    skipped = {}
    if shutil.which(os.environ.get("CXX", "g++")):
        passes["compiled"] = partial(torch.compile(bundle.for_budget(macs=macs)), image)
    else:
        skipped["compiled"] = "no C++ compiler: install g++, or name one in CXX"
    if all(map(importlib.util.find_spec, ("onnx", "onnxscript", "onnxruntime"))):
        bundle.export(file, "onnx", macs=macs)
        runtime: Any = importlib.import_module("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = 1
        session = runtime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        passes["ONNX Runtime"] = partial(session.run, ["scores"], {"images": image.numpy()})
    else:
        skipped["ONNX Runtime"] = "not installed: pip install onnx onnxscript onnxruntime"
    return passes, skipped


def in_turns(passes: Mapping[T, Callable[[], object]], repetitions: int) -> dict[T, list[float]]:
    """Return the milliseconds on the processor of each, in turns, after a few untimed ones."""
    import torch

    times: dict[T, list[float]] = {way: [] for way in passes}
    with torch.inference_mode():
        for turn in range(-UNTIMED, repetitions):
            for way, run in passes.items():
                begun = time.process_time()
                run()
                if turn >= 0:
                    times[way].append(1000 * (time.process_time() - begun))
    return times


def _row(what: str, times: Sequence[float], values: Sequence[float], **of: Any) -> DeployedRow:
    lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
    return DeployedRow(
        what=what,
        milliseconds=statistics.median(times),
        median=median,
        lower=lower,
        upper=upper,
        repetitions=len(values),
        goal=GOALS.get(what),
        **of,
    )


def deployed_table(results: Path) -> Cells:
    """Return `bench/deployed.csv` of the results as a table, a row for each network."""
    path = results / "bench" / "deployed.csv"
    found = json.loads(path.with_suffix(".json").read_text())
    networks: dict[tuple[str, ...], list[Cell]] = {}
    columns = []
    for row in csv.DictReader(path.read_text().splitlines()):
        of = row["network"], f"{row['image_size']} px", f"{int(row['macs']):,}"
        cells = networks.setdefault(of, [])
        spread = f"{float(row['median']):.3g} ({float(row['lower']):.3g}-{float(row['upper']):.3g})"
        if row["what"] == "extracted":
            spread = f"{float(row['milliseconds']):.3g} ms"
        cells.append(Cell(row["skipped"] or spread))
        columns.append(row["what"])
    title = (
        "What one image takes in a deployed network, as a part of the extracted one's time "
        f"({found['cpu']}, {found['threads']} thread; medians, quartiles)"
    )
    rows = tuple((*map(Cell, of), *cells) for of, cells in networks.items())
    return Cells(title, ("network", "image", "MACs", *dict.fromkeys(columns)), rows)
