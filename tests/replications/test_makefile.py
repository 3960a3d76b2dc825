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


def words(*arguments: str) -> list[str]:
    """Return the words that the shell would see in the last command."""
    result = make(*arguments)
    assert result.returncode == 0, result.stderr
    return shlex.split(result.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_can_be_replicated_and_reported(name: str) -> None:
    dashed = name.replace("_", "-")
    assert words(f"replicate-{dashed}") == [*PYTHON, "run", name]
    assert words(f"report-{dashed}", "SCALE=cpu") == [*PYTHON, "report", name, "--scale", "cpu"]


def test_options_become_flags() -> None:
    options = ("SCALE=short", "METHODS=pareco us_net", "SEEDS=0 1", "SET=--workers 1 --device cpu")
    assert words("replicate-cifar10-resnet20", *options) == [
        *PYTHON,
        *("run", "cifar10_resnet20", "--scale", "short", "--methods", "pareco", "us_net"),
        *("--seeds", "0", "1", "--workers", "1", "--device", "cpu"),
    ]


@pytest.mark.parametrize("variable", ["IMAGENET", "DATA"])
def test_a_path_may_hold_blanks_and_quotes(tmp_path: Path, variable: str) -> None:
    folder = tmp_path / "my  images, Ann's"
    folder.mkdir()
    assert words("replicate-imagenet-mbv2", f"{variable}={folder}")[-2:] == [
        "--images",
        str(folder),
    ]


def test_a_data_set_of_the_hub_is_no_folder() -> None:
    assert words("replicate-imagenet-mbv2", "IMAGENET=hfds/a/b")[-2:] == ["--images", "hfds/a/b"]


def test_several_gpus_take_torchrun_once_the_request_is_checked_and_one_does_not() -> None:
    torchrun = [".venv/bin/torchrun", "--standalone", "--nproc-per-node", "8", "-m", "replications"]
    commands = make("replicate-imagenet-mbv3", "GPUS=8", "SEEDS=1").stdout.splitlines()
    asked = ["run", "imagenet_mbv3", "--seeds", "1"]
    assert [shlex.split(each) for each in commands] == [
        [*PYTHON, *asked, "--check"],
        [*torchrun, *asked],
    ]
    commands = make("replicate-imagenet-mbv3", "GPUS=1").stdout.splitlines()
    assert [shlex.split(each) for each in commands] == [[*PYTHON, "run", "imagenet_mbv3"]]


def test_a_launcher_replaces_torchrun() -> None:
    command = words("replicate-digits", "GPUS=8", "LAUNCH=srun torchrun --nnodes 2")
    assert command == ["srun", "torchrun", "--nnodes", "2", "-m", "replications", "run", "digits"]


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
