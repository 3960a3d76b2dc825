"""The rows of a run's tables: what is written to front.csv and visits.csv."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pareco.cost import COSTS, CostModel
from pareco.evaluation import Measured
from pareco.methods import Visit
from pareco.widths import Widths

FRONT_COLUMNS = (
    *("experiment", "method", "seed", "widths", *COSTS, "search_loss"),
    *("test_top1_error", "test_top5_error", "calibration_images"),
)
_VISIT_NUMBERS = {
    "target_cost": ".1f",
    "predicted_loss": ".6f",
    "predicted_deviation": ".6f",
    "refreshed_loss": ".6f",
    "final_loss": ".6f",
}
VISIT_COLUMNS = (
    *("experiment", "method", "seed", "visit", "step", "origin", "widths", *COSTS),
    *_VISIT_NUMBERS,
)

Row = dict[str, Any]


def front_rows(
    run: Row,
    cost: CostModel,
    chosen: Sequence[tuple[Widths, float]],
    tests: Sequence[Measured],
    calibration_images: int,
) -> list[Row]:
    """Return a row for each network of a front: its widths, costs, search loss and test errors.

    `run` holds what the rows of a run share.
    """
    return [
        {
            **run,
            **_costs(cost, widths),
            "search_loss": f"{loss:.6f}",
            "test_top1_error": f"{test.top1_error:.4f}",
            "test_top5_error": f"{test.top5_error:.4f}",
            "calibration_images": calibration_images,
        }
        for (widths, loss), test in zip(chosen, tests, strict=True)
    ]


def visit_rows(run: Row, cost: CostModel, visits: Sequence[Visit], first: int) -> list[Row]:
    """Return a row for each visit, numbered from `first`; a number that is not there is empty."""
    return [
        {
            **run,
            "visit": first + index,
            "step": visit.step,
            "origin": visit.origin,
            **_costs(cost, visit.widths),
            **{
                name: format(value, shape)
                for name, shape in _VISIT_NUMBERS.items()
                if (value := getattr(visit, name)) is not None
            },
        }
        for index, visit in enumerate(visits)
    ]


def _costs(cost: CostModel, widths: Widths) -> Row:
    return {"widths": str(widths), **{name: int(cost.of(name, widths)) for name in COSTS}}
