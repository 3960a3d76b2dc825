"""The tables of an experiment: what they hold, and as CSV."""

from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from math import inf, isnan
from types import MappingProxyType
from typing import Any

import numpy as np
import pandas as pd

from pareco.reporting.records import COST_WORDS, Records
from pareco.reporting.rendering import Cell, Table, Tables
from pareco.reporting.statistics import (
    AREA,
    EXEMPT,
    FEWEST_SEEDS,
    HYPERVOLUME,
    LOSS,
    UNEQUAL,
    Comparison,
    best_methods,
    budget_table,
    comparison,
    cost_percents,
)
from pareco.reporting.work import spending_texts
from pareco.schema import BUDGET_TYPES, SPLIT_LOSSES

MISSING = "–"
LOSS_PLACES = 3
_FOOTNOTES = {
    EXEMPT: "exempt from the equal training budget, so not in the running for bold.",
    UNEQUAL: "spent another training budget than the others, so not in the running for bold.",
}
_EQUAL_PASSES = "Gradient steps and passes are held equal, of methods without a mark; work is not."
_EQUAL_MACS = (
    "The MACs before the test are held equal, of methods without a mark, within the last step and"
    " its search, and what a search after training had no use for. Steps differ, work hardly."
)
_COUNTED = (
    "It is counted in multiply-accumulates (MACs; a backward pass as two forward ones), the mean"
    " over seeds: of training, of the search meanwhile, of the choice of the front with"
    f" calibration, and of its test ({MISSING}: not recorded). What an interruption had a run do"
    " twice is in no total."
)
_NO_BATCH_NORM = "The networks have no batch norm: nothing is re-calibrated."
_COMPARES_NOTHING = "search_evaluations"  # some are of a batch, some of calibrated networks
_ONE_SEED = "One seed: numbers without deviation or interval, so no order of methods is claimed."
_OTHER_SEEDS = "Methods have different seeds: only the paired differences are over the same ones."
_OTHER_SEEDS_OF_LOSSES = (
    "Test losses of methods are of different seeds: only their paired differences are over the same"
    " ones."
)
_REFERENCE = "Methods planned with fewer seeds are for reference: not in the running for bold."
_OVER_SEEDS = (
    ", mean ± sample standard deviation over the seeds; in brackets Student's 95% t interval of"
    f" the mean ({MISSING} with one seed, and where all seeds agree to the last digit, as they say"
    " nothing of the spread)."
)
_TWO_SEEDS = (
    "Of two seeds the interval is 18 deviations wide, as it has to be; no method is bold with fewer"
    f" than {FEWEST_SEEDS}."
)
_DAMAGED = (
    "{count:,} of the images could not be read (run.log names them): in place of each the next one"
    " of its split counts twice, in the test too."
)
_PUBLISHED = (
    "Published: the least error of the networks that the source lists within the budget (its"
    " multiply-accumulates are rounded, so 1% of the full network's is let pass)."
)
_SLACK = 1.0
_CHOICE = {
    "batch": "Search losses, which fronts are chosen by, are on {images:,} of the training images:"
    " the networks have trained on them.",
    "holdout": "Search losses, which fronts are chosen by, are on {images:,} held-out images, which"
    " no network has trained on.",
}
_UNKNOWN_CHOICE = "On which images the search losses were measured was not recorded."
_SPLITS = {"training_loss": "training images", "held_out_loss": "held-out images"}
_BOLD = (
    "Bold: the best mean among methods of equal training budget, and every mean that its seeds do"
    " not tell apart from it (the 95% t interval of the paired difference, adjusted for the number"
    " of pairs of methods, holds zero)."
)


