"""Sweeps that are signalled: what is under way saves and ends, and nothing more is begun."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from filelock import FileLock
from rich.console import Console

from pareco.config import Machine
from pareco.data import DamagedImages, loading
from pareco.processes import ProcessesDiffer
from pareco.training import NonFiniteLoss, RunError, StepReport
from pareco.training.interruption import Interrupted
from replications import sweep
from replications.__main__ import main
from replications.sweep import Job, JobResult, LocalPool, run_jobs
from tests.experiments import TINY, quick

ROOT = Path(sweep.__file__).parent.parent
# Long, but its plan, which counts the requests for widths, is made at once.
LONG = replace(TINY, training=replace(TINY.training, epochs=2000, ask_every_steps=100_000))


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[str] | None = None) -> None:
    """Return once the condition holds; a process that has ended before will not bring it about."""
    deadline = time.monotonic() + 600  # ends a hang
    while not condition():
        assert time.monotonic() < deadline
        assert process is None or process.poll() is None, process.communicate()
        time.sleep(0.05)


def steps(folder: Path) -> int:
    record = folder / "metrics.jsonl"
    return len(record.read_text().splitlines()) if record.exists() else 0


def checkpoints(folder: Path) -> list[int]:
    return [int(file.stem) for file in sorted((folder / "checkpoints").glob("*.safetensors"))]


def jobs_in(folder: Path, *methods: str) -> list[Job]:
    machine = Machine(checkpoint_minutes=60, device="cpu")
    return [
        Job(experiment=LONG, method=name, seed=0, runs=folder / "runs", machine=machine)
        for name in methods
    ]


@contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something in a thread beside the block; an error there fails the test."""
    with ThreadPoolExecutor(1) as thread:
        working = thread.submit(work)
        yield
    working.result()


def test_a_signal_to_the_parent_alone_reaches_its_workers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = jobs_in(tmp_path, "us_net", "random_widths", "pareco")

    def work() -> None:
        wait_for(lambda: all(steps(job.folder) > 0 for job in jobs[:2]))
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(work), pytest.raises(Interrupted) as interrupted:
        run_jobs(jobs, workers=2, console=Console(width=200))
    assert interrupted.value.exit_status == 143
    for job in jobs[:2]:
        assert checkpoints(job.folder) == [steps(job.folder)]
    assert not jobs[2].folder.exists()
    shown = capsys.readouterr().out
    assert "stopping: 2 runs save their state" in shown
    endings = [line for line in shown.splitlines() if line.startswith("interrupted ")]
    assert sorted(line.split(" after ")[0] for line in endings) == [
        "interrupted random_widths seed 0",
        "interrupted us_net seed 0",
    ]
    assert ["2 of 3 runs" in line for line in endings] == [False, True]
    assert not multiprocessing.active_children()


@dataclass
class Underway:
    """A run that keeps a GPU until it is told to end."""

    job: Job
    context: Any
    device: str | None
    result: JobResult = field(default_factory=lambda: JobResult("done"))
    lives: int = 2

    process: Any = field(default_factory=lambda: SimpleNamespace(sentinel=0))

    @property
    def ended(self) -> bool:
        self.lives -= 1
        return self.lives == 0

    def reports(self) -> list[StepReport | None]:
        return [None]


@pytest.mark.parametrize(
    ("devices", "workers", "expected"),
    [
        (["2", "5"], 4, ["2", "5", "2", "5", "2"]),
        (["2", "5"], 1, ["2"] * 5),
        ([], 2, [None] * 5),
    ],
)
def test_each_run_gets_the_gpu_with_the_fewest(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    devices: list[str],
    workers: int,
    expected: list[str | None],
) -> None:
    begun = []

    def worker(*given: Any) -> Underway:
        begun.append(Underway(*given))
        return begun[-1]

    monkeypatch.setattr(sweep, "Worker", worker)
    monkeypatch.setattr(sweep.connection, "wait", lambda *_: None)
    jobs = [replace(job, seed=n) for n in range(5) for job in jobs_in(tmp_path, "us_net")]
    assert not run_jobs(jobs, workers=workers, console=Console(), engine=LocalPool(devices))
    assert [each.device for each in begun] == expected


def test_a_run_sees_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,5")
    forever = SimpleNamespace(join=threading.Event().wait)
    monkeypatch.setattr(sweep.multiprocessing, "parent_process", lambda: forever)
    seen = []
    monkeypatch.setattr(sweep, "job_result", lambda *_: os.environ["CUDA_VISIBLE_DEVICES"])
    pipe = SimpleNamespace(send=seen.append)
    sweep._work(jobs_in(tmp_path, "us_net")[0], pipe, "5")  # type: ignore[arg-type]
    sweep._work(jobs_in(tmp_path, "us_net")[0], pipe, None)  # type: ignore[arg-type]
    assert seen == [None, "5", None, "5"]


