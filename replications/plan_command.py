"""The command `plan`: what the runs of an experiment will take, before anything is trained."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console

from pareco.arguments import Flag
from pareco.config import COSTS
from replications.catalogue import (
    REFERENCE,
    experiment_named,
    experiment_names,
    method_named,
    takes_any_images,
)
from replications.run import RunCommand
from replications.scales import FAST, PUBLISHED

if TYPE_CHECKING:
    from pareco.methods import Method
    from pareco.training.plan import Planner, RunPlan
    from replications.plan_times import PlanTimes

_PARTS = ("training", "search", "choice", "test", "total")


@dataclass(frozen=True, kw_only=True)
class PlanCommand(RunCommand):
    """Show what the runs of an experiment will take: steps, images, MACs by phase, disk.

    Nothing is trained, and no image is opened, unless --measure asks how long that takes here. It
    takes the flags of run, and plans what that would run.
    """

    json: Flag = False
    """Print JSON, with a plan for each run."""

    measure: Flag = False
    """Time some steps, search losses, asks and evaluation of a throwaway network on this machine,
    and decoding where --images says of what; say how many hours each method takes, and on what."""

    def carried_out(self, console: Console) -> int:
        """Print the plan; return 0. Raises `ValueError` or `OSError` for what could not run."""
        if self.measure and self.engine != "local":
            raise ValueError(f"--measure times this machine: leave out --engine {self.engine}")
        self._check_images()
        chosen = self.with_methods_placed().with_latency_table(None)
        from pareco.training.preparation import planner_before

        experiment = chosen.configured()
        methods = {name: chosen.kind_of(name) for name in chosen.method or experiment.methods}
        seeds = tuple(dict.fromkeys(self.seed or experiment.seeds))
        planner = planner_before(experiment, self.machine)
        asked = {(job.method, job.seed) for job in chosen.jobs()}
        plans = run_plans(planner, methods, seeds)
        plans = {run: plan for run, plan in plans.items() if run in asked}
        times = chosen._times(planner, methods, plans) if self.measure else None
        if self.json:
            found = as_json(planner, plans)
            if times is not None:
                found["measured"] = times.as_json()
            console.out(json.dumps(found, indent=1))
            return 0
        for line in (*lines(planner, plans), *(times.lines() if times is not None else ())):
            console.out(line)
        return 0

    def _times(
        self, planner: Planner, methods: Mapping[str, type[Method]], plans: Plans
    ) -> PlanTimes:
        """Return how long the runs take here, as many at a time as `run` would do."""
        from replications.measuring import Stopwatch
        from replications.plan_times import PlanTimes

        together = int(os.environ.get("WORLD_SIZE", "1")) > 1
        runs = 1 if together else min(self._workers(), len(plans))
        devices = replace(self, workers=None)._workers()  # GPUs, or a run's cores
        first = {method: plan for (method, _), plan in reversed(plans.items())}
        stopwatch = Stopwatch(planner=planner, machine=self.machine)
        measured = stopwatch.measured(first, methods, runs, devices)
        return PlanTimes.of(planner, methods, plans, measured, runs)


Plans = dict[tuple[str, int], "RunPlan"]


def run_plans(planner: Planner, methods: Mapping[str, type[Method]], seeds: Sequence[int]) -> Plans:
    """Return the plan of each run; of long ones the first seed is played, and stands for all."""
    played = seeds if planner.plays_whole else seeds[:1]
    plans = {
        (name, seed): planner.plan(method, seed)
        for name, method in methods.items()
        for seed in played
    }
    return {
        (method, seed): plans.get((method, seed), plans[method, seeds[0]])
        for method in methods
        for seed in seeds
    }


def as_json(planner: Planner, plans: Plans) -> dict[str, Any]:
    """Return a plan of runs, ready for JSON: MACs, images, and bytes."""
    experiment = planner.experiment
    return {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "network": experiment.network.name,
        "started_from": experiment.network.start,
        "train_images": planner.train_images,
        "search_images": planner.search_images,
        "test_images": planner.test_images,
        "runs": [
            {
                "method": method,
                "seed": seed,
                "gradient_steps": plan.gradient_steps,
                "images": plan.images,
                "evaluations": plan.evaluations,
                "macs": {
                    phase: {"forward_macs": forward, "backward_macs": backward}
                    for phase, (forward, backward) in plan.macs.items()
                },
                "images_decoded": plan.decoded,
                "disk_bytes": {"while_running": plan.disk_most, "kept": plan.disk_kept},
            }
            for (method, seed), plan in plans.items()
        ],
    }


def table_of(plans: Plans) -> list[list[str]]:
    """Return a header, a row for each method, the mean over its runs, and one for all runs.

    Totals are in percent of the reference's or, where it is not planned, of the first method's.
    """
    from pareco.reporting.records import amount

    methods = list(dict.fromkeys(method for method, _ in plans))
    own = {name: [plan for (each, _), plan in plans.items() if each == name] for name in methods}
    reference = REFERENCE if REFERENCE in own else methods[0]
    whole = _mean(own[reference], "total")
    found = [
        [
            *("method", "runs", "steps", *_PARTS, f"% of {reference}"),
            *("decoded", "disk", "kept"),
        ]
    ]
    for method, runs in own.items():
        means = {each: _mean(runs, each) for each in _PARTS}
        found.append(
            [
                method,
                f"{len(runs)}",
                f"{round(sum(run.gradient_steps for run in runs) / len(runs)):,}",
                *(amount(each) for each in means.values()),
                f"{100 * means['total'] / whole:.0f}",
                amount(sum(run.decoded for run in runs) / len(runs)),
                _bytes(max(run.disk_most for run in runs)),
                _bytes(max(run.disk_kept for run in runs)),
            ]
        )
    every = list(plans.values())
    found.append(
        [
            *("all runs", f"{len(every)}", f"{sum(run.gradient_steps for run in every):,}"),
            *(amount(sum(_of(run, each) for run in every)) for each in _PARTS),
        ]
    )
    return found


def about(planner: Planner) -> list[str]:
    """Return what the runs are, in three lines."""
    experiment, training = planner.experiment, planner.experiment.training
    start, size = experiment.network.start, experiment.data.image_size
    length = f"{training.epochs} epochs"
    if training.macs:
        length = f"until {training.macs:,} MACs are spent before the test"
    return [
        f"{experiment.name}: {experiment.network.name} on {experiment.data.name}, "
        f"{size} x {size} pixels",
        f"scale: {experiment.scale}" + (f"; started from {start}, not counted" if start else ""),
        f"{planner.train_images:,} training images, {planner.search_images:,} for the search, "
        f"{planner.test_images:,} test images; {length}, batches of {training.batch_size}",
    ]


def lines(planner: Planner, plans: Plans) -> list[str]:
    """Return the plan for people."""
    table = table_of(plans)
    widths = [max(len(row[at]) for row in table if at < len(row)) for at in range(len(table[0]))]
    return [
        *about(planner),
        "MACs of a run (a backward pass counts two forward ones), images decoded, disk:",
        *(
            "  ".join(
                cell.ljust(width) if at == 0 else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=False))
            ).rstrip()
            for row in table
        ),
    ]


@dataclass(frozen=True, kw_only=True)
class CostsCommand:
    """Plan all experiments as published, in some minutes: prints docs/cost-of-the-paper.md."""

    def carried_out(self, console: Console) -> int:
        """Print the page; return 0."""
        print(_INTRODUCTION)
        print("\n".join(map(section, planned_names())))
        print("\n".join([_FAST, *map(fast_row, planned_names())]))
        return 0


def planned_names() -> list[str]:
    """Return the experiments that every machine plans alike: with data and costs of their own."""
    names = [name for name in experiment_names() if not takes_any_images(name)]
    return [name for name in names if experiment_named(name).cost in COSTS]


_INTRODUCTION = """# What the paper's experiments cost

