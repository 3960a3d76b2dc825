"""Three nodes of Ray on this machine share the runs of an experiment; one of them is lost."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from filelock import FileLock
from rich.console import Console

from pareco.config import Machine
from pareco.training.interruption import Interrupted
from replications.sweep import Job, run_jobs
from tests.experiments import TINY
from tests.replications.test_sweep import LONG, checkpoints, meanwhile, steps, wait_for

pytest.importorskip("ray", reason="Ray is not installed: pip install 'pareco[ray]'")
from ray.cluster_utils import Cluster

from replications.ray_engine import RayEngine, part_of_gpu

pytestmark = pytest.mark.slow
METHODS = ("us_net", "s_net", "random_widths")
MACHINE = Machine(device="cpu", checkpoint_minutes=0.001)
SOME = replace(TINY, training=replace(TINY.training, epochs=12))
FILES = ("front.csv", "visits.csv", "metrics.jsonl", "config.json", "weights/0.safetensors")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Start three nodes of one core each; a busy machine may take its time for it."""
    slowly = {
        "RAY_agent_register_timeout_ms": "600000",
        "RAY_worker_register_timeout_seconds": "600",
    }
    own = {"RAY_AUTH_MODE": "disabled", "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (slowly | own).items():
            patch.setenv(name, value)
        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        nodes = started(lambda: Cluster(initialize_head=True, head_node_args=node))
        try:
            for _ in range(2):
                started(lambda: nodes.add_node(**node))
            patch.setenv("RAY_ADDRESS", f"{nodes.address}")
            yield nodes
        finally:
            nodes.shutdown()


def started(start: Callable[[], Any]) -> Any:
    """Return a node, once it has started: Ray itself allows for half a minute, and raises."""
    for _ in range(9):
        with suppress(Exception):
            return start()
    return start()


def engine(console: Console) -> RayEngine:
    return RayEngine(SOME, MACHINE, None, console)


def jobs_in(runs: Path, experiment: Any = SOME) -> list[Job]:
    whole = {"experiment": experiment, "runs": runs, "machine": MACHINE}
    return [Job(**whole, method=method, seed=0) for method in METHODS]


def run_on(node: Any) -> Path | None:
    """Return the folder that a process of the node holds."""
    (raylet,) = node.all_processes["raylet"]
    for worker in psutil.Process(raylet.process.pid).children():
        for file in worker.open_files():
            if file.path.endswith("/.lock"):
                return Path(file.path).parent
    return None


@pytest.mark.parametrize("runs", [1, 3, 6, 7, 64])
def test_as_many_runs_fit_a_gpu_as_share_it(runs: int) -> None:
    """And not one more, by the steps of 1/10,000 that Ray rounds to."""
    each = round(part_of_gpu(runs) * 10_000)
    assert 10_000 // each == runs


def test_runs_are_those_of_the_local_way_though_a_node_is_lost(
    cluster: Cluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The run that was there goes on from its checkpoint; one that another process holds fails."""
    monkeypatch.chdir(tmp_path)
    lost: list[Path] = []
    node = next(iter(cluster.worker_nodes))

    def lose() -> None:
        wait_for(lambda: bool((folder := run_on(node)) and checkpoints(folder)))
        lost.append(run_on(node) or Path())
        cluster.remove_node(node, allow_graceful=False)

    jobs, console = jobs_in(Path("runs")), Console(width=200)
    held = replace(jobs[0], seed=1)
    held.folder.mkdir(parents=True)
    with FileLock(held.folder / ".lock"), meanwhile(lose):
        failed = run_jobs([*jobs, held], workers=4, console=console, engine=engine(console))
    shown = capsys.readouterr().out
    assert failed == [held], shown
    assert "is in use by another process" in shown
    assert "Ray: 3 nodes; each run gets 1 of its CPU cores" in shown
    local = jobs_in(Path("local"))
    assert not run_jobs(local, workers=1, console=Console())
    (gone,) = [job for job in jobs if job.folder.resolve() == lost[0].resolve()]
    assert f"the process or machine of {gone} was lost: it goes on from its checkpoint" in shown
    for job, same in zip(jobs, local, strict=True):
        assert (job.folder / "env.json").read_text().count('"commit"') == 1 + (job == gone)
        for name in FILES:
            assert (job.folder / name).read_bytes() == (same.folder / name).read_bytes(), name


def test_a_signal_ends_all_with_a_checkpoint(
    cluster: Cluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Those that Ray has not begun do not begin."""
    room = 1 + len(cluster.worker_nodes)
    (job, *_) = jobs_in(tmp_path / "runs", LONG)
    jobs = [replace(job, seed=seed) for seed in range(room + 1)]
    begun: list[Job] = []

    def work() -> None:
        wait_for(lambda: sum(steps(job.folder) > 0 for job in jobs) == room)
        begun.extend(job for job in jobs if job.folder.exists())
        os.kill(os.getpid(), signal.SIGTERM)

    console = Console(width=200)
    with meanwhile(work), pytest.raises(Interrupted) as interrupted:
        run_jobs(jobs, workers=len(jobs), console=console, engine=engine(console))
    assert interrupted.value.exit_status == 143
    shown = capsys.readouterr().out
    assert f"stopping: {room} runs save their state" in shown
    assert [job.folder.exists() for job in jobs] == [job in begun for job in jobs]
    assert len(begun) == room
    for job in begun:
        assert checkpoints(job.folder)[-1] == steps(job.folder)
        assert f"interrupted {job} after" in shown
