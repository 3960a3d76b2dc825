"""A tiny experiment that goes through every part of the pipeline in seconds."""

from collections.abc import Iterable
from typing import Any

import pytest

from pareco.config import (
    DataConfig,
    EvaluationConfig,
    Experiment,
    NetworkConfig,
    SearchConfig,
    TrainingConfig,
)

TINY = Experiment(
    name="tiny",
    network=NetworkConfig(name="cifar_resnet8", base_width=4),
    data=DataConfig(
        name="digits",
        image_size=8,
        search_split="holdout",
        search_images=100,
        test_images=997,
        mean=(73.0,),
        std=(90.0,),
        crop_padding=1,
        crop_padding_mode="replicate",
    ),
    training=TrainingConfig(
        epochs=2,
        batch_size=100,
        lr_per_256=0.4,
        warmup_epochs=1,
        ask_every_steps=2,
    ),
    evaluation=EvaluationConfig(calibration_images=200, batch_size=100),
    search=SearchConfig(initial_widths=4, raw_samples=16, starts=1, iterations=5),
    methods=("pareco", "us_net"),
)


def quick(values: Iterable[Any], *chosen: Any) -> list[Any]:
    """Return the parameters of a test, of which all but the chosen ones are slow."""
    known = list(values)
    assert all(each in known for each in chosen)
    return [
        each if each in chosen else pytest.param(each, marks=pytest.mark.slow) for each in known
    ]
