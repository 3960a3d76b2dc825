"""The command line, on a tiny experiment that stands in for a folder of replications/."""

import json
import multiprocessing
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock
from rich.console import Console

from pareco.config import Experiment, Machine
from replications import command_line, list_command, report_command
from replications.__main__ import main
from replications.scales import SCALES, Scale
from replications.sweep import Job, run_jobs
from tests.experiments import TINY

PLAIN = ("--network.base-width", "None")
LARGE = ("--data.image-size", "64")
ROOT = Path(command_line.__file__).parent.parent


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def scales_of(name: str) -> dict[str, Scale]:
        if name != "tiny":
            raise ValueError(f"unknown experiment {name!r}. Known: tiny")
        return SCALES

    def named(name: str, scale: str = "paper") -> Experiment:
        if scale not in scales_of(name):
            raise ValueError(f"unknown scale {scale!r}")
        return scales_of(name)[scale](TINY)

    monkeypatch.setenv("WANDB_MODE", "disabled")
    for module in (command_line, report_command, list_command):
        monkeypatch.setattr(module, "experiment_named", named)
    for module in (report_command, list_command):
        monkeypatch.setattr(module, "scales_of", scales_of)
        monkeypatch.setattr(module, "experiment_names", lambda: ["tiny"])
    monkeypatch.chdir(tmp_path)


def test_run_report_and_run_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny"]) == 0
    shown = capsys.readouterr().out
    figures = ["error_vs_flops.svg", "error_vs_latency.png", "widths.png", "curves.svg"]
    for name in ["tiny/table.md", *(f"tiny/{figure}" for figure in figures), "index.html"]:
        assert f"results/{name}" in shown
        assert (tmp_path / "results" / name).stat().st_size > 0
    summary = (tmp_path / "results/README.md").read_text()
    assert "| [tiny](tiny/table.md) | paper | cifar_resnet8 on digits, 8 px | 2 methods" in summary
    assert "done    pareco seed 0 after" in shown
    written = [file for file in (tmp_path / "results").rglob("*") if file.is_file()]
    first = {file: file.read_bytes() for file in written}
    assert main(["run", "tiny"]) == 0
    assert "done" not in capsys.readouterr().out
    for arguments in (["tiny"], ["--all"]):
        assert main(["report", *arguments]) == 0
        assert {file: file.read_bytes() for file in first} == first
    (tmp_path / "runs").rename(tmp_path / "elsewhere")
    assert main(["report", "tiny"]) == 0  # from the records
    assert {file: file.read_bytes() for file in first} == first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report"], "report needs the name of an experiment, or --all without a name"),
        (["report", "tiny", "--all"], "or --all without a name"),
        (["report", "--all"], "there are no records in results"),
        (["run"], "usage: python -m replications COMMAND"),
        (["list", "tiny"], "list takes no arguments"),
    ],
)
def test_a_command_with_too_much_or_too_little_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_one_method_at_a_time_reports_when_all_are_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", "tiny", "--method", "us_net"]) == 0
    assert (
        "No report yet: 1 of 2 runs not finished (such as pareco seed 0)" in capsys.readouterr().out
    )
    assert not (tmp_path / "results/tiny").exists()
    assert main(["run", "tiny", "--method", "pareco", "--seed", "0"]) == 0
    assert (tmp_path / "results/tiny/table.md").exists()


