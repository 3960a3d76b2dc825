"""The sizes at which any experiment can be run: the published one, and honest smaller ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from pareco.config import DataConfig, EvaluationConfig, Experiment

Scale = Callable[[Experiment], Experiment]


_FAST_FROM = 16  # channels of the first stage that are slimmed in multiples of 8
HELD_OUT = ", searched on held-out images"
"""What a scale says where the published experiment searches on training images."""


def held_out(experiment: Experiment) -> Experiment:
    """Return the experiment with its search images held out of the training images.

    The paper's search, and its choice of the front, see images that the networks train on.
    """
    if experiment.data.search_split == "holdout":
        return experiment
    return replace(
        experiment,
        scale=f"{experiment.scale}{HELD_OUT}",
        data=replace(experiment.data, search_split="holdout"),
    )


def short(experiment: Experiment) -> Experiment:
    """Return the experiment with a tenth of the epochs, its search images held out.

    The warm-up shrinks in proportion, the steps between two requests for widths as the square root:
    refreshing W visits as they grow takes W^2, so the search keeps its share of what training
    takes, with a third of the visits.
    """
    training = experiment.training
    epochs = max(1, round(training.epochs / 10))
    kept = epochs / training.epochs
    return held_out(
        replace(
            experiment,
            scale="short: 1/10 of the published epochs",
            training=replace(
                training,
                epochs=epochs,
                warmup_epochs=training.warmup_epochs * kept,
                ask_every_steps=max(1, round(training.ask_every_steps * math.sqrt(kept))),
            ),
        )
    )


def fast(experiment: Experiment) -> Experiment:
    """Return the published experiment in the arithmetic that GPUs are fast at.

    Bfloat16, the channel last in memory, and channel counts in multiples of 8, unless the network
    is too narrow to have a choice of them; all else stays.
    """
    network = experiment.network
    narrow = (network.base_width or _FAST_FROM) < _FAST_FROM
    return replace(
        experiment,
        scale="fast: bf16" + ("" if narrow else ", channel counts in multiples of 8"),
        network=network if narrow else replace(network, divisor=8),
        training=replace(experiment.training, precision="bf16", channels_last=True),
    )


def smoke(experiment: Experiment) -> Experiment:
    """Return the experiment's network and methods on a few embedded images, for a few steps.

    It shows that everything runs; its numbers mean nothing. The data are scikit-learn's
    handwritten digits in three channels, at most 32 x 32; 20 steps visit 20 widths, of which 7
    precede the search's models, and the search looks less hard for its minima.
    """
    data, training = experiment.data, experiment.training
    return replace(
        experiment,
        scale="smoke: 2 epochs of 320 handwritten digits",
        data=DataConfig(
            name="digits_rgb",
            image_size=min(data.image_size, 32),
            mean=(73.0, 73.0, 73.0),
            std=(90.0, 90.0, 90.0),
            train_images=320,
            search_split="holdout",
            search_images=128,
            test_images=256,
            split_seed=data.split_seed,
        ),
        training=replace(training, epochs=2, batch_size=32, warmup_epochs=0.5, ask_every_steps=2),
        evaluation=EvaluationConfig(calibration_images=128, batch_size=64),
        search=replace(
            experiment.search, initial_widths=6, trials=4, raw_samples=64, starts=1, iterations=10
        ),
        seeds=experiment.seeds[:1],
    )


def narrowed(scale: Scale, base_width: int, part: str, **training: Any) -> Scale:
    """Return the scale, its images held out, with this `part` of the channels, which its line says.

    And with these fields of the training.
    """

    def of(experiment: Experiment) -> Experiment:
        made = scale(experiment)
        return replace(
            made,
            scale=f"{made.scale.removesuffix(HELD_OUT)}, {part} of the channels{HELD_OUT}",
            network=replace(made.network, base_width=base_width),
            training=replace(made.training, **training),
        )

    return of


def on_cpu(
    *,
    image_size: int,
    train_images: int,
    epochs: int,
    ask_every_steps: int,
    batch_size: int = 64,
    warmup_epochs: float = 0.5,
    search_images: int = 1_000,
    test_images: int = 2_500,
    calibration_images: int = 512,
    seeds: int = 1,
) -> Scale:
    """Return the scale that shrinks an experiment on its own data to these numbers.

    Network, augmentation, weight decay and the learning rate for 256 images stay; the search looks
    less hard for its minima, on images held out beside those to train on. (1,000 of them hold each
    of ImageNet's classes.)
    """

    passes = "1 epoch" if epochs == 1 else f"{epochs} epochs"

    def cpu(experiment: Experiment) -> Experiment:
        data = experiment.data
        smaller = replace(
            experiment,
            scale=f"cpu: {passes} of {train_images:,} images, {image_size} x {image_size}",
            data=replace(
                data,
                image_size=image_size,
                crop_padding=round(data.crop_padding * image_size / data.image_size),
                train_images=train_images,
                search_images=search_images,
                test_images=test_images,
            ),
            training=replace(
                experiment.training,
                epochs=epochs,
                batch_size=batch_size,
                warmup_epochs=warmup_epochs,
                ask_every_steps=ask_every_steps,
            ),
            evaluation=EvaluationConfig(calibration_images=calibration_images, batch_size=128),
            search=replace(experiment.search, raw_samples=256, starts=2, iterations=15),
            seeds=experiment.seeds[:seeds],
        )
        return held_out(smaller)

    return cpu


PUBLISHED = "paper"
FAST = "fast"
SCALES: dict[str, Scale] = {
    PUBLISHED: lambda published: published,
    FAST: fast,
    "short": short,
    "smoke": smoke,
}
