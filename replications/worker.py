"""A process that does one run of a sweep, and tells its parent how it goes."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import Connection
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

from pareco.config import Experiment, Machine
from pareco.training import NonFiniteLoss, RunError, RunFolder, StepReport, execute_run
from pareco.training.interruption import Interrupted, interruptible
from replications.catalogue import known_methods

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
class Outcome:
    """How a run ended: `problem` says what went wrong, None if nothing."""

    problem: str | None
    interrupted: bool = False
    died: bool = False


_DIED = Outcome(
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

    def outcome(self) -> Outcome | None:
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


def _outcome(job: Job, messages: Connection) -> Outcome:
    """Do a job; return how it ended."""
    method = known_methods()[job.method]
    try:
        with log_file(job.folder):
            execute_run(
                job.experiment, method, job.seed, job.folder, _throttled(messages), job.machine
            )
    except EXPECTED_ERRORS as error:
        return Outcome(f"{error}")
    except Interrupted as error:
        return Outcome(f"{error}", interrupted=True)
    except KeyboardInterrupt:
        return Outcome(f"{Interrupted(signal.SIGINT)}", interrupted=True)
    except Exception:
        return Outcome(traceback.format_exc())
    return Outcome(None)


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
