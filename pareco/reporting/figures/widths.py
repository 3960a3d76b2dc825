"""Channels per group along the front: how the network narrows."""

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.figure import Figure

from pareco.reporting.figures.style import styled, title
from pareco.reporting.records import Records
from pareco.reporting.statistics import method_order, staircase

_MOST_WITH_COUNTS = 14
_MOST_LABELS = 14


def widths_figure(records: Records, focus: str) -> Figure:
    """A map of channels: a row for each channel group, a column for each network of the front.

    They are the networks that budgets select in the first seed of `focus`, or of the first method
    where `focus` has no runs, the cheapest on the left. Colours are fractions of a group's full
    channel count; where columns are few the count stands in each.
    """
    experiment, fronts = records.experiment, records.fronts
    method = method_order(fronts["method"], focus)[0]
    rows = fronts[fronts["method"] == method]
    seed = rows["seed"].min()
    steps = staircase(rows[rows["seed"] == seed], experiment.cost)
    counts = np.array([[int(count) for count in text.split()] for text in steps["widths"]]).T
    maxima = np.array([group.maximum for group in experiment.groups])
    names = [f"{group.name} ({group.maximum})" for group in experiment.groups]
    with_counts = len(steps) <= _MOST_WITH_COUNTS
    with styled():
        size = (7.6, max(3.2, 1.6 + 0.2 * len(names)))
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        sns.heatmap(
            pd.DataFrame(counts / maxima[:, None], index=names, columns=_columns(records, steps)),
            ax=axes,
            vmin=0,
            vmax=1,
            cmap="cividis",
            annot=counts if with_counts else False,
            fmt="d",
            annot_kws={"fontsize": "small"},
            linewidths=0.5 if with_counts else 0,
            xticklabels=max(1, -(-len(steps) // _MOST_LABELS)),
            yticklabels=1,
            cbar_kws={"label": "channels (fraction of the full)", "pad": 0.02},
        )
        axes.set_xlabel(
            f"network: {experiment.words.name} (% of the full network's"
            f" {experiment.words.amount(experiment.full_cost)})\ntest top-1 error (%)"
        )
        axes.set_ylabel("channel group (full count)")
        axes.tick_params(axis="y", rotation=0, length=0)
        axes.tick_params(axis="x", rotation=0, length=0)
        which = f"{method}, seed {seed}: networks that budgets select by search loss"
        figure.suptitle(f"{title(experiment, 90)}\n{which}", fontsize="medium", x=0.01, ha="left")
    return figure


def _columns(records: Records, steps: pd.DataFrame) -> list[str]:
    shares = 100 * steps[records.experiment.cost] / records.experiment.full_cost
    return [
        f"{share:.0f}%\n{error:.1f}"
        for share, error in zip(shares, steps["test_top1_error"], strict=True)
    ]
