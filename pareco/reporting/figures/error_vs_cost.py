"""Error over cost: the fronts of all methods, and how far the others are from the first."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from textwrap import fill
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from pareco.reporting.figures.style import (
    STRONG,
    MethodLook,
    add_legend,
    entitle,
    method_looks,
    styled,
)
from pareco.reporting.records import COST_WORDS, LATENCY, CostWords, Records
from pareco.reporting.statistics import EXEMPT, FEWEST_SEEDS, UNEQUAL, intervals, staircase

_HOLLOW = "oD^v<>pP"
PUBLISHED = ", published"
_COLUMNS = 78
_APART = 0.06
_PANELS_IN_A_ROW = 3


def joined_errors(front: pd.DataFrame, cost: str, costs: np.ndarray | None = None) -> pd.DataFrame:
    """Test top-1 errors (%) on the line that joins the networks of one method's front.

    A row for each seed, a column for each of the `costs`: those of all networks that are joined
    unless given. These are the ones that budgets select, see `staircase`, each with its own error
    at its own cost. Past the last of a seed its error stays, as a larger budget selects that
    network too; NaN before the first.
    """
    steps = {seed: staircase(own, cost) for seed, own in front.groupby("seed")}
    if costs is None:
        costs = np.unique(np.concatenate([each[cost] for each in steps.values()]))
    errors = [np.interp(costs, e[cost], e["test_top1_error"], left=np.nan) for e in steps.values()]
    return pd.DataFrame(errors, index=list(steps), columns=costs)


def band_of(by_seed: pd.DataFrame) -> np.ndarray:
    """The `intervals` (2 x m) that a figure draws around the means of a row for each seed.

    NaN, for no band, with fewer than FEWEST_SEEDS: of two seeds it would be 18 of their standard
    deviations wide and hide all else.
    """
    few = len(by_seed) < FEWEST_SEEDS
    values = by_seed.to_numpy(dtype=np.float64)
    return np.full((2, by_seed.shape[1]), np.nan) if few else intervals(values)


def error_figure(
    records: Records, published: pd.DataFrame, focus: str, cost: str | None = None
) -> Figure:
    """Test top-1 error (%) over a cost (% of the full network's; its amount at the top).

    The upper panel has the line of `joined_errors` of each method, the mean over its seeds where
    all have one, with the `band_of` three seeds or more. The first STRONG
    of the `method_looks` have colours, and a marker for each network that a line joins; others
    are thin and grey, with their names at the ends. `published` networks in the range of ours are
    hollow markers in the plot over MACs. The lower panel, where there are several methods, has
    the strong lines minus that of the first, seed by seed, so that above zero the first is better.
    `cost` is the experiment's own unless given.
    """
    cost = cost or records.experiment.cost
    full = records.experiment.full_costs[cost]
    looks = method_looks(records, focus)
    fronts = records.fronts.assign(percent=100 * records.fronts[cost] / full)
    rows = {looks[str(method)]: own for method, own in fronts.groupby("method")}
    strong, weak = list(looks.values())[:STRONG], list(looks.values())[STRONG:]
    with styled():
        count = min(len(looks), 2)
        figure = Figure(figsize=(4.6, 3.6 + 1.4 * count))
        heights = {"height_ratios": (5, 3)[:count], "squeeze": False, "sharex": True}
        panels = list(figure.subplots(count, 1, **heights)[:, 0])
        for look in strong:
            _draw_front(panels[0], rows[look], look)
        _draw_weak(panels[0], {look.label: joined_errors(rows[look], "percent") for look in weak})
        if cost == "macs":
            _draw_published(panels[0], published, fronts["macs"], full)
        for look in strong[1:]:
            draw_line(panels[1], _difference(rows[look], rows[strong[0]]), look)
        if panels[0].get_ylim()[0] < 0:  # where a band goes on, though no error can
            panels[0].set_ylim(bottom=0)
        panels[0].set_ylabel("Test top-1 error (%)")
        if count > 1:
            panels[1].axhline(0, **(strong[0].line | {"zorder": 1}))
            panels[1].set_ylabel(f"Difference to\n{strong[0].label} (points)")
        words = COST_WORDS[cost]
        panels[-1].set_xlabel(f"{words.axis}\n(% of the full network's {words.amount(full)})")
        _draw_amounts(panels[0], words, full)
        entitle(figure, records)
        hollow = any(str(each.get_label()).endswith(PUBLISHED) for each in panels[0].collections)
        caption = _caption(records, cost, list(looks.values()), hollow=hollow)
        add_legend(figure, panels[:1], title=caption, loc="outside lower left", ncols=2)
    return figure


def _draw_front(axes: Axes, front: pd.DataFrame, look: MethodLook) -> None:
    """The line of a strong method, its networks, and its place in the legend."""
    draw_line(axes, joined_errors(front, "percent"), look)
    steps = pd.concat([staircase(own, "percent") for _, own in front.groupby("seed")])
    point = {"color": look.color, "marker": look.marker, "zorder": look.zorder}
    point |= {"alpha": 0.75, "linewidths": 0}
    axes.scatter(steps["percent"], steps["test_top1_error"], 13, **point)
    axes.plot([], [], **look.line, marker=look.marker, markersize=4.5, label=look.legend)


def draw_line(axes: Axes, by_seed: pd.DataFrame, look: MethodLook) -> None:
    """The mean over seeds, and the band around it, where every seed has a value."""
    known = by_seed.dropna(axis=1)
    axes.plot(known.mean(), **look.line)
    low, high = band_of(known)
    if np.isfinite(low).any():
        band = {"color": look.color, "alpha": 0.15, "linewidth": 0, "zorder": 1}
        axes.fill_between(known.columns, low, high, **band)


def _difference(front: pd.DataFrame, reference: pd.DataFrame) -> pd.DataFrame:
    """A line minus another at the same costs, for the seeds that both methods have."""
    both = front, reference
    costs = np.unique(np.concatenate([joined_errors(each, "percent").columns for each in both]))
    theirs, own = (joined_errors(each, "percent", costs) for each in both)
    return (theirs - own).dropna(how="all")


def _draw_weak(axes: Axes, lines: Mapping[str, pd.DataFrame]) -> None:
    """Thin grey lines, with the names at their right ends, moved apart where they would meet."""
    means = {label: line.dropna(axis=1).mean() for label, line in lines.items()}
    for mean in means.values():
        axes.plot(mean, color="0.6", linewidth=0.8, zorder=1)
    least, most = axes.get_ylim()
    height = -np.inf
    for label, mean in sorted(means.items(), key=lambda each: each[1].iloc[-1]):
        height = max(mean.iloc[-1], height + _APART * (most - least))
        halo = [withStroke(linewidth=2, foreground="white")]
        look = {"color": "0.4", "fontsize": "small", "va": "center", "zorder": 4}
        axes.text(mean.index[-1], height, f"  {label}", path_effects=halo, **look)


def _draw_amounts(axes: Axes, words: CostWords, full: float) -> None:
    """A second axis at the top: what the percentages amount to."""
    scales = (lambda percent: percent * full / 100, lambda value: 100 * value / full)
    amounts = axes.secondary_xaxis("top", functions=scales)
    amounts.xaxis.set_major_formatter(lambda value, _: words.amount(value))
    amounts.locator_params("x", nbins=5)
    amounts.tick_params(labelsize="small")
    amounts.set_xlabel(words.name, fontsize="small")


def _draw_published(axes: Axes, published: pd.DataFrame, macs: pd.Series, full: float) -> None:
    """Hollow markers of those networks that cost about as much as ours do."""
    millions = published["macs_millions"]
    near = published[millions.between(0.9e-6 * macs.min(), 1.1e-6 * macs.max())]
    hollow = {"facecolors": "none", "edgecolors": "0.35", "linewidths": 0.8, "zorder": 1.5}
    for (method, networks), marker in zip(near.groupby("method"), cycle(_HOLLOW), strict=False):
        percents = networks["macs_millions"] * 1e8 / full
        label = f"{method}{PUBLISHED}"
        axes.scatter(percents, networks["top1_error"], 18, marker=marker, label=label, **hollow)


def _caption(records: Records, cost: str, looks: Sequence[MethodLook], *, hollow: bool) -> str:
    """What a reader must know of the lines and of the errors."""
    seeds, images = max(look.seeds for look in looks), records.experiment.test_images
    marks = sorted({mark for look in looks for mark in (EXEMPT, UNEQUAL) if mark in look.label})
    text = "Points: networks of the fronts, at their own cost; lines join them"
    if seeds > 1:
        text += " (mean over seeds; past the last network of one its error stays)"
    if seeds >= FEWEST_SEEDS:
        text += "; bands: 95% t interval of the mean at each cost"
    elif seeds > 1:
        text += "; two seeds: no bands, intervals in the table"
    if len(looks) > 1:
        text += f". Lower panel: minus the line of {looks[0].label}, at equal cost"
    if len(looks) > STRONG:
        text += ". Grey: the other methods"
    if hollow:
        text += ". Hollow: published (sources in the table)"
    if marks:
        text += f". {' '.join(marks)} other training budget"
    if images:
        text += f". Test set: {images:,} images; one is {100 / images:.2g} points"
    if cost == LATENCY:
        text += ". Latencies that differ by a few percent may be noise"
    return fill(f"{text}.", _COLUMNS)


def points_figure(records: Records, focus: str) -> Figure:
    """Test top-1 error (%) over the experiment's own cost (% of the full network's), all points.

    A panel for each method with every network on its fronts, whatever a budget would select: the
    form of the paper's figures. A line joins those of each seed, by ascending cost. The points of
    the first method stand behind those of every other, in grey.
    """
    experiment = records.experiment
    full = experiment.full_cost
    fronts = records.fronts.assign(percent=100 * records.fronts[experiment.cost] / full)
    rows = {str(method): own.sort_values("percent") for method, own in fronts.groupby("method")}
    looks = method_looks(records, focus)
    columns = min(len(looks), _PANELS_IN_A_ROW)
    lines = -(-len(looks) // columns)
    first = next(iter(looks))
    with styled():
        figure = Figure(figsize=(1.4 + 2.2 * columns, 1.5 + 2.1 * lines))
        shape: dict[str, Any] = {"squeeze": False, "sharex": True, "sharey": True}
        panels = list(figure.subplots(lines, columns, **shape).flat)
        for axes in panels[len(looks) :]:
            axes.remove()
        for axes in panels[len(looks) - columns : len(looks)]:  # the lowest of each column
            axes.tick_params(labelbottom=True)
        for axes, (method, look) in zip(panels, looks.items(), strict=False):
            if method != first:
                behind = rows[first]
                grey = {"color": "0.8", "linewidths": 0, "marker": looks[first].marker, "zorder": 1}
                axes.scatter(behind["percent"], behind["test_top1_error"], 9, **grey)
            for _, own in rows[method].groupby("seed"):
                point = {"marker": look.marker, "markersize": 3.2, "markeredgewidth": 0}
                line = look.line | {"linewidth": 0.8, "alpha": 0.75, "zorder": 2}
                axes.plot(own["percent"], own["test_top1_error"], **line, **point)
            axes.set_title(f"{look.legend}: {len(rows[method])} networks", fontsize="small")
        figure.supxlabel(
            f"{experiment.words.axis} (% of the full network's {experiment.words.amount(full)})",
            fontsize="medium",
        )
        figure.supylabel("Test top-1 error (%)", fontsize="medium")
        text = "every network on the fronts of search loss and cost, none chosen by a budget"
        several = "; a line for each seed" if fronts["seed"].nunique() > 1 else ""
        behind = f"; grey: {looks[first].label}" if len(looks) > 1 else ""
        entitle(figure, records, f"{text}{several}{behind}")
    return figure
