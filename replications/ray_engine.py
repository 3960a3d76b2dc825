"""Runs as tasks of Ray, on the cluster that RAY_ADDRESS names or else on this machine."""

from __future__ import annotations

import logging
import math
import os
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self

import ray
from ray.exceptions import RayError, RayTaskError, TaskCancelledError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console

from pareco.config import Experiment, Machine
from pareco.data.loading import decoding_workers
from pareco.training import StepReport
from pareco.training.interruption import Interrupted
from replications.sweep import KILLED, SECONDS_BETWEEN_LOOKS, Job, JobResult, job_result

_CLAIM_SECONDS = 150.0  # an NFS server may keep a lost machine's locks for 90


def part_of_gpu(runs: int) -> float:
    """Return what each of so many runs asks of a GPU: Ray counts in steps of 1/10,000, rounded."""
    return 10_000 // runs / 10_000


@dataclass(eq=False)
class RayTask:
    """A job that Ray has: waiting for its place, under way, or once more where that was lost."""

    job: Job
    reference: Any
    heard: list[StepReport | None] = field(default_factory=list)

    @property
    def ended(self) -> bool:
        """Whether Ray has done with it."""
        return bool(ray.wait([self.reference], timeout=0)[0])

    @property
    def result(self) -> JobResult:
        """How it ended, once it has."""
        try:
            return ray.get(self.reference)
        except (Interrupted, TaskCancelledError) as error:
            return JobResult("interrupted", f"{error}")
        except RayTaskError as error:
            return JobResult("failed", f"{error.cause}")
        except RayError as error:  # it was lost, or killed, more often than Ray tries again
            return JobResult("failed", f"{KILLED.problem} ({type(error).__name__})")

    def reports(self) -> Iterator[StepReport | None]:
        """Yield the steps told of since it was last asked; None where it begins, or goes on."""
        while self.heard:
            yield self.heard.pop(0)

    def stop(self) -> None:
        """Ask it to save and end."""
        ray.cancel(self.reference)

    def kill(self) -> None:
        """End it at once."""
        ray.cancel(self.reference, force=True)


class RayEngine(AbstractContextManager[Any]):
    """The engine that leaves to Ray where each run is done, and that it is done if a node dies."""

    def __init__(
        self, experiment: Experiment, machine: Machine, workers: int | None, console: Console
    ) -> None:
        """Prepare for runs on a GPU each, or part of one where there are fewer than `workers`.

        Without GPUs in the cluster, or with `machine.device` cpu, each gets its cores.
        """
        self._threads, self._on_cpu = experiment.training.cpu_threads, machine.device == "cpu"
        self._workers, self._console = workers, console
        self._tasks: list[RayTask] = []

    def __enter__(self) -> Self:
        """Join the cluster, or start one on this machine; `ConnectionError` says why not."""
        before = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(logging_level=logging.ERROR, log_to_driver=False)
        except Exception as error:  # of any kind, for a cluster that cannot be reached or started
            raise ConnectionError(f"Ray: {' '.join(f'{error}'.split())}") from error
        signal.signal(signal.SIGTERM, before)  # which Ray has taken
        gpus = 0 if self._on_cpu else int(ray.cluster_resources().get("GPU", 0))
        runs = math.ceil((self._workers or 1) / max(gpus, 1))  # on each GPU
        place, resources = f"{self._threads} of its CPU cores", {"num_cpus": self._threads}
        if gpus:
            place = "a GPU" if runs == 1 else f"1/{runs} of a GPU"
            resources = {"num_cpus": 0, "num_gpus": part_of_gpu(runs)}
        remote: Any = ray.remote  # of whose options the types are not declared
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        self._telling = remote(num_cpus=0, scheduling_strategy=here)(_Telling).remote()
        # A process for each run, as on this machine; one that a signal ends on its node is retried.
        self._do = remote(max_calls=1, retry_exceptions=[Interrupted], **resources)(_do)
        nodes = sum(node["Alive"] for node in ray.nodes())
        self._console.print(f"Ray: {nodes} nodes; each run gets {place}")
        return self

    def __exit__(self, *error: object) -> None:
        """Leave the cluster, which ends what is under way."""
        ray.shutdown()

    def begin(self, job: Job, beside: Sequence[RayTask]) -> RayTask:
        """Give a job to Ray, which begins it where and when there is room."""
        do = self._do.options(name=str(job))
        reference = do.remote(job, len(self._tasks), self._telling, Path.cwd())
        self._tasks.append(RayTask(job, reference))
        return self._tasks[-1]

    def wait(self, underway: Sequence[RayTask]) -> None:
        """Return once a job has ended, or a moment later, with what all have told."""
        ray.wait([each.reference for each in underway], timeout=SECONDS_BETWEEN_LOOKS)
        for number, report in ray.get(self._telling.heard.remote()):
            self._tasks[number].heard.append(report)


class _Telling:
    """What tasks, by their numbers, tell of their steps: an actor of Ray."""

    def __init__(self) -> None:
        self._heard: list[tuple[int, StepReport | None]] = []
        self._begun: Counter[int] = Counter()

    def begin(self, task: int) -> int:
        """Return how often a task has begun, this time included."""
        self.tell(task, None)
        self._begun[task] += 1
        return self._begun[task]

    def tell(self, task: int, report: StepReport | None) -> None:
        """Hear of a step."""
        self._heard.append((task, report))

    def heard(self) -> list[tuple[int, StepReport | None]]:
        """Return what was heard since it was last asked."""
        heard, self._heard = self._heard, []
        return heard


def _do(job: Job, number: int, telling: Any, folder: Path) -> JobResult:
    """Do a job, in a process of its own on any node, from the folder that all paths start from."""
    os.chdir(folder)
    with ThreadPoolExecutor(1) as thread:  # while a task waits in its main one, its cores are lent
        times: Any = thread.submit(ray.get, telling.begin.remote(number)).result()
    context = ray.get_runtime_context()
    assigned = context.get_assigned_resources()
    kind = "GPU" if assigned.get("GPU") else "CPU"
    (node,) = [each for each in ray.nodes() if each["NodeID"] == context.get_node_id()]
    beside = int(node["Resources"][kind] / assigned[kind])
    machine = replace(
        job.machine,
        decoding_workers=decoding_workers(job.machine, beside),
        claim_seconds=_CLAIM_SECONDS if times > 1 else job.machine.claim_seconds,
    )
    result = job_result(replace(job, machine=machine), partial(telling.tell.remote, number))
    if result.ending == "interrupted":
        raise Interrupted(signal.SIGTERM)
    return result
