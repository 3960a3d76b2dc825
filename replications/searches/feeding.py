"""The command `feeding`: what each way of feeding a search gives, at search budgets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from pareco.config import Experiment
from replications.catalogue import experiment_named
from replications.run import RunCommand

if TYPE_CHECKING:
    from replications.searches.fed_runs import FedRun
    from replications.sweep import Job

_OF = "cifar10_vgg"


def ways_of_feeding(sampled: int) -> dict[str, Mapping[str, Any]]:
    """Return fields of the search by the way's name, where M networks are `sampled` in a step.

    A base as the paper's with half of its budget kept for the choice, each field moved by itself,
    all of them together but for where losses come from, that one moved, all left to the method.
    """
    base = {
        "losses_from": "refresh",
        "refresh_images": None,
        "visits_per_ask": sampled,
        "trains": "newest",
        "half_life": 0.0,
        "target_costs": "area",
        "part_in_training": 0.5,
    }
    moved = {
        "refresh_images": 256,
        "visits_per_ask": 2 * sampled,
        "trains": "front",
        "half_life": 0.1,
        "target_costs": "uniform",
    }
    return {
        "base": base,
        **{name: base | {name: value} for name, value in moved.items()},
        "together": base | moved,
        "losses_from": base | {"losses_from": "training"},
        "default": dict.fromkeys(base),
    }


WAYS = tuple(ways_of_feeding(1))


def study() -> Experiment:
    """Return the study's experiment: a VGG for a CPU, shorter, so that a run takes minutes."""
    known = experiment_named(_OF, "cpu")
    return replace(
        known,
        name="feeding",
        scale="cpu",
        data=replace(known.data, train_images=10_000, search_images=1_000, test_images=2_500),
        training=replace(known.training, epochs=10, ask_every_steps=25),
        evaluation=replace(known.evaluation, calibration_images=512),
        methods=("pareco_exact", "us_net"),
        seeds=(200, 201, 202),
    )


@dataclass(frozen=True, kw_only=True)
class FeedingCommand(RunCommand):
    """Train a search fed in each of several ways, at each of several budgets, and compare.

    The first of --methods is fed, the others are for reference. `search/` in the results gets a
    record, which grows with each run, a table and a figure. What the record has already is not
    trained again. It takes the flags of run; an interrupted study goes on where it was.
    """

    of: Annotated[str, tyro.conf.Suppress] = _OF

    experiment: Annotated[Experiment, tyro.conf.arg(name="")] = field(default_factory=study)

    ways: tuple[str, ...] = WAYS
    """Of the search's fields one is moved from the base, whose name this is; together: all but
    losses-from; default: what the method has for its own."""

    budgets: tuple[float, ...] = (0.03, 0.1, 0.3)
    """Search budgets, as parts of the training's MACs."""

    def __post_init__(self) -> None:
        """Check the fields."""
        super().__post_init__()
        for way in self.ways:
            if way not in WAYS:
                raise ValueError(f"--ways: unknown {way!r}. Known: {', '.join(WAYS)}")
        if not self.ways or not self.budgets or min(self.budgets) <= 0:
            raise ValueError("--ways and --budgets must name at least one, budgets above 0")

    def _experiments(self) -> dict[tuple[str, float], Experiment]:
        """Return what is run of each way at each budget, and of each method for reference."""
        experiment, found = self.experiment, {}
        known = ways_of_feeding(experiment.training.sampled_per_step)
        fed, *others = experiment.methods
        every = {way: (fed, known[way]) for way in self.ways}
        every |= {method: (method, known["base"]) for method in others}
        for budget in dict.fromkeys(self.budgets):
            for way, (method, settings) in every.items():
                found[way, budget] = replace(
                    experiment,
                    name=f"{experiment.name}-{way}-{budget:g}",
                    scale=f"{experiment.scale}, fed: {way}, search budget {budget:g}",
                    search=replace(experiment.search, budget=budget, **settings),
                    methods=(method,),
                )
        return found

    def every_job(self) -> Sequence[FedRun]:
        """Return the runs of all parts, seed by seed."""
        from replications.searches.fed_runs import FedRun
        from replications.searches.feeding_results import KEY, read_fed

        there = read_fed(self._folder).set_index(KEY).index
        return [
            FedRun(
                experiment=experiment,
                method=method,
                seed=seed,
                runs=self.folders.runs,
                machine=self.machine,
                place=self.places.get(method),
                way=way,
                budget=budget,
                on_record=(way, budget, seed) in there,
            )
            for seed in dict.fromkeys(self.seed or self.experiment.seeds)
            for (way, budget), experiment in self._experiments().items()
            for method in experiment.methods
            if method in (self.method or experiment.methods)
        ]

    def _check(self) -> None:
        """Raise `ValueError` for what could not run, or stand beside what is on record."""
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            raise ValueError("feeding trains runs side by side, with --workers: no launcher")
        super()._check()
        self._check_plans()
        self._check_record()

    def _check_plans(self) -> None:
        from pareco.training.preparation import planner_before

        least = min(self.budgets)  # what this pays for, more will
        left = {job.way: job for job in self.every_job() if job.budget == least and not job.done}
        if not left:
            return
        planner = planner_before(self.experiment, self.machine)
        for job in left.values():
            planned = replace(planner, experiment=job.experiment)
            planned.plan(self.kind_of(job.method), job.seed)

    def _check_record(self) -> None:
        from pareco.data import load_data
        from replications.searches.feeding_results import ORIGIN, read_origin

        there = read_origin(self._folder)
        if there:
            data = load_data(self.experiment.data, self.machine)
            for name, ours in self._origin(data.fingerprint).items():
                if there[name] != ours:
                    raise ValueError(
                        f"{self._folder / ORIGIN}: what is on record has {name} {there[name]!r}, "
                        f"this has {ours!r}: keep it apart with --results FOLDER"
                    )

    @property
    def _folder(self) -> Path:
        return self.folders.results / "search"

    def _origin(self, data_fingerprint: str) -> dict[str, str]:
        experiment = self.experiment
        named = {"experiment": experiment.name, "scale": experiment.scale}
        return {**named, "data_fingerprint": data_fingerprint}

    def hear_of(self, job: Job) -> None:
        """Add a run to the record."""
        from replications.searches.fed_runs import FedRun

        assert isinstance(job, FedRun)
        self._record([job])

    def _record(self, runs: Sequence[FedRun]) -> None:
        """Add runs to the record, and what they were begun with."""
        from replications.searches import feeding_results as results

        sessions = [run.session() for run in runs]
        origin = self._origin(sessions[0].pop("data_fingerprint"))
        environments = results.read_origin(self._folder).get("environments", [])
        for session in sessions:
            session.pop("data_fingerprint", None)
            environments += [session] if session not in environments else []
        self._folder.mkdir(parents=True, exist_ok=True)
        results.write_origin(self._folder, {**origin, "environments": environments})
        order = (*WAYS, *self.experiment.methods)
        results.write_fed(self._folder, [run.row() for run in runs], order)

    def report(self, console: Console) -> None:
        """Write the record of all runs that have finished, and what is made of it."""
        from replications.searches.comparison import write_search_results

        if finished := [run for run in self.every_job() if run.done and not run.on_record]:
            self._record(finished)
        write_search_results(self._folder)
        console.out(self._folder)
