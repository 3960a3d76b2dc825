"""The tables of an experiment: errors, fronts, differences between methods, budgets."""

from collections.abc import Callable, Mapping, Sequence
from math import isnan

import numpy as np
import pandas as pd

from pareco.reporting.budgets import EXEMPT, UNEQUAL, budget_marks, budget_table
from pareco.reporting.costs import COST_WORDS
from pareco.reporting.experiment import Experiment
from pareco.reporting.records import BUDGET_TYPES, Records
from pareco.reporting.statistics import (
    AREA,
    HYPERVOLUME,
    cost_percents,
    method_order,
    paired_differences,
    run_measures,
    seed_statistics,
)
from pareco.reporting.table_formats import Cell, Table, Tables

MISSING = "–"
_FOOTNOTES = {
    EXEMPT: "exempt from the equal training budget, so not in the running for bold.",
    UNEQUAL: "spent another training budget than the others, so not in the running for bold.",
}
_SEARCH_BUDGETS = (
    "Search evaluations and widths visited are what each method's own search takes; the training"
    " budget (gradient steps, passes) is what is held equal."
)
_ONE_SEED = "One seed: numbers without deviation or interval, so no order of methods is claimed."
_OTHER_SEEDS = "Methods have different seeds: only the paired differences are over the same ones."
_OVER_SEEDS = (
    ", mean ± sample standard deviation over the seeds; in brackets the bootstrap 95% interval of"
    " the mean over the seeds."
)
_ENOUGH_SEEDS = 10
_FEW_SEEDS = (
    "With so few seeds the bootstrap's intervals are too narrow: of two seeds one is the two values"
    " themselves, and holds the true mean about every second time."
)
_PUBLISHED = (
    "Published: the least error of the networks that the source lists within the budget (its"
    " multiply-accumulates are rounded, so 1% of the full network's is let pass)."
)
_SLACK = 0.01


def experiment_tables(records: Records, published: pd.DataFrame, focus: str) -> Tables:
    """The tables of an experiment, one row per method, `focus` first.

    `published` are the published networks to set beside ours, see `published_for`; it may be
    empty. Methods whose training budget is exempt or unequal carry a mark, explained in a
    footnote, and do not count for the best of a column.
    """
    experiment, fronts = records.experiment, records.fronts
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods)
    labels = {method: f"{method} {marks.get(method, '')}".strip() for method in methods}
    measures = run_measures(fronts, experiment.cost, experiment.full_cost)
    compared = fronts[~fronts["method"].isin(list(marks))]
    seeds = (fronts if compared.empty else compared).groupby("method")["seed"].unique().map(set)
    several = seeds.map(len).min() > 1
    not_bold = marks if several else dict.fromkeys(methods, "")
    seed_warnings = [] if several else [_ONE_SEED]
    if len({frozenset(each) for each in seeds}) > 1:
        seed_warnings.append(_OTHER_SEEDS)
    statistics = seed_statistics(measures)
    shown = [
        _error_table(
            statistics, labels, not_bold, _published_rows(experiment, measures, published)
        ),
        _front_table(statistics, labels, not_bold),
        _difference_table(measures, labels),
        _budget_table(fronts, labels),
    ]
    return Tables(
        heading=experiment.title,
        warnings=(*experiment.warnings, *seed_warnings),
        notes=_notes(records, seeds.map(len).min()),
        tables=tuple(table for table in shown if table.rows),
        footnotes=(
            _SEARCH_BUDGETS,
            *([_PUBLISHED, *_references(published)] if len(published) else []),
            *(f"{mark} {text}" for mark, text in _FOOTNOTES.items() if mark in marks.values()),
        ),
    )