MORE_DECODERS = "more --decoding-workers (make: DECODERS=) would help"
FEWER_PROCESSES = "fewer processes, or a faster network between them, would help"
SMALLER = "smaller images (--data.image-size) or more cores would help"


@pytest.mark.parametrize(
    ("parts", "decoders", "workers", "said"),
    [
        ({"images": 62, "training": 38}, 1, 3, f"held back by images: {MORE_DECODERS}"),
        ({"images": 62, "training": 38}, 3, 3, f"held back by images: {SMALLER}"),
        ({"images": 62, "training": 38}, 1, 8, f"held back by images: {SMALLER}"),
        ({"images": 62, "training": 38}, None, 1, f"held back by images: {SMALLER}"),
        ({"training": 70, "search": 18, "images": 12}, 1, 8, "held back by search"),
        (
            {"training": 60, "reduction": 30, "search": 10},
            *(1, 8, f"held back by reduction: {FEWER_PROCESSES}"),
        ),
        ({"training": 82, "images": 9, "search": 9}, 1, 1, "search 9%"),
    ],
)
def test_a_run_says_what_held_it_back(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    parts: dict[str, int],
    decoders: int | None,
    workers: int,
    said: str,
) -> None:
    """Of nine cores; more processes that decode images help where they have cores of their own."""
    monkeypatch.setattr(loading, "usable_cores", lambda: 9)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    result = SimpleNamespace(validate_json=lambda _: SimpleNamespace(parts=parts))
    monkeypatch.setattr(sweep, "RESULT", result)
    machine = Machine(decoding_workers=decoders)
    job = replace(jobs_in(tmp_path, "us_net")[0], machine=machine)
    job.folder.mkdir(parents=True)
    (job.folder / "result.json").touch()
    assert sweep.time_split(job, workers).endswith(f"%, {said}")


def test_the_bars_know_how_many_run_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    bars = sweep.SweepBars

    def noted(console: Console, *numbers: int) -> sweep.SweepBars:
        seen.append(numbers)
        return bars(console, *numbers)

    monkeypatch.setattr(sweep, "SweepBars", noted)
    monkeypatch.setattr(sweep._Sweep, "do", lambda *_: None)
    jobs = jobs_in(tmp_path, "us_net", "random_widths", "pareco")
    for workers in (2, 8):
        run_jobs(jobs, workers=workers, console=Console())
    assert seen == [(3, 2), (3, 3)]


@pytest.mark.parametrize(
    ("images", "said"),
    [
        (6.2, ": images 62%, training 38%, held back by images: "),
        (0.08, ": training 99%\n"),
    ],
)
def test_a_run_says_what_its_time_went_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], images: float, said: str
) -> None:
    job = replace(jobs_in(tmp_path, "random_widths")[0], experiment=TINY)
    assert not run_jobs([job], workers=1, console=Console(width=200))
    path = job.folder / "result.json"
    result = json.loads(path.read_text())
    assert result["parts"].keys() == {"training", "search", "choice", "test", "images", "reduction"}
    spent = [result["ledger"][phase]["seconds"] for phase in ("training", "choice", "test")]
    assert sum(result["parts"].values()) == pytest.approx(sum(spent), abs=0.3)  # rounded to 0.1 s
    result["parts"] = {"training": 10 - images, "images": images}
    path.write_text(json.dumps(result))
    with sweep.SweepBars(Console(width=200), 1) as bars:
        bars.end(job, JobResult("done"))
    assert said in capsys.readouterr().out


def test_a_signal_to_a_worker_alone_fails_its_run_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    job = jobs_in(tmp_path, "us_net")[0]
    short = replace(jobs_in(tmp_path, "random_widths")[0], experiment=TINY)

    def work() -> None:
        wait_for(lambda: steps(job.folder) > 0)
        (process,) = multiprocessing.active_children()
        process.terminate()

    with meanwhile(work):
        assert run_jobs([job, short], workers=1, console=Console(width=200)) == [job]
    assert "1 of 2 runs: interrupted by SIGTERM; the same command" in capsys.readouterr().out
    assert checkpoints(job.folder) == [steps(job.folder)]
    assert short.run_folder.done


