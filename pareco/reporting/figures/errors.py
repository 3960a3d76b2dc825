"""Error over cost, all methods in one plot."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from pareco.reporting.figures.style import add_legend, looks, styled, title
from pareco.reporting.records import COST_WORDS, LATENCY, Records
from pareco.reporting.statistics import budget_marks, method_order, seed_errors

_HOLLOW = "osD^v<>pP"
_PUBLISHED_COST = "macs"


def error_figure(
    records: Records, published: pd.DataFrame, focus: str, cost: str | None = None
) -> Figure:
    """A plot of test top-1 error (%) over a cost (% of the full network's), all methods in it.

    Per method: the mean over seeds of the error that a cost budget selects, from the cost at
    which every seed has a network up to the full cost; a band from the least to the most of the
    seeds; a marker for every evaluated network. `published` networks in the range of ours are
    hollow markers in the plot over MACs. `cost` is the experiment's own unless given.
    """
    experiment, fronts = records.experiment, records.fronts
    cost = cost or experiment.cost
    words, full = COST_WORDS[cost], experiment.full_costs[cost]
    methods = method_order(fronts["method"], focus)
    with styled():
        figure = Figure(figsize=(8.0, 4.4), layout="constrained")
        axes = figure.subplots()
        marks = budget_marks(fronts, experiment.budget_exempt, methods)
        for method, look in zip(methods, looks(methods), strict=True):
            label = f"{method} {marks.get(method, '')}".strip()
            _draw_method(axes, fronts[fronts["method"] == method], (cost, full), label, look)
        shown = _in_range(published, fronts) if cost == _PUBLISHED_COST else published.iloc[:0]
        _draw_published(axes, shown, full)
        axes.set_xlabel(f"{words.axis} (% of the full network's {words.amount(full)})")
        axes.set_ylabel("Test top-1 error (%)")
        axes.set_title(title(experiment, 70), loc="left")
        axes.grid(color="0.9", linewidth=0.6)
        if cost == LATENCY:
            axes.text(
                1,
                1.01,
                "differences of a few percent may be noise",
                transform=axes.transAxes,
                ha="right",
                fontsize="small",
                color="0.3",
            )
        several = fronts["seed"].nunique() > 1
        heading = _heading(marks, several_seeds=several, hollow=len(shown) > 0)
        add_legend(figure, heading, axes)
        sns.despine(figure)
    return figure


def _draw_method(
    axes: Axes, rows: pd.DataFrame, cost: tuple[str, float], label: str, look: dict[str, Any]
) -> None:
    name, full = cost
    point = {key: look[key] for key in ("marker", "color", "zorder")}
    percent = 100 * rows[name] / full
    axes.scatter(percent, rows["test_top1_error"], s=14, alpha=0.6, linewidths=0, **point)
    budgets, by_seed = seed_errors(rows, name, full)
    percent = 100 * budgets / full
    axes.plot(percent, by_seed.mean(axis=0), drawstyle="steps-post", **{**look, "marker": None})
    if len(by_seed) > 1:
        least, most = by_seed.min(axis=0), by_seed.max(axis=0)
        band = {"step": "post", "zorder": look["zorder"] - 1, "linewidth": 0.5}
        fill, edge = to_rgba(look["color"], 0.07), to_rgba(look["color"], 0.4)
        axes.fill_between(percent, least, most, facecolor=fill, edgecolor=edge, **band)
    seeds = f"{len(by_seed)} seed{'s' if len(by_seed) > 1 else ''}"
    axes.plot([], [], label=f"{label} ({seeds})", markersize=3.5, **look)


def _in_range(published: pd.DataFrame, fronts: pd.DataFrame) -> pd.DataFrame:
    """The published networks about as costly as ours: others would take the space of the plot."""
    least, most = 0.9e-6 * fronts[_PUBLISHED_COST].min(), 1.1e-6 * fronts[_PUBLISHED_COST].max()
    return published[published["macs_millions"].between(least, most)]


def _draw_published(axes: Axes, published: pd.DataFrame, full: float) -> None:
    groups = published.groupby("method", sort=True)
    for index, (method, networks) in enumerate(groups):
        axes.scatter(
            networks["macs_millions"] * 1e8 / full,
            networks["top1_error"],
            s=18,
            marker=_HOLLOW[index % len(_HOLLOW)],
            facecolors="none",
            edgecolors="0.35",
            linewidths=0.8,
            zorder=1.5,
            label=f"{method}, published",
        )


def _heading(marks: Mapping[str, str], *, several_seeds: bool, hollow: bool) -> str:
    """What stands over the legend."""
    text = "line: error of the network with the\nlowest search loss within a budget"
    text += ",\nmean over seeds; band: lowest to\nhighest seed\n" if several_seeds else "\n"
    text += "markers: measured networks"
    if hollow:
        text += "\nhollow: published (sources in the table)"
    if marks:
        text += f"\n{' '.join(sorted(set(marks.values())))} other training budget"
    return text
