"""Synthetic finished runs: three methods, two seeds, with a known trade-off.

MACs and parameters fall with the square of the widths, activations in proportion to them.
"""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareco.cost import COSTS
from pareco.reporting.records import FRONT_TYPES

GROUPS = [("stem", 16), ("layer1.0", 16), ("layer2.0", 32), ("layer2.1", 32), ("layer3.0", 64)]
FULL_COSTS = {
    "macs": 4_120_000,
    "params": 272_000,
    "activations": 62_500,
    "peak_activations": 8_200,
}
ENVIRONMENT = {
    "commit": "0123abc",
    "dirty": False,
    "python": "3.12.1",
    "packages": {"torch": "2.9.0"},
    "cpu": "A processor",
    "gpus": [],
    "device": "cpu",
    "processes": 1,
    "data_fingerprint": "abc",
}
OFFSETS = {"uniform": 2.0, "pareco": 0.0, "random": 1.1}


def write_run(
    runs: Path, method: str, seed: int, *, finished: bool = True, count: int = 10, **changes: Any
) -> Path:
    """The folder of a run with `count` networks; `changes` replace fields of its result.json."""
    folder = runs / "digits" / method / f"seed{seed}"
    folder.mkdir(parents=True)
    generator = np.random.default_rng([seed, *method.encode()])
    result = {
        "experiment": "digits",
        "method": method,
        "seed": seed,
        "network": "resnet8",
        "data": "cifar10",
        "image_size": 32,
        "scale": "paper",
        "cost": "macs",
        "full_costs": FULL_COSTS,
        "groups": [{"name": name, "maximum": maximum} for name, maximum in GROUPS],
        "budget": {
            "gradient_steps": 400,
            "passes": 1600,
            "search_evaluations": 120 + seed,
            "widths_visited": 96,
        },
        "budget_exempt": False,
        "timing": {
            "seconds": 31.5 + seed,
            "images_per_second": 812.0,
            "data_waiting_percent": 1.5,
        },
        "damaged_images": 0,
    } | changes
    (folder / "result.json").write_text(json.dumps(result))
    config = {"method": method, "seed": seed, "training.epochs": 3}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "env.json").write_text(json.dumps([ENVIRONMENT]))
    with (folder / "front.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(FRONT_TYPES)
        for fraction in np.append(np.sort(generator.uniform(0.2, 0.97, count - 2)), 1.0).tolist():
            writer.writerow(_row(method, seed, fraction, generator))
        writer.writerow(_row(method, seed, 0.18, generator))
    if finished:
        (folder / "DONE").touch()
    return folder


def _row(method: str, seed: int, fraction: float, generator: np.random.Generator) -> list[Any]:
    error = (
        3 + OFFSETS.get(method, 3.0) + 9 * np.exp(-4 * (fraction - 0.18)) + generator.normal() / 3
    )
    multipliers = np.clip(np.sqrt(fraction) + generator.normal(0, 0.1, len(GROUPS)), 0.2, 1)
    full = fraction == 1.0
    widths = [
        m if full else max(1, int(a * m)) for a, (_, m) in zip(multipliers, GROUPS, strict=True)
    ]
    by_area, by_channels = fraction, np.sqrt(fraction)
    shares = dict(zip(COSTS, (by_area, by_area, by_channels, by_channels), strict=True))
    costs = [round(share * FULL_COSTS[cost]) for cost, share in shares.items()]
    loss = 0.1 + error / 30 + generator.normal() / 200
    text = " ".join(map(str, widths))
    return ["digits", method, seed, text, *costs, loss, error, error / 10, 512]


@pytest.fixture(name="write_run")
def write_run_fixture() -> Callable[..., Path]:
    """`write_run`, for the tests that add runs of their own."""
    return write_run


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """A folder of runs of `digits`: three methods, two seeds each, all finished."""
    for method in OFFSETS:
        for seed in (0, 1):
            write_run(tmp_path / "runs", method, seed)
    return tmp_path / "runs"