def measure_csv(records: Records, focus: str) -> str:
    """The text of table.csv: one row for each method and measure, and for each paired difference.

    `statistic` is `value`, or `difference to` a method: how much more, over the seeds that both
    have. Numbers have four digits after the point; one that is not there is empty.
    """
    experiment = records.experiment
    measures = run_measures(records.fronts, experiment.cost, experiment.full_cost)
    methods = method_order(records.fronts["method"], focus)
    marks = budget_marks(records.fronts, experiment.budget_exempt, methods)
    parts = [
        seed_statistics(measures).assign(statistic="value"),
        paired_differences(measures, methods[0]).assign(statistic=f"difference to {methods[0]}"),
    ]
    table = pd.concat([part for part in parts if len(part)])
    equal = table["method"].map(lambda method: "no" if method in marks else "yes")
    table = table.assign(cost=experiment.cost, equal_training_budget=equal)
    columns = ["method", "statistic", "cost", "measure", "n", "mean", "deviation", "low", "high"]
    return table[[*columns, "equal_training_budget"]].to_csv(
        index=False, float_format="%.4f", lineterminator="\n"
    )


def _notes(records: Records, least_seeds: int) -> tuple[str, ...]:
    experiment, fronts = records.experiment, records.fronts
    images = sorted(set(fronts["calibration_images"]))
    first = cost_percents(fronts, experiment.cost, experiment.full_cost)[0]
    return (
        "The full network: "
        + ", ".join(
            COST_WORDS[cost].full(value)
            + (f" ({COST_WORDS[cost].definition})" if COST_WORDS[cost].definition else "")
            for cost, value in experiment.full_costs.items()
        )
        + ".",
        "Test top-1 error in % (less is better)"
        + (_OVER_SEEDS if fronts["seed"].nunique() > 1 else "."),
        "A column x% is the error of the network with the lowest search loss among those of at"
        f" most x% of the full network's {experiment.words.name}"
        f" ({MISSING} where none fits in some seed); {AREA} is the mean of that error over"
        f" {first}% to 100%; {HYPERVOLUME} (more is better) is the part, in %, of the square up to"
        " 100% error and 100% cost that these networks dominate.",
        *_seed_notes(least_seeds),
        "Batch norm of each network re-calibrated on "
        + " to ".join(f"{count:,}" for count in dict.fromkeys((images[0], images[-1])))
        + " training images.",
    )


def _seed_notes(least_seeds: int) -> list[str]:
    """What there is to say of intervals and bold, by the least number of seeds of a method."""
    if least_seeds < 2:
        return []
    bold = "Bold: the best mean among methods of equal training budget."
    return [bold] if least_seeds >= _ENOUGH_SEEDS else [_FEW_SEEDS, bold]


def _error_table(
    statistics: pd.DataFrame,
    labels: Mapping[str, str],
    marks: Mapping[str, str],
    published: Sequence[tuple[Cell, ...]],
) -> Table:
    names = [name for name in statistics["measure"].unique() if name != HYPERVOLUME]
    columns = [
        _best(statistics, name, labels, marks, sign=1, text=_mean_and_deviation) for name in names
    ]
    return Table(
        title="Test top-1 error at a cost budget",
        columns=("method", "seeds", *names),
        rows=(*_rows(labels, _seed_counts(statistics, labels), *columns), *published),
    )


def _front_table(
    statistics: pd.DataFrame, labels: Mapping[str, str], marks: Mapping[str, str]
) -> Table:
    """Area and hypervolume, with their intervals where there are several seeds."""
    seeds = statistics["n"]
    columns = [
        _best(statistics, name, labels, marks, sign=sign, text=_mean_and_interval)
        for name, sign in ((AREA, 1), (HYPERVOLUME, -1))
    ]
    return Table(
        title="The whole front" + (": mean and 95% interval" if seeds.max() > 1 else ""),
        columns=("method", "seeds", AREA, HYPERVOLUME),
        rows=_rows(labels, _seed_counts(statistics, labels), *columns),
    )


