"""Channels per group along the front: how the network narrows, and how a uniform one would."""

from collections.abc import Sequence

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from pareco.reporting.figures.style import entitle, styled
from pareco.reporting.records import Records
from pareco.reporting.statistics import method_order, staircase

NEAR = 5
"""How far, in percent of the full cost, a uniform network may be from the one it stands beside."""

_MOST = 6


def widths_figure(records: Records, focus: str) -> Figure:
    """A map of channels: a row for each channel group, a column for each network.

    They are networks that budgets select in the first seed of `focus`, or of the first method
    where `focus` has no runs, the cheapest on the left: the first, the last, and of many only
    some between. At the right of each that isn't uniform stands the uniform network of the records
    which is nearest in cost, at most NEAR percent of the full cost away, under its own cost; once
    only. Colours are fractions of a group's full channel count, which stands in each.
    """
    experiment = records.experiment
    method = method_order(records.fronts["method"], focus)[0]
    rows = records.fronts[records.fronts["method"] == method]
    seed = rows["seed"].min()
    steps = staircase(rows[rows["seed"] == seed], experiment.cost)
    chosen = steps.iloc[np.linspace(0, len(steps) - 1, min(_MOST, len(steps))).round().astype(int)]
    columns = _columns(records, chosen)
    counts = np.array([text.split() for text in columns["widths"]], dtype=int).T
    maxima = [group.maximum for group in experiment.groups]
    with styled():
        figure = Figure(figsize=(7.6, max(3.2, 1.8 + 0.2 * len(maxima))))
        axes = figure.subplots()
        sns.heatmap(
            counts / np.array(maxima)[:, None],
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=counts,
            fmt="d",
            annot_kws={"fontsize": "small"},
            linewidths=0.5,
            xticklabels=_labels(columns),
            yticklabels=[f"{group.name} ({group.maximum})" for group in experiment.groups],
            cbar_kws={"label": "channels (fraction of the full)", "pad": 0.02},
        )
        starts = np.flatnonzero(~columns["uniform"])[1:]
        axes.vlines(starts, *axes.get_ylim(), color="white", linewidth=5)
        full = f"% of the full network's {experiment.words.amount(experiment.full_cost)}"
        axes.set_xlabel(f"network: {experiment.words.name} ({full})\ntest top-1 error (%)")
        axes.set_ylabel("channel group (full count)")
        axes.tick_params(rotation=0, length=0)
        axes.tick_params(axis="x", labelsize="small")
        some = f"{len(chosen)} of the {len(steps)} " if len(chosen) < len(steps) else ""
        lines = [f"{method}, seed {seed}: {some}networks that budgets select by search loss"]
        if columns["uniform"].any():
            lines.append("beside them: the uniform network of the records that is nearest in cost")
        entitle(figure, records, *lines)
    return figure


def is_uniform(widths: str, maxima: Sequence[int]) -> bool:
    """Whether one multiplier of all maxima, rounded down but to at least 1, gives the widths."""
    counts = list(map(int, widths.split()))
    least = max(c / m if c > 1 else 0 for c, m in zip(counts, maxima, strict=True))
    return least < min((c + 1) / m for c, m in zip(counts, maxima, strict=True))


def _columns(records: Records, chosen: pd.DataFrame) -> pd.DataFrame:
    """The chosen networks, each with the uniform one after it: widths, percent, error or NaN."""
    share = 100 / records.experiment.full_cost
    cost, maxima = records.experiment.cost, [group.maximum for group in records.experiment.groups]
    known = pd.concat([each[["widths", cost]] for each in (records.fronts, records.visits)])
    known = known.drop_duplicates("widths").sort_values(cost)
    uniform = known[[is_uniform(text, maxima) for text in known["widths"]]]
    uniform = uniform.assign(pair=share * uniform[cost], percent=share * uniform[cost])
    ours = chosen.assign(pair=share * chosen[cost], percent=share * chosen[cost], uniform=False)
    beside = pd.merge_asof(
        ours.loc[~ours["widths"].isin(uniform["widths"]), ["pair"]],
        uniform[["pair", "percent", "widths"]],
        on="pair",
        direction="nearest",
        tolerance=NEAR,
    )
    beside = beside.dropna().drop_duplicates("percent").assign(uniform=True)
    both = pd.concat([ours[[*beside, "test_top1_error"]], beside], ignore_index=True)
    return both.sort_values(["pair", "uniform"], ignore_index=True)


def _labels(columns: pd.DataFrame) -> list[str]:
    """Costs over errors, with as many digits as tell the columns apart."""
    below = ["uniform" if np.isnan(e) else f"{e:.1f}" for e in columns["test_top1_error"]]
    digits = 0
    while True:
        costs = [f"{percent:.{digits}f}%" for percent in columns["percent"]]
        labels = ["\n".join(pair) for pair in zip(costs, below, strict=True)]
        if len(set(labels)) == len(labels):
            return labels
        digits += 1
