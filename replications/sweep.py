"""Runs of an experiment: side by side on an engine, or each by all processes of a launcher."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing import connection
from pathlib import Path
from typing import Any, Literal, Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pareco.config import Experiment, Machine
from pareco.data import DamagedImages
from pareco.data.loading import decoding_workers
from pareco.processes import SIGNALS, ProcessesDiffer, see_device, worker_context
from pareco.schema import RESULT
from pareco.tracking import Publication
from pareco.training import NonFiniteLoss, RunError, RunFolder, StepReport, execute_run
from pareco.training.interruption import Interrupted, insisted, interruptible, requested
from replications.catalogue import method_at

EXPECTED_ERRORS = (RunError, NonFiniteLoss, DamagedImages, ProcessesDiffer, OSError)
Ending = Literal["done", "failed", "interrupted", "killed"]
_STYLES = {"failed": "red", "interrupted": "yellow"}
_MUCH, _LITTLE = 10.0, 1.0  # percent of a run's time
_MENDS = {
    "images": ": smaller images (--data.image-size) or more cores would help",
    "reduction": ": fewer processes, or a faster network between them, would help",
    "search": "",
}
_MORE_DECODERS = ": more --decoding-workers (make: DECODERS=) would help"
_SECONDS_TO_SAVE = 300.0
SECONDS_BETWEEN_LOOKS = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do."""

    experiment: Experiment
    method: str
    seed: int
    runs: Path
    machine: Machine = Machine()
    place: str | None = None
    """Where the method is, as `replications.catalogue.method_places` says; None: by its name."""

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

    @property
    def done(self) -> bool:
        """Whether nothing is left to do."""
        return self.run_folder.done

    def __str__(self) -> str:
        """Return method and seed."""
        return f"{self.method} seed {self.seed}"

    def follow_up(self) -> None:
        """Do what follows the finished run, in its process: nothing, unless a study wants it."""


@dataclass(frozen=True)
class JobResult:
    """How a run ended, and the problem where it is not done."""

    ending: Ending
    problem: str = ""


class Underway(Protocol):
    """A job that an engine has taken on."""

    @property
    def job(self) -> Job:
        """The job."""
        ...

    @property
    def ended(self) -> bool:
        """Whether nothing more will come of it."""
        ...

    @property
    def result(self) -> JobResult:
        """How it ended, once it has."""
        ...

    def reports(self) -> Iterator[StepReport | None]:
        """Yield the steps told of since it was last asked; None where it begins, or goes on."""
        ...

    def stop(self) -> None:
        """Ask it to save and end."""

    def kill(self) -> None:
        """End it at once."""


class Engine(AbstractContextManager[Any], Protocol):
    """Where jobs are done; used in a `with`, at whose end nothing is under way."""

    def begin(self, job: Job, beside: Sequence[Any]) -> Underway:
        """Take on a job, beside others that are under way."""
        ...

    def wait(self, underway: Sequence[Any]) -> None:
        """Return once one of them has ended, or a moment later."""


def run_jobs(
    jobs: Sequence[Job],
    *,
    workers: int,
    console: Console,
    engine: Engine | None = None,
    on_done: Callable[[Job], None] = lambda job: None,
) -> list[Job]:
    """Do all jobs, `workers` at a time; return those that failed. Finished runs cost nothing.

    They are done on the engine, by default this machine without GPUs of its own for each run. How
    each ends is shown at once, and `on_done` hears of each that is done. A run whose process is
    killed is tried again, alone, unless the engine has. On SIGTERM or SIGINT no further run is
    begun, those under way save and end, and `Interrupted` is raised; a second signal, or five
    minutes, end them at once.
    """
    if not jobs:
        return []
    engine = engine or LocalPool()
    with engine, SweepBars(console, len(jobs), min(workers, len(jobs))) as bars, interruptible():
        sweep = _Sweep(bars, engine, on_done)
        try:
            sweep.do(jobs, workers)
            for job in sweep.ended("killed"):
                sweep.do([job], 1, last_try=True)
        finally:
            sweep.kill()
        return sweep.ended("failed")


def run_jobs_together(jobs: Sequence[Job], *, console: Console) -> list[Job]:
    """Do all jobs, each by all processes; return the first that failed, which ends the sweep.

    Every process calls it with the same jobs. (One that fails alone ends, and its launcher ends
    the others.) Raises `Interrupted` on SIGTERM or SIGINT, once the run under way is saved.
    """
    with SweepBars(console, len(jobs)) as bars, interruptible():
        for job in jobs:
            bars.begin(job)
            try:
                _execute(job, partial(bars.show, job))
            except EXPECTED_ERRORS as error:
                bars.end(job, JobResult("failed", f"{error}"))
                if not is_main_process():
                    print(f"process {os.environ['RANK']}: {job}: {error}", file=sys.stderr)
                return [job]
            bars.end(job, JobResult("done"))
    return []


