"""Runs of an experiment side by side in worker processes, with one progress display."""

from __future__ import annotations

import logging
import multiprocessing
import os
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from rich.console import Console

from pareco.config import Experiment
from pareco.training import NonFiniteLoss, RunError, RunFolder, StepReport, execute_run
from replications.catalogue import known_methods
from replications.progress import SweepProgress

EXPECTED_ERRORS = (RunError, NonFiniteLoss, OSError)
_SECONDS_BETWEEN_REPORTS = 0.2
_SECONDS_TO_STOP = 3.0
_DIED = "its worker process was killed (out of memory?); the same command goes on with it"
_messages: Any = None  # the queue to the parent, set in each worker
_interrupted = False  # so that a worker takes no further job


@dataclass(frozen=True, kw_only=True)
class Job:
    """One run to do."""

    experiment: Experiment
    method: str
    seed: int
    runs: Path

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
    """Do all jobs, `workers` at a time; return those that failed. Finished runs cost nothing."""
    if not jobs:
        return []
    context = multiprocessing.get_context(_start_method())
    messages: Any = context.Queue()
    with SweepProgress(console, messages, len(jobs)) as progress:
        return _dispatched(jobs, workers, context, messages, progress)


def _dispatched(
    jobs: Sequence[Job], workers: int, context: BaseContext, messages: Any, progress: SweepProgress
) -> list[Failure]:
    """Do all jobs; those under way where a worker is killed are tried again, each alone."""

    def problems_of(some: Sequence[Job], count: int) -> dict[Job, str | None]:
        executor = ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin_worker, initargs=(messages,)
        )
        try:
            problems = _problems(executor, some, progress)
        except BaseException:
            _abandon(executor)
            raise
        executor.shutdown()
        return problems

    problems: dict[Job, str | None] = {}
    waiting, killed = list(jobs), []
    while waiting:
        problems |= problems_of(waiting, min(workers, len(waiting)))
        died = [job for job in waiting if problems[job] is _DIED]
        underway = progress.underway() if died else set()
        begun = [job for job in died if str(job) in underway] or died
        killed += begun
        waiting = [job for job in died if job not in begun]
    for job in killed:
        progress.retry(str(job))
        problems |= problems_of([job], 1)
        if problems[job] is _DIED:
            progress.end(str(job), failed=True)
    return [Failure(job, problem) for job, problem in problems.items() if problem is not None]


def _problems(
    executor: ProcessPoolExecutor, jobs: Sequence[Job], progress: SweepProgress
) -> dict[Job, str | None]:
    """Return why each job failed (None: it did not), once all have ended."""
    futures = {executor.submit(_work, job): job for job in jobs}
    problems: dict[Job, str | None] = {}
    for future in as_completed(futures):
        job = futures[future]
        problems[job] = _DIED if future.exception() else future.result()
        if problems[job] is not _DIED:
            progress.end(str(job), failed=problems[job] is not None)
    return problems


def _abandon(executor: ProcessPoolExecutor) -> None:
    """End the workers; an interrupt from the keyboard has reached them too."""
    executor.shutdown(wait=False, cancel_futures=True)
    for child in multiprocessing.active_children():
        child.join(timeout=_SECONDS_TO_STOP)
        child.terminate()


def _start_method() -> str:
    """Return forkserver where there is one: workers share one import of torch, safely."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return "spawn"
    multiprocessing.set_forkserver_preload(["replications.sweep"])
    return "forkserver"


def _begin_worker(messages: Any) -> None:
    global _messages
    _messages = messages
    messages.cancel_join_thread()  # a killed worker may have kept the queue's lock
    parent = multiprocessing.parent_process()
    assert parent is not None

    def end_with_parent() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _work(job: Job) -> str | None:
    """Do one job in a worker; return what went wrong, or None."""
    global _interrupted
    if _interrupted:
        return "interrupted"
    if job.run_folder.done:
        on_step = _ignored
    else:
        _messages.put((str(job), None))
        on_step = _throttled(str(job))
    try:
        with _log_file(job.folder):
            execute_run(job.experiment, known_methods()[job.method], job.seed, job.folder, on_step)
    except EXPECTED_ERRORS as error:
        return f"{error}"
    except KeyboardInterrupt:
        _interrupted = True
        return "interrupted"
    except Exception:
        return traceback.format_exc()
    return None


def _ignored(report: StepReport) -> None:
    pass


def _throttled(name: str) -> Callable[[StepReport], None]:
    """Return a listener that passes reports on to the parent, a few each second."""
    last = 0.0

    def on_step(report: StepReport) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > _SECONDS_BETWEEN_REPORTS or report.step == report.steps:
            last = now
            _messages.put((name, report))

    return on_step


@contextmanager
def _log_file(folder: Path) -> Iterator[None]:
    """Send the log and Python's warnings to `run.log` in a run's folder."""
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
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()
