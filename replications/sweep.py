"""Runs of an experiment: side by side in workers, or each by all processes of a launcher."""

from __future__ import annotations

import logging
import math
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, contextmanager
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from multiprocessing import forkserver, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pareco.config import Experiment, Machine
from pareco.tracking import Publication
from pareco.training import NonFiniteLoss, RunError, RunFolder, StepReport, execute_run
from pareco.training.interruption import Interrupted, insisted, interruptible, requested
from replications.catalogue import method_named

EXPECTED_ERRORS = (RunError, NonFiniteLoss, OSError)
Ending = Literal["done", "failed", "interrupted", "killed"]
_SHOWN = {"done": "done   ", "failed": "[red]failed[/] ", "interrupted": "[yellow]interrupted[/]"}
_TOLD = [field.name for field in fields(StepReport)]
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_TO_SAVE = 300.0
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_REQUESTS = 1.0


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do."""

    experiment: Experiment
    method: str
    seed: int
    runs: Path
    machine: Machine = Machine()

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        return self.runs / self.experiment.name / self.method / f"seed{self.seed}"

    @property
    def run_folder(self) -> RunFolder:
        """The folder of the run, with what it should hold."""
        return RunFolder(
            path=self.folder, experiment=self.experiment, method=self.method, seed=self.seed
        )

    def __str__(self) -> str:
        """Return method and seed."""
        return f"{self.method} seed {self.seed}"


@dataclass(frozen=True)
class Failure:
    """A run that ended with an error."""

    job: Job
    message: str


def run_jobs(jobs: Sequence[Job], *, workers: int, console: Console) -> list[Failure]:
    """Do all jobs, `workers` at a time; return those that failed. Finished runs cost nothing.

    A run whose process is killed is tried again, alone. On SIGTERM or SIGINT no further run is
    begun, those under way save and end, and `Interrupted` is raised; a second signal, or five
    minutes, end them at once.
    """
    if not jobs:
        return []
    with SweepBars(console, len(jobs)) as bars, interruptible():
        sweep = _Sweep(bars)
        try:
            sweep.do(jobs, workers)
            for job in sweep.ended("killed"):
                sweep.do([job], 1, last_try=True)
        finally:
            sweep.kill()
        if (signum := requested()) is not None:
            sweep.say_what_is_left(jobs)
            raise Interrupted(signum)
        return [Failure(job, sweep.results[job].problem) for job in sweep.ended("failed")]


def run_jobs_together(jobs: Sequence[Job], *, console: Console) -> list[Failure]:
    """Do all jobs, each by all processes; return the first that failed, which ends the sweep.

    Every process calls it with the same jobs. (One that fails alone ends, and its launcher ends
    the others.) Raises `Interrupted` on SIGTERM or SIGINT, once the run under way is saved.
    """
    with SweepBars(console, len(jobs)) as bars, interruptible():
        for job in jobs:
            bars.begin(job)
            try:
                _execute(job, partial(bars.show, job), logged=is_main_process())
            except EXPECTED_ERRORS as error:
                bars.end(job, "failed")
                if not is_main_process():
                    print(f"process {os.environ['RANK']}: {job}: {error}", file=sys.stderr)
                return [Failure(job, f"{error}")]
            bars.end(job, "done")
    return []


def processes_launched() -> int:
    """Return how many processes torchrun or accelerate has started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process speaks, writes and reports."""
    return os.environ.get("RANK", "0") == "0"


class SweepBars(Progress):
    """Shows how runs get on, a bar for each; `jobs` is their number in all. Use it in a `with`."""

    def __init__(self, console: Console, jobs: int) -> None:
        """Prepare the display."""
        columns = (
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
        )
        super().__init__(*columns, console=console, transient=True)
        self._jobs, self._ended = jobs, 0
        self._of: dict[Job, TaskID] = {}

    def begin(self, job: Job) -> None:
        """Show a bar for a run."""
        self._of[job] = self.add_task(str(job), total=None, status="starting")

    def show(self, job: Job, report: StepReport) -> None:
        """Show how far a run is."""
        status = (
            f"loss {report.loss_largest:.3f} / {report.loss_smallest:.3f}  "
            f"lr {report.learning_rate:.3f}  {report.images_per_second:.0f} images/s"
        )
        if report.step == report.steps:
            status = "choosing and measuring"
        self.update(self._of[job], completed=report.step, total=report.steps, status=status)

    def end(self, job: Job, ending: Ending) -> None:
        """Replace the bar of a run by a line that says how it ended."""
        seconds = self.tasks[self.task_ids.index(self._of[job])].elapsed or 0.0
        self.remove_task(self._of.pop(job))
        if ending == "killed":
            line = f"a worker was killed during {job}: it goes on, alone, after the others"
        else:
            self._ended += 1
            place = f"{self._ended} of {self._jobs} runs"
            line = f"{_SHOWN[ending]} {job} after {seconds:.0f} s, {place}"
        self.console.print(line)


@dataclass(frozen=True)
class JobResult:
    """How a run ended, and the problem where it is not done."""

    ending: Ending
    problem: str = ""


_KILLED = JobResult(
    "killed", "its worker process was killed (out of memory?); the same command goes on with it"
)


@dataclass(frozen=True)
class Worker:
    """A process under way with a job; `told` is the last step report, as numbers."""

    job: Job
    pool: ProcessPoolExecutor
    future: Future[JobResult]
    told: Any

    @classmethod
    def begun(cls, job: Job, context: BaseContext) -> Worker:
        """Return a worker, in a pool of its own: one that is killed breaks its pool."""
        told = context.RawArray("d", len(_TOLD))
        pool = ProcessPoolExecutor(1, context, _begin_worker, (told,))
        return cls(job, pool, pool.submit(_result, job), told)

    def report(self) -> StepReport | None:
        """Return the last step that it has told of, None before the first."""
        report = StepReport(**dict(zip(_TOLD, self.told, strict=True)))
        return report if report.steps else None

    def result(self) -> JobResult:
        """Return how the job has ended, once it has."""
        try:
            return self.future.result()
        except BrokenProcessPool:
            return _KILLED
        finally:
            self.pool.shutdown()


class _Sweep:
    """Jobs on their way; `results` holds those that have ended."""

    def __init__(self, bars: SweepBars) -> None:
        self.results: dict[Job, JobResult] = {}
        self._bars, self._context = bars, worker_context()
        self._underway: list[Worker] = []
        self._others = multiprocessing.active_children()
        self._stopping_since: float | None = None
        self._asked_at = -math.inf

    def ended(self, *endings: Ending) -> list[Job]:
        """Return the jobs that have ended so."""
        return [job for job, result in self.results.items() if result.ending in endings]

    def do(self, jobs: Sequence[Job], workers: int, *, last_try: bool = False) -> None:
        """Return once all jobs have ended; a signal leaves those that have not begun."""
        waiting = deque(jobs)
        while self._underway or (waiting and requested() is None):
            while waiting and len(self._underway) < workers and requested() is None:
                job = waiting.popleft()
                self._bars.begin(job)
                self._underway.append(Worker.begun(job, self._context))
            futures = {worker.future for worker in self._underway}
            wait(futures, _SECONDS_BETWEEN_LOOKS, FIRST_COMPLETED)
            if requested() is not None:
                self._stop()
            for worker in list(self._underway):
                if (report := worker.report()) is not None:
                    self._bars.show(worker.job, report)
                if worker.future.done():
                    self._underway.remove(worker)
                    self._end(worker.job, worker.result(), last_try)

    def kill(self) -> None:
        """End what is under way, at once; the last checkpoints stay."""
        for child in self._children():
            child.kill()

    def say_what_is_left(self, jobs: Sequence[Job]) -> None:
        """Print which runs have failed, which were interrupted, and how many had not begun."""
        say = self._bars.console.print
        for job in self.ended("failed"):
            say(f"[red]{job} failed:[/red] {escape(self.results[job].problem)}")
        cut_off = {job: self.results[job].problem for job in self.ended("interrupted", "killed")}
        back = " (killed: back to its last checkpoint)"
        names = [f"{job}{back if cut_off[job] == _KILLED.problem else ''}" for job in cut_off]
        say(f"interrupted: {', '.join(names) or 'none'}")
        say(f"not begun: {len(jobs) - len(self.results)} of {len(jobs)} runs")

    def _end(self, job: Job, result: JobResult, last_try: bool) -> None:
        """Note how a job has ended: cut off without a signal to the sweep, it has failed."""
        if result.ending in ("interrupted", "killed") and requested() is not None:
            result = replace(result, ending="interrupted")
        elif result.ending == "interrupted" or (result.ending == "killed" and last_try):
            result = replace(result, ending="failed")
        self.results[job] = result
        self._bars.end(job, result.ending)

    def _children(self) -> list[Any]:
        ours = self._underway and multiprocessing.active_children()
        return [child for child in ours if child not in self._others]

    def _stop(self) -> None:
        """Ask what is under way to save and end, again and again: one may just have begun."""
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
            count = len(self._underway)
            self._bars.console.print(
                f"stopping: {count} runs save their state (a second signal ends them at once)"
            )
        if insisted() or now - self._stopping_since > _SECONDS_TO_SAVE:
            self.kill()
        elif now - self._asked_at > _SECONDS_BETWEEN_REQUESTS:
            self._asked_at = now
            for child in self._children():
                child.terminate()


def worker_context() -> BaseContext:
    """Return how processes start: by a fork server, where there is one.

    Workers then share one import of torch, safely. The signals that ask for an end are blocked in
    the server, which a signal to all processes must not end, and in a worker until it hears them.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    multiprocessing.set_forkserver_preload([__name__])
    resource_tracker.ensure_running()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return multiprocessing.get_context("forkserver")


