"""The tables of an experiment, once as Markdown and once for the terminal."""

from dataclasses import dataclass
from math import isnan

import numpy as np
import pandas as pd
import rich.box
import rich.console
import rich.table
from rich.text import Text

from pareco.reporting.budgets import EXEMPT, UNEQUAL, budget_marks, budget_table
from pareco.reporting.costs import COST_WORDS, amount
from pareco.reporting.experiment import Experiment
from pareco.reporting.records import BUDGET_TYPES
from pareco.reporting.statistics import (
    AREA,
    cost_percents,
    method_order,
    run_measures,
    seed_statistics,
)

_FOOTNOTES = {
    EXEMPT: "exempt from the equal training budget, so not in the running for bold.",
    UNEQUAL: "spent another training budget than the others, so not in the running for bold.",
}
_SEARCH_BUDGETS = (
    "Search evaluations and widths visited are what each method's own search takes; the training"
    " budget (gradient steps, passes) is what is held equal."
)


@dataclass(frozen=True)
class Cell:
    """A table's cell; `best` ones are shown in bold."""

    text: str
    best: bool = False


@dataclass(frozen=True)
class Table:
    """A titled table; `columns` names every cell of a row, the first being the method."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True)
class Tables:
    """An experiment's tables with the lines that go above and below them."""

    heading: str
    warnings: tuple[str, ...]
    """What nobody may miss, such as a scale that is not the published one."""
    notes: tuple[str, ...]
    errors: Table
    budgets: Table
    footnotes: tuple[str, ...]


def experiment_tables(experiment: Experiment, fronts: pd.DataFrame, focus: str) -> Tables:
    """The error and budget tables of the runs in `fronts`, one row per method, `focus` first.

    Methods whose training budget is exempt or unequal carry a mark, explained in a footnote, and
    do not count for the best of a column.
    """
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods)
    labels = {method: f"{method} {marks.get(method, '')}".strip() for method in methods}
    return Tables(
        heading=experiment.title,
        warnings=experiment.warnings,
        notes=_notes(experiment, fronts),
        errors=_error_table(experiment, fronts, labels, marks),
        budgets=_budget_table(fronts, labels),
        footnotes=(
            _SEARCH_BUDGETS,
            *(f"{mark} {text}" for mark, text in _FOOTNOTES.items() if mark in marks.values()),
        ),
    )


def markdown(tables: Tables) -> str:
    """The text of table.md."""
    parts = [f"# {tables.heading}", *(f"**{warning}**" for warning in tables.warnings)]
    parts += [" ".join(tables.notes)]
    for table in (tables.errors, tables.budgets):
        lines = [table.columns, ("---", *["---:"] * (len(table.columns) - 1))]
        lines += [
            tuple(f"**{cell.text}**" if cell.best else cell.text for cell in row)
            for row in table.rows
        ]
        parts += [f"## {table.title}", "\n".join(f"| {' | '.join(line)} |" for line in lines)]
    parts += tables.footnotes
    return "\n\n".join(parts) + "\n"


def terminal(tables: Tables) -> rich.console.Group:
    """The same tables for `rich.print`, a little narrower."""
    parts: list[rich.console.RenderableType] = [
        Text(tables.heading, style="bold"),
        *(Text(warning, style="bold yellow") for warning in tables.warnings),
        Text(" ".join(tables.notes), style="dim"),
    ]
    for table in (tables.errors, tables.budgets):
        shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for position, column in enumerate(table.columns):
            shown.add_column(
                Text(column), justify="right" if position else "left", no_wrap=not position
            )
        for row in table.rows:
            texts = [cell.text.replace(" ± ", " ±") for cell in row]
            styles = ["bold" if cell.best else "" for cell in row]
            shown.add_row(*map(Text, texts, styles))
        parts += [Text(f"\n{table.title}", style="italic"), shown]
    parts += [Text(footnote, style="dim") for footnote in tables.footnotes]
    return rich.console.Group(*parts)


def _notes(experiment: Experiment, fronts: pd.DataFrame) -> tuple[str, ...]:
    images = sorted(set(fronts["calibration_images"]))
    first = cost_percents(fronts, experiment.cost, experiment.full_cost)[0]
    return (
        "The full network: "
        + ", ".join(
            f"{amount(experiment.full_costs[cost])} {words.defined}"
            for cost, words in COST_WORDS.items()
        )
        + ".",
        "Test top-1 error in % (less is better), mean ± sample standard deviation over the seeds.",
        "A column x% is the error of the network with the lowest search loss among those of at"
        f" most x% of the full network's {experiment.words.name}"
        f" (– where none fits in some seed); {AREA} is the mean of that error over"
        f" {first}% to 100%.",
        "Bold: the lowest mean among methods of equal training budget.",
        "Batch norm of each network re-calibrated on "
        + " to ".join(f"{count:,}" for count in dict.fromkeys((images[0], images[-1])))
        + " training images.",
    )


def _error_table(
    experiment: Experiment, fronts: pd.DataFrame, labels: dict[str, str], marks: dict[str, str]
) -> Table:
    measures = run_measures(fronts, experiment.cost, experiment.full_cost)
    statistics = seed_statistics(measures)
    table = statistics.pivot(index="method", columns="measure").loc[list(labels)]
    compared = [method not in marks for method in labels]
    columns = []
    for measure in measures.columns:
        means = table["mean", measure].to_numpy(dtype=np.float64).round(2)
        deviations = table["deviation", measure].to_numpy(dtype=np.float64)
        lowest = np.fmin.reduce(means, initial=np.inf, where=compared)
        columns.append(
            [
                Cell(_mean_and_deviation(mean, deviation), best=own and mean == lowest)
                for mean, deviation, own in zip(means, deviations, compared, strict=True)
            ]
        )
    names = [Cell(label) for label in labels.values()]
    seeds = [Cell(str(count)) for count in table["n", AREA]]
    return Table(
        title="Test top-1 error at a cost budget",
        columns=("method", "seeds", *measures.columns),
        rows=tuple(zip(names, seeds, *columns, strict=True)),
    )


def _mean_and_deviation(mean: float, deviation: float) -> str:
    if isnan(mean):
        return "–"
    return f"{mean:.2f}" if isnan(deviation) else f"{mean:.2f} ± {deviation:.2f}"


def _budget_table(fronts: pd.DataFrame, labels: dict[str, str]) -> Table:
    budgets = budget_table(fronts, list(labels))
    return Table(
        title="Budget per run",
        columns=("method", *(name.replace("_", " ") for name in BUDGET_TYPES)),
        rows=tuple(
            (Cell(label), *(Cell(text) for text in budgets[method].values()))
            for method, label in labels.items()
        ),
    )
