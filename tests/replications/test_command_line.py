"""The command line, on a tiny experiment that stands in for a folder of replications/."""

import multiprocessing
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

import replications.__main__ as command_line
from pareco.config import Experiment
from replications.sweep import Job, run_jobs
from tests.experiments import TINY


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def named(name: str) -> Experiment:
        if name != "tiny":
            raise ValueError(f"unknown experiment {name!r}. Known: tiny")
        return TINY

    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.setattr(command_line, "experiment_named", named)
    monkeypatch.setattr(command_line, "experiment_names", lambda: ["tiny"])
    monkeypatch.chdir(tmp_path)


def test_run_report_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["run", "tiny"]) == 0
    shown = capsys.readouterr().out
    files = ["fronts.csv", "network.json", "table.md", "error_vs_flops.svg", "error_vs_flops.png"]
    for name in [*files, "widths.png"]:
        assert f"results/tiny/{name}" in shown
        assert (tmp_path / "results/tiny" / name).stat().st_size > 0
    assert "done    pareco seed 0" in shown
    first = {file: file.read_bytes() for file in (tmp_path / "results/tiny").iterdir()}
    assert command_line.main(["run", "tiny"]) == 0
    assert "done" not in capsys.readouterr().out
    assert command_line.main(["report", "tiny"]) == 0
    assert {file: file.read_bytes() for file in first} == first


def test_one_method_at_a_time_reports_when_all_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(["run", "tiny", "--method", "us_net"]) == 0
    assert "No report yet: pareco seed 0 not finished" in capsys.readouterr().out
    assert not (tmp_path / "results").exists()
    assert command_line.main(["run", "tiny", "--method", "pareco", "--seed", "0"]) == 0
    assert (tmp_path / "results/tiny/table.md").exists()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert command_line.main(["list"]) == 0
    assert capsys.readouterr().out.startswith("tiny")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tinny"], "unknown experiment 'tinny'. Known: tiny"),
        (["report", "tiny"], "python -m replications run tiny"),
        (["run", "tiny", "--method", "us-net"], "did you mean 'us_net'"),
        (["run", "tiny", "--methods", "pareco", "nothing"], "unknown method 'nothing'"),
    ],
)
def test_wrong_names_end_with_status_2_and_the_known_ones(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert command_line.main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.epoch", "3"], "--training.epochs"),
        (["--training.epochs", "0"], "epochs must be at least 1"),
        (["--training.epochs", "many"], "many"),
    ],
)
def test_wrong_overrides_end_with_status_2_and_advice(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_request:
        command_line.main(["run", "tiny", *arguments])
    assert exit_request.value.code == 2
    assert message in capsys.readouterr().err


def test_another_configuration_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--method", "us_net"]
    assert command_line.main(["run", "tiny", *only]) == 0
    assert command_line.main(["run", "tiny", *only, "--training.epochs", "3"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "training.epochs: 2 there, 3 now" in message
    assert "--name NAME" in message
    named = ["--name", "longer", "--training.epochs", "3"]
    assert command_line.main(["run", "tiny", *only, *named]) == 0
    assert (tmp_path / "runs/longer/us_net/seed0/DONE").exists()


def test_a_failed_run_fails_the_sweep_and_spares_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/tiny/pareco"
    folder.mkdir(parents=True)
    (folder / "seed0").write_text("in the way")
    assert command_line.main(["run", "tiny"]) == 1
    shown = capsys.readouterr().out
    assert "failed  pareco seed 0" in shown
    assert "1 of 2 runs failed" in shown
    assert (tmp_path / "runs/tiny/us_net/seed0/DONE").exists()


def test_a_worker_that_dies_is_a_failure_not_a_hang(tmp_path: Path) -> None:
    jobs = [Job(experiment=TINY, method=m, seed=0, runs=tmp_path / "runs") for m in ("pareco",)]
    import threading
    import time

    def kill_workers() -> None:
        for _ in range(600):
            if (jobs[0].folder / "metrics.jsonl").exists():
                break
            time.sleep(0.1)
        for child in multiprocessing.active_children():
            child.kill()

    killer = threading.Thread(target=kill_workers)
    killer.start()
    failures = run_jobs(jobs, workers=1, console=Console())
    killer.join()
    assert [failure.job for failure in failures] == jobs
    assert "worker process died" in failures[0].message
    assert not run_jobs(jobs, workers=1, console=Console())  # it goes on


@pytest.mark.parametrize(("arguments", "status"), [(["--help"], 0), ([], 2), (["run"], 2)])
def test_usage(arguments: list[str], status: int) -> None:
    command = [sys.executable, "-m", "replications", *arguments]
    root = Path(command_line.__file__).parent.parent
    result = subprocess.run(command, capture_output=True, text=True, cwd=root, check=False)
    assert result.returncode == status
    assert "usage: python -m replications COMMAND" in result.stdout + result.stderr
