"""Runs of an experiment: side by side in workers, or each by all processes of a launcher."""

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
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from pareco.config import Experiment, Machine
from pareco.tracking import Publication
from pareco.training import NonFiniteLoss, RunError, RunFolder, StepReport, execute_run
from pareco.training.interruption import Interrupted, insisted, interruptible, requested
from replications.catalogue import method_named

Ending = Literal["done", "failed", "interrupted"]
_SHOWN: dict[Ending, str] = {
    "done": "done   ",
    "failed": "[red]failed[/red] ",
    "interrupted": "[yellow]interrupted[/yellow]",
}


class SweepProgress:
    """Shows how runs get on, each by its name; `jobs` is their number in all.

    Use it in a `with` block.
    """

    def __init__(self, console: Console, jobs: int) -> None:
        """Prepare the display."""
        self._bars = Progress(
            TextColumn("{task.description:<22}"),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[status]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
        )
        self._jobs, self._ended = jobs, 0
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        """Show the bars."""
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        """Remove the bars."""
        self._bars.stop()

    def begin(self, name: str) -> None:
        """Show a bar for a run."""
        self._tasks[name] = self._bars.add_task(name, total=None, status="starting")

    def show(self, name: str, report: StepReport) -> None:
        """Show how far a run is."""
        self._bars.update(
            self._tasks[name],
            completed=report.step,
            total=report.steps,
            status=_status(report),
        )

    def end(self, name: str, ending: Ending) -> None:
        """Replace the bar of a run by a line that says how it ended."""
        self._ended += 1
        place = f"{self._ended} of {self._jobs} runs"
        self.say(f"{_SHOWN[ending]} {name} after {self._seconds(name):.0f} s, {place}")

    def retry(self, name: str) -> None:
        """Remove the bar of a run that was cut off, and say that it is tried again."""
        self._seconds(name)
        self.say(f"a worker was killed during {name}: it goes on, alone, after the others")

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self._bars.console.print(text)

    def _seconds(self, name: str) -> float:
        """Remove a bar and return how long it was there."""
        task = self._tasks.pop(name)
        seconds = self._bars.tasks[self._bars.task_ids.index(task)].elapsed or 0.0
        self._bars.remove_task(task)
        return seconds


def _status(report: StepReport) -> str:
    if report.step == report.steps:
        return "choosing and measuring"
    return (
        f"loss {report.loss_largest:.3f} / {report.loss_smallest:.3f}  "
        f"lr {report.learning_rate:.3f}  {report.images_per_second:.0f} images/s"
    )


EXPECTED_ERRORS = (RunError, NonFiniteLoss, OSError)
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_SECONDS_BETWEEN_REPORTS = 0.2


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
class JobResult:
    """How a run ended: `problem` says what went wrong, None if nothing."""

    problem: str | None
    interrupted: bool = False
    died: bool = False


_DIED = JobResult(
    "its worker process was killed (out of memory?); the same command goes on with it", died=True
)


class Worker:
    """A process under way with a job."""

    def __init__(self, job: Job, context: BaseContext) -> None:
        """Start the process."""
        self.job = job
        self._messages, theirs = context.Pipe(duplex=False)
        self._process: Any = context.Process(  # type: ignore[attr-defined]
            target=_work, args=(job, theirs), name=str(job)
        )
        self._process.start()
        theirs.close()
        self._outcome = _DIED
        self._open = True

    def events(self) -> list[Any]:
        """Return what `multiprocessing.connection.wait` can wait on for news."""
        return [self._process.sentinel, *([self._messages] if self._open else [])]

    def reports(self) -> Iterator[StepReport]:
        """Yield the reports that have come since."""
        while self._open and self._messages.poll():
            try:
                message = self._messages.recv()
            except (EOFError, OSError):  # it has ended, or was killed in the midst of a message
                self._open = False
                return
            if isinstance(message, StepReport):
                yield message
            else:
                self._outcome = message

    def outcome(self) -> JobResult | None:
        """Return how the job ended, once the process has; ask for reports before."""
        if self._process.exitcode is None or (self._open and self._messages.poll()):
            return None
        self._process.join()
        self._messages.close()
        return self._outcome

    def ask_to_end(self) -> None:
        """Have the run save and end."""
        self._process.terminate()

    def kill(self) -> None:
        """End the process at once; the last checkpoint stays."""
        self._process.kill()


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


def _work(job: Job, messages: Connection) -> None:
    """Do a job and send how it ended; the main function of a worker."""
    _end_with_parent()
    with suppress(Interrupted), interruptible():
        if hasattr(signal, "pthread_sigmask"):
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        outcome = _outcome(job, messages)
        with suppress(BrokenPipeError):
            messages.send(outcome)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _outcome(job: Job, messages: Connection) -> JobResult:
    """Do a job; return how it ended."""
    method = method_named(job.method)
    try:
        with log_file(job.folder):
            execute_run(
                job.experiment,
                method,
                job.seed,
                job.folder,
                _throttled(messages),
                job.machine,
                publication=_publication,
            )
    except EXPECTED_ERRORS as error:
        return JobResult(f"{error}")
    except Interrupted as error:
        return JobResult(f"{error}", interrupted=True)
    except KeyboardInterrupt:
        return JobResult(f"{Interrupted(signal.SIGINT)}", interrupted=True)
    except Exception:
        return JobResult(traceback.format_exc())
    return JobResult(None)


def _publication(folder: Path) -> Publication:
    """Return what a mirror shows of a run; the libraries for figures are needed by that alone."""
    from pareco.reporting.report import run_publication

    return run_publication(folder)


def _throttled(messages: Connection) -> Callable[[StepReport], None]:
    """Return a listener that passes reports on to the parent, a few each second."""
    last = 0.0

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_REPORTS or report.step == report.steps:
            last = now
            messages.send(report)

    return on_step


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


