"""PareCO and a baseline on any folder of images, with defaults that scale with their number.

No number here is published; all are ours, for two CPU cores and images of 64 pixels (`fitted`,
`_sized`). Each is a flag.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from pareco.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    NetworkConfig,
    SearchConfig,
    TrainingConfig,
)
from replications import scales

if TYPE_CHECKING:
    from pareco.data.contents import Contents

_LEAST_OF_A_CLASS = 5


EXPERIMENT = Experiment(
    name="own",
    scale="own: 40 epochs of 1,000 images",
    network=NetworkConfig(name="lcnet_050", alpha_min=0.42),
    data=DataConfig(
        name="own",
        image_size=64,
        in_memory=False,
        train_images=1_000,
        search_split="holdout",
        search_images=250,
        test_images=250,
        central_crop=0.875,
        crop_scale=0.25,
        flip=True,
    ),
    training=TrainingConfig(
        epochs=40,
        batch_size=64,
        lr_per_256=0.4,
        warmup_epochs=2,
        weight_decay=1e-4,
        ask_every_steps=14,
    ),
    evaluation=EvaluationConfig(calibration_images=512, batch_size=64),
    search=SearchConfig(raw_samples=256, starts=2, iterations=15),
    methods=("pareco", "us_net"),
)
"""What `_sized` makes of 1,000 training images."""


def _power_of_two(number: float, least: int, most: int) -> int:
    """Return the greatest power of two of at most this number, within limits that are such."""
    return min(max(2 ** math.floor(math.log2(max(number, 1))), least), most)


def _sized(experiment: Experiment, images: int, scale: str) -> Experiment:
    """Return the experiment with the numbers that suit so many training images.

    An epoch has 8 steps or more, of 16 to 128 images. As many images are seen as the square root
    of their number asks for (epochs = 40 at 1,000 images, 13 at 10,000; 5 to 100), with a
    twentieth of the epochs for the warm-up. The search visits as many widths W, at most 1,000, as
    cost it W^2 / 4 forward passes when their losses are refreshed: a quarter of what the training
    takes, a step being four networks forward and backward, 12 forward passes. Batch norm is
    calibrated on the training images, at most 512.
    """
    batch = min(_power_of_two(images / 8, 16, 128), _power_of_two(images, 1, 128))
    epochs = round(min(max(40 * math.sqrt(1000 / images), 5), 100))
    steps = epochs * (images // batch)
    widths = min(math.sqrt(12 * steps), 1000)
    asked = experiment.training.sampled_per_step
    calibration = _power_of_two(images, 2, 64)
    return replace(
        experiment,
        scale=f"{scale}: {epochs} epochs of {images:,} images",
        data=replace(experiment.data, train_images=images),
        training=replace(
            experiment.training,
            epochs=epochs,
            batch_size=batch,
            warmup_epochs=epochs / 20,
            ask_every_steps=max(1, round(asked * steps / widths)),
        ),
        evaluation=EvaluationConfig(
            calibration_images=min(images, 512) // calibration * calibration,
            batch_size=calibration,
        ),
    )


def fitted(contents: Contents, name: str) -> Experiment:
    """Return the experiment for images of a user's, which are called `name`.

    Without test images of their own a fifth is held out for the test; a fifth of the others, at
    most 1,000, is held out for the search; each at least as many as there are classes. Raises
    `ValueError`, naming the class, where one has too few images.
    """
    least = min(contents.train_counts)
    if least < _LEAST_OF_A_CLASS:
        from pareco.data.pixels import printable

        scarce = contents.classes[contents.train_counts.index(least)]
        raise ValueError(
            f"--images: the class {printable(scarce)} has {least} training images, at least "
            f"{_LEAST_OF_A_CLASS} are needed (python -m replications data FOLDER shows all)"
        )
    classes, total = len(contents.classes), contents.train_images
    test = contents.test_images or max(classes, round(total / 5))
    rest = total if contents.test_images else total - test
    search = max(classes, min(round(rest / 5), 1000))
    data = replace(EXPERIMENT.data, name=name, search_images=search, test_images=test)
    return _sized(replace(EXPERIMENT, name=f"own-{name}", data=data), rest - search, "own")


def _short(experiment: Experiment) -> Experiment:
    return replace(scales.short(experiment), scale=f"short: 1/10 of {experiment.scale}")


def _cpu(experiment: Experiment) -> Experiment:
    """Return the experiment on at most 2,000 training images and 1,000 for the test.

    Or as many as for the search, if that is more: each class is among these.
    """
    data = experiment.data
    train, test = (max(most, data.search_images) for most in (2000, 1000))
    part = replace(experiment, data=replace(data, test_images=min(data.test_images or test, test)))
    return _sized(part, min(data.train_images or train, train), "cpu")


SCALES = {"short": _short, "cpu": _cpu}
