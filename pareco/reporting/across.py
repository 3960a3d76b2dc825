"""Experiments that differ in something, method by method and seed by seed: what it changes."""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from pareco.reporting.records import COST_WORDS, LATENCY, Records
from pareco.reporting.rendering import Cell, Table, Tables
from pareco.reporting.statistics import (
    AREA,
    HYPERVOLUME,
    cost_percents,
    method_order,
    paired_differences,
    run_measures,
    seed_statistics,
)
from pareco.reporting.tables import MISSING, measure_rows
from pareco.reporting.work import spending

_ALIKE = ("network", "data", "image_size", "classes", "test_images", "groups")
_MACHINE = ("cpu", "cpu_cores", "gpus", "device", "torch", "cpu_threads", "batch_size")
_DIFFERENCES = (
    "Differences are over the seeds that both experiments have, in the mean with Student's 95%"
    " interval, each by itself: of twenty of nothing, one leaves out zero."
)


def comparison_tables(compared: Sequence[Records], cost: str, focus: str) -> Tables:
    """The tables of experiments beside the first of them, over a cost such as `macs`.

    They have the methods that the first shares with another, `focus` first. Raises ValueError for
    fewer than two experiments or one twice, where no method is shared, and where numbers cannot be
    compared: another network or data set, another full cost, latency of another machine.
    """
    names = [each.experiment.experiment for each in compared]
    if len(compared) < 2 or len(set(names)) < len(names):
        raise ValueError("give the names of two or more experiments, each once")
    first, *others = compared
    for other in others:
        _check_alike(first, other, cost)
    theirs = {method for other in others for method in other.fronts["method"]}
    methods = [each for each in method_order(first.fronts["method"], focus) if each in theirs]
    if not methods:
        raise ValueError(f"{names[0]} shares no method with {', '.join(names[1:])}")
    letters = dict(zip(names, string.ascii_uppercase, strict=False))
    labels = {(method, name): f"{method} {letters[name]}" for method in methods for name in names}
    fronts = pd.concat([_labelled(each, labels) for each in compared], ignore_index=True)
    full = first.experiment.full_costs[cost]
    words, percent = COST_WORDS[cost], cost_percents(fronts, cost, full)[0]
    return Tables(
        heading=f"{', '.join(names[1:])} beside {names[0]}",
        warnings=(),
        notes=(
            first.experiment.counts,
            f"Test top-1 error in % (less is better). A column x% is the error at a budget of x%"
            f" of {words.full(full)}; {AREA} is its mean over {percent}% to 100%; of"
            f" {HYPERVOLUME}, more is better. {_DIFFERENCES}",
        ),
        tables=(
            Table(
                title="Experiments",
                columns=("", "experiment", "what it is"),
                rows=tuple(
                    (Cell(letters[name]), Cell(name), Cell(kind))
                    for name, kind in zip(names, _kinds(compared), strict=True)
                ),
            ),
            *_tables(compared, labels, run_measures(fronts, cost, full)),
        ),
        footnotes=(),
    )


def _tables(
    compared: Sequence[Records], labels: Mapping[tuple[str, str], str], measures: pd.DataFrame
) -> Iterator[Table]:
    """The errors, and the differences to the first experiment."""
    reference, names = compared[0].experiment.experiment, list(map(str, measures.columns))
    errors, took = [name for name in names if name != HYPERVOLUME], _percents_of_macs(compared)
    statistics = seed_statistics(measures)
    ran = set(statistics["method"])
    by_label = {label: run for run, label in labels.items() if label in ran}
    yield Table(
        title="Test top-1 error at a cost budget, and all MACs of a run",
        columns=("method", "seeds", *errors, "MACs"),
        rows=tuple(
            (*row, Cell(took[by_label[row[0].text]])) for row in _rows(statistics, by_label, errors)
        ),
    )
    differences = pd.concat(
        [
            paired_differences(measures.loc[[each for each in own if each in ran]], own[0])
            for method in dict(labels)
            if method[1] == reference
            for own in [[label for run, label in labels.items() if run[0] == method[0]]]
        ]
    )
    for shown, wide in (([AREA, HYPERVOLUME], False), (names, True)):
        yield Table(
            title="Difference to A, seed by seed (negative errors: better than A)",
            columns=("method", "seeds", *shown),
            rows=_rows(differences, by_label, shown, interval=True, sign="+"),
            wide=wide,
        )


def _rows(
    statistics: pd.DataFrame,
    labels: Iterable[str],
    names: Sequence[str],
    *,
    interval: bool = False,
    sign: str = "",
) -> tuple[tuple[Cell, ...], ...]:
    itself, none = {label: label for label in labels}, dict.fromkeys(labels, 0)
    return tuple(
        measure_rows(statistics, itself, names, interval=interval, sign=sign, planned=none)
    )


def _labelled(records: Records, labels: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The fronts of the methods that have a label, each with it in place of its name."""
    name = records.experiment.experiment
    own = {method: label for (method, where), label in labels.items() if where == name}
    fronts = records.fronts[records.fronts["method"].isin(own)]
    return fronts.assign(method=fronts["method"].map(own))


def _kinds(compared: Sequence[Records]) -> Iterator[str]:
    """The scale of the first experiment, and what is other with each of the rest."""
    parts = [
        [
            *one.scale.split(", "),
            *([f"started from {start}"] if (start := one.started_from) else []),
        ]
        for one in (each.experiment for each in compared)
    ]
    yield ", ".join(parts[0])
    for own in parts[1:]:
        other = [part for part in own if part not in parts[0]]
        missing = [f"not {part}" for part in parts[0] if part not in own]
        yield ", ".join([*other, *missing]) or "the same"


def _percents_of_macs(compared: Sequence[Records]) -> Mapping[tuple[str, str], str]:
    """All MACs of a run, by method and experiment: mean over seeds, in % of the first's."""
    totals = [spending(each, sorted(set(each.fronts["method"])))["total"] for each in compared]
    parts = [100 * total / totals[0].reindex(total.index) for total in totals]
    return {
        (str(method), records.experiment.experiment): MISSING if pd.isna(part) else f"{part:.0f}%"
        for records, total in zip(compared, parts, strict=True)
        for method, part in total.items()
    }


def _check_alike(first: Records, other: Records, cost: str) -> None:
    """Raise ValueError where the numbers of two experiments cannot be compared over a cost."""
    one, two = first.experiment, other.experiment
    for field in _ALIKE:
        here, there = getattr(one, field), getattr(two, field)
        if here != there:
            raise ValueError(
                f"{two.experiment} has another {field.replace('_', ' ')} than {one.experiment}"
                + ("" if field == "groups" else f": {there}, not {here}")
            )
    for each in (one, two):
        if cost not in each.full_costs:
            known = ", ".join(each.full_costs)
            raise ValueError(f"{each.experiment} has no {cost}. It has: {known}")
    if cost == LATENCY:
        assert first.latency is not None
        assert other.latency is not None
        if any(first.latency.get(name) != other.latency.get(name) for name in _MACHINE):
            raise ValueError(
                f"the latencies of {one.experiment} and {two.experiment} are of different machines"
            )
    elif one.full_costs[cost] != two.full_costs[cost]:
        raise ValueError(f"{two.experiment} and {one.experiment} differ in the full {cost}")
