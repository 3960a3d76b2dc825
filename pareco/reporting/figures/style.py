"""One look for all figures: colours, dashes, markers, titles, legends, and how they are written."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import chain
from math import isnan
from pathlib import Path
from textwrap import fill
from typing import Any

import pandas as pd
import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pareco.reporting.records import Records
from pareco.reporting.statistics import AREA, budget_marks, method_order, run_measures

SUFFIXES = (".svg", ".png")
STRONG = 4
"""How many methods a figure for a paper may show in strong colours."""

_DASHES = ["-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))]
_MARKERS = "os^DvPX"
_COLUMNS_PER_INCH = 16
_STYLE = [
    "default",
    {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "axes.grid": True,
        "axes.spines.right": False,
        "axes.spines.top": False,
        "axes.titlelocation": "left",
        "axes.titlesize": "medium",
        "figure.constrained_layout.use": True,
        "figure.titlesize": "small",
        "font.sans-serif": ["DejaVu Sans"],
        "grid.color": "0.9",
        "grid.linewidth": 0.6,
        "legend.fontsize": "small",
        "legend.frameon": False,
        "legend.handlelength": 3.5,
        "legend.title_fontsize": "small",
        "savefig.dpi": 200,
        "svg.hashsalt": "pareco",
        "text.parse_math": False,
    },
]


def styled() -> AbstractContextManager[None]:
    """The project's style inside the `with` block, whatever the user's settings are."""
    return style.context(_STYLE)


@dataclass(frozen=True, kw_only=True)
class MethodLook:
    """How figures and the page show a method."""

    label: str
    """The name, with the mark of another training budget if it has one."""

    seeds: int
    color: str
    """Such as #0173b2, of a colour-blind safe palette."""

    dashes: Any
    """Matplotlib's line style."""

    marker: str
    width: float
    """Of the line, in points; the first method's is the thickest."""

    zorder: float
    """The first method lies on top."""

    @property
    def line(self) -> dict[str, Any]:
        """The line, for matplotlib's `plot`."""
        look = {"color": self.color, "linestyle": self.dashes, "linewidth": self.width}
        return {**look, "zorder": self.zorder}

    @property
    def legend(self) -> str:
        """The label with the number of seeds."""
        return f"{self.label} ({self.seeds} seed{'' if self.seeds == 1 else 's'})"


def mean_areas(fronts: pd.DataFrame, cost: str, full_cost: float) -> dict[str, float]:
    """Each method's area under the front, the mean over its seeds; NaN where one has none."""
    measures = run_measures(fronts, cost, full_cost)[AREA]
    by_method = measures.groupby(level="method")
    return {str(method): float(areas.mean(skipna=False)) for method, areas in by_method}


def method_looks(records: Records, focus: str) -> dict[str, MethodLook]:
    """The look of each method, the same in all figures of an experiment, in their order.

    `focus` is first (where it has no runs, the first in alphabetical order); then come methods of
    its training budget, those that are planned with fewer seeds, and those of another budget, each
    by ascending area under the front over the experiment's own cost.
    """
    experiment, fronts = records.experiment, records.fronts
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods, experiment.equal)
    areas = mean_areas(fronts, experiment.cost, experiment.full_cost)
    last = {
        method: (method in marks, method in experiment.planned_fewer, isnan(areas[method]))
        for method in methods
    }
    methods[1:] = sorted(methods[1:], key=lambda method: (*last[method], areas[method]))
    seeds = fronts.groupby("method")["seed"].nunique()
    labels = {method: f"{method} {marks.get(method, '')}".strip() for method in methods}
    return looks_in_order(labels, {method: int(seeds[method]) for method in methods})


def looks_in_order(labels: Mapping[str, str], seeds: Mapping[str, int]) -> dict[str, MethodLook]:
    """The looks of methods with these labels and numbers of seeds, the first one strongest."""
    palette = sns.color_palette("colorblind", len(labels)).as_hex()
    return {
        method: MethodLook(
            label=label,
            seeds=seeds[method],
            color=palette[rank],
            dashes=_DASHES[rank % len(_DASHES)],
            marker=_MARKERS[rank % len(_MARKERS)],
            width=1.3 if rank else 2.0,
            zorder=3 - rank / len(labels),
        )
        for rank, (method, label) in enumerate(labels.items())
    }


def entitle(figure: Figure, records: Records, *more: str) -> None:
    """Put the experiment's title and warnings, then more lines, over a figure, wrapped."""
    columns = int(_COLUMNS_PER_INCH * figure.get_figwidth())
    lines = (records.experiment.title, *records.experiment.warnings, *more)
    text = "\n".join(fill(line, columns) for line in lines)
    figure.suptitle(text, x=0.01, ha="left")


def add_legend(figure: Figure, panels: Sequence[Axes], **options: Any) -> None:
    """Put a legend of what the panels show outside of them; options as of `Figure.legend`."""
    found = [zip(*axes.get_legend_handles_labels(), strict=True) for axes in panels]
    handles, labels = zip(*chain.from_iterable(found), strict=True)
    figure.legend(handles, labels, alignment="left", **options)


def write_figure(figure: Figure, path: Path) -> None:
    """Write as SVG or PNG, by the suffix; the same figure gives the same bytes."""
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}[path.suffix]
    with styled():
        figure.savefig(path, metadata=metadata)