def is_main_process() -> bool:
    """Return whether this process, of those that a launcher has started, speaks and reports."""
    return os.environ.get("RANK", "0") == "0"


class SweepBars(Progress):
    """Shows how runs get on, a bar for each; `jobs` is their number in all. Use it in a `with`."""

    def __init__(self, console: Console, jobs: int, workers: int = 1) -> None:
        """Prepare the display of jobs, so many at a time."""
        columns = (
            TextColumn("{task.description:<22}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}", markup=False),
            TimeRemainingColumn(compact=True),
        )
        super().__init__(*columns, console=console, transient=True)
        self._jobs, self._ended, self._workers = jobs, 0, workers
        self._of: dict[Job, TaskID] = {}

    @property
    def shown(self) -> int:
        """How many runs have a bar."""
        return len(self._of)

    def begin(self, job: Job) -> None:
        """Show a bar for a run; one that has a bar was cut off, and goes on."""
        if job in self._of:
            line = f"the process or machine of {job} was lost: it goes on from its checkpoint"
            self.console.print(line, markup=False)
            return
        self._of[job] = self.add_task(str(job), total=None, status="starting")

    def show(self, job: Job, report: StepReport | None) -> None:
        """Show how far a run is; without a report, that it begins."""
        if report is None:
            self.begin(job)
            return
        status = (
            f"loss {report.loss_largest:.3f} / {report.loss_smallest:.3f}  "
            f"lr {report.learning_rate:.3f}  {report.images_per_second:.0f} images/s"
        )
        if report.step == report.steps:
            status = "choosing and measuring"
        self.update(self._of[job], completed=report.step, total=report.steps, status=status)

    def end(self, job: Job, result: JobResult) -> None:
        """Replace the bar of a run by a line that says how it ended."""
        if job not in self._of:
            if result.ending == "interrupted":
                return  # it had not begun
            self.begin(job)
        seconds = self.tasks[self.task_ids.index(self._of[job])].elapsed or 0.0
        self.remove_task(self._of.pop(job))
        if result.ending == "killed":
            line = f"a worker was killed during {job}: it goes on, alone, after the others"
        else:
            self._ended += 1
            place = f"{self._ended} of {self._jobs} runs"
            line = f"{result.ending} {job} after {seconds:.0f} s, {place}"
            line += f": {result.problem}" if result.problem else time_split(job, self._workers)
        self.console.print(line, style=_STYLES.get(result.ending), markup=False)


def time_split(job: Job, workers: int) -> str:
    """Return what to say of what the time of a finished run went to, the most first.

    And what has held it back, if anything, and what would help; so many `workers` ran at a time.
    """
    seconds: Mapping[str, float] = {}
    with suppress(OSError, ValueError):
        seconds = RESULT.validate_json((job.folder / "result.json").read_bytes()).parts or {}
    whole = sum(seconds.values()) or 1.0
    percents = {part: 100 * each / whole for part, each in seconds.items()}
    most = sorted(percents, key=percents.__getitem__, reverse=True)
    said = [f"{part} {percents[part]:.0f}%" for part in most if percents[part] >= _LITTLE]
    if held := [part for part in most if part in _MENDS and percents[part] >= _MUCH]:
        mend = _MENDS[held[0]]
        if held[0] == "images" and _has_spare_cores(job.machine, workers):
            mend = _MORE_DECODERS
        said.append(f"held back by {held[0]}{mend}")
    return f": {', '.join(said)}" if said else ""


def _has_spare_cores(machine: Machine, workers: int) -> bool:
    """Return whether each of so many runs could have one more process that decodes images."""
    whole = decoding_workers(replace(machine, decoding_workers=None), workers)
    return machine.decoding_workers is not None and machine.decoding_workers < whole


KILLED = JobResult(
    "killed", "its worker process was killed (out of memory?); the same command goes on with it"
)


class Worker:
    """A process under way with a job; `result` is how it ended, once it has."""

    def __init__(self, job: Job, context: Any, device: str | None) -> None:
        """Begin a process, by a context of `multiprocessing`, on this GPU if one is named."""
        self.job, self.device, self.result = job, device, KILLED
        self._pipe, theirs = context.Pipe(duplex=False)
        self.process = context.Process(target=_work, args=(job, theirs, device))
        self.process.start()
        theirs.close()

    @property
    def ended(self) -> bool:
        """Whether the process has ended."""
        return not self.process.is_alive()

    def reports(self) -> Iterator[StepReport | None]:
        """Yield the steps that it has told of since it was last asked; None where it begins."""
        with suppress(EOFError, OSError):
            while self._pipe.poll():
                match self._pipe.recv():
                    case JobResult() as result:
                        self.result = result
                    case report:
                        yield report

    def stop(self) -> None:
        """Ask it to save and end."""
        self.process.terminate()

    def kill(self) -> None:
        """End it at once."""
        self.process.kill()