@pytest.mark.parametrize("kills", quick([1, 2], 1))
def test_a_killed_run_is_tried_again_alone_and_spares_the_others(
    tmp_path: Path, kills: int, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("pareco", "us_net", "random_widths")
    jobs = [Job(experiment=TINY, method=name, seed=0, runs=tmp_path / "runs") for name in names]
    sessions = jobs[0].folder / "env.json"

    def work() -> None:
        for kill in range(kills):
            wait_for(lambda: sessions.exists() and len(json.loads(sessions.read_text())) > kill)  # noqa: B023
            for child in multiprocessing.active_children():
                child.kill()

    with meanwhile(work):
        failed = run_jobs(jobs, workers=1, console=Console(width=200))
    assert all(job.run_folder.done for job in jobs[1:])
    assert jobs[0].run_folder.done is (kills == 1)
    assert failed == (jobs[:1] if kills == 2 else [])
    shown = capsys.readouterr().out
    assert "a worker was killed during pareco seed 0: it goes on, alone" in shown
    assert ("3 of 3 runs: its worker process was killed" in shown) == (kills == 2)
    assert not run_jobs(jobs, workers=1, console=Console())  # it goes on
    assert jobs[0].run_folder.done


@pytest.mark.parametrize(
    ("signals", "seconds_to_save", "error"),
    [
        ([signal.SIGTERM, signal.SIGTERM], 10_000.0, Interrupted),
        ([signal.SIGINT, signal.SIGINT], 10_000.0, KeyboardInterrupt),
        ([signal.SIGTERM], 1.0, Interrupted),
    ],
)
def test_a_second_signal_or_five_minutes_end_at_once(
    tmp_path: Path,
    signals: list[int],
    seconds_to_save: float,
    error: type[BaseException],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of a worker that cannot answer, as it is stopped."""
    monkeypatch.setattr(sweep, "_SECONDS_TO_SAVE", seconds_to_save)
    (job,) = jobs_in(tmp_path, "us_net")
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def work() -> None:
        wait_for(lambda: steps(job.folder) > 0)
        (process,) = multiprocessing.active_children()
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        for signum in signals:
            os.kill(os.getpid(), signum)
            time.sleep(1.5)  # two within a second are one

    try:
        with meanwhile(work), pytest.raises(error):
            run_jobs([job], workers=1, console=Console(width=200))
    finally:
        signal.signal(signal.SIGINT, before)
    wait_for(lambda: not multiprocessing.active_children())
    if error is Interrupted:
        shown = capsys.readouterr().out
        assert "interrupted us_net seed 0 after" in shown
        assert "1 of 1 runs: its worker process was killed" in shown


def test_a_signal_before_the_workers_hear_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes while their processes start, and is asked of them once."""
    monkeypatch.setattr(sweep, "_SECONDS_TO_SAVE", 10_000.0)
    monkeypatch.setattr(sweep, "SECONDS_BETWEEN_LOOKS", 0.001)
    (job,) = jobs_in(tmp_path, "us_net")

    def work() -> None:
        wait_for(lambda: bool(multiprocessing.active_children()))
        os.kill(os.getpid(), signal.SIGTERM)

    with meanwhile(work), pytest.raises(Interrupted):
        run_jobs([job], workers=1, console=Console())
    assert checkpoints(job.folder) == [steps(job.folder)] * bool(steps(job.folder))
    assert not multiprocessing.active_children()


METHODS = ("us_net", "random_widths")


def arguments(
    runs: Path, *options: str, workers: int = 1, epochs: int = 8, ask: int = 9
) -> list[str]:
    chosen = [option for method in METHODS for option in ("--method", method)]
    folders = ["--runs", str(runs), "--results", str(runs.parent / "results")]
    length = ["--training.epochs", str(epochs), "--training.ask-every-steps", str(ask)]
    machine = ["--device", "cpu", "--workers", str(workers)]
    return ["run", "digits", "--seed", "0", *chosen, *folders, *length, *machine, *options]


def command(runs: Path, **numbers: int) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "replications", *arguments(runs, **numbers)],
        cwd=ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL) and None,
    )


@pytest.mark.parametrize(
    "kind", [RunError, NonFiniteLoss, DamagedImages, ProcessesDiffer, OSError, ArithmeticError]
)
def test_what_is_expected_to_go_wrong_is_told_without_a_traceback(
    kind: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object, **options: object) -> None:
        raise kind("why")

    monkeypatch.setattr(sweep, "execute_run", fails)
    (job,) = jobs_in(tmp_path, METHODS[0])
    result = sweep.job_result(job, lambda report: None)
    assert (result.ending, "Traceback" in result.problem) == ("failed", kind is ArithmeticError)
    assert "why" in result.problem


