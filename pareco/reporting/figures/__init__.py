"""The figures of an experiment, drawn without touching matplotlib's global state."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from pareco.reporting.figures.error_vs_cost import error_figure, points_figure
from pareco.reporting.figures.side_by_side import side_by_side_figure
from pareco.reporting.figures.style import SUFFIXES, write_figure
from pareco.reporting.figures.training_and_search import (
    curves_figure,
    prediction_figure,
    visits_figure,
)
from pareco.reporting.figures.width_map import widths_figure
from pareco.reporting.records import AXES, COST_WORDS, LATENCY, ExperimentRecord, Records

__all__ = [
    "FIGURE_FILES",
    "SUFFIXES",
    "experiment_figures",
    "shown_costs",
    "side_by_side_figure",
    "write_figure",
]

_OTHERS: dict[str, Callable[[Records, str], Figure | None]] = {
    "front_points": points_figure,
    "widths": widths_figure,
    "curves": curves_figure,
    "visits": visits_figure,
    "predictions": prediction_figure,
}
FIGURE_FILES = (*(COST_WORDS[cost].figure for cost in AXES), *_OTHERS)
"""The names, without suffix, that a figure can have."""


def shown_costs(experiment: ExperimentRecord) -> list[str]:
    """The experiment's own cost, then MACs, memory, and latency where it was measured."""
    costs = dict.fromkeys((experiment.cost, "macs", "peak_activations", LATENCY))
    return [cost for cost in costs if cost in experiment.full_costs]


def experiment_figures(records: Records, published: pd.DataFrame, focus: str) -> dict[str, Figure]:
    """The figures of an experiment by file name, without suffix: its own cost's plot first.

    Errors over the `shown_costs`; the others where the records have what they show. `published`
    networks stand in the plot over MACs.
    """
    figures: dict[str, Figure | None] = {
        COST_WORDS[cost].figure: error_figure(records, published, focus, cost)
        for cost in shown_costs(records.experiment)
    }
    figures |= {name: draw(records, focus) for name, draw in _OTHERS.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}
