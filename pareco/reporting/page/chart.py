"""What the interactive chart of an experiment shows, as plain data for JSON."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.colors import to_hex

from pareco.reporting.figures.style import looks
from pareco.reporting.records import AXES, COST_WORDS, ExperimentRecord, Records
from pareco.reporting.statistics import budget_marks, method_order, seed_errors

_DIGITS = 4
_AXIS_NAMES = {
    "macs": "FLOPs (MACs)",
    "activations": "Memory, all activations",
    "peak_activations": "Memory, peak activations",
}


@dataclass(frozen=True)
class Shape:
    """A marker: what Chart.js calls it, and its outline in a square from (-5, -5) to (5, 5)."""

    point: str
    outline: str
    rotation: int = 0
    stroked: bool = False


_SHAPES: Mapping[str, Shape] = {
    "o": Shape("circle", "M-4 0A4 4 0 1 0 4 0A4 4 0 1 0 -4 0Z"),
    "s": Shape("rect", "M-3.5 -3.5H3.5V3.5H-3.5Z"),
    "D": Shape("rectRot", "M0 -4.6L4.6 0L0 4.6L-4.6 0Z"),
    "^": Shape("triangle", "M0 -4.4L4.2 3.4H-4.2Z"),
    "v": Shape("triangle", "M0 4.4L-4.2 -3.4H4.2Z", rotation=180),
    "P": Shape("cross", "M0 -4.5V4.5M-4.5 0H4.5", stroked=True),
    "X": Shape("crossRot", "M-3.5 -3.5L3.5 3.5M-3.5 3.5L3.5 -3.5", stroked=True),
}


@dataclass(frozen=True, kw_only=True)
class MethodLook:
    """How the chart and its legend show a method."""

    label: str
    """The name with the mark of another training budget, if it has one."""

    seeds: int
    color: str
    dash: tuple[float, ...]
    """Lengths in pixels of dashes and gaps; empty for a solid line."""

    width: float
    shape: Shape


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A cost that the chart can have as its axis."""

    name: str
    label: str
    chosen: bool
    reason: str = ""
    """Why it cannot be chosen; empty where it can."""


def method_looks(records: Records, focus: str) -> dict[str, MethodLook]:
    """How each method is shown, `focus` first: the colours and markers of the figures."""
    experiment, fronts = records.experiment, records.fronts
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods)
    seeds = fronts.groupby("method")["seed"].nunique()
    return {
        method: MethodLook(
            label=f"{method} {marks.get(method, '')}".strip(),
            seeds=int(seeds[method]),
            color=to_hex(look["color"]),
            dash=_dash(look["linestyle"], look["linewidth"]),
            width=look["linewidth"],
            shape=_SHAPES[look["marker"]],
        )
        for method, look in zip(methods, looks(methods), strict=True)
    }


def axes(experiment: ExperimentRecord) -> tuple[Axis, ...]:
    """The costs to choose from, the experiment's own being chosen."""
    return tuple(
        Axis(
            name=name,
            label=_AXIS_NAMES.get(name, _capitalized(COST_WORDS[name].name)),
            chosen=name == experiment.cost,
            reason="" if name in experiment.full_costs else "not measured",
        )
        for name in AXES
    )


def chart_data(records: Records, focus: str) -> dict[str, Any]:
    """Networks, costs, and each method's lines over each cost, for JSON.

    A line has the points at which the mean over the seeds of the error that a budget selects
    changes: cost, mean, and the least and the most of the seeds; from the cost at which every seed
    has a network. The same records give the same data, in the same order.
    """
    experiment, fronts = records.experiment, records.fronts
    methods = method_looks(records, focus)
    costs = [name for name in AXES if name in experiment.full_costs]
    return {
        "own": experiment.cost,
        "costs": {name: _cost(experiment, name) for name in costs},
        "groups": [[group.name, group.maximum] for group in experiment.groups],
        "methods": [_method(look) for look in methods.values()],
        "networks": _networks(fronts, list(methods), costs),
        "lines": {
            cost: [
                attainment(fronts[fronts["method"] == method], cost, experiment.full_costs[cost])
                for method in methods
            ]
            for cost in costs
        },
    }


def attainment(front: pd.DataFrame, cost: str, full: float) -> list[list[float]]:
    """The steps (cost, mean, least, most) of one method's error over budgets up to the full cost.

    The error is that of the network which a run selects within the budget, see `errors_at`; mean,
    least and most are over the seeds. The last step repeats the values at the end of the axis.
    """
    budgets, by_seed = seed_errors(front, cost, full)
    known = ~np.isnan(by_seed).any(axis=0)
    if not known.any():
        return []
    by_seed, budgets = by_seed[:, known], budgets[known]
    values = np.stack([by_seed.mean(axis=0), by_seed.min(axis=0), by_seed.max(axis=0)], axis=1)
    changes = np.append(True, (values[1:] != values[:-1]).any(axis=1))
    changes[-1:] = True
    steps = np.column_stack([budgets, values])[changes]
    return [[_number(value) for value in step] for step in steps]


def _cost(experiment: ExperimentRecord, name: str) -> dict[str, Any]:
    words = COST_WORDS[name]
    full = experiment.full_costs[name]
    return {
        "name": words.name,
        "axis": words.axis,
        "unit": words.unit,
        "full": full,
        "full_text": words.amount(full),
    }


def _method(look: MethodLook) -> dict[str, Any]:
    return {
        "label": look.label,
        "seeds": look.seeds,
        "color": look.color,
        "dash": look.dash,
        "width": look.width,
        "point": look.shape.point,
        "rotation": look.shape.rotation,
        "stroked": look.shape.stroked,
    }


def _networks(
    fronts: pd.DataFrame, methods: Sequence[str], costs: Sequence[str]
) -> dict[str, list[Any] | dict[str, list[Any]]]:
    """The evaluated networks as columns; a method by its position."""
    position = {method: index for index, method in enumerate(methods)}
    return {
        "method": [position[method] for method in fronts["method"]],
        "seed": fronts["seed"].tolist(),
        "widths": fronts["widths"].tolist(),
        "top1": list(map(_number, fronts["test_top1_error"])),
        "top5": list(map(_number, fronts["test_top5_error"])),
        "loss": list(map(_number, fronts["search_loss"])),
        "costs": {cost: list(map(_number, fronts[cost])) for cost in costs},
    }


def _number(value: float) -> float | int:
    """A number that takes little room: whole ones without a point, others to four digits."""
    return int(value) if float(value).is_integer() else round(float(value), _DIGITS)


def _dash(linestyle: Any, width: float) -> tuple[float, ...]:
    """Matplotlib's dashes, which are in line widths, in pixels."""
    return () if linestyle == "-" else tuple(round(part * width, 2) for part in linestyle[1])


def _capitalized(text: str) -> str:
    return text[:1].upper() + text[1:]
