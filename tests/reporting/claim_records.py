"""Records of a few networks, small enough to work their claims out by hand."""

from collections.abc import Iterable, Mapping
from math import nan
from typing import Any

import pandas as pd

from pareco.config import COSTS
from pareco.reporting.records import ExperimentRecord, Records
from pareco.schema import CURVE_TYPES, VISIT_TYPES, GroupSize
from tests.reporting.conftest import ENVIRONMENT

FULL = 1000
Front = Iterable[tuple[int, float]]
"""Cost and error of each network; the search loss is a tenth of the error."""


def records_of(
    fronts: Mapping[tuple[str, int], Front],
    *,
    steps: Mapping[str, int] | int = 400,
    environment: Mapping[str, Any] = ENVIRONMENT,
    **changes: Any,
) -> Records:
    """Return records with these fronts by method and seed; every cost of the full network is FULL.

    `steps` are the gradient steps, of all or by method, else 400, with four passes each; `changes`
    are fields of the experiment.
    """
    fields: dict[str, Any] = {
        "experiment": "digits",
        "network": "resnet8",
        "data": "cifar10",
        "image_size": 32,
        "scale": "paper",
        "cost": "macs",
        "full_costs": dict.fromkeys(COSTS, FULL),
        "groups": (GroupSize(name="stem", maximum=FULL),),
    }
    fields |= changes
    rows = [
        {
            "experiment": fields["experiment"],
            "method": method,
            "seed": seed,
            "widths": str(cost),
            **dict.fromkeys(COSTS, cost),
            "search_loss": error / 10,
            "test_top1_error": error,
            "test_top5_error": error / 9,
            "test_loss": nan,
            "calibration_images": 512,
            "training_loss": nan,
            "held_out_loss": nan,
            "gradient_steps": spent,
            "passes": 4 * spent,
            "search_evaluations": 1234,
            "widths_visited": 96,
        }
        for (method, seed), front in fronts.items()
        for spent in [steps if isinstance(steps, int) else steps.get(method, 400)]
        for cost, error in front
    ]
    run = {"sessions": [0], "seconds": 1.0, "images_per_second": 1.0, "damaged_images": 0}
    runs: dict[str, Any] = {}
    for method, seed in fronts:
        runs.setdefault(method, {})[f"seed{seed}"] = {**run, "data_waiting_percent": 0.0}
    return Records(
        experiment=ExperimentRecord(**fields),
        fronts=pd.DataFrame(rows),
        curves=pd.DataFrame(columns=list(CURVE_TYPES)),
        visits=pd.DataFrame(columns=list(VISIT_TYPES)),
        environment={"environments": [dict(environment)], "runs": runs},
    )
