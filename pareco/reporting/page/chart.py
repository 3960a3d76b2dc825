"""What the interactive chart of an experiment shows, as plain data for JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from pareco.reporting.figures.error_vs_cost import band_of, joined_errors
from pareco.reporting.figures.style import MethodLook, method_looks
from pareco.reporting.records import AXES, COST_WORDS, Records

_DIGITS = 4


@dataclass(frozen=True)
class _Shape:
    """A marker: what Chart.js calls it, and its outline in a square from (-5, -5) to (5, 5)."""

    point: str
    outline: str
    rotation: int = 0
    stroked: bool = False


_SHAPES: Mapping[str, _Shape] = {
    "o": _Shape("circle", "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z"),
    "s": _Shape("rect", "M-3.5 -3.5H3.5V3.5H-3.5Z"),
    "D": _Shape("rectRot", "M0 -4.6L4.6 0L0 4.6L-4.6 0Z"),
    "^": _Shape("triangle", "M0 -4.4L4.2 3.4H-4.2Z"),
    "v": _Shape("triangle", "M0 4.4L-4.2 -3.4H4.2Z", rotation=180),
    "P": _Shape("cross", "M0 -4.5V4.5M-4.5 0H4.5", stroked=True),
    "X": _Shape("crossRot", "M-3.5 -3.5L3.5 3.5M-3.5 3.5L3.5 -3.5", stroked=True),
}


def chart_data(records: Records, focus: str) -> dict[str, Any]:
    """Networks, costs, and each method's line over each cost, for JSON.

    A line has the points of the figure's, see `joined_errors`: cost, mean, and the ends of the
    `band_of` the seeds (None without), where every seed has a value. The networks are columns; the
    method of each is its position in `methods`. The same records give the same data, in the same
    order.
    """
    experiment, fronts = records.experiment, records.fronts
    looks = method_looks(records, focus)
    costs = [name for name in AXES if name in experiment.full_costs]
    sizes = {name: COST_WORDS[name].unit_size for name in costs}
    fronts = fronts.assign(**{name: fronts[name] / sizes[name] for name in costs})
    positions = {method: index for index, method in enumerate(looks)}
    return {
        "objective": experiment.cost,
        "costs": {
            name: {
                **{part: getattr(COST_WORDS[name], part) for part in ("name", "axis", "unit")},
                "full": experiment.full_costs[name] / sizes[name],
                "full_text": COST_WORDS[name].amount(experiment.full_costs[name]),
            }
            for name in costs
        },
        "groups": [[group.name, group.maximum] for group in experiment.groups],
        "methods": [
            {**asdict(look), **asdict(_SHAPES[look.marker]), "dash": _dash(look)}
            for look in looks.values()
        ],
        "networks": {
            "method": [positions[method] for method in fronts["method"]],
            "seed": fronts["seed"].tolist(),
            "widths": fronts["widths"].tolist(),
            "top1": _numbers(fronts["test_top1_error"]),
            "top5": _numbers(fronts["test_top5_error"]),
            "loss": _numbers(fronts["search_loss"]),
            "costs": {cost: _numbers(fronts[cost]) for cost in costs},
        },
        "lines": {
            cost: [_line(fronts[fronts["method"] == method], cost) for method in looks]
            for cost in costs
        },
    }


def _line(front: pd.DataFrame, cost: str) -> list[list[float | None]]:
    known = joined_errors(front, cost).dropna(axis=1)
    points = zip(known.columns, known.mean(), *band_of(known), strict=True)
    return [
        [
            *_numbers(point[:2]),
            *(None if np.isnan(end) else _numbers([end])[0] for end in point[2:]),
        ]
        for point in points
    ]


def _dash(look: MethodLook) -> list[float]:
    """Lengths in pixels of a line's dashes and gaps; none for a solid line."""
    return [] if look.dashes == "-" else [round(part * look.width, 2) for part in look.dashes[1]]


def _numbers(values: Any) -> list[float | int]:
    """Numbers that take little room: whole ones without a point, others to four digits."""
    return [int(v) if float(v).is_integer() else round(float(v), _DIGITS) for v in values]
