"""Experiments that differ in something, method by method and seed by seed: what it changes."""

import string
from collections.abc import Iterable, Iterator, Mapping, Sequence

import pandas as pd

from pareco.config import completed, value_text
from pareco.reporting.records import COMMON, COST_WORDS, LATENCY, Records
from pareco.reporting.rendering import Cell, Table, Tables
from pareco.reporting.statistics import (
    AREA,
    HYPERVOLUME,
    cost_percents,
    loss_measures,
    method_order,
    paired_differences,
    run_measures,
    seed_statistics,
)
from pareco.reporting.tables import LOSS_PLACES, MISSING, measure_rows
from pareco.reporting.work import spending

_ALIKE = ("network", "data", "image_size", "classes", "test_images", "groups")
_MACHINE = ("system", "cpu", "cpu_instructions", "cpu_cores", "gpus", "device", "torch")
_MACHINE = (*_MACHINE, "cpu_threads", "batch_size")
_SAME_SPEED = 1.2  # by how much the same network may be slower in one record than in another
_NOTES = (
    "Differences are over the seeds that both experiments have, in the mean with Student's 95%"
    " interval, each by itself: of twenty of nothing, one leaves out zero. MACs are all of a run,"
    " search, choice and test included, in the mean in % of what it takes in A."
)


def comparison_tables(compared: Sequence[Records], cost: str, focus: str) -> Tables:
    """The tables of experiments beside the first of them, over a cost such as `macs`.

    They have the methods that the first shares with another, `focus` first. Budgets begin where
    every run has a network. Raises ValueError for fewer than two experiments, more than there are
    letters, or one twice, where no run is shared, and where numbers cannot be compared: another
    network or data set, another full cost, latency of another machine or of a busy one.
    """
    names = [each.experiment.experiment for each in compared]
    if not 2 <= len(names) <= len(string.ascii_uppercase) or len(set(names)) < len(names):
        most = len(string.ascii_uppercase)
        raise ValueError(f"give the names of two or more experiments, at most {most}, each once")
    first, *others = compared
    for other in others:
        _check_alike(first, other, cost)
    theirs = {method for other in others for method in other.fronts["method"]}
    methods = [each for each in method_order(first.fronts["method"], focus) if each in theirs]
    if not any(set(first.runs) & set(other.runs) for other in others):
        rest = ", ".join(names[1:])
        raise ValueError(f"{names[0]} shares no method with {rest}, or no seed of one")
    letters = dict(zip(names, string.ascii_uppercase, strict=False))
    labels = {(method, name): f"{method} {letters[name]}" for method in methods for name in names}
    fronts = pd.concat([_labelled(each, labels) for each in compared], ignore_index=True)
    full, words = first.experiment.full_costs[cost], COST_WORDS[cost]
    runs = fronts.groupby(["method", "seed"])
    percents = max(cost_percents(front, cost, full) for _, front in runs)
    return Tables(
        heading=f"{', '.join(names[1:])} beside {names[0]}",
        warnings=tuple(_warnings(compared, methods, letters, cost)),
        notes=(
            first.experiment.counts,
            f"Test top-1 error in % (less is better). A column x% is the error at a budget of x%"
            f" of {words.full(full)}; {AREA} is its mean over {percents[0]}% to 100%; of"
            f" {HYPERVOLUME}, more is better. {_NOTES}",
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
            *_tables(compared, labels, fronts, run_measures(fronts, cost, full, percents)),
            *_loss_tables(compared, labels, loss_measures(fronts, cost, full, percents)),
        ),
        footnotes=(),
    )


def _warnings(
    compared: Sequence[Records], methods: Sequence[str], letters: Mapping[str, str], cost: str
) -> Iterator[str]:
    """What makes numbers less comparable than they look."""
    for method in methods:
        seeds = {
            letters[each.experiment.experiment]: sorted({s for m, s in each.runs if m == method})
            for each in compared
        }
        if len({*map(tuple, filter(None, seeds.values()))}) > 1:
            told = "; ".join(
                f"{name} {', '.join(map(str, own))}" for name, own in seeds.items() if own
            )
            yield f"{method} has other seeds ({told}): means are of these, differences of both."
    if cost == LATENCY and len({each.experiment.full_costs[cost] for each in compared}) > 1:
        times = [f"{each.experiment.full_costs[cost]:.3g}" for each in compared]
        yield f"Measured apart: the full network took {', '.join(times)} ms."


def _tables(
    compared: Sequence[Records],
    labels: Mapping[tuple[str, str], str],
    fronts: pd.DataFrame,
    measures: pd.DataFrame,
) -> Iterator[Table]:
    """The errors, and the differences to the first experiment."""
    reference, names = compared[0].experiment.experiment, list(map(str, measures.columns))
    errors, took = [name for name in names if name != HYPERVOLUME], _percents_of_macs(compared)
    statistics, passes = seed_statistics(measures), fronts.groupby("method")["passes"]
    spent = {label: sorted(set(own)) for label, own in passes}
    by_label = {label: run for run, label in labels.items() if label in spent}
    yield Table(
        title="Test top-1 error at a cost budget, and passes and MACs of a run",
        columns=("method", "seeds", *errors, "passes", "MACs"),
        rows=tuple(
            (
                *row,
                Cell(
                    " to ".join(f"{each:,}" for each in sorted({spent[label][0], spent[label][-1]}))
                ),
                Cell(took[by_label[label]]),
            )
            for row in _rows(statistics, by_label, errors)
            for label in [row[0].text]
        ),
    )
    differences = _differences(measures, labels, reference)
    for shown, wide in (([AREA, HYPERVOLUME], False), (names, True)):
        yield Table(
            title="Difference to A, seed by seed (negative errors: better than A)",
            columns=("method", "seeds", *shown),
            rows=_rows(differences, by_label, shown, interval=True, sign="+"),
            wide=wide,
        )


