"""The command that makes a result again: given back to the parser, it configures the same."""

import shlex
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pareco.arguments import chosen_command
from pareco.config import Experiment, as_json
from pareco.reporting.records import COMMON, Records
from replications.catalogue import experiment_named
from replications.reproducing import how_to_reproduce
from replications.run import FREE, RunCommand
from tests.reporting.claim_records import records_of

ROOT = Path(__file__).parent.parent.parent


def recorded(experiment: Experiment, *, configured: bool = True, **changes: Any) -> Records:
    """Return records of these runs, a network each, with the configuration or as earlier ones."""
    runs = {(m, s): [(300, 1.0)] for m in experiment.methods for s in experiment.seeds_of(m)}
    records = records_of(
        runs,
        experiment=experiment.name,
        network=experiment.network.name,
        data=experiment.data.name,
        scale=experiment.scale,
        equal_macs=experiment.training.macs,
        **changes,
    )
    common = as_json(experiment)
    return replace(records, configuration={COMMON: common} if configured else {})


def told(*arguments: str) -> Experiment:
    """Return what `run` with these arguments configures."""
    words = ["run", *arguments]
    commands = {"run": RunCommand.defaults(words, "run")}
    return chosen_command(commands, words, prog="x", description="y").configured()


def made_again(command: str, folder: Path) -> Experiment:
    """Return what a printed command configures; `make` is asked what it would do."""
    command = command.partition("  # ")[0].replace("FOLDER", str(folder))
    if command.startswith("make"):
        words = ["make", "-n", "-o", ".venv/.installed", *shlex.split(command)[1:]]
        said = subprocess.run(words, cwd=ROOT, check=True, capture_output=True, text=True).stdout
        (command,) = [line for line in said.splitlines() if " -m replications run " in line]
    words = shlex.split(command)
    return told(*words[words.index("run") + 1 :])


@pytest.mark.parametrize(
    "arguments",
    [
        "digits",
        "digits --training.epochs 3 --training.lr-per-256 0.3 --training.no-tf32",
        "digits --seeds 7 8 --methods pareco us_net --search.half-life 0.5",
        "digits --scale smoke --training.epochs 3",
        "digits --name digits-long-fast --data.mean 71.5 --network.whole conv1 bn1",
        "digits --name longer --scale smoke --training.no-nesterov",
        "digits --name digits-computed --training.macs 7000000 --equal compute",
        "digits_latency --cost macs --name digits_latency-by-macs",
        "cifar10_vgg --scale cpu --data.name flowers --equal compute --training.macs 76010899",
        "cifar10_vgg --scale cpu --data.name flowers --name cifar10_vgg-it --data.train-images 90",
        "cifar100_resnet20 --network.granularity stage --data.name cifar100",
        "imagenet_mbv2 --scale fast --training.batch-size 512",
        "digits --name digits-alone --methods independent --training.alone '2 8 3' '4 9 6'",
        "digits --methods independent --training.alone '2 8 3' '4 9 6'",
    ],
)
def test_a_command_configures_what_the_records_are_of(
    arguments: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RunCommand, "_settled", lambda self: self.experiment)  # no file is read
    experiment = told(*shlex.split(arguments))
    command = how_to_reproduce(recorded(experiment))
    again = made_again(command, tmp_path)
    assert (again.name, again.scale) == (experiment.name, experiment.scale), command
    assert as_json(again) == as_json(experiment), command
    assert "# " not in command


def test_the_default_needs_no_flag() -> None:
    digits = told("digits")
    assert how_to_reproduce(recorded(digits)) == "make replicate-digits"
    vgg = replace(told("cifar10_vgg", "--scale", "cpu", "--data.name", "flowers"), seeds=(100,))
    command = "make replicate-cifar10-vgg SCALE=cpu DATA=FOLDER DATA_NAME=flowers"
    assert how_to_reproduce(recorded(vgg)) == f'{command} SEEDS="100"'


def test_what_no_flag_says_is_a_comment() -> None:
    digits = told("digits", "--training.epochs", "3")
    weights = recorded(digits, started_from="a file")
    assert how_to_reproduce(weights).endswith(
        "  # with --network.weights FILE, or --network.pretrained"
    )
    processes = replace(digits, scale=f"{digits.scale}; batch norm in each of 2 processes")
    assert how_to_reproduce(recorded(processes)).endswith("  # in 2 processes")
    mine = replace(digits, methods=("us_net", "halves"))
    command = how_to_reproduce(recorded(mine))
    assert 'METHODS="us_net halves"' in command
    assert command.endswith("  # with the file of your own method in place of halves")


def test_earlier_records_say_in_words_what_is_changed() -> None:
    changed = told("digits", "--training.epochs", "3", "--name", "digits-it")
    command = how_to_reproduce(recorded(changed, configured=False))
    assert (
        command
        == "python -m replications run digits --name digits-it  # changed: training.epochs 3"
    )
    other = replace(changed, name="longer")
    command = how_to_reproduce(recorded(other, configured=False))
    assert command.startswith("python -m replications run EXPERIMENT --name longer  # changed")


def test_of_own_images_name_network_and_size_are_said() -> None:
    own = replace(told("digits"), name="own-flowers-cpu", scale="cpu")
    own = replace(own, data=replace(experiment_named("cifar10_vgg").data, name="flowers"))
    command = "make replicate-own IMAGES=FOLDER DATA_NAME=flowers NETWORK=cifar_vgg11 SIZE=32"
    assert how_to_reproduce(recorded(own, image_size=32)) == f"{command} SCALE=cpu"
    longer = replace(own, name="own-flowers-long-cpu", scale="cpu, changed: training.epochs 3")
    assert how_to_reproduce(recorded(longer, image_size=32)) == (
        f'{command} SCALE=cpu SET="--name own-flowers-long"  # changed: training.epochs 3'
    )


def test_every_field_of_the_scale_line_is_compared() -> None:
    """So a field that is free there is one that the command has in other words."""
    free = {name for name in as_json(told("digits")) if name in FREE}
    assert free == {
        *("name", "scale", "methods", "seeds", "reference_methods", "reference_seeds"),
        *("training.macs", "latency_from", "network.pretrained", "network.started_from"),
        "network.order_channels",
    }