def test_list(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("tiny")
    assert "scales (--scale): paper, short, smoke" in shown


def chosen_by(monkeypatch: pytest.MonkeyPatch, arguments: list[str]) -> list[Job]:
    """Return the jobs that a command line asks for, with none of them done."""
    asked: list[Job] = []

    def noted(jobs: list[Job], *, workers: int, console: Console) -> list[object]:
        asked.extend(jobs)
        return []

    monkeypatch.setattr(command_line, "run_jobs", noted)
    assert main(["run", "tiny", *arguments]) == 0
    return asked


@pytest.mark.parametrize("flag", [["--scale", "short"], ["--scale=short"]])
def test_a_scale_is_the_default_that_other_flags_change(
    flag: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = ["--training.batch-size", "50", *flag, "--seeds", "3"]
    jobs = chosen_by(monkeypatch, fields)
    experiment = jobs[0].experiment
    assert experiment.name == "tiny-short"
    plain = SCALES["short"](TINY).scale
    assert experiment.scale == f"{plain}, changed: training.batch_size 50"
    assert (experiment.training.epochs, experiment.training.batch_size) == (1, 50)
    assert [(job.method, job.seed) for job in jobs] == [("pareco", 3), ("us_net", 3)]


def test_name_methods_and_seeds_change_no_scale(monkeypatch: pytest.MonkeyPatch) -> None:
    fields = ["--name", "other", "--methods", "us_net", "--seeds", "3", "--device", "cpu"]
    (job,) = chosen_by(monkeypatch, fields)
    assert (job.experiment.name, job.experiment.scale) == ("other", "paper")


def test_what_the_machine_is_like_reaches_the_jobs_and_not_the_experiment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = chosen_by(monkeypatch, [])
    flags = ["--device", "cpu", "--decoding-workers", "2", "--checkpoint-minutes", "0.5"]
    jobs = chosen_by(monkeypatch, flags)
    machine = Machine(device="cpu", decoding_workers=2, checkpoint_minutes=0.5)
    assert {job.machine for job in jobs} == {machine}
    assert [replace(job, machine=Machine()) for job in jobs] == plain


def test_a_report_takes_the_runs_of_its_scale(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "tiny", "--scale", "short"]) == 0
    assert Path("runs/tiny-short/us_net/seed0/DONE").exists()
    capsys.readouterr()
    assert main(["report", "tiny", "--scale", "short"]) == 0
    assert "results/tiny-short/table.md" in capsys.readouterr().out


def test_missing_images_are_an_error_that_says_what_to_try_meanwhile(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_images(*arguments: object) -> None:
        raise FileNotFoundError("no images in /nowhere [train/CLASS/IMAGE]")

    monkeypatch.setattr(command_line, "check_runnable", without_images)
    assert main(["run", "tiny", "--images", "/nowhere"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "error: no images in /nowhere [train/CLASS/IMAGE]"
    assert lines[-1].endswith("make replicate-tiny SCALE=smoke")
    assert not list(Path().iterdir())


def test_of_several_processes_one_speaks_and_reports(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["run", "tiny"]) == 0
    capsys.readouterr()
    (Path("results/tiny/table.md")).unlink()
    monkeypatch.setenv("RANK", "1")
    assert main(["run", "tiny"]) == 0
    assert main(["run", "nothing"]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    assert shown.err.startswith("error in process 1: unknown experiment 'nothing'")
    assert not Path("results/tiny/table.md").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "tinny"], "unknown experiment 'tinny'. Known: tiny"),
        (["report", "tiny"], "no finished run of 'tiny'"),
        (["run", "tiny", "--method", "us-net"], "did you mean 'us_net'"),
        (["run", "tiny", "--methods", "pareco", "nothing"], "unknown method 'nothing'"),
        (["run", "tiny", "--name", "a/b"], "name must be letters"),
        (["run", "tiny", "--name", ""], "name must be letters"),
        (["run", "tiny", "--seeds", "0", "0"], "seeds must name none twice"),
        (["run", "tiny", *PLAIN, "--network.name", "resnet1"], "unknown network 'resnet1'"),
        (["run", "tiny", *PLAIN, *LARGE, "--network.name", "densenet121"], "Concatenation"),
        (["run", "tiny", "--scale", "shrt"], "'shrt'"),
        (["run", "tiny", "--checkpoint-minutes", "-1"], "checkpoint_minutes must not be negative"),
        (["report", "tinny", "--scale", "short"], "unknown experiment 'tinny'. Known: tiny"),
        (["run", "tiny", "--data.name", "digit"], "unknown data set 'digit'"),
        (["run", "tiny", "--training.batch-size", "701"], "exceeds the 700 training images"),
        (["run", "tiny", "--evaluation.calibration-images", "800"], "calibration_images: 800"),
        (["run", "tiny", "--methods", "s_net", "--training.sampled-per-step", "30"], "distinct"),
    ],
)
def test_wrong_names_end_with_status_2_and_the_known_ones(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not list(Path().glob("runs/*/*"))  # so that the corrected command can run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--training.epoch", "3"], "--training.epochs"),
        (["--training.epochs", "0"], "epochs must be at least 1"),
        (["--training.epochs", "many"], "many"),
        (["--network.alpha-min", "1.5"], "alpha_min must be between 0 and 1"),
        (["--workers", "0"], "workers must be at least 1"),
        (["--scale"], "--scale: expected one argument"),
        (["--device", "gpu"], "auto"),
        (["--seed", "-1"], "seed must not be negative"),
    ],
)
def test_wrong_overrides_end_with_status_2_and_advice(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as exit_request:
        main(["run", "tiny", *arguments])
    assert exit_request.value.code == 2
    assert message in capsys.readouterr().err


def test_another_configuration_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    only = ["--method", "us_net"]
    assert main(["run", "tiny", *only]) == 0
    assert main(["run", "tiny", *only, "--training.epochs", "3"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "training.epochs: 2 there, 3 now" in message
    assert "--name NAME" in message
    other_seed = ["--seeds", "5", "--methods", "pareco", "--training.epochs", "3"]
    assert main(["run", "tiny", *other_seed]) == 2
    assert not (tmp_path / "runs/tiny/pareco").exists()
    capsys.readouterr()
    named = ["--name", "longer", "--training.epochs", "3"]
    assert main(["run", "tiny", *only, *named]) == 0
    assert (tmp_path / "runs/longer/us_net/seed0/DONE").exists()


def test_a_failed_run_fails_the_sweep_and_spares_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "runs/tiny/pareco"
    folder.mkdir(parents=True)
    (folder / "seed0").write_text("in the way")
    assert main(["run", "tiny"]) == 1
    shown = capsys.readouterr().out
    assert "failed  pareco seed 0" in shown
    assert "1 of 2 runs failed" in shown
    assert (tmp_path / "runs/tiny/us_net/seed0/DONE").exists()


def wait_for(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.mark.parametrize("kills", [1, 2])
def test_a_killed_run_is_tried_again_alone_and_spares_the_others(
    tmp_path: Path, kills: int
) -> None:
    names = ("pareco", "us_net", "random_widths")
    jobs = [Job(experiment=TINY, method=name, seed=0, runs=tmp_path / "runs") for name in names]
    sessions = jobs[0].folder / "env.json"

    def kill_workers() -> None:
        for kill in range(kills):
            wait_for(lambda: sessions.exists() and len(json.loads(sessions.read_text())) > kill)  # noqa: B023
            for child in multiprocessing.active_children():
                child.kill()

    killer = threading.Thread(target=kill_workers)
    killer.start()
    failures = run_jobs(jobs, workers=1, console=Console())
    killer.join()
    assert all(job.run_folder.done for job in jobs[1:])
    assert jobs[0].run_folder.done is (kills == 1)
    assert [failure.job for failure in failures] == (jobs[:1] if kills == 2 else [])
    assert all("worker process was killed" in failure.message for failure in failures)
    assert not run_jobs(jobs, workers=1, console=Console())  # it goes on
    assert jobs[0].run_folder.done


def test_workers_end_with_their_parent(tmp_path: Path) -> None:
    script = (
        "from pathlib import Path; from rich.console import Console;"
        "from replications.sweep import Job, run_jobs; from tests.experiments import TINY;"
        "from dataclasses import replace;"
        "long = replace(TINY, training=replace(TINY.training, epochs=10000));"
        f"job = Job(experiment=long, method='us_net', seed=0, runs=Path({str(tmp_path)!r}));"
        "run_jobs([job], workers=1, console=Console())"
    )
    record = tmp_path / "tiny/us_net/seed0/metrics.jsonl"
    parent = subprocess.Popen([sys.executable, "-c", script], cwd=ROOT, stderr=subprocess.DEVNULL)
    wait_for(lambda: record.exists() and record.stat().st_size > 0)
    parent.kill()
    parent.wait()
    time.sleep(2)
    size = record.stat().st_size
    time.sleep(1)
    assert record.stat().st_size == size


def test_a_run_in_use_is_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "runs/tiny/us_net/seed0"
    folder.mkdir(parents=True)
    with FileLock(folder / ".lock"):
        assert main(["run", "tiny", "--method", "us_net"]) == 1
    assert "is in use by another process" in " ".join(capsys.readouterr().out.split())
    assert main(["run", "tiny", "--method", "us_net"]) == 0


@pytest.mark.parametrize(("arguments", "status"), [(["run", "--help"], 0), (["run"], 2)])
def test_usage(arguments: list[str], status: int) -> None:
    command = [sys.executable, "-m", "replications", *arguments]
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == status
    assert "usage: python -m replications COMMAND" in result.stdout + result.stderr
