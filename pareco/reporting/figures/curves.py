"""What happened on the way: training losses, what searches visited, how well they predicted."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure

from pareco.reporting.figures.style import add_legend, looks, styled, title
from pareco.reporting.records import Records
from pareco.reporting.statistics import method_order

_PANELS = {
    "loss_largest": "largest network, on labels",
    "loss_smallest": "smallest network, on soft output",
}


def curves_figure(records: Records, focus: str) -> Figure | None:
    """The training losses (nats) over steps, a line for each method: the mean over its seeds.

    A band goes from the least to the most of the seeds. Methods that train several sets of
    weights one after the other, as an exempt budget says, are left out. None without any curve.
    """
    experiment = records.experiment
    curves = records.curves[~records.curves["method"].isin(experiment.budget_exempt)]
    if curves.empty:
        return None
    methods = method_order(records.fronts["method"], focus)
    with styled():
        figure = Figure(figsize=(8.0, 3.6), layout="constrained")
        panels = figure.subplots(1, 2)
        for axes, (column, label) in zip(panels, _PANELS.items(), strict=True):
            for method, look in zip(methods, looks(methods), strict=True):
                own = curves[curves["method"] == method]
                if len(own):
                    _draw(
                        axes, own.pivot(index="step", columns="seed", values=column), look, method
                    )
            axes.set_xlabel("gradient step")
            axes.set_ylabel("training loss (nats)")
            axes.set_title(label, loc="left", fontsize="medium")
            axes.grid(color="0.9", linewidth=0.6)
        absent = [each for each in methods if each in experiment.budget_exempt]
        heading = "line: mean over seeds\nband: lowest to highest"
        heading = heading if curves["seed"].nunique() > 1 else "one seed"
        heading += "\n(lines may coincide)"
        heading += f"\nnot shown: {', '.join(absent)}" if absent else ""
        add_legend(figure, heading, panels[0])
        figure.suptitle(title(experiment, 90), fontsize="medium", x=0.01, ha="left")
        sns.despine(figure)
    return figure


def _draw(axes: Axes, by_seed: pd.DataFrame, look: dict[str, Any], method: str) -> None:
    line = {key: look[key] for key in ("color", "linestyle", "linewidth", "zorder")}
    mean = by_seed.mean(axis=1)
    axes.plot(by_seed.index, mean, label=method, **line)
    if by_seed.shape[1] > 1:
        axes.fill_between(
            by_seed.index,
            by_seed.min(axis=1),
            by_seed.max(axis=1),
            facecolor=look["color"],
            alpha=0.12,
            linewidth=0,
        )


# What a visit's origin is called, and how it looks; the palette is colour-blind safe.
_ORIGINS = {
    "uniform": ("uniform, at the start", "s"),
    "largest": ("the largest network", "*"),
    "model": ("of the GPs", "o"),
    "random": ("random, where the GPs had nothing new", "^"),
}
_BINS = 20
_DEVIATIONS = 2


def visits_figure(records: Records, focus: str) -> Figure | None:
    """The cost of the widths that each search visited, in order, and where it aimed.

    A row for each method that searches, its first seed; beside it the distribution of the targets
    and of the costs visited. None without any visit.
    """
    experiment, cost = records.experiment, records.experiment.cost
    methods = _searching(records.visits, focus)
    if not methods:
        return None
    with styled():
        figure = Figure(figsize=(8.0, 1.1 + 2.4 * len(methods)), layout="constrained")
        panels = figure.subplots(
            len(methods), 2, sharey=True, squeeze=False, width_ratios=(4, 1), sharex="col"
        )
        for (left, right), method in zip(panels, methods, strict=True):
            own = records.visits[records.visits["method"] == method]
            seed = own["seed"].min()
            own = own[own["seed"] == seed]
            share = 100 / experiment.full_cost
            _draw_visits(left, own.assign(share=own[cost] * share, aim=own["target_cost"] * share))
            _draw_distribution(right, own[cost] * share, own["target_cost"].dropna() * share)
            left.set_title(f"{method}, seed {seed}", loc="left", fontsize="medium")
            left.set_ylabel(f"{experiment.words.name} (% of full)")
        panels[-1][0].set_xlabel("visit (order in which widths entered the history)")
        panels[-1][1].set_xlabel("part (%)")
        _add_legend(figure, [panels[0][0], panels[0][1]])
        figure.suptitle(
            f"{title(experiment, 90)}\ncost of the widths visited, and the targets",
            fontsize="medium",
            x=0.01,
            ha="left",
        )
        sns.despine(figure)
    return figure


def prediction_figure(records: Records, focus: str) -> Figure | None:
    """The loss that the GP predicted for each proposal, against the first loss measured there.

    A panel for each method that searches, all seeds; bars are two posterior standard deviations
    (without observation noise), colours the order of the visits. None where nothing was predicted.
    """
    known = records.visits.dropna(subset=["predicted_loss", "refreshed_loss"])
    methods = _searching(known, focus)
    if not methods:
        return None
    order = int(known["visit"].min()), int(known["visit"].max())
    with styled():
        figure = Figure(figsize=(1.6 + 3.2 * len(methods), 3.9), layout="constrained")
        panels = figure.subplots(1, len(methods), squeeze=False)[0]
        points = [
            _draw_predictions(axes, known[known["method"] == method], method, order)
            for axes, method in zip(panels, methods, strict=True)
        ]
        figure.colorbar(points[0], ax=panels, label="visit", pad=0.02)
        figure.suptitle(
            f"{title(records.experiment, 40 + 40 * len(methods))}\n"
            f"bars: {_DEVIATIONS} posterior standard deviations; line: prediction = measurement",
            fontsize="medium",
            x=0.01,
            ha="left",
        )
        sns.despine(figure)
    return figure


def _searching(visits: pd.DataFrame, focus: str) -> list[str]:
    return method_order(visits["method"], focus)


def _draw_visits(axes: Axes, visits: pd.DataFrame) -> None:
    palette = sns.color_palette("colorblind")
    axes.scatter(
        visits["visit"], visits["aim"], marker="_", s=36, color="0.55", label="target", zorder=1
    )
    for index, (origin, (label, marker)) in enumerate(_ORIGINS.items()):
        own = visits[visits["origin"] == origin]
        axes.scatter(
            own["visit"],
            own["share"],
            marker=marker,
            s=60 if marker == "*" else 13,
            color=palette[index],
            label=label,
            zorder=2,
        )
    axes.set_ylim(0, 105)
    axes.grid(color="0.9", linewidth=0.6)


def _draw_distribution(axes: Axes, visited: pd.Series, targets: pd.Series) -> None:
    bins = np.linspace(0, 100, _BINS + 1).tolist()
    looks: list[tuple[pd.Series, dict[str, Any]]] = [
        (visited, {"color": "0.8", "label": "visited"}),
        (targets, {"color": "0.25", "histtype": "step", "label": "targets", "linewidth": 1.2}),
    ]
    for values, look in looks:
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins=bins, weights=weights, orientation="horizontal", **look)


def _add_legend(figure: Figure, panels: Sequence[Axes]) -> None:
    found = [axes.get_legend_handles_labels() for axes in panels]
    figure.legend(
        [handle for handles, _ in found for handle in handles],
        [label for _, labels in found for label in labels],
        fontsize="small",
        loc="outside lower center",
        ncols=4,
        frameon=False,
    )


def _draw_predictions(
    axes: Axes, visits: pd.DataFrame, method: str, order: tuple[int, int]
) -> PathCollection:
    """The points of one panel; colours go from the first to the last visit of all panels."""
    predicted, refreshed = visits["predicted_loss"], visits["refreshed_loss"]
    spread = _DEVIATIONS * visits["predicted_deviation"]
    axes.errorbar(
        refreshed, predicted, yerr=spread, fmt="none", ecolor="0.8", elinewidth=0.6, zorder=1
    )
    color = {"c": visits["visit"], "cmap": "cividis", "vmin": order[0], "vmax": order[1]}
    points = axes.scatter(refreshed, predicted, s=12, zorder=2, **color)
    ends = [
        float(min(predicted.min(), refreshed.min())),
        float(max(predicted.max(), refreshed.max())),
    ]
    axes.plot(ends, ends, color="0.4", linewidth=0.8, zorder=1.5)
    axes.set_xlabel("measured loss (nats)")
    axes.set_ylabel("predicted loss (nats)")
    inside = 100 * float(((predicted - refreshed).abs() <= spread).mean())
    seeds = visits["seed"].nunique()
    of_seeds = f" of {seeds} seeds" if seeds > 1 else ""
    lines = [f"{method}: {len(visits)} proposals{of_seeds}", f"{inside:.0f}% within the bars"]
    if len(visits) > 2 and predicted.nunique() > 1 and refreshed.nunique() > 1:
        rank = float(predicted.corr(refreshed, method="spearman"))
        lines[1] += f", rank correlation {rank:.2f}"
    axes.set_title("\n".join(lines), loc="left", fontsize="medium")
    axes.grid(color="0.9", linewidth=0.6)
    return points