Made by `make costs` from what `python -m replications plan NAME` says; a test holds it to the code.
MACs of a run, mean over its seeds; a backward pass counts two forward ones. *Choice* is calibration
and search losses once training has ended, *decoded* are images read and decoded, *disk* is needed
while a run is under way, *kept* once it has finished. What a plan is, and how near it comes:
[what is compared](comparison.md).
"""


_FAST = """## The scale `fast`

MACs of an image through the full network and the smallest one, and of the training with random
uniform multipliers: as published, then with channel counts in multiples of 8, as at the scale
`fast`. The full network is the same.

| experiment | full | smallest | fast | training | fast | fast / published |
| --- | ---: | ---: | ---: | ---: | ---: | ---: |"""


def fast_row(name: str) -> str:
    """Return the row of an experiment in the table of the scale `fast`."""
    from pareco.reporting.records import amount
    from pareco.training.preparation import planner_before

    published, fast = (planner_before(experiment_named(name, scale)) for scale in (PUBLISHED, FAST))
    full = published.cost.macs_at(published.space.largest)
    smallest = [each.cost.macs_at(each.space.smallest) for each in (published, fast)]
    training = [each.nominal_training for each in (published, fast)]
    cells = [name, *map(amount, (full, *smallest, *training)), f"{training[1] / training[0]:.3f}"]
    return f"| {' | '.join(cells)} |"


def section(name: str) -> str:
    """Return the part of docs/cost-of-the-paper.md about an experiment."""
    from pareco.training.preparation import planner_before

    planner = planner_before(experiment_named(name))
    experiment = planner.experiment
    methods = {name: method_named(name) for name in experiment.methods}
    plans = run_plans(planner, methods, experiment.seeds)
    planned = {(name, seed) for name in methods for seed in experiment.seeds_of(name)}
    plans = {run: plan for run, plan in plans.items() if run in planned}
    title, _, images = about(planner)
    header, *rows = table_of(plans)
    cells = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    padded = [[*row, *[""] * (len(header) - len(row))] for row in cells]
    table = "\n".join(f"| {' | '.join(row)} |" for row in padded)
    return f"## {title}\n\n{images}.\n\n{table}\n"


def _of(run: RunPlan, part: str) -> int:
    return run.total if part == "total" else run.of(part)  # type: ignore[arg-type]


def _mean(runs: Sequence[RunPlan], part: str) -> float:
    return sum(_of(run, part) for run in runs) / len(runs)


def _bytes(count: float) -> str:
    """Return a number of bytes in its largest unit, such as `42 MB`."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= 0.95 * size:
            return (
                f"{count / size:.2g} {unit}"
                if count < 99.5 * size
                else f"{count / size:.0f} {unit}"
            )
    return f"{count:.0f} B"
