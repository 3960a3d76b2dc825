"""Runs of an experiment one after the other, each by all processes that a launcher has started."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from rich.console import Console

from pareco.training import execute_run
from pareco.training.interruption import interruptible
from replications.catalogue import known_methods
from replications.progress import SweepProgress
from replications.sweep import Failure
from replications.worker import EXPECTED_ERRORS, Job, log_file


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
    name, method = str(job), known_methods()[job.method]
    with log_file(job.folder if is_main_process() else None):
        execute_run(
            job.experiment,
            method,
            job.seed,
            job.folder,
            lambda report: progress.show(name, report),
            job.machine,
        )
