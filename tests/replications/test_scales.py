"""The scales, by hand-worked numbers."""

from dataclasses import replace

import pytest

from pareco.config import Experiment
from replications.catalogue import experiment_named, experiment_names, scales_of
from replications.scales import on_cpu, paper, short, smoke
from tests.experiments import TINY

MBV2 = experiment_named("imagenet_mbv2")


def test_paper_changes_nothing() -> None:
    assert paper(MBV2) is MBV2


def test_short_is_a_tenth_with_as_many_requests_for_widths() -> None:
    scaled = short(MBV2)
    assert scaled.name == "imagenet_mbv2-short"
    assert scaled.scale == "short: 1/10 of the published epochs"
    training = scaled.training
    assert (training.epochs, training.warmup_epochs, training.ask_every_steps) == (25, 0.5, 62)
    kept = replace(
        scaled, name=MBV2.name, scale=MBV2.scale, training=replace(MBV2.training, epochs=250)
    )
    assert kept == MBV2


def test_short_of_very_few_epochs_still_trains_and_warms_up() -> None:
    training = short(TINY).training  # 2 epochs, 1 of warm-up, ask every 2 steps: half of each
    assert (training.epochs, training.warmup_epochs, training.ask_every_steps) == (1, 0.5, 1)


def test_smoke_is_the_real_network_on_embedded_images() -> None:
    scaled = smoke(replace(MBV2, seeds=(4, 5)))
    assert (scaled.network, scaled.methods, scaled.cost) == (MBV2.network, MBV2.methods, MBV2.cost)
    assert (scaled.data.name, scaled.data.image_size, scaled.data.in_memory) == (
        "digits_rgb",
        32,
        True,
    )
    assert (scaled.data.crop_scale, scaled.data.colour_jitter, scaled.data.lighting) == (None, 0, 0)
    assert scaled.seeds == (4,)
    steps = scaled.training.epochs * (320 // scaled.training.batch_size)
    asks = steps // scaled.training.ask_every_steps
    assert (steps, asks * scaled.training.sampled_per_step) == (20, 20)
    assert scaled.search.initial_widths + 1 < 20  # so that the search's models are used


@pytest.mark.parametrize("name", experiment_names())
@pytest.mark.parametrize("scale", ["smoke", "cpu"])
def test_small_scales_leave_room_for_every_split(name: str, scale: str) -> None:
    experiment = experiment_named(name, scale)
    data, calibrated = experiment.data, experiment.evaluation.calibration_images
    assert data.train_images is not None
    assert data.test_images is not None
    assert max(calibrated, experiment.training.batch_size) <= data.train_images
    if data.search_split == "batch":
        assert data.search_images < data.train_images
    if scale == "smoke":
        held_out = data.search_images if data.search_split == "holdout" else 0
        assert data.train_images + data.test_images + held_out <= 1797


def test_cpu_takes_its_numbers_and_keeps_the_recipe() -> None:
    scale = on_cpu(image_size=64, train_images=5_000, epochs=4, ask_every_steps=10)
    scaled = scale(MBV2)
    assert scaled.name == "imagenet_mbv2-cpu"
    assert scaled.scale == "cpu: 4 epochs of 5,000 images, 64 x 64"
    assert (scaled.data.image_size, scaled.data.train_images) == (64, 5_000)
    assert (scaled.data.crop_scale, scaled.data.colour_jitter) == (0.25, 0.4)
    assert scaled.training.warmup_epochs == 0.5
    assert scaled.training.lr_per_256 == MBV2.training.lr_per_256
    assert scaled.seeds == (0,)


@pytest.mark.parametrize("name", experiment_names())
def test_no_scale_touches_network_methods_or_objective(name: str) -> None:
    def kept(experiment: Experiment) -> tuple[object, ...]:
        return experiment.network, experiment.methods, experiment.cost

    for scale in scales_of(name):
        assert kept(experiment_named(name, scale)) == kept(experiment_named(name))
