"""Measured latency of the networks on an experiment's fronts: one process, in turns."""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pareco.config import Experiment, Machine
from pareco.data import load_data
from pareco.files import write_text
from pareco.operator_times import measured_table
from pareco.processes import joined_processes
from pareco.slimmable import SlimmableNet
from pareco.training.environment import hardware
from pareco.training.interruption import RunError
from pareco.training.preparation import sizes_before, untrained_network
from pareco.widths import Widths

LATENCY_FILE = "latency.json"
_PASSES = 5
_SECONDS = 0.01  # of repetitions for each network in each pass
_HELD = 32  # networks at a time


def measure_latencies(
    experiment: Experiment, runs: Path, machine: Machine = Machine(), also: Iterable[str] = ()
) -> bool:
    """Write `runs/<experiment>/latency.json` and return True; False where it is complete already.

    It holds the latency of every network on the fronts of the finished runs there, of those whose
    widths are `also` given, and of the full one: milliseconds for one image, as a plain network, in
    evaluation mode, with one CPU thread, on the machine's device; the least over five passes
    through the networks, some at a time, of the mean over repetitions (what else the machine does
    only adds to a time, and not in every pass). Weights do not matter. Raises `RunError` where an
    earlier file is damaged.
    """
    folder = runs / experiment.name
    path = folder / LATENCY_FILE
    fronts = [file.with_name("front.csv") for file in folder.glob("*/seed*/DONE")]
    texts = [front.read_text(encoding="utf-8").splitlines() for front in fronts]
    found = {row["widths"] for text in texts for row in csv.DictReader(text)} | {*also}
    if found <= _measured(path):
        return False
    data = load_data(experiment.data, machine, joined_processes(machine.device).device)
    record = latencies_of(found, experiment, data.num_classes, data.in_chans, machine)
    write_text(path, json.dumps(record, indent=1) + "\n")
    return True


def latencies_of(
    found: Iterable[str],
    experiment: Experiment,
    classes: int,
    channels: int,
    machine: Machine = Machine(),
) -> dict[str, Any]:
    """Return the latencies of these widths, and of the full network, as `measure_latencies` does.

    As a `pareco.schema.LatencyRecord`; the network is the experiment's, for so many classes and
    channels of images.
    """
    device, size = joined_processes(machine.device).device, experiment.data.image_size
    net = untrained_network(replace(experiment, latency_table=None), classes, channels).to(device)
    ordered = sorted({Widths(net.space.maxima), *map(Widths.parse, found)})
    image = torch.zeros(1, channels, size, size, device=device)
    # Mixed, so that no size alone is measured while the machine does something else as well.
    mixed = torch.randperm(len(ordered), generator=torch.Generator().manual_seed(0))
    times = _milliseconds(net, [ordered[index] for index in mixed], image)
    return {
        **hardware(device),
        "torch": torch.__version__.partition("+")[0],
        "cpu_threads": 1,
        "batch_size": 1,
        "image_size": size,
        "milliseconds": {str(each): float(f"{times[each]:.4g}") for each in ordered},
    }


def measure_table(
    experiment: Experiment,
    path: Path,
    machine: Machine = Machine(),
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> None:
    """Write the latency table of an experiment's network: of one image, with one CPU thread.

    On the machine's device, as `measure_latencies` measures; `on_progress` is told as by
    `pareco.operator_times.measured_table`, which says what is refused.
    """
    device, size = joined_processes(machine.device).device, experiment.data.image_size
    classes, channels, *_ = sizes_before(experiment.data, machine)
    net = untrained_network(replace(experiment, latency_table=None), classes, channels)
    noise = torch.Generator().manual_seed(0)
    image = torch.randn(1, channels, size, size, generator=noise).to(device)
    table = measured_table(net.to(device), experiment.network.name, image, on_progress=on_progress)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, table.to_json())


def _measured(path: Path) -> set[str]:
    """Return the widths, as text, that the file at `path` has a latency of; none without a file."""
    if not path.exists():
        return set()
    try:
        record: Any = json.loads(path.read_text(encoding="utf-8"))
        return set(record["milliseconds"])
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path} is damaged ({error}): remove it to measure again") from error


@torch.no_grad()
def _milliseconds(
    net: SlimmableNet, widths: Sequence[Widths], image: Tensor
) -> dict[Widths, float]:
    # The import says on standard error when it finds a compiler for CUDA but no GPU.
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
    from torch.utils.benchmark import Timer

    least = dict.fromkeys(widths, math.inf)
    for first in range(0, len(widths), _HELD):
        timers, counts = {}, {}
        for each in widths[first : first + _HELD]:
            names = {"plain": net.extract(each).eval(), "image": image}
            timers[each] = timer = Timer("plain(image)", globals=names, num_threads=1)
            once = min(timer.timeit(1).mean for _ in range(2))
            counts[each] = math.ceil(_SECONDS / once)
        for _ in range(_PASSES):
            for each, timer in timers.items():
                least[each] = min(least[each], 1000 * timer.timeit(counts[each]).mean)
    return least
