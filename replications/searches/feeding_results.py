"""What feeding a search in other ways gave: its record, differences to the base, table, figure."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from pareco.files import write_text
from pareco.reporting.figures.style import SUFFIXES, styled, write_figure
from pareco.reporting.statistics import intervals

BASE = "base"
"""The way that the others are compared with."""
_NONE = (math.nan,) * 3
PERCENTS = (20, 40, 60, 80, 100)
RECORD = "feeding.csv"
ORIGIN = "feeding.json"
FIGURE = "feeding"
KEY = ["way", "budget", "seed"]


class Fed(NamedTuple):
    """What a run came to whose search was fed in one way, within a budget.

    The budget is a part of the training's MACs. The correlations are Spearman's, over so many
    `visits`, of the loss that the search went by when it last asked with the calibrated test loss
    of the final weights, as they are and with the MACs held (a partial correlation); NaN where
    nothing was visited. Area and errors, in percent, are of the front chosen in the ordinary way,
    over `PERCENTS` of the full cost.
    """

    way: str
    budget: float
    seed: int
    visits: int
    rank_correlation: float
    rank_correlation_at_equal_macs: float
    area: float
    error_at_20: float
    error_at_40: float
    error_at_60: float
    error_at_80: float
    error_at_100: float
    training_macs: int
    search_macs: int
    choice_macs: int
    seconds: float


def read_fed(folder: Path) -> pd.DataFrame:
    """Return the record in a folder, a row for each run; none where there is no record."""
    path = folder / RECORD
    return pd.read_csv(path) if path.exists() else pd.DataFrame(columns=list(Fed._fields))


def write_fed(folder: Path, rows: Sequence[Fed], ways: Sequence[str]) -> None:
    """Add rows to the record, in the place of those of the same runs; in the order of these ways.

    Ways that are not among them come last.
    """
    new, before = pd.DataFrame(rows, columns=list(Fed._fields)), read_fed(folder)
    kept = before[~before.set_index(KEY).index.isin(new.set_index(KEY).index)]
    table = pd.concat([each for each in (kept, new) if len(each)] or [new])
    ranks = {way: rank for rank, way in enumerate(ways)}
    order = [ranks.get(str(way), len(ranks)) for way in table["way"]]
    table = table.assign(rank=order).sort_values(["budget", "rank", "way", "seed"])
    text = table[list(Fed._fields)].to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(folder / RECORD, text)


def read_origin(folder: Path) -> dict[str, Any]:
    """Return what the record's runs were: `experiment`, `scale`, `data`, `environments`."""
    path = folder / ORIGIN
    return json.loads(path.read_text()) if path.exists() else {}


def write_origin(folder: Path, origin: Mapping[str, Any]) -> None:
    """Write what `read_origin` returns."""
    write_text(folder / ORIGIN, json.dumps(origin, indent=1) + "\n")


def differences(fed: pd.DataFrame, measure: str) -> dict[tuple[float, str], tuple[float, ...]]:
    """Return by budget and way how much more it has than the base: mean, and a 95% interval.

    Student's, over the seeds that both have; NaN where these are too few, or nothing is known.
    """
    found = {}
    for budget in fed["budget"].unique().tolist():
        own = fed[fed["budget"] == budget]
        table = own.pivot(index="seed", columns="way", values=measure)
        for way in [each for each in table if each != BASE and BASE in table]:
            values = (table[way] - table[BASE]).dropna().to_numpy(dtype=np.float64)
            if len(values):
                low, high = intervals(values[:, None])[:, 0].tolist()
                found[budget, str(way)] = (float(values.mean()), low, high)
    return found


