"""Sections over synthetic runs, for the tests of the page's text and of the page in a browser."""

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from pareco.reporting.claims import Verdict
from pareco.reporting.page import Section
from pareco.reporting.records import ExperimentRecord, Records, with_latency
from pareco.reporting.summary import SummaryRow
from pareco.reporting.tables import experiment_tables
from pareco.schema import GroupSize

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
}
METHODS = ("pareco", "random", "uniform")
HOSTILE = '</script><img src=x onerror="window.broken=1">&\'\u2028<!--'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40"><path d="M0 0\nL9 9"/></svg>'
CLAIM = Verdict(
    id="layers",
    statement="Widths per layer give the better trade-off",
    source="slides, page 3",
    experiments=("digits", "elsewhere"),
    about="the paper",
    why="Noise of the test images",
    outcome="not run at that scale",
    ours="0.7 points",
    evidence="three seeds of digits",
)
ABSENT = SummaryRow(experiment="elsewhere", scale="paper", subject="resnet8 on imagenet, 224 px")
RAN = SummaryRow(
    experiment="digits",
    scale="paper",
    subject="resnet8 on cifar10, 32 px",
    runs="3 methods, 2 seeds",
    outcome="area: pareco 5.00, place 1 of 3",
    machine="A processor",
    folder="digits",
)


def records_of(*, count: int = 10, scale: str = "paper") -> Records:
    """The records of three methods with two seeds each and `count` networks in every run."""
    fronts = pd.DataFrame(
        _network(method, seed, index / (count - 1))
        for method in METHODS
        for seed in (0, 1)
        for index in range(count)
    )
    run = {
        "sessions": [0],
        "seconds": 31.5,
        "images_per_second": 812.0,
        "data_waiting_percent": 1.5,
        "damaged_images": 0,
    }
    return Records(
        experiment=ExperimentRecord(
            experiment="digits",
            network="resnet8",
            data="cifar10",
            image_size=32,
            scale=scale,
            cost="macs",
            full_costs=FULL_COSTS,
            groups=tuple(GroupSize(name=name, maximum=maximum) for name, maximum in GROUPS),
        ),
        fronts=fronts,
        curves=pd.DataFrame(),
        visits=pd.DataFrame(),
        environment={
            "environments": [ENVIRONMENT],
            "runs": {method: {"seed0": run, "seed1": run} for method in METHODS},
        },
    )


def _network(method: str, seed: int, share: float) -> dict[str, Any]:
    """A row of the fronts; its costs grow and its error falls with `share`, from 0 to 1."""
    rank = METHODS.index(method)
    jitter = np.random.default_rng([rank, seed, round(1e6 * share)]).uniform(-0.1, 0.1, len(GROUPS))
    multipliers = np.clip(0.4 + 0.6 * share + jitter * (share < 1), 0.3, 1)
    widths = [int(m * each) for m, (_, each) in zip(multipliers, GROUPS, strict=True)]
    part = sum(widths) / sum(maximum for _, maximum in GROUPS)
    powers = {"macs": 2, "params": 1.8, "activations": 1, "peak_activations": 1}
    error = 14 - 9 * part + 1.1 * rank + 0.3 * seed + jitter[0]
    return {
        "experiment": "digits",
        "method": method,
        "seed": seed,
        "widths": " ".join(map(str, widths)),
        **{cost: round(FULL_COSTS[cost] * part**power) for cost, power in powers.items()},
        "search_loss": error / 30,
        "test_top1_error": error,
        "test_top5_error": error / 10,
        "calibration_images": 512,
        "gradient_steps": 400,
        "passes": 1600,
        "search_evaluations": 120,
        "widths_visited": 96,
    }


def measured(records: Records) -> Records:
    """The records with a latency of 2 ms for the full network and less for narrower ones."""
    full = sum(group.maximum for group in records.experiment.groups)
    widths = [
        *records.fronts["widths"],
        " ".join(str(g.maximum) for g in records.experiment.groups),
    ]
    times = {each: 1 + sum(map(int, each.split())) / full for each in widths}
    conditions = {"device": "cpu", "cpu": "A processor", "gpus": [], "cpu_threads": 2}
    return with_latency(records, {**conditions, "batch_size": 1, "milliseconds": times})


def renamed(records: Records, name: str) -> Records:
    """The records with `name` as experiment, network, first group, first method and commit."""
    experiment = records.experiment
    first, *groups = experiment.groups
    changed = replace(
        experiment, experiment=name, network=name, groups=(replace(first, name=name), *groups)
    )
    fronts = records.fronts.replace({"method": {"pareco": name}})
    runs = {
        name if key == "pareco" else key: run for key, run in records.environment["runs"].items()
    }
    environments = [{**each, "commit": name} for each in records.environment["environments"]]
    environment = {"environments": environments, "runs": runs}
    return replace(records, experiment=changed, fronts=fronts, environment=environment)


def section_of(records: Records) -> Section:
    """The page's section of some records, with one figure."""
    published = pd.DataFrame(columns=["method", "source", "macs_millions", "top1_error"])
    return Section(
        records=records,
        tables=experiment_tables(records, published, "pareco"),
        figures={"error_vs_flops": SVG},
        how=f"make replicate-{records.experiment.experiment}",
    )
