"""Runs of an experiment side by side in worker processes, with one progress display."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.context import BaseContext

from rich.console import Console
from rich.markup import escape

from pareco.training.interruption import Interrupted, insisted, interruptible, requested
from replications.progress import Ending, SweepProgress
from replications.worker import Job, Outcome, Worker, worker_context

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
        self.outcomes: dict[Job, Outcome] = {}
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

    def _ending(self, outcome: Outcome) -> Ending:
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
    outcomes: dict[Job, Outcome],
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
