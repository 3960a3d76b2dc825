"""The registry of experiments and scales, and every configuration that is shipped."""

import pytest

from pareco.config import Experiment
from replications.catalogue import experiment_named, experiment_names, scales_of

FIVE = {"pareco", "us_net", "s_net", "random_widths", "two_stage"}
SIZES = [(name, scale) for name in experiment_names() for scale in scales_of(name)]
IMAGENET = ("imagenet_mbv2", "imagenet_mbv2_memory", "imagenet_mbv3", "imagenet_resnet18")
CIFAR = [f"cifar{classes}_resnet{depth}" for classes in (10, 100) for depth in (20, 32, 44, 56)]


def test_the_experiments() -> None:
    assert set(experiment_names()) == {"digits", *IMAGENET, *CIFAR}


@pytest.mark.parametrize(("name", "scale"), SIZES)
def test_every_shipped_configuration_has_its_name_and_label(name: str, scale: str) -> None:
    experiment = experiment_named(name, scale)
    assert experiment.name == (name if scale == "paper" else f"{name}-{scale}")
    assert scale == "paper" or experiment.scale.startswith(f"{scale}: ")
    assert set(experiment.methods) >= FIVE


@pytest.mark.parametrize("name", experiment_names())
def test_every_experiment_has_the_four_scales(name: str) -> None:
    assert list(scales_of(name)) == ["paper", "short", "smoke", "cpu"]
    labels = [experiment_named(name, scale).scale for scale in scales_of(name)]
    assert len(set(labels)) == 4


@pytest.mark.parametrize("name", [*IMAGENET, *CIFAR])
def test_the_published_size_is_called_paper(name: str) -> None:
    assert experiment_named(name).scale == "paper"


def widths_visited(experiment: Experiment, images: int) -> float:
    """Return (images / batch size) x epochs / tau x M: the formula of the authors' readme."""
    training = experiment.training
    steps = images // training.batch_size * training.epochs
    return steps / training.ask_every_steps * training.sampled_per_step


@pytest.mark.parametrize(
    ("name", "images"),
    [*((name, 1_281_167) for name in IMAGENET), *((name, 50_000) for name in CIFAR)],
)
@pytest.mark.parametrize("scale", ["paper", "short"])
def test_about_1000_widths_are_visited(name: str, images: int, scale: str) -> None:
    assert widths_visited(experiment_named(name, scale), images) == pytest.approx(1000, rel=0.03)


def test_the_recipes_differ_where_the_paper_says_so() -> None:
    mbv2, mbv3, resnet = (experiment_named(name) for name in (IMAGENET[0], *IMAGENET[2:]))
    memory, cifar = experiment_named("imagenet_mbv2_memory"), experiment_named("cifar100_resnet56")
    assert (mbv2.data.crop_scale, mbv3.data.crop_scale, resnet.data.crop_scale) == (
        0.25,
        0.08,
        0.25,
    )
    assert (mbv2.training.epochs, resnet.training.epochs) == (250, 100)
    assert (memory.cost, mbv2.cost, memory.data) == ("peak_activations", "macs", mbv2.data)
    peak = cifar.training.lr_per_256 * cifar.training.batch_size / 256
    assert peak == pytest.approx(0.1)
    assert (cifar.data.name, cifar.network.name) == ("cifar100", "cifar_resnet56")


@pytest.mark.parametrize(
    ("name", "scale", "message"),
    [
        ("imagenet_mbv1", "paper", "unknown experiment 'imagenet_mbv1'. Did you mean 'imagenet_mb"),
        ("digits", "smok", "unknown scale 'smok'. Did you mean 'smoke'? Known: paper, short, smo"),
    ],
)
def test_unknown_names_are_refused_with_the_known_ones(name: str, scale: str, message: str) -> None:
    with pytest.raises(ValueError, match="Known: ") as refusal:
        experiment_named(name, scale)
    assert message in str(refusal.value)