_SECONDS_TO_SAVE = 300.0
_SECONDS_BETWEEN_LOOKS = 0.2
_SECONDS_BETWEEN_REQUESTS = 1.0


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
    with SweepProgress(console, len(jobs)) as progress, interruptible():
        sweep = _Sweep(worker_context(), progress)
        try:
            failures = sweep.failures(jobs, workers)
        finally:
            sweep.kill()
        if (signum := requested()) is not None:
            _say_what_is_left(jobs, sweep.outcomes, failures, console)
            raise Interrupted(signum)
        return failures


class _Sweep:
    """Jobs on their way; `outcomes` holds those that have ended."""

    def __init__(self, context: BaseContext, progress: SweepProgress) -> None:
        self.outcomes: dict[Job, JobResult] = {}
        self._context, self._progress = context, progress
        self._underway: list[Worker] = []
        self._stopping_since: float | None = None
        self._asked_at = 0.0

    def failures(self, jobs: Sequence[Job], workers: int) -> list[Failure]:
        """Do all jobs; those whose process is killed are tried again, each alone."""
        self._do(jobs, workers)
        killed = [job for job, outcome in self.outcomes.items() if outcome.died]
        for job in killed:
            if requested() is None:
                self._progress.retry(str(job))
                self._do([job], 1)
                if self.outcomes[job].died:
                    self._progress.end(str(job), self._ending(self.outcomes[job]))
        return [
            Failure(job, self.outcomes[job].problem or "")
            for job in jobs
            if job in self.outcomes and self._ending(self.outcomes[job]) == "failed"
        ]

    def kill(self) -> None:
        """End what is under way, at once."""
        for worker in self._underway:
            worker.kill()

    def _do(self, jobs: Sequence[Job], workers: int) -> None:
        """Return once all jobs have ended; a signal leaves those that have not begun."""
        waiting = deque(jobs)
        while self._underway or (waiting and requested() is None):
            while waiting and len(self._underway) < workers and requested() is None:
                job = waiting.popleft()
                self._underway.append(Worker(job, self._context))
                self._progress.begin(str(job))
            events = [event for worker in self._underway for event in worker.events()]
            wait(events, _SECONDS_BETWEEN_LOOKS)
            if requested() is not None:
                self._stop()
            self._underway = [worker for worker in self._underway if not self._ended(worker)]

    def _ended(self, worker: Worker) -> bool:
        """Show what a worker has reported; return whether it has ended."""
        name = str(worker.job)
        for report in worker.reports():
            self._progress.show(name, report)
        outcome = worker.outcome()
        if outcome is None:
            return False
        self.outcomes[worker.job] = outcome
        if not outcome.died:
            self._progress.end(name, self._ending(outcome))
        return True

    def _ending(self, outcome: JobResult) -> Ending:
        if outcome.problem is None:
            return "done"
        stopped = requested() is not None and (outcome.interrupted or outcome.died)
        return "interrupted" if stopped else "failed"

    def _stop(self) -> None:
        """Ask what is under way to save and end, again and again: one may just have begun."""
        now = time.monotonic()
        if self._stopping_since is None:
            self._stopping_since = now
            count = len(self._underway)
            self._progress.say(
                f"stopping: {count} runs save their state (a second signal ends them at once)"
            )
        if insisted() or now - self._stopping_since > _SECONDS_TO_SAVE:
            self.kill()
        elif now - self._asked_at > _SECONDS_BETWEEN_REQUESTS:
            self._asked_at = now
            for worker in self._underway:
                worker.ask_to_end()


def _say_what_is_left(
    jobs: Sequence[Job],
    outcomes: dict[Job, JobResult],
    failures: Sequence[Failure],
    console: Console,
) -> None:
    """Print which runs have failed, which were interrupted, and how many had not begun."""
    for failure in failures:
        console.print(f"[red]{failure.job} failed:[/red] {escape(failure.message)}")
    failed = {failure.job for failure in failures}
    names = [
        f"{job}{' (killed: back to its last checkpoint)' if outcome.died else ''}"
        for job, outcome in outcomes.items()
        if outcome.problem is not None and job not in failed
    ]
    console.print(f"interrupted: {', '.join(names) or 'none'}")
    console.print(f"not begun: {len(jobs) - len(outcomes)} of {len(jobs)} runs")


def processes_launched() -> int:
    """Return how many processes torchrun or accelerate has started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Return whether this process speaks, writes and reports."""
    return os.environ.get("RANK", "0") == "0"


def run_jobs_together(jobs: Sequence[Job], *, console: Console) -> list[Failure]:
    """Do all jobs, each by all processes; return the first that failed, which ends the sweep.

    Every process calls it with the same jobs. (One that fails alone ends, and its launcher ends
    the others.) Raises `Interrupted` on SIGTERM or SIGINT, once the run under way is saved.
    """
    with SweepProgress(console, len(jobs)) as progress, interruptible():
        for job in jobs:
            name = str(job)
            progress.begin(name)
            try:
                _do(job, progress)
            except EXPECTED_ERRORS as error:
                progress.end(name, "failed")
                if not is_main_process():
                    print(f"process {os.environ['RANK']}: {name}: {error}", file=sys.stderr)
                return [Failure(job, f"{error}")]
            progress.end(name, "done")
    return []


def _do(job: Job, progress: SweepProgress) -> None:
    name, method = str(job), method_named(job.method)
    with log_file(job.folder if is_main_process() else None):
        execute_run(
            job.experiment,
            method,
            job.seed,
            job.folder,
            lambda report: progress.show(name, report),
            job.machine,
            publication=_publication,
        )
