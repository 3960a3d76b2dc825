import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pareco.config import DATA_SETS, EMBEDDED, Machine, as_json, check_location
from pareco.data import loading
from tests.experiments import TINY


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        ("training", {"epochs": 0}, "epochs must be at least 1"),
        ("training", {"lr_per_256": 0.0}, "lr_per_256 must be positive"),
        ("training", {"lr_per_256": float("nan")}, "lr_per_256 must be positive"),
        ("training", {"lr_per_256": math.inf}, "lr_per_256 must be finite"),
        ("training", {"weight_decay": math.inf}, "weight_decay must be finite"),
        ("training", {"warmup_epochs": 2}, "warmup_epochs must be from 0 to below training.epochs"),
        ("training", {"label_smoothing": 1.0}, "label_smoothing"),
        ("training", {"momentum": 1.0}, "momentum"),
        ("training", {"weight_decay": -1.0}, "weight_decay"),
        ("training", {"sampled_per_step": -1}, "sampled_per_step"),
        ("training", {"cpu_threads": 0}, "cpu_threads"),
        ("data", {"image_size": 4}, "image_size"),
        ("data", {"search_images": 0}, "search_images"),
        ("data", {"test_images": 0}, "test_images"),
        ("data", {"crop_padding": -1}, "crop_padding"),
        ("data", {"split_seed": -1}, "split_seed must not be negative"),
        ("data", {"split_seed": 2**32}, r"split_seed must be below 2\^32"),
        ("evaluation", {"calibration_images": 150}, "multiple of evaluation.batch_size"),
        ("evaluation", {"batch_size": 1}, "batch_size"),
        ("search", {"trials": 0}, "^trials must"),
        ("search", {"beta": -0.1}, "^beta must"),
        *(
            ("search", {name: value}, f"^{name} must")
            for name in ("beta", "augmentation", "tolerance", "reference")
            for value in (math.nan, -math.inf)
        ),
        ("search", {"beta": math.inf}, "^beta must be finite"),
        ("search", {"reference": 1.0}, "^reference must be negative"),
        ("search", {"target_costs": "unifrom"}, "^target_costs must be one of area, uniform, None"),
        ("search", {"solver": "exakt"}, "^solver must be one of tchebyshev, exact, None, got 'ex"),
        ("search", {"initial_widths": 2.5}, "^initial_widths must be a whole number, got 2.5"),
        ("search", {"beta": True}, "^beta must be a number, got True"),
        ("network", {"granularity": "block"}, "^granularity must be one of network, stage, layer"),
        ("training", {"precision": "fp8"}, "^precision must be one of fp32, bf16, fp16, got 'fp8'"),
        ("training", {"batch_size": "64"}, "^batch_size must be a whole number, got '64'"),
        ("data", {"lighting": math.inf}, "^lighting must be finite"),
        ("data", {"mean": (math.nan,)}, "^mean and std must be finite"),
        ("training", {"nesterov": "no"}, "^nesterov must be True or False, got 'no'"),
        ("network", {"whole": "auto"}, "^whole must be a list, got 'auto'"),
        ("data", {"name": 3}, "^name must be a text, got 3"),
    ],
)
def test_a_bad_value_is_refused_by_the_name_of_its_field(
    part: str, change: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        replace(getattr(TINY, part), **change)


def test_numbers_of_numpy_become_pythons_and_lists_tuples() -> None:
    training = replace(TINY.training, epochs=np.int64(3), momentum=np.float32(0.5))
    seeds: Any = [np.int64(1), 2]
    changed = replace(TINY, training=training, seeds=seeds)
    assert changed.seeds == (1, 2)
    assert type(changed.training.epochs) is int
    assert '"training.momentum": 0.5' in json.dumps(as_json(changed))


def test_means_of_colours_from_0_to_1_are_refused_before_a_run() -> None:
    data = replace(TINY.data, mean=(0.5,), std=(0.2,))
    with pytest.raises(ValueError, match="as of colours from 0 to 1: multiply them by 255"):
        check_location(data, None)


def test_an_experiment_needs_methods_and_seeds() -> None:
    changes = ({"methods": ()}, {"seeds": ()}, {"seeds": (-1,)}, {"seeds": (2**63,)})
    for change in (*changes, {"reference_seeds": 0}):
        with pytest.raises(ValueError, match=next(iter(change))):
            replace(TINY, **change)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "again"),
    [({"methods": ("us_net", "pareco", "s_net", "us_net")}, "us_net"), ({"seeds": (3, 1, 3)}, "3")],
)
def test_what_is_named_twice_is_said(change: dict[str, Any], again: str) -> None:
    with pytest.raises(ValueError, match=rf"must name none twice, and they do {again}$"):
        replace(TINY, **change)


def test_losses_are_read_after_whole_steps() -> None:
    with pytest.raises(ValueError, match="read_every_steps must be at least 1"):
        Machine(read_every_steps=0)


def test_as_json_is_flat_and_plain() -> None:
    flat = as_json(TINY)
    assert flat["training.epochs"] == 2
    assert flat["methods"] == ["pareco", "us_net"]
    assert flat["network.base_width"] == 4
    assert not any(isinstance(value, (dict, tuple)) for value in flat.values())


def test_the_data_sets_that_a_configuration_may_name_are_those_that_can_be_loaded() -> None:
    assert set(DATA_SETS) == set(loading._DATA_SETS) == set(loading.KNOWN_SIZES)
    assert set(EMBEDDED) < set(DATA_SETS)


@pytest.mark.parametrize("name", ["flowers", "tiny-imagenet-50", "2024_v1.0"])
def test_images_of_ones_own_may_have_any_name_that_a_folder_may_have(name: str) -> None:
    data = replace(TINY.data, name=name)
    check_location(data, "a folder")
    with pytest.raises(ValueError, match=f"unknown data set '{name}'. .*your own needs --images"):
        check_location(data, None)


@pytest.mark.parametrize("name", ["", "a/b", "..", "-x", "two words", "\u82b1"])
def test_a_data_set_is_called_as_a_folder_can_be(name: str) -> None:
    with pytest.raises(ValueError, match=r"^data\.name must be letters"):
        replace(TINY.data, name=name)


def test_a_misspelt_data_set_is_told_the_nearest_known_one() -> None:
    with pytest.raises(ValueError, match=r"'digit'\. Did you mean 'digits'\? Known: digits,"):
        check_location(replace(TINY.data, name="digit"), None)
    with pytest.raises(ValueError, match="digits is embedded in scikit-learn: no --images"):
        check_location(TINY.data, "a folder")
    check_location(TINY.data, None)
