"""The commands that make would give; nothing is run."""

import shlex
import subprocess
from pathlib import Path

import pytest

from replications.catalogue import experiment_names

ROOT = Path(__file__).parent.parent.parent
PYTHON = [".venv/bin/python", "-m", "replications"]
EQUAL = ["--equal", "compute"]


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--dry-run", "--assume-old=.venv/.installed", *arguments]
    plain = {"PATH": "/usr/local/bin:/usr/bin:/bin"}  # no SCALE, DATA or MAKEFLAGS of the caller's
    plain |= environment
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=plain, check=False)


def given(*arguments: str, **environment: str) -> list[list[str]]:
    """Return the words that the shell would see in each command."""
    result = make(*arguments, **environment)
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


@pytest.mark.parametrize("name", [each for each in experiment_names() if each != "own"])
def test_every_experiment_can_be_replicated_and_reported(name: str) -> None:
    dashed = name.replace("_", "-")
    assert given(f"replicate-{dashed}") == [[*PYTHON, "run", name]]
    assert given(f"plan-{dashed}", "EQUAL=compute") == [[*PYTHON, "plan", name, *EQUAL]]
    assert given(f"report-{dashed}", "SCALE=cpu") == [[*PYTHON, "report", name, "--scale", "cpu"]]


@pytest.mark.parametrize(
    ("options", "flags"),
    [
        (["SCALE=short", "METHODS=us_net s_net"], "--scale short --methods us_net s_net"),
        (["SEEDS=0 1", "SET=--workers 1 --device cpu"], "--seeds 0 1 --workers 1 --device cpu"),
        (["WORKERS=16", "DECODERS=8"], "--workers 16 --decoding-workers 8"),
        (["ENGINE=ray", "PART=2/4"], "--engine ray --part 2/4"),
        (["IMAGENET=hfds/a/b"], "--images hfds/a/b"),  # a data set of the hub is no folder
        (["GPUS=1"], ""),
    ],
)
def test_options_become_flags(options: list[str], flags: str) -> None:
    asked = [*PYTHON, "run", "imagenet_mbv2", *flags.split()]
    assert given("replicate-imagenet-mbv2", *options) == [asked]


def test_a_plan_is_measured_by_as_many_processes_as_will_train() -> None:
    asked = ["-m", "replications", "plan", "imagenet_mbv2", "--measure"]
    assert given("plan-imagenet-mbv2", "MEASURE=1") == [[PYTHON[0], *asked]]
    torchrun = [".venv/bin/torchrun", "--standalone", "--max-restarts", "3"]
    torchrun += ["--nproc-per-node", "8"]
    assert given("plan-imagenet-mbv2", "MEASURE=1", "GPUS=8") == [[*torchrun, *asked]]
    assert given("plan-imagenet-mbv2", "GPUS=8", MEASURE="1") == [[PYTHON[0], *asked[:-1]]]


@pytest.mark.parametrize("variable", ["IMAGENET", "DATA"])
def test_a_path_may_hold_blanks_and_quotes(tmp_path: Path, variable: str) -> None:
    folder = tmp_path / "my  images, Ann's"
    folder.mkdir()
    (command,) = given("replicate-imagenet-mbv2", f"{variable}={folder}")
    assert command[-2:] == ["--images", str(folder)]


def test_ones_own_images_network_and_size_become_flags(tmp_path: Path) -> None:
    place = ["--images", str(tmp_path)]
    options = ["NETWORK=lcnet_050", "SIZE=64", "DATA_NAME=pets"]
    flags = ["--data.name", "pets", "--network.name", "lcnet_050", "--data.image-size", "64"]
    asked = [*PYTHON, "run", "own", *place]
    for variable in ("IMAGES", "DATA"):
        assert given("replicate-own", f"{variable}={tmp_path}", *options) == [[*asked, *flags]]
    assert given("report-own", "NAME=own-pets") == [[*PYTHON, "report", "own-pets"]]


@pytest.mark.parametrize(
    ("goal", "flags"),
    [
        (["replicate-own", "SCALE=smoke"], ["run", "own", "--scale", "smoke"]),
        (["replicate-digits"], ["run", "digits"]),
        (["replicate-imagenet-mbv2", "SCALE=smoke"], ["run", "imagenet_mbv2", "--scale", "smoke"]),
        (["report-digits"], ["report", "digits"]),
    ],
)
def test_what_the_environment_holds_for_others_leaks_into_no_command(
    goal: list[str], flags: list[str], tmp_path: Path
) -> None:
    names = ("IMAGENET", "IMAGES", "NETWORK", "SIZE", "NAME", "DATA_NAME", "ENGINE", "PART")
    assert given(*goal, **dict.fromkeys(names, str(tmp_path))) == [[*PYTHON, *flags]]


def test_imagenet_in_the_environment_is_not_ones_own_images(tmp_path: Path) -> None:
    result = make("replicate-own", IMAGENET=str(tmp_path))
    assert result.returncode == 2
    assert "make replicate-own IMAGES=FOLDER" in result.stderr
    (command,) = given("replicate-own", IMAGENET="/no/where", IMAGES=str(tmp_path))
    assert command[-2:] == ["--images", str(tmp_path)]


def test_images_given_to_a_scale_that_has_its_own_are_told_so_that_they_are_refused(
    tmp_path: Path,
) -> None:
    (command,) = given("replicate-own", "SCALE=smoke", f"IMAGES={tmp_path}")
    assert command[-4:] == ["--scale", "smoke", "--images", str(tmp_path)]


@pytest.mark.parametrize(
    ("options", "launcher"),
    [
        (["GPUS=8"], ".venv/bin/torchrun --standalone --max-restarts 3 --nproc-per-node 8"),
        (["GPUS=8", "LAUNCH=srun torchrun --nnodes 2"], "srun torchrun --nnodes 2"),
    ],
)
def test_a_launcher_is_started_once_the_request_is_checked(
    options: list[str], launcher: str
) -> None:
    asked = ["-m", "replications", "run", "imagenet_mbv3", "--seeds", "1"]
    assert given("replicate-imagenet-mbv3", *options, "SEEDS=1") == [
        [PYTHON[0], *asked, "--check", "8"],
        [*launcher.split(), *asked],
    ]


def test_for_an_unknown_number_of_processes_nothing_is_checked_beforehand() -> None:
    """Their number may belong to the configuration: the launcher's processes check it."""
    launched = given("replicate-digits", "LAUNCH=srun torchrun --nnodes 2")
    assert launched == [
        ["srun", "torchrun", "--nnodes", "2", "-m", "replications", "run", "digits"]
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["replicate-imagenet-mbv4"], "unknown experiment imagenet-mbv4; known: cifar10"),
        (["report-imagenet-mbv4"], "unknown experiment imagenet-mbv4; known: cifar10"),
        (["replicate-imagenet-mbv2", "IMAGENET=/no/where"], "/no/where: no such folder"),
        (["replicate-own"], "make replicate-own IMAGES=FOLDER NETWORK=lcnet_050 SIZE=64"),
        (["replicate-own", "IMAGES=/no/where"], "/no/where: no such folder"),
        (["replicate-digits", "GPUS=0"], "GPUS must be a whole number of at least 1, got 0"),
        (["replicate-digits", "GPUS=abc"], "GPUS must be a whole number of at least 1, got abc"),
        (["report-own"], "say of which images: make report-own NAME=own-flowers"),
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
