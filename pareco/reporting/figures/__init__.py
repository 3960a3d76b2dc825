"""The figures of an experiment, drawn without touching matplotlib's global state."""

from collections.abc import Callable

import pandas as pd
from matplotlib.figure import Figure

from pareco.reporting.figures.curves import curves_figure, prediction_figure, visits_figure
from pareco.reporting.figures.errors import error_figure
from pareco.reporting.figures.style import SUFFIXES, write_figure
from pareco.reporting.figures.width_map import widths_figure
from pareco.reporting.records import AXES, COST_WORDS, LATENCY, Records

__all__ = ["FIGURE_FILES", "SUFFIXES", "experiment_figures", "write_figure"]

_SHOWN_COSTS = ("macs", "peak_activations", LATENCY)
_OTHERS: dict[str, Callable[[Records, str], Figure | None]] = {
    "widths": widths_figure,
    "curves": curves_figure,
    "visits": visits_figure,
    "predictions": prediction_figure,
}
FIGURE_FILES = (*(COST_WORDS[cost].figure for cost in AXES), *_OTHERS)
"""The names, without suffix, that a figure can have."""


def experiment_figures(records: Records, published: pd.DataFrame, focus: str) -> dict[str, Figure]:
    """The figures of an experiment by file name, without suffix: its own cost's plot first.

    Errors over MACs, memory and latency too, where the latter was measured; the others where the
    records have what they show. `published` networks stand in the plot over MACs.
    """
    costs = dict.fromkeys((records.experiment.cost, *_SHOWN_COSTS))
    figures: dict[str, Figure | None] = {
        COST_WORDS[cost].figure: error_figure(records, published, focus, cost)
        for cost in costs
        if cost in records.experiment.full_costs
    }
    figures |= {name: draw(records, focus) for name, draw in _OTHERS.items()}
    return {name: figure for name, figure in figures.items() if figure is not None}
