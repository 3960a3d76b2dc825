"""One look for all figures: colours, dashes, markers, titles, and how they are written."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import cycle
from pathlib import Path
from textwrap import fill
from typing import Any

import seaborn as sns
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pareco.reporting.records import ExperimentRecord

SUFFIXES = (".svg", ".png")
_DASHES = ["-", (0, (5, 1.5)), (0, (1, 1.2)), (0, (6, 1.5, 1, 1.5)), (0, (3, 1, 1, 1, 1, 1))]
_MARKERS = "osD^vPX"
_STYLE = [
    "default",
    {
        **sns.axes_style("ticks"),
        **sns.plotting_context("paper"),
        "font.sans-serif": ["DejaVu Sans"],
        "text.parse_math": False,
        "svg.hashsalt": "pareco",
        "savefig.dpi": 200,
    },
]


def styled() -> AbstractContextManager[None]:
    """The project's style inside the `with` block, whatever the user's settings are."""
    return style.context(_STYLE)


def looks(methods: Sequence[str]) -> Iterator[dict[str, Any]]:
    """A colour-blind safe colour, dashes, marker, line width and height for each method.

    The first is the thickest and on top.
    """
    palette = sns.color_palette("colorblind", len(methods))
    each = zip(palette, cycle(_DASHES), cycle(_MARKERS), strict=False)
    for rank, (color, dashes, marker) in enumerate(each):
        yield {
            "color": color,
            "marker": marker,
            "zorder": 3 - rank / len(methods),
            "linestyle": dashes,
            "linewidth": 1.3 if rank else 2.0,
        }


def title(experiment: ExperimentRecord, columns: int) -> str:
    """The experiment's title and warnings, wrapped to some columns of text."""
    return "\n".join(fill(line, columns) for line in (experiment.title, *experiment.warnings))


def add_legend(figure: Figure, heading: str, axes: Axes) -> None:
    """Put a legend of what is drawn in `axes` beside the plot, with a heading over it."""
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles,
        labels,
        title=heading,
        alignment="left",
        handlelength=3.5,
        title_fontsize="small",
        fontsize="small",
        loc="outside right upper",
        frameon=False,
    )


def write_figure(figure: Figure, path: Path) -> None:
    """Write as SVG or PNG, by the suffix; the same figure gives the same bytes."""
    metadata = {".svg": {"Date": None, "Creator": None}, ".png": {"Software": None}}[path.suffix]
    with styled():
        figure.savefig(path, metadata=metadata)