def _difference_table(measures: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    """Differences to the first method; no rows where there is no other one."""
    reference, *others = labels
    statistics = paired_differences(measures, reference)
    present = {name: labels[name] for name in others if name in set(statistics["method"])}
    columns = [
        [Cell(_mean_and_interval(_of(statistics, method, name), signed=True)) for method in present]
        for name in measures.columns
    ]
    return Table(
        title=f"Paired difference to {reference}, seed by seed (positive errors: {reference} is"
        " better)",
        columns=("method", "seeds", *measures.columns),
        rows=_rows(present, _seed_counts(statistics, present), *columns),
        wide=True,
    )


def _budget_table(fronts: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    budgets = budget_table(fronts, list(labels))
    return Table(
        title="Budget per run",
        columns=("method", *(name.replace("_", " ") for name in BUDGET_TYPES)),
        rows=tuple(
            (Cell(label), *(Cell(text) for text in budgets[method].values()))
            for method, label in labels.items()
        ),
    )


def _published_rows(
    experiment: Experiment, measures: pd.DataFrame, published: pd.DataFrame
) -> list[tuple[Cell, ...]]:
    """A row for each published method and source: its least error within each budget."""
    rows, sources = [], _sources(published)
    percents = [int(name[:-1]) for name in measures.columns if name.endswith("%")]
    for (method, source), networks in published.groupby(["method", "source"], sort=True):
        shares = networks["macs_millions"] * 1e6 / experiment.full_costs["macs"]
        least = [
            networks.loc[shares <= percent / 100 + _SLACK, "top1_error"].min()
            for percent in percents
        ]
        texts = [MISSING if isnan(error) else f"{error:.2f}" for error in least]
        label = f"{method}, published [{sources.index(str(source)) + 1}]"
        rows.append((Cell(label), Cell(MISSING), *map(Cell, texts), Cell(MISSING)))
    return rows


def _references(published: pd.DataFrame) -> list[str]:
    return [f"[{index}] {source}" for index, source in enumerate(_sources(published), start=1)]


def _sources(published: pd.DataFrame) -> list[str]:
    return sorted(set(published["source"]))


def _rows(labels: Mapping[str, str], *columns: Sequence[Cell]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(zip(map(Cell, labels.values()), *columns, strict=True))


def _seed_counts(statistics: pd.DataFrame, labels: Mapping[str, str]) -> list[Cell]:
    counts = statistics.groupby("method")["n"].max()
    return [Cell(str(counts[method])) for method in labels]


def _of(statistics: pd.DataFrame, method: str, measure: str) -> pd.Series:
    row = statistics[(statistics["method"] == method) & (statistics["measure"] == measure)]
    return row.iloc[0]


def _best(
    statistics: pd.DataFrame,
    measure: str,
    labels: Mapping[str, str],
    marks: Mapping[str, str],
    *,
    sign: int,
    text: Callable[[pd.Series], str],
) -> list[Cell]:
    """A column's cells; bold the best mean without a mark: least for sign 1, greatest for -1."""
    rows = [_of(statistics, method, measure) for method in labels]
    means = np.array([sign * round(float(row["mean"]), 2) for row in rows])
    compared = [method not in marks for method in labels]
    lowest = np.fmin.reduce(means, initial=np.inf, where=compared)
    return [
        Cell(text(row), best=own and mean == lowest)
        for row, mean, own in zip(rows, means, compared, strict=True)
    ]


def _mean_and_deviation(row: pd.Series) -> str:
    if isnan(row["mean"]):
        return MISSING
    mean = f"{row['mean']:.2f}"
    return mean if isnan(row["deviation"]) else f"{mean} ± {row['deviation']:.2f}"


def _mean_and_interval(row: pd.Series, *, signed: bool = False) -> str:
    if isnan(row["mean"]):
        return MISSING
    sign = "+" if signed else ""
    mean, low, high = (f"{round(row[name], 2) + 0.0:{sign}.2f}" for name in ("mean", "low", "high"))
    return mean if isnan(row["low"]) else f"{mean} [{low}, {high}]"