def _loss_tables(
    compared: Sequence[Records], labels: Mapping[tuple[str, str], str], losses: pd.DataFrame
) -> Iterator[Table]:
    """The test losses, and their differences to the first experiment, of the runs that have any."""
    if losses.empty:
        return
    names = list(map(str, losses.columns))
    columns = ("method", "seeds", *names)
    yield Table(
        title="Test loss (nats) at a cost budget, of the seeds that have it",
        columns=columns,
        rows=_rows(seed_statistics(losses), labels.values(), names, places=LOSS_PLACES),
    )
    differences = _differences(losses, labels, compared[0].experiment.experiment)
    if len(differences):
        yield Table(
            title="Difference of test loss to A, seed by seed",
            columns=columns,
            rows=_rows(
                differences, labels.values(), names, interval=True, sign="+", places=LOSS_PLACES
            ),
            wide=True,
        )


def _differences(
    measures: pd.DataFrame, labels: Mapping[tuple[str, str], str], reference: str
) -> pd.DataFrame:
    """The paired differences of each method to itself in the experiment `reference`."""
    there = set(measures.index.get_level_values("method"))
    found = [seed_statistics(measures.iloc[:0])]
    for kept, name in labels:
        if name == reference and (first := labels[kept, name]) in there:
            own = [each for (method, _), each in labels.items() if method == kept and each in there]
            found.append(paired_differences(measures.loc[own], first))
    return pd.concat(found, ignore_index=True)


def _rows(
    statistics: pd.DataFrame,
    labels: Iterable[str],
    names: Sequence[str],
    *,
    interval: bool = False,
    sign: str = "",
    places: int = 2,
) -> tuple[tuple[Cell, ...], ...]:
    itself, none = {label: label for label in labels}, dict.fromkeys(labels, 0)
    return tuple(
        measure_rows(
            statistics, itself, names, interval=interval, sign=sign, planned=none, places=places
        )
    )


def _labelled(records: Records, labels: Mapping[tuple[str, str], str]) -> pd.DataFrame:
    """The fronts of the methods that have a label, each with it in place of its name."""
    name = records.experiment.experiment
    own = {method: label for (method, where), label in labels.items() if where == name}
    fronts = records.fronts[records.fronts["method"].isin(own)]
    return fronts.assign(method=fronts["method"].map(own))


def _kinds(compared: Sequence[Records]) -> Iterator[str]:
    """The scale of the first experiment, and what is other with each of the rest.

    Of records without a configuration, as earlier ones, the scale.
    """
    first = compared[0]
    start = first.experiment.started_from
    yield first.experiment.scale + ("" if start is None else f", started from {start}")
    for other in compared[1:]:
        if first.configuration and other.configuration:
            yield ", ".join(_differing(first, other)) or "the same"
        else:
            yield other.experiment.scale


def _differing(first: Records, other: Records) -> Iterator[str]:
    """Each field of the configuration that differs, with its value in the other experiment."""
    here, there = (completed(each.configuration[COMMON]) for each in (first, other))
    for key in sorted((here.keys() | there.keys()) - {"name", "scale", "network.started_from"}):
        if here.get(key) != there.get(key):
            yield (
                "other images"
                if key == "data fingerprint"
                else f"{key} {value_text(there.get(key))}"
            )
    for method in sorted((first.configuration.keys() & other.configuration.keys()) - {COMMON}):
        here, there = first.configuration[method], other.configuration[method]
        for key in sorted(here.keys() & there.keys()):
            if here[key] != there[key]:
                yield f"{key.removeprefix('unset.')} {value_text(there[key])} of {method}"
    if first.experiment.started_from != other.experiment.started_from:
        yield f"started from {other.experiment.started_from or 'fresh weights'}"


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
    pair, full = (
        f"{one.experiment} and {two.experiment}",
        [one.full_costs[cost], two.full_costs[cost]],
    )
    if cost != LATENCY:
        if full[0] != full[1]:
            raise ValueError(f"{pair} differ in the full {cost}: {full[0]:,} and {full[1]:,}")
        return
    machines = [[(each.latency or {}).get(name) for name in _MACHINE] for each in (first, other)]
    if machines[0] != machines[1]:
        raise ValueError(f"the latencies of {pair} are of different machines")
    if max(full) > _SAME_SPEED * min(full):
        raise ValueError(
            f"the full network took {full[0]:.3g} ms in {one.experiment} and {full[1]:.3g} ms in "
            f"{two.experiment}: measure both on the same idle machine"
        )
