"""The command `run`: train and measure the methods of an experiment at a scale, then report."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
import tyro
from rich.console import Console
from rich.markup import escape

from pareco.config import Experiment, Machine, as_json
from pareco.latency import measure_latencies
from pareco.training import check_runnable
from replications.catalogue import (
    experiment_named,
    method_named,
)
from replications.report_command import Folders, scale_and_rest, write_report
from replications.sweep import Job, is_main_process, processes_launched, run_jobs, run_jobs_together


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Train and measure the methods of an experiment; any field of its configuration is a flag.

    The other flags change the configuration of the scale that --scale names.
    """

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]

    folders: Annotated[Folders, tyro.conf.arg(name="")]

    machine: Annotated[Machine, tyro.conf.arg(name="")]

    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Run only this method (may be repeated), with no report unless all others have finished."""

    seed: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """Run only this seed (may be repeated)."""

    workers: int | None = None
    """Runs at a time; by default one on a GPU, else one for each training.cpu_threads cores."""

    def __post_init__(self) -> None:
        """Check the fields."""
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers must be at least 1, got {self.workers}")
        if any(seed < 0 for seed in self.seed):
            raise ValueError(f"seed must not be negative, got {min(self.seed)}")

    def jobs(self) -> list[Job]:
        """Return the runs that are asked for."""
        experiment = self.experiment
        return [
            Job(
                experiment=experiment,
                method=method,
                seed=seed,
                runs=self.folders.runs,
                machine=self.machine,
            )
            for seed in dict.fromkeys(self.seed or experiment.seeds)
            for method in dict.fromkeys(self.method or experiment.methods)
        ]

    def all_jobs(self) -> list[Job]:
        """Return the runs that the experiment's report needs, and those that are asked for."""
        return list(dict.fromkeys((*replace(self, method=(), seed=()).jobs(), *self.jobs())))


def run(name: str | None, arguments: list[str], console: Console) -> int:
    """Run an experiment and report it; return the exit status: 0 well, 1 failed, 2 bad request."""
    assert name is not None, "the command needs a name"
    scale, fields = scale_and_rest(f"run {name}", arguments)
    default = RunArguments(
        experiment=experiment_named(name, scale or "paper"), folders=Folders(), machine=Machine()
    )
    chosen = tyro.cli(
        RunArguments, default=default, args=fields, prog=f"python -m replications run {name}"
    )
    chosen = replace(chosen, experiment=labelled(chosen.experiment, default.experiment))
    _check(chosen, name)
    asked = chosen.jobs()
    jobs = [job for job in asked if not job.run_folder.done]
    if len(jobs) < len(asked):
        console.print(f"{len(asked) - len(jobs)} of {len(asked)} runs have finished before")
    if processes_launched() > 1:
        failures = run_jobs_together(asked, console=console)
    else:
        failures = run_jobs(jobs, workers=chosen.workers or _workers(chosen), console=console)
    for failure in failures:
        console.print(f"\n[red]{failure.job} failed:[/red] {escape(failure.message)}")
    if failures:
        console.print(f"\n{len(failures)} of {len(jobs)} runs failed; see {failures[0].job.folder}")
        return 1
    waiting = [f"such as {job}" for job in chosen.all_jobs() if not job.run_folder.done]
    if waiting:
        total = len(chosen.all_jobs())
        console.print(f"No report yet: {len(waiting)} of {total} runs not finished ({waiting[0]}).")
        return 0
    if not is_main_process():
        return 0
    try:
        with console.status("measuring the latency of the networks on the fronts"):
            measure_latencies(chosen.experiment, chosen.folders.runs, chosen.machine)
    except (RuntimeError, MemoryError) as error:
        console.print(f"[yellow]no latency:[/yellow] {escape(str(error))}", highlight=False)
    write_report(chosen.experiment.name, chosen.folders, console)
    return 0


def labelled(chosen: Experiment, default: Experiment) -> Experiment:
    """Return the experiment with a scale that says which fields differ from the default's.

    Name, methods and seeds may differ; all else makes it another experiment, which must not be
    taken for the published one.
    """
    ours, theirs = as_json(chosen), as_json(default)
    free = ("name", "methods", "seeds", "scale")
    changed = [f"{key} {ours[key]}" for key in ours if key not in free and ours[key] != theirs[key]]
    if not changed:
        return chosen
    return replace(chosen, scale=f"{default.scale}, changed: {', '.join(changed)}")


def _workers(chosen: RunArguments) -> int:
    """Return how many runs go side by side unless it is said: one where they share a GPU."""
    if chosen.machine.device != "cpu" and torch.accelerator.is_available():
        return 1
    return max(1, _cores() // chosen.experiment.training.cpu_threads)


def _check(chosen: RunArguments, name: str) -> None:
    """Raise `ValueError` for what could not run, or be reported, before anything is begun.

    Raises `FileNotFoundError`, saying what can be run meanwhile, where the images are missing.
    """
    jobs = chosen.all_jobs()
    for method in dict.fromkeys(job.method for job in jobs if not job.run_folder.done):
        try:
            check_runnable(chosen.experiment, method_named(method), chosen.machine)
        except FileNotFoundError as error:
            target = f"make replicate-{name.replace('_', '-')} SCALE=smoke"
            raise FileNotFoundError(f"{error}\nMeanwhile, on embedded images: {target}") from error
    present = chosen.folders.runs / chosen.experiment.name
    for folder in sorted(file.parent for file in present.glob("*/seed*/config.json")):
        seed = folder.name.removeprefix("seed")
        if seed.isdecimal():
            jobs.append(replace(jobs[0], method=folder.parent.name, seed=int(seed)))
    for job in jobs:
        if differences := job.run_folder.differences():
            raise ValueError(
                f"{job.folder} holds a run of another configuration ({'; '.join(differences)}). "
                "Keep this experiment apart with --name NAME or --runs FOLDER, or remove that one"
            )
    for folder in (chosen.folders.runs, chosen.folders.results):
        folder.mkdir(parents=True, exist_ok=True)


def _cores() -> int:
    """Return the number of CPU cores that this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1