def experiment_tables(
    records: Records, published: pd.DataFrame, focus: str, reference: str = ""
) -> Tables:
    """The tables of an experiment, one row per method, `focus` first.

    What each took is relative to the method `reference` or, where that has no runs, to the first.

    `published` are the published networks to set beside ours, see `published_for`; it may be
    empty. Methods whose training budget is exempt or unequal carry a mark, explained in a
    footnote, and do not count for the best of a column.
    """
    found, experiment = comparison(records, focus), records.experiment
    judged = found.compared or list(found.labels)
    seeds, seeds_of_losses = (each.seeds(judged) for each in (found.errors, found.losses))
    least_seeds = min(map(len, seeds.values()))
    labels, fewer = " ".join(found.labels.values()), experiment.planned_fewer.keys()
    return Tables(
        heading=experiment.title,
        warnings=(
            *experiment.warnings,
            *_damaged(records),
            *([_ONE_SEED] if least_seeds < 2 else []),
            *([_OTHER_SEEDS] if len({*seeds.values()}) > 1 else []),
            *([_OTHER_SEEDS_OF_LOSSES] if len({*seeds_of_losses.values()}) > 1 else []),
        ),
        notes=_notes(records, least_seeds),
        tables=tuple(_tables(found, records, published, reference)),
        footnotes=(
            f"{_EQUAL_MACS if records.experiment.equal_macs else _EQUAL_PASSES} {_COUNTED}",
            *([_PUBLISHED] if len(published) else []),
            *(f"[{number}] {source}" for source, number in _sources(published).items()),
            *(f"{mark} {text}" for mark, text in _FOOTNOTES.items() if mark in labels),
            *([_REFERENCE] if fewer & found.labels.keys() else []),
        ),
    )


def measure_csv(records: Records, focus: str) -> str:
    """The text of table.csv: one row for each method and measure, and for each paired difference.

    `statistic` is `value`, or `difference to` a method: how much more, over the seeds that both
    have. Measures of the test loss, of the runs that have it, have a prefix. Numbers have four
    digits after the point; one that is not there is empty.
    """
    found = comparison(records, focus)
    table = pd.concat(
        [
            part.assign(statistic=name, measure=prefix + part["measure"])
            for prefix, each in (("", found.errors), (f"{LOSS} ", found.losses))
            for name, part in (
                ("value", each.statistics),
                (f"difference to {each.first}", each.differences),
            )
            if len(part)
        ]
    )
    unmarked = [method for method, label in found.labels.items() if label == method]
    equal = table["method"].isin(unmarked).map({True: "yes", False: "no"})
    table = table.assign(cost=records.experiment.cost, equal_training_budget=equal)
    columns = ["method", "statistic", "cost", "measure", "n", "mean", "deviation", "low", "high"]
    return table[[*columns, "equal_training_budget"]].to_csv(
        index=False, float_format="%.4f", lineterminator="\n"
    )


def _damaged(records: Records) -> list[str]:
    """The warning that images could not be read, where that is so of some run."""
    runs = (run for seeds in records.environment["runs"].values() for run in seeds.values())
    most = max((run["damaged_images"] for run in runs), default=0)
    return [_DAMAGED.format(count=most)] if most else []


def _notes(records: Records, least_seeds: int) -> tuple[str, ...]:
    experiment, fronts = records.experiment, records.fronts
    images = sorted(set(fronts["calibration_images"]))
    choice = experiment.search_split and _CHOICE[experiment.search_split]
    first = cost_percents(fronts, experiment.cost, experiment.full_cost)[0]
    costs = (COST_WORDS[cost].full(value) for cost, value in experiment.full_costs.items())
    return (
        experiment.counts,
        f"The full network: {', '.join(costs)}.",
        "Test top-1 error in % (less is better)"
        + (_OVER_SEEDS if fronts["seed"].nunique() > 1 else "."),
        "A column x% is the error of the network with the lowest search loss among those of at"
        f" most x% of the full network's {experiment.words.name}"
        f" ({MISSING} where none fits in some seed); {AREA} is the mean of that error over"
        f" {first}% to 100%; {HYPERVOLUME} (more is better) is the part, in %, of the square up to"
        " 100% error and 100% cost that these networks dominate.",
        _UNKNOWN_CHOICE if choice is None else choice.format(images=experiment.search_images or 0),
        *([_TWO_SEEDS] if least_seeds == 2 else []),
        *([_BOLD] if least_seeds >= FEWEST_SEEDS else []),
        "Batch norm of each network re-calibrated on "
        + " to ".join(f"{count:,}" for count in dict.fromkeys((images[0], images[-1])))
        + " training images."
        if images[-1]
        else _NO_BATCH_NORM,
    )


