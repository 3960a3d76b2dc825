"""How long the runs of a plan take on this machine: what was timed, times what is planned."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pareco.config import Experiment
from pareco.methods import Method
from pareco.training.plan import Planner, RunPlan
from pareco.training.search_batches import search_batch_images
from replications.measuring import Measured, resolved

PARTS: Mapping[str, str] = {
    "training": "the networks' passes in gradient steps",
    "search": "the losses that the search measures in training",
    "asks": "the search's models, which one process computes while all wait",
    "images": "decoding: more cores (DECODERS=) or smaller images would help",
    "choice": "calibration and losses for the choice of the front",
    "test": "the test images",
}
"""Of a run's seconds; what is said where one is the largest. Decoding is what is waited for."""


def seconds_of(
    planner: Planner, kind: type[Method], plan: RunPlan, measured: Measured
) -> dict[str, float]:
    """Return the seconds of a run by PARTS, on its part of the device.

    Decoding in so many processes goes on beside the steps; without any, between them.
    """
    experiment, count, share = planner.experiment, measured.processes, measured.runs_on_a_device
    batch, size = experiment.training.batch_size, experiment.evaluation.batch_size
    searched = search_batch_images(experiment, kind, planner.train_images, planner.search_images)
    own, losses = measured.step[:4], measured.step[4:]
    trained = [plan.networks["training"], plan.of("training"), plan.distinct]
    training = np.dot(own, [plan.gradient_steps, *trained])
    batches = plan.networks["search"] * -(-searched // batch)
    calibrated, chosen = planner.calibration_images, planner.search_images
    part = calibrated / (calibrated + chosen)
    choice, tested = plan.networks["choice"], plan.networks["test"]
    held_out = experiment.data.search_split == "holdout"
    evaluated = -(-planner.test_images // size) + held_out * -(-chosen // size)
    macs = plan.of("choice")
    asking = share if measured.device == "cpu" else 1.0  # models are fitted on the CPU
    seconds = {
        "training": share * training,
        "search": share * np.dot(losses, [batches, plan.of("search")]),
        "asks": asking * sum(_asked(experiment, kind, plan, measured)),
        "images": 0.0,
        "choice": share
        * np.dot(
            measured.after,
            [
                choice * calibrated / size / count,
                part * macs,
                choice * -(-chosen // size) / count,
                (1 - part) * macs,
                choice,
            ],
        ),
        "test": share * np.dot(measured.after[2:4], [tested * evaluated / count, plan.of("test")]),
    }
    if measured.images_per_second is not None:
        rate = measured.images_per_second * max(measured.decoding_processes, 1) * count
        alone = experiment.data.in_memory or not measured.decoding_processes
        meanwhile = 0.0 if alone else seconds["training"] + seconds["test"]
        seconds["images"] = max(plan.decoded / rate - meanwhile, 0.0)
    return {part: float(each) for part, each in seconds.items()}


def _asked(
    experiment: Experiment, kind: type[Method], plan: RunPlan, measured: Measured
) -> Iterator[float]:
    """Yield the seconds of each request to the search's models."""
    config = resolved(experiment, kind)
    for entries, count in plan.asks:
        sizes, seconds = zip(*measured.asks[config, count], strict=True)
        yield float(np.interp(entries, sizes, seconds))


@dataclass(frozen=True, kw_only=True)
class PlanTimes:
    """How long the runs of a plan take, so many of them at a time."""

    measured: Measured
    at_a_time: int
    seconds: Mapping[tuple[str, int], Mapping[str, float]]
    """Of each run, by method and seed: seconds by PARTS."""

    @classmethod
    def of(
        cls,
        planner: Planner,
        methods: Mapping[str, type[Method]],
        plans: Mapping[tuple[str, int], RunPlan],
        measured: Measured,
        at_a_time: int,
    ) -> PlanTimes:
        """Return what was measured times what is planned; nothing but in the main process."""
        seconds = {
            run: seconds_of(planner, methods[run[0]], plan, measured)
            for run, plan in plans.items()
            if measured.step
        }
        return cls(measured=measured, at_a_time=at_a_time, seconds=seconds)

    @property
    def hours(self) -> float:
        """Hours of the wall clock, until all runs have ended."""
        each = [sum(parts.values()) for parts in self.seconds.values()]
        return max([sum(each) / self.at_a_time, *each]) / 3600

    @property
    def device_hours(self) -> float:
        """Hours of all devices."""
        return sum(map(self._device_hours, self.seconds))

    def _hours(self, run: tuple[str, int]) -> float:
        return sum(self.seconds[run].values()) / 3600

    def _device_hours(self, run: tuple[str, int]) -> float:
        measured = self.measured
        return self._hours(run) * measured.processes / measured.runs_on_a_device

    def as_json(self) -> dict[str, Any]:
        """Return hours, seconds by part, and what was timed, ready for JSON."""
        measured = self.measured
        return {
            "device": measured.device,
            "processes": measured.processes,
            "runs_at_a_time": self.at_a_time,
            "runs_on_a_device": measured.runs_on_a_device,
            "images_per_second_of_a_process": measured.images_per_second,
            "decoding_processes": measured.decoding_processes,
            "hours": self.hours,
            "device_hours": self.device_hours,
            "asks": [
                {"solver": config.solver, "asked": count, "entries": entries, "seconds": seconds}
                for (config, count), found in measured.asks.items()
                for entries, seconds in found
            ],
            "runs": [
                {
                    "method": run[0],
                    "seed": run[1],
                    "hours": self._hours(run),
                    "device_hours": self._device_hours(run),
                    "seconds": parts,
                    "limited_by": max(parts, key=parts.__getitem__),
                }
                for run, parts in self.seconds.items()
            ],
        }

    def lines(self) -> Iterator[str]:
        """Yield what is told to people, a line for each method."""
        if not self.seconds:
            return
        measured = self.measured
        yield f"time on this machine ({measured.device}, processes: {measured.processes}):"
        header = ["method", "hours a run", "device hours", *(f"{part} %" for part in PARTS)]
        rows = [header]
        limits = dict[str, list[str]]()
        for method in dict.fromkeys(method for method, _ in self.seconds):
            runs = [run for run in self.seconds if run[0] == method]
            parts = {
                part: sum(self.seconds[run][part] for run in runs) / len(runs) for part in PARTS
            }
            whole = sum(parts.values())
            shares = [f"{100 * each / whole:.1f}" for each in parts.values()]
            device_hours = sum(map(self._device_hours, runs))
            rows.append([method, f"{whole / 3600:.3g}", f"{device_hours:.3g}", *shares])
            limits.setdefault(max(parts, key=parts.__getitem__), []).append(method)
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            cells = zip(row, widths, strict=True)
            yield "  ".join(
                cell.rjust(width) if at else cell.ljust(width)
                for at, (cell, width) in enumerate(cells)
            )
        yield (
            f"in all {self.hours:.3g} hours, {self.at_a_time} runs at a time; "
            f"{self.device_hours:.3g} device hours"
        )
        if (share := measured.runs_on_a_device) > 1:
            yield f"runs on one device ({share:.3g}) are taken to share its time"
        for part, methods in limits.items():
            yield f"what takes longest ({', '.join(methods)}): {PARTS[part]}"
        if measured.images_per_second is None:
            yield "decoding is not in it: no --images to time"
        else:
            count = measured.decoding_processes
            yield (
                f"one process decodes {measured.images_per_second:,.0f} images a second; "
                f"each run has {count or 'none, and decodes between its steps'}"
            )
