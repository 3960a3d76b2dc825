"""The figures of an experiment, drawn without touching matplotlib's global state."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pareco.reporting.budgets import budget_marks
from pareco.reporting.costs import amount
from pareco.reporting.experiment import Experiment
from pareco.reporting.statistics import errors_at, method_order, staircase

_DASHES = ["-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))]
_MARKERS = "osD^vPX"
_LAST_PERCENT = 102  # so that a last step, at 100%, can be seen
_STYLE = [
    "default",
    {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.sans-serif": ["DejaVu Sans"],
        "text.parse_math": False,
        "svg.hashsalt": "pareco",
        "savefig.dpi": 200,
    },
]


def error_figure(experiment: Experiment, fronts: pd.DataFrame, focus: str) -> Figure:
    """A plot of test top-1 error (%) over cost (% of the full network's), all methods in it.

    Per method: the mean over seeds of the error that a cost budget selects, from the cost at
    which every seed has a network; a band from the least to the most of the seeds; a marker for
    every evaluated network.
    """
    methods = method_order(fronts["method"], focus)
    palette = sns.color_palette("colorblind", len(methods))
    with style.context(_STYLE):
        figure = Figure(figsize=(8.0, 4.4), layout="constrained")
        axes = figure.subplots()
        looks = zip(methods, palette, cycle(_DASHES), cycle(_MARKERS), strict=False)
        marks = budget_marks(fronts, experiment.budget_exempt, methods)
        for rank, (method, color, dashes, marker) in enumerate(looks):
            look = {"color": color, "marker": marker, "zorder": 3 - rank / len(methods)}
            look |= {"linestyle": dashes, "linewidth": 1.3 if rank else 2.0}
            rows = fronts[fronts["method"] == method]
            label = f"{method} {marks.get(method, '')}".strip()
            _draw_method(axes, rows, experiment, label, look)
        full = amount(experiment.full_cost)
        axes.set_xlabel(f"{experiment.words.axis} (% of the full network's {full})")
        axes.set_ylabel("Test top-1 error (%)")
        axes.set_title(_title(experiment, 70), loc="left")
        axes.grid(color="0.9", linewidth=0.6)
        _add_legend(figure, marks, several_seeds=fronts["seed"].nunique() > 1)
        sns.despine(figure)
    return figure


def widths_figure(experiment: Experiment, fronts: pd.DataFrame, focus: str) -> Figure:
    """Bar charts of channels per group: the cheapest, a middle and the costliest network.

    They are networks that budgets select in the first seed of `focus`, or of the first method
    where `focus` has no runs; the middle one's cost is nearest to half-way. Fewer than three
    networks have a chart each. Bars are fractions of a group's full channel count, with the count
    printed on them.
    """
    method = method_order(fronts["method"], focus)[0]
    rows = fronts[fronts["method"] == method]
    seed = rows["seed"].min()
    steps = staircase(rows[rows["seed"] == seed], experiment.cost)
    places = _places(steps[experiment.cost].to_numpy())
    names = [group.name for group in experiment.groups]
    inches = max(6.4, 1.2 + 0.3 * len(names))
    with style.context(_STYLE):
        figure = Figure(figsize=(inches, 1.8 + 1.2 * len(places)), layout="constrained")
        panels = figure.subplots(len(places), sharex=True, squeeze=False).flat
        for axes, (index, place) in zip(panels, sorted(places.items()), strict=True):
            _draw_widths(axes, steps.iloc[index], experiment, place)
        upright = len(names) * max(map(len, names)) > 10 * inches
        lowest = figure.axes[-1]
        lowest.set_xticks(range(len(names)), names, rotation=90 if upright else 0)
        lowest.set_xlabel("channel group")
        figure.supylabel("channels (fraction of the full)", fontsize="medium")
        columns = int(12 * inches)
        which = f"{method}, seed {seed}: networks that budgets select by search loss"
        figure.suptitle(f"{_title(experiment, columns)}\n{fill(which, columns)}", fontsize="medium")
        sns.despine(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write as SVG or PNG, by the suffix; the same figure gives the same bytes."""
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}[path.suffix]
    with style.context(_STYLE):
        figure.savefig(path, metadata=metadata)


def _places(costs: np.ndarray) -> dict[int, str]:
    """Positions in ascending costs and what to call them; each position once."""
    middle = int(np.abs(costs - (costs[0] + costs[-1]) / 2).argmin())
    return {middle: "middle", len(costs) - 1: "costliest", 0: "cheapest"}


def _title(experiment: Experiment, columns: int) -> str:
    return "\n".join(fill(line, columns) for line in (experiment.title, *experiment.warnings))


def _draw_method(
    axes: Axes, rows: pd.DataFrame, experiment: Experiment, label: str, look: dict[str, Any]
) -> None:
    cost, full_cost = experiment.cost, experiment.full_cost
    point = {name: look[name] for name in ("marker", "color", "zorder")}
    percent = 100 * rows[cost] / full_cost
    axes.scatter(percent, rows["test_top1_error"], s=14, alpha=0.6, linewidths=0, **point)
    budgets = np.append(np.unique(rows[cost]), _LAST_PERCENT * full_cost // 100)
    by_seed = np.stack([errors_at(front, cost, budgets) for _, front in rows.groupby("seed")])
    percent = 100 * budgets / full_cost
    axes.plot(percent, by_seed.mean(axis=0), drawstyle="steps-post", **{**look, "marker": None})
    if len(by_seed) > 1:
        least, most = by_seed.min(axis=0), by_seed.max(axis=0)
        band = {"step": "post", "zorder": look["zorder"] - 1, "linewidth": 0.5}
        fill, edge = to_rgba(look["color"], 0.07), to_rgba(look["color"], 0.4)
        axes.fill_between(percent, least, most, facecolor=fill, edgecolor=edge, **band)
    seeds = f"{len(by_seed)} seed{'s' if len(by_seed) > 1 else ''}"
    axes.plot([], [], label=f"{label} ({seeds})", markersize=3.5, **look)


def _add_legend(figure: Figure, marks: Mapping[str, str], *, several_seeds: bool) -> None:
    title = "error of the network with the\nlowest search loss within a budget:\n"
    if several_seeds:
        title += "line: mean over seeds\nband: lowest to highest seed\n"
    title += "markers: measured networks"
    if marks:
        title += f"\n{' '.join(sorted(set(marks.values())))} other training budget"
    figure.legend(
        title=title,
        alignment="left",
        handlelength=3.5,
        title_fontsize="small",
        fontsize="small",
        loc="outside right upper",
        frameon=False,
    )


def _draw_widths(axes: Axes, network: pd.Series, experiment: Experiment, place: str) -> None:
    counts = [int(count) for count in str(network["widths"]).split()]
    fractions = [
        count / group.maximum for count, group in zip(counts, experiment.groups, strict=True)
    ]
    positions = range(len(counts))
    blue, *_ = sns.color_palette("colorblind", 1)
    axes.bar(positions, 1.0, width=0.8, color="0.93")
    bars = axes.bar(positions, fractions, width=0.8, color=blue)
    axes.bar_label(
        bars, [str(count) for count in counts], label_type="center", color="white", fontsize="small"
    )
    axes.set_ylim(0, 1.18)
    axes.set_yticks([0, 0.5, 1])
    axes.set_xlim(-0.6, len(counts) - 0.4)
    axes.set_title(
        f"{place}: {amount(network[experiment.cost])} {experiment.words.name}"
        f" ({100 * network[experiment.cost] / experiment.full_cost:.0f}%),"
        f" test top-1 error {network['test_top1_error']:.2f}%",
        loc="left",
    )