@dataclass(frozen=True, kw_only=True)
class Placed(Job):
    """A run that writes down which GPU its process sees."""

    def follow_up(self) -> None:
        (self.folder / "device").write_text(os.environ.get("CUDA_VISIBLE_DEVICES", ""))


@pytest.mark.slow
def test_runs_side_by_side_on_two_devices_are_those_of_one_after_the_other(tmp_path: Path) -> None:
    """On a CPU, where the devices are but names; both are under way at the same time."""
    longer = replace(TINY, training=replace(TINY.training, epochs=12))
    whole = {"experiment": longer, "machine": Machine(device="cpu"), "seed": 0}
    both, plain = (
        [Placed(**whole, method=name, runs=tmp_path / runs) for name in ("us_net", "random_widths")]
        for runs in ("both", "plain")
    )

    def beside() -> bool:
        return all(steps(job.folder) > 0 and not job.done for job in both)

    with meanwhile(lambda: wait_for(beside)):
        assert not run_jobs(both, workers=2, console=Console(), engine=LocalPool(["5", "2"]))
    assert [(job.folder / "device").read_text() for job in both] == ["5", "2"]
    assert not run_jobs(plain, workers=1, console=Console(), engine=LocalPool())
    names = ("front.csv", "visits.csv", "metrics.jsonl", "config.json", "weights/0.safetensors")
    for job, same in zip(both, plain, strict=True):
        for name in names:
            assert (job.folder / name).read_bytes() == (same.folder / name).read_bytes(), name


@pytest.mark.slow
def test_the_command_ends_with_the_status_of_the_signal_and_goes_on(tmp_path: Path) -> None:
    """SIGTERM to the command alone, as by `kill`; then SIGINT to all its processes, as Ctrl-C."""
    runs = tmp_path / "runs"
    run = runs / "digits" / METHODS[0] / "seed0"
    done = 0
    for signum, status, send in ((signal.SIGTERM, 143, os.kill), (signal.SIGINT, 130, os.killpg)):
        process = command(runs)
        wait_for(lambda: steps(run) > done + 2, process)  # noqa: B023
        send(process.pid, signum)
        shown, errors = process.communicate()
        assert process.returncode == status, errors
        assert f"interrupted {METHODS[0]} seed 0" in shown
        assert "1 of 2 runs" in shown
        assert f"{Interrupted(signum)}" in errors.splitlines()  # Python may warn of its own
        assert checkpoints(run)[-1] == steps(run) > done
        done = steps(run)
    assert main(arguments(runs)) == 0
    assert len(json.loads((run / "env.json").read_text())) == 3
    whole = tmp_path / "whole"
    assert main(arguments(whole)) == 0
    for method in METHODS:
        for name in ("front.csv", "metrics.jsonl"):
            file = Path("digits") / method / "seed0" / name
            assert (runs / file).read_bytes() == (whole / file).read_bytes(), file


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_sweep_that_is_ended_leaves_no_worker(tmp_path: Path, signum: int) -> None:
    """As by Slurm, which signals every process, the fork server too; or killed, without a word."""
    folders = [tmp_path / "runs/digits" / method / "seed0" for method in METHODS]
    process = command(tmp_path / "runs", workers=2, epochs=2000, ask=900)
    wait_for(lambda: all(steps(folder) > 0 for folder in folders), process)
    send = process.send_signal if signum == signal.SIGKILL else partial(os.killpg, process.pid)
    send(signum)
    process.communicate()
    assert process.returncode == (-signum if signum == signal.SIGKILL else 143)
    for folder in folders:
        with FileLock(folder / ".lock", timeout=600):  # a worker holds it to its end
            saved = [steps(folder)] if signum == signal.SIGTERM else []
            assert checkpoints(folder) == saved


def test_a_diverging_run_ends_the_command_with_status_1_and_a_log(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    hot = ("--training.lr-per-256", "1e20", "--training.warmup-epochs", "0")
    assert main(arguments(tmp_path / "runs", *hot)) == 1
    shown = " ".join(capsys.readouterr().out.split())
    assert "failed us_net seed 0 after" in shown
    assert "1 of 2 runs: the loss is not finite at step" in shown
    assert "Traceback" not in shown
    log = (tmp_path / "runs/digits/us_net/seed0/run.log").read_text()
    assert "ERROR the run ended with an error" in log
    assert "NonFiniteLoss: the loss is not finite" in log
