"""The commands: list the experiments, run one, report one."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.markup import escape

from pareco.config import Experiment
from pareco.methods import method_named
from pareco.reporting import InvalidRecord, UnequalBudgets, write_report
from pareco.training import RunError, check_runnable
from replications.catalogue import experiment_named, experiment_names, known_methods
from replications.sweep import Job, run_jobs


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where runs are kept and results are written."""

    runs: Path = Path("runs")
    """Folder of all runs: RUNS/<experiment>/<method>/seed<k>."""

    results: Path = Path("results")
    """Folder of all results: RESULTS/<experiment>."""

    allow_unequal_budgets: bool = False
    """Report methods side by side though their training budgets differ."""


@dataclass(frozen=True, kw_only=True)
class RunArguments:
    """Train and measure the methods of an experiment; any field of its configuration is a flag."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]

    folders: Annotated[Folders, tyro.conf.arg(name="")]

    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Run only this method (may be repeated), with no report unless all others have finished."""

    seed: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """Run only this seed (may be repeated)."""

    workers: int | None = None
    """Runs at a time; by default as many as there are CPU cores for training.cpu_threads each."""

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
            Job(experiment=experiment, method=method, seed=seed, runs=self.folders.runs)
            for seed in dict.fromkeys(self.seed or experiment.seeds)
            for method in dict.fromkeys(self.method or experiment.methods)
        ]

    def all_jobs(self) -> list[Job]:
        """Return the runs that the experiment's report needs, and those that are asked for."""
        return list(dict.fromkeys((*replace(self, method=(), seed=()).jobs(), *self.jobs())))


def run(name: str, arguments: list[str], console: Console) -> int:
    """Run an experiment and report it; return the exit status: 0 well, 1 failed, 2 bad request."""
    default = RunArguments(experiment=experiment_named(name), folders=Folders())
    chosen = tyro.cli(
        RunArguments, default=default, args=arguments, prog=f"python -m replications run {name}"
    )
    _check(chosen)
    asked = chosen.jobs()
    jobs = [job for job in asked if not job.run_folder.done]
    if len(jobs) < len(asked):
        console.print(f"{len(asked) - len(jobs)} of {len(asked)} runs have finished before")
    workers = chosen.workers or max(1, _cores() // chosen.experiment.training.cpu_threads)
    failures = run_jobs(jobs, workers=workers, console=console)
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
    return _report(chosen.experiment.name, chosen.folders, console)


def _check(chosen: RunArguments) -> None:
    """Raise `ValueError` for what could not run, or be reported, before anything is begun."""
    methods = known_methods()
    jobs = chosen.all_jobs()
    for name in dict.fromkeys(job.method for job in jobs if not job.run_folder.done):
        check_runnable(chosen.experiment, method_named(name, methods))
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


def report(name: str, arguments: list[str], console: Console) -> int:
    """Write the results of an experiment from its finished runs; return the exit status."""
    prog = f"python -m replications report {name}"
    return _report(name, tyro.cli(Folders, args=arguments, prog=prog), console)


def _report(name: str, folders: Folders, console: Console) -> int:
    written = write_report(
        name,
        folders.runs,
        folders.results,
        allow_unequal_budgets=folders.allow_unequal_budgets,
    )
    console.print(written.tables)
    for path in written.unfinished:
        console.print(f"left out, not finished: {path}")
    for path in written.paths:
        console.print(str(path), highlight=False)
    return 0


def _cores() -> int:
    """Return the number of CPU cores that this process may use."""
    affinity: Callable[[int], set[int]] | None = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def carry_out(command: str, arguments: list[str]) -> int:
    """Carry out `list`, `run NAME ...` or `report NAME ...`; return the exit status.

    0 well, 1 a run failed, 2 a bad request, named on standard error.
    """
    console = Console()
    try:
        if command == "list":
            return list_experiments(console)
        name, *options = arguments
        return {"run": run, "report": report}[command](name, options, console)
    except (InvalidRecord, UnequalBudgets, RunError, ValueError, OSError) as error:
        Console(stderr=True).print(f"[red]error:[/red] {escape(str(error))}", highlight=False)
        return 2


def list_experiments(console: Console) -> int:
    """Show every experiment in a line."""
    for name in experiment_names():
        experiment = experiment_named(name)
        seeds = f"{len(experiment.seeds)} seeds"
        summary = f"{experiment.network.name} on {experiment.data.name}, {seeds}"
        console.print(f"{name:<24} {summary}: {', '.join(experiment.methods)}", highlight=False)
    return 0