class LocalPool(AbstractContextManager[Any]):
    """The engine of this machine: a process for each run, which sees one of the GPUs named."""

    def __init__(self, devices: Sequence[str] = ()) -> None:
        """Prepare for runs that get the GPU with the fewest, where any is named."""
        self._devices, self._context = devices, worker_context(__name__)

    def __exit__(self, *error: object) -> None:
        """Return; a sweep leaves no worker."""

    def begin(self, job: Job, beside: Sequence[Worker]) -> Worker:
        """Begin a process for a job, beside others."""
        used = [worker.device for worker in beside]
        return Worker(job, self._context, min(self._devices, key=used.count, default=None))

    def wait(self, underway: Sequence[Worker]) -> None:
        """Return once a process has ended, or a moment later."""
        processes = [worker.process.sentinel for worker in underway]
        connection.wait(processes, SECONDS_BETWEEN_LOOKS)


class _Sweep:
    """Jobs on their way, and how those that have ended did."""

    def __init__(self, bars: SweepBars, engine: Engine, on_done: Callable[[Job], None]) -> None:
        self._bars, self._engine, self._on_done = bars, engine, on_done
        self._results: dict[Job, JobResult] = {}
        self._underway: list[Underway] = []
        self._stopped_by: float | None = None

    def ended(self, ending: Ending) -> list[Job]:
        """Return the jobs that have ended so."""
        return [job for job, result in self._results.items() if result.ending == ending]

    def do(self, jobs: Sequence[Job], workers: int, *, last_try: bool = False) -> None:
        """Return once all jobs have ended; a signal leaves those that have not begun."""
        waiting = deque(jobs)
        while self._underway or (waiting and requested() is None):
            while waiting and len(self._underway) < workers and requested() is None:
                self._underway.append(self._engine.begin(waiting.popleft(), self._underway))
            self._engine.wait(self._underway)
            if requested() is not None:
                self._stop()
            for each in list(self._underway):
                ended = each.ended
                for report in each.reports():
                    self._bars.show(each.job, report)
                if ended:
                    self._underway.remove(each)
                    self._end(each.job, each.result, last_try)

    def kill(self) -> None:
        """End what is under way, at once; the last checkpoints stay."""
        for each in self._underway:
            each.kill()

    def _end(self, job: Job, result: JobResult, last_try: bool) -> None:
        """Note how a job has ended: cut off without a signal to the sweep, it has failed."""
        if result.ending in ("interrupted", "killed") and requested() is not None:
            result = replace(result, ending="interrupted")
        elif result.ending == "interrupted" or (result.ending == "killed" and last_try):
            result = replace(result, ending="failed")
        self._results[job] = result
        self._bars.end(job, result)
        if result.ending == "done":
            self._on_done(job)

    def _stop(self) -> None:
        """Ask what is under way to save and end; do not wait for it forever."""
        if self._stopped_by is None:
            self._stopped_by = time.monotonic() + _SECONDS_TO_SAVE
            for each in self._underway:
                each.stop()
            self._bars.console.print(
                f"stopping: {self._bars.shown} runs save their state "
                "(a second signal ends them at once)"
            )
        elif insisted() or time.monotonic() > self._stopped_by:
            self.kill()


def _work(job: Job, pipe: connection.Connection, device: str | None) -> None:
    """Do a job in a process that ends with its parent, and tell it of steps and of the end."""
    if device is not None:
        see_device(device)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()
    with suppress(Interrupted), interruptible():
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
        pipe.send(None)
        pipe.send(job_result(job, pipe.send))


def job_result(job: Job, on_step: Callable[[StepReport], None]) -> JobResult:
    """Do a job; return how it ended."""
    try:
        _execute(job, on_step)
    except EXPECTED_ERRORS as error:
        return JobResult("failed", f"{error}")
    except (Interrupted, KeyboardInterrupt) as error:
        return JobResult("interrupted", f"{error}" or "interrupted")
    except Exception:
        return JobResult("failed", traceback.format_exc())
    return JobResult("done")


def _execute(job: Job, on_step: Callable[[StepReport], None]) -> None:
    with log_file(job.folder) if is_main_process() else nullcontext():
        execute_run(
            job.experiment,
            method_at(job.place or job.method),
            job.seed,
            job.folder,
            on_step,
            job.machine,
            publication=_publication,
        )
        job.follow_up()


def _publication(folder: Path) -> Publication:
    """Return what a mirror shows of a run; the libraries for figures are needed by it alone."""
    from pareco.reporting.report import run_publication

    return run_publication(folder)


@contextmanager
def log_file(folder: Path) -> Iterator[None]:
    """Send log, warnings and errors to `run.log` in a run's folder."""
    folder.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(folder / "run.log", delay=True)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.captureWarnings(True)
    root, log = logging.getLogger(), logging.getLogger("pareco")
    log.setLevel(logging.INFO)
    root.addHandler(handler)
    try:
        yield
    except Exception as error:
        if not isinstance(error, Interrupted):
            log.exception("the run ended with an error")
        raise
    finally:
        root.removeHandler(handler)
        handler.close()