def feeding_tables(fed: pd.DataFrame, origin: Mapping[str, Any]) -> str:
    """Return the tables of a record, one for each budget, as Markdown."""
    lines = [_INTRODUCTION.format(**origin)]
    correlations, areas = (differences(fed, name) for name in ("rank_correlation", "area"))
    for budget in fed["budget"].unique().tolist():
        own = fed[fed["budget"] == budget]
        lines += [f"\nBudget: {100 * budget:g}% of the training's MACs.\n", _HEADER]
        for way in own["way"].unique():
            runs, where = own[own["way"] == way], (budget, way)
            mean = runs.mean(numeric_only=True)
            more, (less, high, low) = (each.get(where, _NONE) for each in (correlations, areas))
            cells = [
                way,
                f"{len(runs)}",
                _fixed(mean["rank_correlation"]),
                _signed(*more),
                _fixed(mean["rank_correlation_at_equal_macs"]),
                _fixed(mean["area"]),
                _signed(-less, -low, -high),
                *(_fixed(_percent(mean, name)) for name in ("search_macs", "choice_macs")),
                f"{mean['seconds']:.0f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, "", f"![What feeding gave]({FIGURE}.png)"]) + "\n"


def _percent(mean: Mapping[str, float], name: str) -> float:
    return 100 * mean[name] / mean["training_macs"]


def _fixed(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.2f}"


def _signed(mean: float, low: float, high: float) -> str:
    """Return a mean and its interval, signed, as far as they are known."""
    if math.isnan(mean):
        return "–"
    return f"{mean:+.2f}" + ("" if math.isnan(low) else f" ({low:+.2f} to {high:+.2f})")


def feeding_figure(fed: pd.DataFrame) -> Figure:
    """Return two panels: the rank correlations of all runs, and the gains over the base.

    A colour for each budget; correlations are dots with a stroke at their mean, gains means with
    95% intervals.
    """
    import seaborn as sns

    ways, budgets = list(fed["way"].unique()), sorted(fed["budget"].unique())
    colors = sns.color_palette("colorblind", len(budgets)).as_hex()
    with styled():
        figure = Figure(figsize=(8.0, 1.6 + 0.42 * len(ways)))
        left, right = figure.subplots(1, 2, sharey=True)
        gains = differences(fed, "area")
        for index, (budget, color) in enumerate(zip(budgets, colors, strict=True)):
            shift = (index - (len(budgets) - 1) / 2) * 0.22
            places = {way: place + shift for place, way in enumerate(ways)}
            label = f"search budget {100 * budget:g}%"
            _draw_correlations(left, fed[fed["budget"] == budget], places, color)
            own = [(places[way], *each) for (at, way), each in gains.items() if at == budget]
            place, mean, low, high = np.array(own or np.empty((0, 4))).T
            reach = np.stack([high - mean, mean - low])  # a gain is what the error is less
            look = {"fmt": "o", "markersize": 4, "capsize": 2, "color": color, "label": label}
            right.errorbar(-mean, place, xerr=np.nan_to_num(reach), **look)
        left.set_yticks(range(len(ways)), ways)
        left.invert_yaxis()
        left.set(xlabel="rank correlation", title="loss last gone by, calibrated test loss")
        right.axvline(0, color="0.4", linewidth=0.8)
        right.set(xlabel=f"gain in area over {BASE} (points)", title="front: mean, 95% interval")
        handles, labels = right.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(budgets))
    return figure


def _draw_correlations(
    axes: Axes, runs: pd.DataFrame, places: Mapping[str, float], color: str
) -> None:
    for way, own in runs.groupby("way"):
        known = own["rank_correlation"].dropna()
        heights = [places[str(way)]] * len(known)
        axes.scatter(known, heights, s=9, color=color, alpha=0.6, linewidths=0)
        axes.scatter(known.mean(), places[str(way)], s=60, color=color, marker="|")


def write_feeding(folder: Path) -> str:
    """Write the figure of the record; return the tables, nothing without a record."""
    fed = read_fed(folder)
    if fed.empty:
        return ""
    figure = feeding_figure(fed)
    for suffix in SUFFIXES:
        write_figure(figure, folder / f"{FIGURE}{suffix}")
    return feeding_tables(fed, read_origin(folder))


_HEADER = """\
| fed | seeds | rank correlation | less base's | at equal MACs | area (%) | gain over base \
| search (%) | choice (%) | seconds |
| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |"""

_INTRODUCTION = f"""# What the search is fed

Made by `python -m replications feeding`: {{experiment}} ({{scale}}). Each way moves one field of
the search from the base, whose name it has; *together* moves all but `losses_from`, *default*
leaves them to the method; the rest are methods for reference. Rank correlation: Spearman's, over up
to 64 visits of a run, of the loss that the search went by when it last asked with the calibrated
test loss under the final weights; *at equal MACs* with these held. Area: of the test error of the
chosen front over {PERCENTS[0]} to {PERCENTS[-1]}% of the MACs, less is better; gain: by how many
points it is below the base's. Differences to the base are means, seed by seed, with Student's 95%
interval. Search and choice: their MACs, in percent of those of training."""