def _tables(
    found: Comparison, records: Records, published: pd.DataFrame, reference: str
) -> Iterator[Table]:
    """Errors, what they took, the whole front, its losses, differences (if any), budgets.

    In the first two, the `best_methods` of those compared are bold.
    """
    best = best_methods(found.errors.values, found.compared)
    labels, statistics = found.labels, found.errors.statistics
    names = list(statistics["measure"].unique())
    errors = [name for name in names if name != HYPERVOLUME]
    budgets = budget_table(records.fronts, list(labels))
    shown = {name: place for place, name in enumerate(BUDGET_TYPES) if name != _COMPARES_NOTHING}
    first, ran = found.errors.first, records.experiment
    planned = dict.fromkeys(labels, ran.planned_seeds) | dict(ran.planned_fewer)
    yield Table(
        title="Test top-1 error at a cost budget",
        columns=("method", "seeds", *errors),
        rows=(
            *measure_rows(statistics, labels, errors, best, interval=False, planned=planned),
            *_published_rows(published, errors, records.experiment.full_costs["macs"]),
        ),
    )
    yield _spending_table(records, labels, reference)
    yield Table(
        title="The whole front" + (": mean and 95% interval" if statistics["n"].max() > 1 else ""),
        columns=("method", "seeds", AREA, HYPERVOLUME),
        rows=tuple(
            measure_rows(
                statistics, labels, [AREA, HYPERVOLUME], best, interval=True, planned=planned
            )
        ),
    )
    yield from _loss_tables(found, planned)
    yield _choice_table(records, labels)
    if len(found.errors.differences):
        yield Table(
            title=f"Paired difference to {first}, seed by seed"
            f" (positive errors: {first} is better)",
            columns=("method", "seeds", *names),
            rows=tuple(
                measure_rows(
                    found.errors.differences,
                    labels,
                    names,
                    interval=True,
                    sign="+",
                    planned=planned,
                )
            ),
            wide=True,
        )
    yield Table(
        title="Budget per run",
        columns=("method", *(name.replace("_", " ") for name in shown)),
        rows=tuple(
            (Cell(label), *(Cell(budgets[method][place]) for place in shown.values()))
            for method, label in labels.items()
        ),
    )


def _loss_tables(found: Comparison, planned: Mapping[str, int]) -> Iterator[Table]:
    """The test losses of the networks whose errors the first table has, and their differences.

    Of the runs that have them: earlier ones do not. Bold only where all that is judged has some.
    """
    losses = found.losses
    if not losses.first:
        return
    all_there = set(losses.statistics["method"]).issuperset(found.compared)
    best = best_methods(losses.values, found.compared if all_there else [])
    common: dict[str, Any] = {"planned": planned, "places": LOSS_PLACES}
    names = [*map(str, losses.values.columns)]
    columns = ("method", "seeds", *names)
    yield Table(
        title="Test loss (nats) at a cost budget, of the seeds that have it",
        columns=columns,
        rows=tuple(
            measure_rows(losses.statistics, found.labels, names, best, interval=False, **common)
        ),
    )
    if len(losses.differences):
        yield Table(
            title=f"Paired difference of test loss to {losses.first}, seed by seed",
            columns=columns,
            rows=tuple(
                measure_rows(
                    losses.differences, found.labels, names, interval=True, sign="+", **common
                )
            ),
            wide=True,
        )


def _spending_table(records: Records, labels: Mapping[str, str], reference: str) -> Table:
    """What a run of each method took."""
    columns, texts = spending_texts(records, list(labels), reference, MISSING)
    return Table(
        title="What it took per run: MACs and time",
        columns=("method", *columns),
        rows=tuple((Cell(label), *map(Cell, texts[name])) for name, label in labels.items()),
    )


