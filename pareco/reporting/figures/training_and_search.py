"""What happened on the way: training losses, what searches visited, how well they predicted."""

from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from pareco.reporting.figures.error_vs_cost import band_of
from pareco.reporting.figures.style import add_legend, entitle, method_looks, styled
from pareco.reporting.records import Records
from pareco.reporting.statistics import FEWEST_SEEDS, method_order

_PANELS = {
    "loss_largest": "largest network, on labels",
    "loss_smallest": "smallest network, on soft output",
}


def curves_figure(records: Records, focus: str) -> Figure | None:
    """The training losses (nats) over steps, a line for each method: the mean over its seeds.

    A band is the `band_of` three seeds or more. Methods that train several sets of
    weights one after the other, as an exempt budget says, are left out. None without any curve.
    """
    exempt = records.experiment.budget_exempt
    curves = records.curves[~records.curves["method"].isin(exempt)]
    if curves.empty:
        return None
    looks = method_looks(records, focus)
    shown = [method for method in looks if method in set(curves["method"])]
    with styled():
        figure = Figure(figsize=(8.0, 3.6))
        panels = figure.subplots(1, 2)
        for axes, (column, heading) in zip(panels, _PANELS.items(), strict=True):
            axes.set(xlabel="gradient step", ylabel="training loss (nats)", title=heading)
            for method in shown:
                look = looks[method]
                own = curves[curves["method"] == method]
                known = own.pivot_table(column, "seed", "step", dropna=False).dropna(axis=1)
                axes.plot(known.mean(), label=method, **look.line)
                low, high = band_of(known)
                if np.isfinite(low).any():
                    band = {"color": look.color, "alpha": 0.12, "linewidth": 0}
                    axes.fill_between(known.columns, low, high, **band)
        seeds = curves["seed"].nunique()
        heading = "line: mean over seeds" if seeds > 1 else "one seed"
        heading += "\nband: 95% t interval" if seeds >= FEWEST_SEEDS else ""
        absent = ", ".join(method for method in looks if method in exempt)
        heading += "\n(lines may coincide)" + (f"\nnot shown: {absent}" if absent else "")
        add_legend(figure, panels[:1], title=heading, loc="outside right upper")
        entitle(figure, records)
    return figure


# What a visit's origin is called, and how it looks; the palette is colour-blind safe.
_ORIGINS = {
    "uniform": ("uniform, at the start", "s"),
    "largest": ("the largest network", "*"),
    "model": ("of the GPs", "o"),
    "random": ("random, where the GPs had nothing new", "^"),
}
_BINS = np.linspace(0, 100, 21)
_DEVIATIONS = 2


def visits_figure(records: Records, focus: str) -> Figure | None:
    """The cost of the widths that each search visited, in order, and where it aimed.

    A row for each method that searches, its first seed; beside it the distribution of the targets
    and of the costs visited. Above it, how many targets lay in gaps of the front, where that
    was recorded. None without any visit.
    """
    experiment = records.experiment
    share = 100 / experiment.full_cost
    visits = records.visits.assign(
        share=records.visits[experiment.cost] * share, aim=records.visits["target_cost"] * share
    )
    methods = method_order(visits["method"], focus)
    if not methods:
        return None
    with styled():
        figure = Figure(figsize=(8.0, 1.1 + 2.4 * len(methods)))
        shape = {"squeeze": False, "width_ratios": (4, 1), "sharex": "col", "sharey": True}
        panels = figure.subplots(len(methods), 2, **shape)
        for (left, right), method in zip(panels, methods, strict=True):
            own = visits[visits["method"] == method]
            own = own[own["seed"] == own["seed"].min()]
            _draw_visits(left, own)
            for column, look in (
                ("share", {"color": "0.8", "label": "visited"}),
                ("aim", {"color": "0.25", "label": "targets", "histtype": "step"}),
            ):
                values = own[column].dropna()
                weights = np.full(len(values), 100 / max(len(values), 1))
                right.hist(values, _BINS, weights=weights, orientation="horizontal", **look)
            left.set_title(f"{method}, seed {own['seed'].min()}{_gaps(own)}")
            left.set_ylabel(f"{experiment.words.name} (% of full)")
        panels[-1][0].set_xlabel("visit (order in which widths entered the history)")
        panels[-1][1].set_xlabel("part (%)")
        add_legend(figure, panels[0], loc="outside lower center", ncols=4)
        entitle(figure, records, "cost of the widths visited, and the targets")
    return figure


