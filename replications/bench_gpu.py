"""What `bench --device cuda` times: training steps on a GPU, as they are and in faster ways."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from rich.table import Table
from torch import Tensor

from pareco.config import Experiment
from pareco.data.loading import KNOWN_SIZES
from pareco.evaluation import batch_losses
from pareco.processes import Processes
from pareco.training.preparation import initial_network
from pareco.training.replay import EAGER_STEPS, RECORDERS, passes_of
from pareco.training.step import accumulate_gradients, sandwich_widths
from pareco.training.trainer import optimizer_of
from replications.catalogue import experiment_named

CASES = {"cifar10_resnet20": 128, "imagenet_mbv2": 128}
"""Experiments, and the images of a step; of ImageNet the part that one of eight GPUs has."""
WAYS: dict[str, dict[str, Any]] = {
    "eager": {"precision": "fp32"},
    "graphs": {"precision": "fp32", "cuda_graphs": True},
    "bf16": {"precision": "bf16"},
    "bf16, graphs": {"precision": "bf16", "cuda_graphs": True},
}
REFRESHED = 100
_FIRST = EAGER_STEPS + 3  # steps that are compared, and not timed: the graphs are recorded there
_SECONDS = 1.0  # of a repetition, about


@dataclass(frozen=True, kw_only=True)
class GpuRow:
    """The median over repetitions of a step's milliseconds, with its quartiles.

    `eager_steps` is that in eager steps, `memory_mib` what torch then holds of the device, and
    `loss_difference` the most that a loss of the first steps differs from that of the eager ones.
    """

    what: str
    experiment: str
    images: int
    milliseconds: float
    lower: float
    upper: float
    images_per_second: float
    eager_steps: float
    memory_mib: float
    loss_difference: float
    repetitions: int


def measured_steps(processes: Processes, repetitions: int) -> list[GpuRow]:
    """Return the rows of all cases: the step in each way, and a refresh of the history.

    Images are drawn, and on the device. Raises `ValueError` where it knows no graphs.
    """
    if processes.device.type not in RECORDERS:
        raise ValueError(
            f"--device cuda needs an NVIDIA or AMD GPU, and this machine has {processes.device}"
        )
    cases = CASES.items()
    return [row for case in cases for row in _measured(*case, processes, repetitions)]


def _measured(name: str, images: int, processes: Processes, repetitions: int) -> list[GpuRow]:
    times: dict[str, list[float]] = {}
    losses: dict[str, Tensor] = {}
    memory: dict[str, int] = {}

    def timed(what: str, changes: dict[str, Any], does: Callable[[_Training], object]) -> None:
        torch.cuda.empty_cache()  # what the one before has held
        training = _Training(experiment_named(name), images, processes, changes)
        losses[what] = torch.stack([training.step() for _ in range(_FIRST)])
        times[what] = _milliseconds(partial(does, training), processes.device, repetitions)
        memory[what] = torch.cuda.memory_reserved()

    for way, changes in WAYS.items():
        timed(way, changes, _Training.step)
    refresh = f"eager refresh of {REFRESHED} widths"
    timed(refresh, {}, _Training.refresh)
    rows, eager = [], next(iter(WAYS))
    for what, found in times.items():
        lower, median, upper = statistics.quantiles(found, n=4, method="inclusive")
        seen = images * (REFRESHED if what == refresh else 1)
        row = GpuRow(
            what=what,
            experiment=name,
            images=seen,
            milliseconds=median,
            lower=lower,
            upper=upper,
            images_per_second=1000 * seen / median,
            eager_steps=median / statistics.median(times[eager]),
            memory_mib=memory[what] / 2**20,
            loss_difference=float((losses[what] - losses[eager]).abs().max()),
            repetitions=repetitions,
        )
        rows.append(row)
    return rows


class _Training:
    """Training one set of weights, as an experiment does but for its images."""

    def __init__(
        self, experiment: Experiment, images: int, processes: Processes, changes: dict[str, Any]
    ) -> None:
        known, device = KNOWN_SIZES[experiment.data.name], processes.device
        config = replace(experiment.training, **changes)
        rate = config.lr_per_256 * images / 256  # which the optimizer begins with
        self.processes, self.config = processes, replace(config, lr_per_256=rate)
        self.net = net = initial_network(experiment, known.classes, known.channels, 0)
        net.to(device).train()
        if self.config.channels_last:
            net.keep_channels_last()
        drawn = torch.Generator().manual_seed(0)
        size = known.channels, experiment.data.image_size, experiment.data.image_size
        labels = torch.randint(0, known.classes, (images,), generator=drawn)
        self.batch = torch.randn(images, *size, generator=drawn).to(device), labels.to(device)
        sampled = [net.space.sample(drawn) for _ in range(self.config.sampled_per_step)]
        self.widths = sandwich_widths(net, sampled)
        self.visited = [net.space.sample(drawn) for _ in range(REFRESHED)]
        self.passes = passes_of(net, self.config, device)
        self.optimizer = optimizer_of(net, self.config, fused=False)

    def step(self) -> Tensor:
        """Do a step; return the losses that it learned from."""
        with self.passes.step():
            losses = accumulate_gradients(
                *(self.net, *self.batch, self.widths),
                label_smoothing=self.config.label_smoothing,
                forward=lambda: self.processes.autocast(self.config.precision),
                run=self.passes.run,
            )
        self.optimizer.step()
        self.passes.clear()
        return losses.learned

    def refresh(self) -> None:
        """Measure as many widths on the batch as a history may have."""
        with self.processes.autocast(self.config.precision):
            batch_losses(self.net, self.batch, self.visited)


def _milliseconds(
    work: Callable[[], object], device: torch.device, repetitions: int
) -> list[float]:
    """Return the milliseconds that the work takes, as means over about a second each.

    The device is waited for at the end of a second alone, as a run does.
    """
    wait: Callable[[], object] = torch.cuda.synchronize if device.type == "cuda" else lambda: None

    def seconds(times: int) -> float:
        wait()
        begun = time.perf_counter()
        for _ in range(times):
            work()
        wait()
        return time.perf_counter() - begun

    times = max(1, round(_SECONDS / seconds(1)))
    return [1000 * seconds(times) / times for _ in range(repetitions)]


def as_gpu_table(rows: list[GpuRow]) -> Table:
    """Return what is printed of the rows."""
    head = ("what", "experiment", "images", "ms", "quartiles", "images/s", "eager steps", "MiB")
    table = Table(*head, "loss differs by")
    for row in rows:
        table.add_row(
            *(row.what, row.experiment, str(row.images), f"{row.milliseconds:.2f}"),
            *(f"{row.lower:.2f} to {row.upper:.2f}", f"{row.images_per_second:,.0f}"),
            *(f"{row.eager_steps:.3f}", f"{row.memory_mib:,.0f}"),
            f"{row.loss_difference:.1e}",
        )
    return table
