"""Synthetic finished runs: three methods, two seeds, with a known trade-off.

MACs and parameters fall with the square of the widths, activations in proportion to them. One
method, pareco, searches.
"""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pareco.config import COSTS
from pareco.reporting.collection import collected_runs
from pareco.reporting.records import Records
from pareco.schema import FRONT_TYPES, VISIT_TYPES

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
SEARCHING = ("pareco",)
STEPS = range(20, 401, 20)
FULL = " ".join(str(maximum) for _, maximum in GROUPS)


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
    _write_metrics(folder, generator)
    _write_visits(folder, method, seed)
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
    measured = [loss, error, error / 10, loss + 0.02]
    return ["digits", method, seed, text, *costs, *measured, 512, loss - 0.05, loss]


def _write_metrics(folder: Path, generator: np.random.Generator) -> None:
    """Losses that fall with the steps, among lines without losses."""
    lines = []
    for step in STEPS:
        loss = float(np.exp(-step / 200) + generator.uniform(0, 0.05))
        numbers = {"loss_largest": loss, "loss_smallest": 2 * loss, "learning_rate": 0.1}
        lines += [{"step": step, **numbers}, {"step": step, "search_seconds": 0.5}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def _write_visits(folder: Path, method: str, seed: int) -> None:
    """Three uniform visits, the largest, and, from step 20 on, four of the GPs and a random one."""
    generator = np.random.default_rng([7, seed])
    with (folder / "visits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["experiment", *VISIT_TYPES])
        for visit in range(9 if method in SEARCHING else 0):
            share = 1.0 if visit == 3 else float(generator.uniform(0.2, 0.9))
            widths = " ".join(str(max(1, int(np.sqrt(share) * maximum))) for _, maximum in GROUPS)
            costs = [round(share * FULL_COSTS[cost]) for cost in COSTS]
            loss = 1.5 - share + float(generator.normal()) / 50
            predicted = [round(0.95 * costs[0], 1), loss + 0.01, 0.02]
            origin = "uniform" if visit < 3 else "largest" if visit == 3 else "model"
            if visit == 8:
                origin = "random"
            step = "" if visit < 4 else 20 * (visit - 3)
            told = predicted if origin == "model" else ["", "", ""]
            row = ["digits", method, seed, visit, step, origin, widths, *costs, *told]
            last = "" if visit == 8 else loss - 0.1
            writer.writerow([*row, loss, last, last, "" if origin == "uniform" else visit % 2])


def write_latency(runs: Path, *, leave_out: int = 0) -> Path:
    """`digits/latency.json`: 1 ms and 0.01 ms a channel; without `leave_out` of the networks."""
    fronts = [path.read_text() for path in sorted((runs / "digits").glob("*/*/front.csv"))]
    rows = [row for text in fronts for row in csv.DictReader(text.splitlines())]
    networks = sorted({row["widths"] for row in rows} | {FULL})
    times = {each: 1 + 0.01 * sum(map(int, each.split())) for each in networks[leave_out:]}
    conditions = {"device": "cpu", "cpu": "A processor", "gpus": [], "torch": "2.9.0"}
    sizes = {"cpu_threads": 2, "batch_size": 1, "image_size": 32}
    path = runs / "digits" / "latency.json"
    path.write_text(json.dumps({**conditions, **sizes, "milliseconds": times}))
    return path


def changed(path: Path, **changes: object) -> None:
    """Replace fields of the object in a JSON file."""
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


COUNTS_OF_CIFAR = {
    "classes": 10,
    "train_images": 45_000,
    "search_images": 5_000,
    "held_out_images": 5_000,
    "test_images": 10_000,
}
"""What a run on all of CIFAR-10 records of its images; without it, runs are old ones."""


def run_elsewhere(runs: Path) -> None:
    """Change the folders as a run on another machine does: times and hardware, no front."""
    for path in runs.glob("digits/*/*/result.json"):
        timing = {"seconds": 7.25, "images_per_second": None, "data_waiting_percent": None}
        changed(path, timing=timing, damaged_images=3)
        path.with_name("env.json").write_text(json.dumps([ENVIRONMENT | {"cpu": "Another"}]))
    latency = runs / "digits" / "latency.json"
    if latency.exists():
        times = json.loads(latency.read_text())["milliseconds"]
        twice = {widths: 2 * time for widths, time in times.items()}
        changed(latency, cpu="Another", milliseconds=twice)


def write_runs(runs: Path) -> Path:
    """The folder, with finished runs of `digits`: three methods, two seeds each."""
    for method in OFFSETS:
        for seed in (0, 1):
            write_run(runs, method, seed)
    return runs


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """The folder of `write_runs`, for a test to change."""
    return write_runs(tmp_path / "runs")


@pytest.fixture(scope="session")
def records(tmp_path_factory: pytest.TempPathFactory) -> Records:
    """The records of three methods with two seeds each, for tests that only read them."""
    folder = write_runs(tmp_path_factory.mktemp("runs"))
    write_latency(folder)
    return collected_runs("digits", folder)[0]