def _gaps(visits: pd.DataFrame) -> str:
    """How many targets nothing came near, where it was recorded of any visit."""
    known = visits["gaps"].dropna()
    return f", {known.sum()} targets in gaps of the front" if len(known) else ""


def _draw_visits(axes: Axes, visits: pd.DataFrame) -> None:
    aim = {"marker": "_", "s": 36, "color": "0.55", "label": "target", "zorder": 1}
    axes.scatter(visits["visit"], visits["aim"], **aim)
    palette = sns.color_palette("colorblind")
    for color, (origin, (label, marker)) in zip(palette, _ORIGINS.items(), strict=False):
        own = visits[visits["origin"] == origin]
        size = 60 if marker == "*" else 13
        look = {"marker": marker, "s": size, "color": color, "label": label, "zorder": 2}
        axes.scatter(own["visit"], own["share"], **look)
    axes.set_ylim(0, 105)


def prediction_figure(records: Records, focus: str) -> Figure | None:
    """The loss that the GP predicted for each proposal, against the first loss measured there.

    A panel for each method that searches, all seeds; bars are two posterior standard deviations
    (without observation noise), colours the order of the visits. None where nothing was predicted.
    """
    known = records.visits.dropna(subset=["predicted_loss", "refreshed_loss"])
    methods = method_order(known["method"], focus)
    if not methods:
        return None
    colors = {"cmap": "cividis", "vmin": known["visit"].min(), "vmax": known["visit"].max()}
    with styled():
        figure = Figure(figsize=(1.6 + 3.2 * len(methods), 3.9))
        panels = figure.subplots(1, len(methods), squeeze=False)[0]
        points = [
            _draw_predictions(axes, known[known["method"] == method], colors)
            for axes, method in zip(panels, methods, strict=True)
        ]
        figure.colorbar(points[0], ax=panels, label="visit", pad=0.02)
        bars = f"bars: {_DEVIATIONS} posterior standard deviations; line: prediction = measurement"
        entitle(figure, records, bars)
    return figure


def _draw_predictions(axes: Axes, visits: pd.DataFrame, colors: dict[str, Any]) -> PathCollection:
    """The points of one panel, and how well they agree over it."""
    predicted, refreshed = visits["predicted_loss"], visits["refreshed_loss"]
    spread = _DEVIATIONS * visits["predicted_deviation"]
    many: dict[str, Any] = {"rasterized": True}  # an SVG takes 300 bytes for each of thousands
    bars = {"fmt": "none", "ecolor": "0.8", "elinewidth": 0.6, "zorder": 1}
    axes.errorbar(refreshed, predicted, yerr=spread, **bars, **many)
    look = {"s": 12, "zorder": 2, "c": visits["visit"], **colors}
    points = axes.scatter(refreshed, predicted, **look, **many)
    ends = [min(predicted.min(), refreshed.min()), max(predicted.max(), refreshed.max())]
    axes.plot(ends, ends, color="0.4", linewidth=0.8, zorder=1.5)
    axes.set(xlabel="measured loss (nats)", ylabel="predicted loss (nats)")
    seeds = visits["seed"].nunique()
    text = f"{visits['method'].iloc[0]}: {len(visits)} proposals"
    text += f" of {seeds} seeds" if seeds > 1 else ""
    text += f"\n{100 * ((predicted - refreshed).abs() <= spread).mean():.0f}% within the bars"
    if len(visits) > 2 and predicted.nunique() > 1 and refreshed.nunique() > 1:
        text += f", rank correlation {predicted.corr(refreshed, method='spearman'):.2f}"
    axes.set_title(text)
    return points
