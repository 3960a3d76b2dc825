"""Training losses of the largest and the smallest network."""

from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
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
