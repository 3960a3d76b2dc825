"""The figures of an experiment, drawn without touching matplotlib's global state."""

from collections.abc import Mapping
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pareco.reporting.budgets import budget_marks
from pareco.reporting.records import Experiment, amount
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
        "svg.hashsalt": "pareco",
        "savefig.dpi": 200,
    },
]


def error_figure(experiment: Experiment, fronts: pd.DataFrame, focus: str) -> Figure:
    """A plot of test top-1 error (%) over cost (% of the full MACs), all methods in it.

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
            _draw_method(axes, rows, experiment.full_macs, label, look)
        axes.set_xlabel(f"MACs (% of the full network's {amount(experiment.full_macs)})")
        axes.set_ylabel("Test top-1 error (%)")
        axes.set_title(f"{experiment.experiment}, {experiment.network}", loc="left")
        axes.grid(color="0.9", linewidth=0.6)
        _add_legend(figure, marks)
        sns.despine(figure)
    return figure


def widths_figure(experiment: Experiment, fronts: pd.DataFrame, focus: str) -> Figure:
    """Three bar charts of channels per group: the cheapest, a middle and the dearest network.

    They are networks that budgets select in the first seed of `focus`, or of the first method
    where `focus` has no runs; the middle one's MACs are nearest to half-way. Bars are fractions
    of a group's full channel count, with the count printed above.
    """
    method = method_order(fronts["method"], focus)[0]
    rows = fronts[fronts["method"] == method]
    seed = rows["seed"].min()
    steps = staircase(rows[rows["seed"] == seed])
    halfway = (steps["macs"].iloc[0] + steps["macs"].iloc[-1]) / 2
    middle = int((steps["macs"] - halfway).abs().argmin())
    chosen = {"least MACs": 0, "middle": middle, "most MACs": len(steps) - 1}
    with style.context(_STYLE):
        inches = max(6.4, 1.2 + 0.3 * len(experiment.groups))
        figure = Figure(figsize=(inches, 5.4), layout="constrained")
        panels = figure.subplots(len(chosen), sharex=True)
        for axes, (place, index) in zip(panels, chosen.items(), strict=True):
            _draw_widths(axes, steps.iloc[index], experiment, place)
        names = [group.name for group in experiment.groups]
        upright = len(names) * max(map(len, names)) > 10 * inches
        panels[-1].set_xticks(range(len(names)), names, rotation=90 if upright else 0)
        panels[-1].set_xlabel("channel group")
        figure.supylabel("channels (fraction of the full count)", fontsize="medium")
        figure.suptitle(
            f"{experiment.experiment}, {experiment.network}: {method}, seed {seed}\n"
            "networks that the least, a middle and the largest budget select by search loss",
            fontsize="medium",
        )
        sns.despine(figure)
    return figure


def write_figure(figure: Figure, path: Path) -> None:
    """Write as SVG or PNG, by the suffix; the same figure gives the same bytes."""
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}[path.suffix]
    with style.context(_STYLE):
        figure.savefig(path, metadata=metadata)


def _draw_method(
    axes: Axes, rows: pd.DataFrame, full_macs: int, label: str, look: dict[str, Any]
) -> None:
    point = {name: look[name] for name in ("marker", "color", "zorder")}
    percent = 100 * rows["macs"] / full_macs
    axes.scatter(percent, rows["test_top1_error"], s=14, alpha=0.6, linewidths=0, **point)
    budgets = np.append(np.unique(rows["macs"]), _LAST_PERCENT * full_macs // 100)
    by_seed = np.stack([errors_at(front, budgets) for _, front in rows.groupby("seed")])
    percent = 100 * budgets / full_macs
    axes.plot(percent, by_seed.mean(axis=0), drawstyle="steps-post", **{**look, "marker": None})
    if len(by_seed) > 1:
        least, most = by_seed.min(axis=0), by_seed.max(axis=0)
        band = {"step": "post", "zorder": look["zorder"] - 1, "linewidth": 0.5}
        fill, edge = to_rgba(look["color"], 0.07), to_rgba(look["color"], 0.4)
        axes.fill_between(percent, least, most, facecolor=fill, edgecolor=edge, **band)
    seeds = f"{len(by_seed)} seed{'s' if len(by_seed) > 1 else ''}"
    axes.plot([], [], label=f"{label} ({seeds})", markersize=3.5, **look)


def _add_legend(figure: Figure, marks: Mapping[str, str]) -> None:
    title = (
        "error of the network with the\nlowest search loss within a budget:\n"
        "line: mean over seeds\nband: lowest to highest seed\nmarkers: measured networks"
    )
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
        f"{place}: {amount(network['macs'])} MACs"
        f" ({100 * network['macs'] / experiment.full_macs:.0f}%),"
        f" test top-1 error {network['test_top1_error']:.2f}%",
        loc="left",
    )
