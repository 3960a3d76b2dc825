"""The command `run`: train and measure the methods of an experiment at a scale, then report."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

import tyro
from rich.console import Console
from rich.progress import Progress

from pareco.arguments import Flag, every_nth
from pareco.config import (
    COSTS,
    EMBEDDED,
    OF_SWEEP,
    Experiment,
    Machine,
    as_json,
    check_location,
    value_text,
)
from pareco.schema import LATENCY_TABLE, NORMALIZED_APART
from replications.catalogue import (
    catalogued,
    equal_compute_name,
    experiment_named,
    experiment_names,
    method_at,
    method_places,
    name_at,
    scales_on_images,
)
from replications.data_command import check_folder
from replications.scales import PUBLISHED

if TYPE_CHECKING:
    from pareco.methods import Method
    from pareco.training.folder import RunFolder
    from replications.sweep import Engine, Job

_START = tuple(f"network.{field}" for field in ("pretrained", "started_from", "order_channels"))
FREE = ("name", *OF_SWEEP, "scale", "training.macs", "latency_from", *_START)
"""Fields that a scale's line does not say, or says in words."""
_NO_NAMES = ("published", "README.md", "index.html")  # of the results, and no experiment's
_MEANWHILE = "meanwhile, on embedded images: --scale smoke without --images (make: SCALE=smoke)"


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where runs are kept and results are written."""

    runs: Path = Path("runs")
    """Folder of all runs: RUNS/<experiment>/<method>/seed<k>."""

    results: Path = Path("results")
    """Folder of all results: RESULTS/<experiment>."""

    allow_unequal_budgets: Flag = False
    """Report methods side by side though their training budgets differ."""

    add: Flag = False
    """Report the finished runs together with those on record in the results, of the same
    configuration, where the other runs are no longer there or not yet."""


def _first(
    *,
    scale: str = PUBLISHED,
    images: str | None = None,
    data_name: Annotated[str | None, tyro.conf.arg(name="data.name")] = None,
) -> tuple[str, str | None, str | None]:
    return scale, images, data_name  # the flags that other flags' defaults depend on


def _with_reference(chosen: Experiment, default: Experiment) -> Experiment:
    """Return the experiment with all seeds for methods that are asked for by name.

    Raises `ValueError` for methods of reference that are not compared.
    """
    if chosen.methods != default.methods and chosen.reference_methods == default.reference_methods:
        return replace(chosen, reference_methods=())
    if other := [each for each in chosen.reference_methods if each not in chosen.methods]:
        raise ValueError(f"--reference-methods {' '.join(other)}: not among --methods")
    return chosen


@dataclass(frozen=True, kw_only=True)
class RunCommand:
    """Train and measure every method of an experiment with every seed, then report.

    Any field of the configuration is a flag; they change what --scale names: paper (as published),
    fast (the same in bf16, channels in multiples of 8), short (a tenth of the epochs), cpu (small
    images, few of them) or smoke (embedded data, a few steps). An interrupted run goes on where it
    was, a finished one is skipped.
    """

    of: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """The experiment; `run NAME --help` shows its configuration."""

    experiment: Annotated[Experiment, tyro.conf.arg(name="")]

    folders: Annotated[Folders, tyro.conf.arg(name="")] = field(default_factory=Folders)

    machine: Annotated[Machine, tyro.conf.arg(name="")] = Machine()

    method: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Run only this method (may be repeated), with no report unless all others have finished. Here
    and with --methods, one of your own is FILE.py or MODULE:CLASS."""

    seed: tyro.conf.UseAppendAction[tuple[int, ...]] = ()
    """Run only this seed (may be repeated)."""

    equal: Literal["passes", "compute"] = "passes"
    """What is equal for all methods: epochs and passes (paper), or the MACs before the test: those
    of training.macs or, unless set, what the first method is planned to spend, with the
    experiment's own first seed."""

    part: str | None = None
    """K/N: only every N-th run, from the K-th on; N such commands together do all."""

    engine: Literal["local", "ray"] = "local"
    """Where runs are done: on this machine, or as tasks of Ray on the cluster that RAY_ADDRESS
    names, which is this machine where it names none."""

    workers: int | None = None
    """Runs at a time; by default one on each GPU, else one for each training.cpu_threads cores."""

    default: Annotated[Experiment | None, tyro.conf.Suppress] = None
    """What the experiment is without any flag but those that `defaults` looks at."""

    places: Annotated[Mapping[str, str], tyro.conf.Suppress] = field(default_factory=dict)
    """Where methods are, by their names; one that it lacks is known by its name."""

    check: int | None = None
    """Only say whether this could run by so many processes on one network; begin nothing."""

    @classmethod
    def defaults(cls, arguments: Sequence[str], command: str) -> Self:
        """Return what its flags default to, where arguments are command, NAME, maybe a scale."""
        if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
            raise ValueError(f"the command comes first, before {arguments[0]}")
        if arguments[:1] != [command] or {"-h", "--help"} & set(arguments[1:2]):
            return cls(of=tyro.MISSING, experiment=tyro.MISSING)
        arguments = arguments[1:]
        if not arguments or arguments[0].startswith("-"):
            known = ", ".join(experiment_names())
            raise ValueError(f"{command} needs the name of an experiment first; known: {known}")
        first, _ = tyro.cli(_first, args=arguments, return_unknown_args=True, add_help=False)
        scale, images, data_name = first
        default = experiment_named(arguments[0], scale)
        if images is not None:
            check_folder(images, f"; {_MEANWHILE}")
            default = experiment_named(arguments[0], scale, images, data_name)
        experiment = replace(default, scale=scale)
        return cls(of=arguments[0], experiment=experiment, default=default)

    def __post_init__(self) -> None:
        """Check the fields."""
        for name, count in (("workers", self.workers), ("check", self.check)):
            if count is not None and count < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if any(seed < 0 for seed in self.seed):
            raise ValueError(f"seed must not be negative, got {min(self.seed)}")
        if any(seed >= 2**63 for seed in self.seed):
            raise ValueError(f"seed must be below 2^63, got {max(self.seed)}")
        every_nth(self.part)

    def carried_out(self, console: Console) -> int:
        """Run what is left, then report; return the exit status.

        0 well, 1 a run failed, 130 or 143 interrupted. Raises `ValueError` or `OSError`, before
        anything is begun, for what could not run or be reported.
        """
        self._check_images()
        chosen = self.with_methods_placed().with_latency_table(console)
        chosen = replace(chosen, experiment=chosen.configured())
        chosen = replace(chosen, machine=chosen._machine())
        from pareco.training.interruption import Interrupted, RunError

        try:
            return chosen._trained_and_reported(console)
        except RunError as error:
            raise ValueError(f"{error}") from error
        except Interrupted as error:
            print(error, file=sys.stderr)
            return error.exit_status

    def with_methods_placed(self) -> Self:
        """Return this with the methods by their names, and where they are as `places`.

        Raises `ValueError` as `method_places` does.
        """
        compared = method_places(self.experiment.methods)
        picked = method_places(self.method, compared)
        experiment = replace(self.experiment, methods=tuple(compared))
        places = compared | picked
        return replace(self, experiment=experiment, method=tuple(picked), places=places)

    def with_latency_table(self, console: Console | None) -> Self:
        """Return this with a latency table, where the experiment's cost is latency.

        Unless one is given, that in the folder of its runs; where there is none, it is measured
        there first, and `console` shows how far. Without a console, `ValueError` is raised.
        """
        experiment = self.experiment
        if experiment.cost in COSTS or experiment.latency_table is not None:
            return self
        named = equal_compute_name if self.equal == "compute" else name_at
        path = self.folders.runs / named(experiment.name, experiment.scale) / LATENCY_TABLE
        if not path.exists():
            if console is None or int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ValueError(
                    f"cost {experiment.cost} needs a latency table, and {path} is not there: give "
                    "one of pareco latency, --latency-table FILE, or measure it by run --check 1"
                )
            from pareco.latency import measure_table

            with Progress(console=console, transient=True) as progress:
                task = progress.add_task("measuring operators")
                measure_table(
                    experiment,
                    path,
                    self.machine,
                    lambda done, of: progress.update(task, completed=done, total=of),
                )
            console.print(f"latency table: measured on this machine, kept in {path}", markup=False)
        return replace(self, experiment=replace(experiment, latency_table=str(path)))

    def kind_of(self, name: str) -> type[Method]:
        """Return the method of this name."""
        return method_at(self.places.get(name, name))

    def configured(self) -> Experiment:
        """Return the experiment with a name that ends as its scale's, and a scale that is honest.

        The scale names the fields that differ from the default's, and how many processes normalize
        their images apart from each other. Name, methods and seeds may differ; all else makes it
        another experiment, which must not be taken for the published one.
        """
        chosen = self._settled()
        default = self.default or experiment_named(self.of, chosen.scale)
        if self.equal == "compute":
            chosen = self._of_equal_compute(chosen, default.seeds[0])
        name = name_at(chosen.name, chosen.scale)
        others = {known for known, *which in catalogued() if which != [self.of, chosen.scale]}
        if name in others or name in _NO_NAMES:
            raise ValueError(f"--name {chosen.name}: {name} is taken in the results, take another")
        chosen = _with_reference(chosen, default)
        ours, theirs, macs = as_json(chosen), as_json(default), chosen.training.macs
        changed = [
            f"{key} {value_text(ours[key])}"
            for key in ours
            if key not in FREE and ours[key] != theirs[key]
        ]
        return replace(
            chosen,
            name=name,
            scale=default.scale
            + (f", changed: {', '.join(changed)}" if changed else "")
            + (", from given weights" if chosen.network.started_from else "")
            + (f", equal compute: {macs:,} MACs before the test" if macs else "")
            + self._normalization(),
        )

    def _settled(self) -> Experiment:
        """Return the experiment with what its files and the modules that run whole are."""
        network, table = self.experiment.network, self.experiment.latency_table
        if not (network.weights or network.pretrained or network.whole or table):
            return self.experiment  # with nothing heavy imported
        from pareco.training.preparation import settled

        return settled(self.experiment)

    def _of_equal_compute(self, chosen: Experiment, seed: int) -> Experiment:
        """Return the experiment with MACs that every run may spend, and a name that says so.

        They are planned with the experiment's own first seed, so that other seeds have as many.
        """
        from pareco.training.preparation import planner_before

        macs = chosen.training.macs
        if macs is None:
            first = self.kind_of(chosen.methods[0])
            macs = planner_before(chosen, self.machine).plan(first, seed).before_test
        name = equal_compute_name(chosen.name, chosen.scale)
        return replace(chosen, name=name, training=replace(chosen.training, macs=macs))

    def _normalization(self) -> str:
        """Return what the scale says of batch norm; nothing where it sees the whole batch."""
        if self.experiment.training.sync_batch_norm:
            return ""
        count = self._process_count()
        return f"{NORMALIZED_APART} {count} processes" if count > 1 else ""

    def _process_count(self) -> int:
        """Return how many processes train one network."""
        from pareco.processes import joined_processes

        return self.check or joined_processes(self.machine.device).share.count

    def jobs(self) -> Sequence[Job]:
        """Return the runs that are asked for."""
        return self.every_job()[every_nth(self.part)]

    def every_job(self) -> Sequence[Job]:
        """Return the runs of all parts."""
        from replications.sweep import Job

        experiment = self.experiment
        whole = {"experiment": experiment, "runs": self.folders.runs, "machine": self.machine}
        return [
            Job(**whole, method=method, seed=seed, place=self.places.get(method))
            for seed in dict.fromkeys(self.seed or experiment.seeds)
            for method in dict.fromkeys(self.method or experiment.methods)
            if seed in experiment.seeds_of(method)
            or (self.seed and (self.method or seed not in experiment.seeds))
        ]

    def all_jobs(self) -> list[Job]:
        """Return the runs that the experiment's report needs, and those that are asked for."""
        whole = replace(self, method=(), seed=())
        return list(dict.fromkeys((*whole.every_job(), *self.every_job())))

    def hear_of(self, job: Job) -> None:
        """Hear that a job is done, before the report: nothing, unless a study wants it."""

    def _trained_and_reported(self, console: Console) -> int:
        from replications import sweep

        self._check()
        asked = self.jobs()
        jobs = [job for job in asked if not job.done]
        if len(jobs) < len(asked):
            console.print(f"{len(asked) - len(jobs)} of {len(asked)} runs have finished before")
        if self.check is not None:
            console.print(f"{len(jobs)} runs can begin")
            return 0
        if jobs:
            console.out(self._subject())
        for folder in (self.folders.runs, self.folders.results):
            folder.mkdir(parents=True, exist_ok=True)
        if int(os.environ.get("WORLD_SIZE", "1")) > 1:
            if jobs:
                count = os.environ["WORLD_SIZE"]
                console.print(f"one network on {count} processes{self._decoders()}")
            failed = sweep.run_jobs_together(asked, console=console)
        else:
            engine, workers = self._engine(len(jobs), console)
            failed = sweep.run_jobs(
                jobs, workers=workers, engine=engine, console=console, on_done=self.hear_of
            )
        if failed:
            console.print(f"{len(failed)} of {len(jobs)} runs failed, see run.log in:")
            console.out(*(job.folder for job in failed), sep="\n")
            return 1
        waiting = [str(job) for job in self.all_jobs() if not job.done]
        if waiting and not self.folders.add:
            count = f"{len(waiting)} of {len(self.all_jobs())}"
            console.print(f"No report yet: {count} runs not finished (such as {waiting[0]}).")
            console.print("With --add the others are reported, together with those on record.")
        elif sweep.is_main_process():
            self.report(console)
        return 0

    def report(self, console: Console) -> None:
        """Write what is made of the runs."""
        from replications.site import write_measured_report

        write_measured_report(self.experiment, self.folders, self.machine, console)

    def _subject(self) -> str:
        """Return what the runs learn from, and how long."""
        from pareco.data import load_data
        from pareco.processes import joined_processes
        from pareco.schema import counted
        from pareco.training.preparation import initial_model

        experiment, training = self.experiment, self.experiment.training
        device = joined_processes(self.machine.device).beforehand.device
        data = load_data(experiment.data, self.machine, device)  # as it was checked
        steps = len(data.train) // training.batch_size
        size = experiment.data.image_size
        _, remark = initial_model(experiment, data.num_classes, data.in_chans, 0)
        return "\n".join(
            (
                f"{experiment.name}: {experiment.network.name}, {size} x {size} pixels",
                *([] if remark is None else [remark]),
                counted(experiment.data.name, data.counts),
                f"{training.epochs} epochs of {steps:,} steps, {training.batch_size} images each",
            )
        )

    def _devices(self) -> list[str]:
        """Return the GPUs that runs are spread over."""
        from pareco.processes import visible_devices

        return [] if self.machine.device == "cpu" else visible_devices()

    def _engine(self, count: int, console: Console) -> tuple[Engine, int]:
        """Return what so many runs are done on, and how many it is given at a time."""
        if self.engine == "ray":
            try:
                from replications.ray_engine import RayEngine
            except ImportError:
                raise ValueError("--engine ray needs Ray: pip install 'pareco[ray]'") from None
            engine = RayEngine(self.experiment, self.machine, self.workers, console)
            return engine, self.workers or count
        from replications.sweep import LocalPool

        workers, devices = min(self._workers(), count), self._devices()
        place = f", in turn on {len(devices)} GPUs" if devices else ""
        if workers <= len(devices):
            place = ", each on a GPU of its own"
        if count:
            console.print(f"runs at a time: {workers}{place}{self._decoders()}")
        return LocalPool(devices), workers

    def _decoders(self) -> str:
        """Return how many processes decode a run's images, to say so, where there is a need."""
        if self.experiment.data.name in EMBEDDED:
            return ""
        return f"; decoding processes of each: {self.machine.decoding_workers}"

    def _workers(self) -> int:
        """Return how many runs go side by side: by default one on each GPU."""
        from pareco.processes import usable_cores

        if self.workers is not None:
            return self.workers
        by_core = max(1, usable_cores() // self.experiment.training.cpu_threads)
        return len(self._devices()) or by_core

    def _machine(self) -> Machine:
        """Return the machine, with the number of decoding processes that each run has."""
        from pareco.data.loading import decoding_workers
        from pareco.processes import joined_processes

        together = joined_processes(self.machine.device).several
        if self.engine == "ray":
            if together or (self.check or 1) > 1:
                raise ValueError("--engine ray trains each run in one process: without GPUS=N")
            return self.machine  # each of Ray's has cores of its own
        left = sum(not job.done for job in self.jobs())
        runs = 1 if together else max(1, min(self._workers(), left))
        return replace(self.machine, decoding_workers=decoding_workers(self.machine, runs))

    def _check_images(self) -> None:
        """Raise `ValueError` for images of a scale that has its own, or none of an own data set."""
        images, scale = self.machine.images, self.experiment.scale
        others = scales_on_images(self.of)
        if images is not None and others and scale not in others:
            raise ValueError(
                f"--scale {scale} brings its own data and takes no --images; with your images take "
                f"--scale {' or '.join(others)}"
            )
        check_location(self.experiment.data, images)

    def _check(self) -> None:
        """Raise `ValueError` for what could not run, or be reported, before anything is begun.

        Raises `FileNotFoundError`, saying what can be run meanwhile, where the images are missing.
        """
        from pareco.training import check_runnable

        jobs, found, experiment = self.all_jobs(), {}, self.experiment
        if any(not job.done for job in jobs):
            for method in dict.fromkeys(job.method for job in jobs):
                kind = self.kind_of(method)
                try:
                    networks = check_runnable(experiment, kind, self.machine, processes=self.check)
                except FileNotFoundError as error:
                    raise FileNotFoundError(f"{error}\n{_MEANWHILE}") from error
                if not kind.budget_exempt:
                    found[method] = networks
        self._check_budgets(found)
        present = self.folders.runs / experiment.name
        for folder in sorted(file.parent for file in present.glob("*/seed*/config.json")):
            seed = folder.name.removeprefix("seed")
            if seed.isdecimal():
                jobs.append(replace(jobs[0], method=folder.parent.name, seed=int(seed)))
        for job in jobs:
            if differences := self._run_folder(job).differences():
                raise ValueError(
                    f"{job.folder} holds a run of another configuration "
                    f"({'; '.join(differences)}). Keep this experiment apart with --name NAME or "
                    "--runs FOLDER, or remove that one"
                )
        self._check_beside(jobs)

    def _check_beside(self, present: Sequence[Job]) -> None:
        """Raise `ValueError` for runs that could not be reported beside those that are there.

        In the folder of runs (of those `present` the begun ones) and, to be added to, on record.
        """
        new = {job.method: job for job in self.jobs() if not job.done}
        begun = [job for job in present if job.run_folder.begun]
        if not new or not (begun or self.folders.add):
            return
        from pareco.data import load_data
        from pareco.processes import joined_processes

        device = joined_processes(self.machine.device).beforehand.device
        data = load_data(self.experiment.data, self.machine, device)
        for job in begun:
            self._run_folder(job).check_begun(data.fingerprint, self._process_count())
        if not self.folders.add:
            return
        from pareco.reporting.collection import check_addable, divided_configuration
        from pareco.reporting.records import COMMON, FOLDER, read_records

        recorded = self.folders.results / self.experiment.name
        if not (recorded / FOLDER).exists():
            return
        before = read_records(recorded)
        for method, job in new.items():
            common, of_method = divided_configuration(
                self._run_folder(job).configuration(), data.fingerprint, self._process_count()
            )
            check_addable({COMMON: common, method: of_method}, before)

    def _run_folder(self, job: Job) -> RunFolder:
        """Return the folder of a run, with what its method says of itself if that is at hand."""
        at_hand = job.method in self.places
        return job.run_folder.of_method(self.kind_of(job.method)) if at_hand else job.run_folder

    def _check_budgets(self, found: Mapping[str, int]) -> None:
        """Raise `ValueError` if methods to be compared would spend unequal budgets.

        `found` are the networks that each is sure to train in a step.
        """
        sampled, network = self.experiment.training.sampled_per_step, self.experiment.network
        free = self.folders.allow_unequal_budgets or self.experiment.training.macs is not None
        if len(set(found.values())) < 2 or free:
            return
        from pareco.methods import is_own

        method, most = (pick(found, key=lambda name: found[name]) for pick in (min, max))
        own = "self.completed in its widths_for_step, " if is_own(self.kind_of(method)) else ""
        fewer = f"--training.sampled-per-step {found[method] - 2}, " if found[method] > 2 else ""
        raise ValueError(
            f"method {method} finds only {found[method]} distinct networks for a step, {most} "
            f"{found[most]} (training.sampled_per_step {sampled}): budgets would be unequal "
            f"(network.divisor {network.divisor}, network.alpha_min {network.alpha_min}, "
            f"network.granularity {network.granularity}). What helps: {own}{fewer}a lower divisor "
            "or alpha_min, or a wider network; --allow-unequal-budgets reports them all the same"
        )
