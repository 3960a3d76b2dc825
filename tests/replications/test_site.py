"""The command that makes a result again, as the page and W&B's report say it."""

import pytest

from replications.site import how_to_reproduce
from tests.reporting.claim_records import records_of

IMAGES = "DATA=FOLDER DATA_NAME=cifar10-jpeg"
OF_FLAGS = "python -m replications run cifar10_vgg --scale cpu --name cifar10_vgg-it-cpu"
OF_FLAGS = f"{OF_FLAGS} --images FOLDER --data.name cifar10-jpeg"
DATA = "changed: data.name cifar10-jpeg"


@pytest.mark.parametrize(
    ("name", "scale", "command"),
    [
        ("cifar10_vgg-cpu", "cpu", f"make replicate-cifar10-vgg SCALE=cpu {IMAGES}"),
        (
            "cifar10_vgg-compute-cpu",
            "cpu, equal compute: 7,601 MACs before the test",
            f"make replicate-cifar10-vgg EQUAL=compute SCALE=cpu {IMAGES}",
        ),
        (
            "cifar10_vgg-it-cpu",
            f"cpu: 15 epochs, 1/8 of the channels, {DATA}, training.epochs 3, from given weights",
            f"{OF_FLAGS} --training.epochs 3",
        ),
        (
            "cifar10_vgg-it-compute-cpu",
            f"cpu, {DATA}, network.granularity stage, equal compute: 7,601 MACs before the test",
            f"{OF_FLAGS} --equal compute --network.granularity stage",
        ),
        (
            "cifar10_vgg-it-cpu",
            f"cpu, {DATA}, training.nesterov False, search.warm True, network.whole ['a', 'b']"
            "; batch norm in each of 2 processes",
            f"{OF_FLAGS} --training.no-nesterov --search.warm",
        ),
    ],
)
def test_a_result_says_what_makes_it_again(name: str, scale: str, command: str) -> None:
    macs = 7_601 if "compute" in name else None
    record = records_of(
        {("us_net", 0): [(300, 1.0)]},
        experiment=name,
        data="cifar10-jpeg",
        scale=scale,
        equal_macs=macs,
    ).experiment
    assert how_to_reproduce(record) == command


def test_a_name_that_begins_as_no_experiment_leaves_it_to_the_reader() -> None:
    record = records_of({("us_net", 0): [(300, 1.0)]}, experiment="longer", data="digits")
    command = "python -m replications run EXPERIMENT --name longer"
    assert how_to_reproduce(record.experiment) == command