_told: Any = None  # in a worker: where its last step report is put
_hearing = ExitStack()


def _begin_worker(told: Any) -> None:
    """Let this process end with its parent, and hear signals from now to its end."""
    global _told
    _told = told
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    _hearing.enter_context(interruptible())
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)


def _result(job: Job) -> JobResult:
    """Do a job in a worker; return how it ended."""

    def tell(report: StepReport) -> None:
        _told[:] = astuple(report)

    try:
        _execute(job, tell)
    except EXPECTED_ERRORS as error:
        return JobResult("failed", f"{error}")
    except Interrupted as error:
        return JobResult("interrupted", f"{error}")
    except KeyboardInterrupt:
        return JobResult("interrupted", f"{Interrupted(signal.SIGINT)}")
    except Exception:
        return JobResult("failed", traceback.format_exc())
    return JobResult("done")


def _execute(job: Job, on_step: Callable[[StepReport], None], *, logged: bool = True) -> None:
    with log_file(job.folder if logged else None):
        execute_run(
            job.experiment,
            method_named(job.method),
            job.seed,
            job.folder,
            on_step,
            job.machine,
            publication=_publication,
        )


def _publication(folder: Path) -> Publication:
    """Return what a mirror shows of a run; the libraries for figures are needed by it alone."""
    from pareco.reporting.report import run_publication

    return run_publication(folder)


@contextmanager
def log_file(folder: Path | None) -> Iterator[None]:
    """Send log, warnings and errors to `run.log` in a run's folder; None: leave them."""
    if folder is None:
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.captureWarnings(True)
    loggers = [logging.getLogger(name) for name in ("pareco", "py.warnings")]
    for logger in loggers:
        logger.setLevel(logging.INFO)
        logger.addHandler(handler)
        logger.propagate = False
    try:
        yield
    except Interrupted:
        raise
    except Exception:
        loggers[0].exception("the run ended with an error")
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
