"""The commands that make would give; nothing is run."""

import shlex
import subprocess
from pathlib import Path

import pytest

from replications.catalogue import experiment_names

ROOT = Path(__file__).parent.parent.parent
PYTHON = [".venv/bin/python", "-m", "replications"]


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", "--assume-old=.venv/.installed", *arguments]
    plain = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # no SCALE, DATA or MAKEFLAGS of the caller's
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=plain, check=False)


def given(*arguments: str) -> list[list[str]]:
    """Return the words that the shell would see in each command."""
    result = make(*arguments)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_can_be_replicated_and_reported(name: str) -> None:
    dashed = name.replace("_", "-")
    assert given(f"replicate-{dashed}") == [[*PYTHON, "run", name]]
    assert given(f"report-{dashed}", "SCALE=cpu") == [[*PYTHON, "report", name, "--scale", "cpu"]]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["SCALE=short", "METHODS=us_net s_net"], "--scale short --methods us_net s_net"),
        (["SEEDS=0 1", "SET=--workers 1 --device cpu"], "--seeds 0 1 --workers 1 --device cpu"),
        (["IMAGENET=hfds/a/b"], "--images hfds/a/b"),  # a data set of the hub is no folder
        (["GPUS=1"], ""),
    ],
)
def test_options_become_flags(options: list[str], flags: str) -> None:
    asked = [*PYTHON, "run", "imagenet_mbv2", *flags.split()]
    assert given("replicate-imagenet-mbv2", *options) == [asked]


@pytest.mark.parametrize("variable", ["IMAGENET", "DATA"])
def test_a_path_may_hold_blanks_and_quotes(tmp_path: Path, variable: str) -> None:
    folder = tmp_path / "my  images, Ann's"
    folder.mkdir()
    (command,) = given("replicate-imagenet-mbv2", f"{variable}={folder}")
    assert command[-2:] == ["--images", str(folder)]


@pytest.mark.parametrize(
    ("option", "launcher"),
    [
        ("GPUS=8", ".venv/bin/torchrun --standalone --nproc-per-node 8"),
        ("LAUNCH=srun torchrun --nnodes 2", "srun torchrun --nnodes 2"),
    ],
)
def test_a_launcher_is_started_once_the_request_is_checked(option: str, launcher: str) -> None:
    asked = ["-m", "replications", "run", "imagenet_mbv3", "--seeds", "1"]
    assert given("replicate-imagenet-mbv3", option, "SEEDS=1") == [
        [PYTHON[0], *asked, "--check", "8" if option == "GPUS=8" else "1"],
        [*launcher.split(), *asked],
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replicate-imagenet-mbv4"], "unknown experiment imagenet-mbv4; known: cifar10"),
        (["report-imagenet-mbv4"], "unknown experiment imagenet-mbv4; known: cifar10"),
        (["replicate-imagenet-mbv2", "IMAGENET=/no/where"], "/no/where: no such folder"),
        (["replicate-digits", "GPUS=0"], "GPUS must be a whole number of at least 1, got 0"),
        (["replicate-digits", "GPUS=abc"], "GPUS must be a whole number of at least 1, got abc"),
        (["wandb-report"], "say which: make wandb-report NAME=digits"),
    ],
)
def test_wrong_requests_fail_with_advice(arguments: list[str], message: str) -> None:
    result = make(*arguments)
    assert result.returncode == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_other_targets_ignore_a_missing_folder() -> None:
    assert make("clean", "IMAGENET=/no/where", "GPUS=none").returncode == 0


def test_help_lists_targets_experiments_and_options() -> None:
    shown = subprocess.run(
        ["make", "help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    for word in ("replicate-NAME", "report-NAME", "imagenet-mbv2", "SCALE=", "GPUS=", "LAUNCH="):
        assert word in shown
    assert all(len(line) <= 110 for line in shown.splitlines())