def _choice_table(records: Records, labels: Mapping[str, str]) -> Table:
    """The mean losses of the networks on each method's fronts, on either split.

    Where a front was chosen by one and the other is lower, its networks know those images better.
    """
    chosen = SPLIT_LOSSES.get(records.experiment.search_split or "")
    fronts = records.fronts
    if chosen is not None:  # earlier records have it under the one name only
        fronts = fronts.assign(**{chosen: fronts["search_loss"]})
    of_seed = fronts.groupby(["method", "seed"])[list(_SPLITS)].mean()
    means = of_seed.groupby(level="method").mean()
    numbers = fronts.groupby("method").size()
    marks = {name: " (chosen by)" if name == chosen else "" for name in _SPLITS}
    return Table(
        title="Where the front was chosen: mean loss (nats) of its networks",
        columns=("method", "networks", *(f"{_SPLITS[name]}{marks[name]}" for name in _SPLITS)),
        rows=tuple(
            (
                Cell(label),
                Cell(str(numbers[method])),
                *(Cell(_loss(means.loc[method, name])) for name in _SPLITS),
            )
            for method, label in labels.items()
        ),
    )


def _loss(value: Any) -> str:
    return MISSING if isnan(value) else f"{value:.3f}"


def measure_rows(
    statistics: pd.DataFrame,
    labels: Mapping[str, str],
    names: Sequence[str],
    best: Mapping[str, Collection[str]] = MappingProxyType({}),
    *,
    interval: bool,
    sign: str = "",
    planned: Mapping[str, int],
    places: int = 2,
) -> Iterator[tuple[Cell, ...]]:
    """A row for each method that has one, with seeds and measures; bold the best of a measure.

    Where fewer seeds have run than are `planned`, it says so.
    """
    rows = {(row["method"], row["measure"]): row for row in statistics.to_dict("records")}
    spread = statistics["n"].max() > 1
    for method, label in labels.items():
        if (method, names[0]) in rows:
            cells = (
                Cell(
                    _text(rows[method, name], interval, sign, spread=spread, places=places),
                    best=method in best.get(name, ()),
                )
                for name in names
            )
            count = rows[method, names[0]]["n"]
            seeds = f"{count} of {planned[method]}" if count < planned[method] else str(count)
            yield Cell(label), Cell(seeds), *cells


def _published_rows(
    published: pd.DataFrame, columns: Sequence[str], full: float
) -> Iterator[tuple[Cell, ...]]:
    """A row for each published method and source: its least error within each budget."""
    sources = _sources(published)
    for (method, source), networks in published.groupby(["method", "source"], sort=True):
        percents = networks["macs_millions"] * 1e8 / full
        texts = []
        for name in columns:
            budget = float(name[:-1]) if name.endswith("%") else -inf
            error = networks.loc[percents <= budget + _SLACK, "top1_error"].min()
            texts.append(MISSING if isnan(error) else f"{error:.2f}")
        label = f"{method}, published [{sources[str(source)]}]"
        yield tuple(map(Cell, (label, MISSING, *texts)))


def _sources(published: pd.DataFrame) -> dict[str, int]:
    """The number of each source."""
    return {source: number for number, source in enumerate(sorted(set(published["source"])), 1)}


def _text(
    row: Mapping[Hashable, Any], interval: bool, sign: str, *, spread: bool, places: int
) -> str:
    """The mean of a row of `seed_statistics`, in a table of spreads with deviation or interval."""
    if isnan(row["mean"]):
        return MISSING
    mean, deviation, low, high = (
        MISSING if isnan(row[name]) else f"{np.round(row[name], places):{sign}z.{places}f}"
        for name in ("mean", "deviation", "low", "high")
    )
    if not spread:
        return mean
    if not interval:
        return f"{mean} ± {deviation}"
    return f"{mean} [{MISSING}]" if isnan(row["low"]) else f"{mean} [{low}, {high}]"
