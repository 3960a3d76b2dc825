"""Experiments beside one of them: hand-worked differences, what differs, what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
from scipy.stats import t

from pareco.reporting.across import comparison_tables
from pareco.reporting.records import LATENCY, Records
from pareco.reporting.rendering import Table, Tables, markdown
from pareco.schema import LEDGER_TYPES, PHASES, GroupSize
from tests.reporting.claim_records import records_of

MACHINE = {"cpu": "one", "cpu_threads": 1, "batch_size": 1, "device": "cpu", "gpus": []}


def runs(errors: Mapping[tuple[str, int], float], name: str, **changes: Any) -> Records:
    """Return runs of a network each, at a fifth of the cost, so that areas are its errors."""
    fronts = {run: [(200, error)] for run, error in errors.items()}
    return records_of(fronts, experiment=name, **changes)


def configured(records: Records, common: dict[str, Any], **methods: dict[str, Any]) -> Records:
    return replace(records, configuration={"common": common, **methods})


def compared(*records: Records, cost: str = "macs") -> Tables:
    return comparison_tables(records, cost, "pareco")


def refused(*records: Records, cost: str = "macs") -> str:
    try:
        compared(*records, cost=cost)
    except ValueError as error:
        return str(error)
    raise AssertionError("nothing was refused")


def rows(table: Table) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def titled(tables: Tables, start: str) -> Table:
    return next(each for each in tables.tables if each.title.startswith(start))


@pytest.fixture
def base() -> Records:
    errors = {("pareco", 0): 30.0, ("pareco", 1): 32.0, ("pareco", 2): 31.0, ("us_net", 0): 40.0}
    return runs(errors, "plain", scale="cpu: 3 epochs, changed: data.name other")


def test_differences_are_over_the_seeds_that_both_have_and_of_each_method_by_itself(
    base: Records,
) -> None:
    errors = {("pareco", 1): 30.0, ("pareco", 2): 30.0, ("pareco", 7): 1.0, ("us_net", 0): 43.0}
    tables = compared(base, runs(errors | {("s_net", 0): 5.0}, "changed"))

    found = rows(titled(tables, "Difference to A"))
    reach = t.ppf(0.975, 1) * 0.5  # of -2 and -1: the standard error of the mean is 1/2
    area, volume = found["pareco B"][1:]
    assert area == f"-1.50 [{-1.5 - reach:.2f}, {-1.5 + reach:+.2f}]"
    assert volume == f"+1.20 [{0.8 * (1.5 - reach):.2f}, {0.8 * (1.5 + reach):+.2f}]"  # of 80%
    assert found["us_net B"][:2] == ["1", "+3.00 [–]"]
    assert list(found) == ["pareco B", "us_net B"]  # s_net is in one alone
    absolute = rows(titled(tables, "Test top-1"))
    assert absolute["pareco A"][:2] == ["3", "31.00 ± 1.00"]
    assert absolute["us_net B"][:2] == ["1", "43.00 ± –"]
    (warning,) = tables.warnings
    assert warning.startswith("pareco has other seeds (A 0, 1, 2; B 1, 2, 7)")
    assert "of hypervolume, more is better" in markdown(tables)


def test_test_losses_are_of_the_runs_that_have_them(base: Records) -> None:
    """Of the first experiment two of pareco's, of the second all; us_net has one in neither."""

    def with_losses(records: Records, losses: Mapping[int, float]) -> Records:
        fronts = records.fronts
        known = fronts["seed"].map(losses).where(fronts["method"] == "pareco")
        return replace(records, fronts=fronts.assign(test_loss=known))

    changed = runs({("pareco", seed): 30.0 for seed in range(3)} | {("us_net", 0): 9.0}, "changed")
    tables = compared(
        with_losses(base, {1: 1.25, 2: 1.5}), with_losses(changed, {0: 9.0, 1: 1.5, 2: 2.0})
    )
    found = rows(titled(tables, "Test loss"))
    assert found["pareco A"][:2] == ["2", f"1.375 ± {0.125 * 2**0.5:.3f}"]
    assert list(found) == ["pareco A", "pareco B"]
    reach = t.ppf(0.975, 1) * 0.125  # of +0.25 and +0.5
    difference = titled(tables, "Difference of test loss to A")
    text = f"+0.375 [{0.375 - reach:.3f}, {0.375 + reach:+.3f}]"
    assert rows(difference) == {"pareco B": ["2", *[text] * 6]}
    one_has_none = compared(base, with_losses(changed, {0: 1.0, 1: 1.5, 2: 2.0}))
    assert list(rows(titled(one_has_none, "Test loss"))) == ["pareco B"]
    for shown in (one_has_none, compared(base, changed)):
        assert not any(each.title.startswith("Difference of test") for each in shown.tables)
    assert not any("test loss" in each.title.lower() for each in compared(base, changed).tables)


def test_passes_and_macs_of_a_run_are_beside_its_errors(base: Records) -> None:
    def spent(records: Records, macs: int) -> Records:
        table = pd.DataFrame(
            [(m, s, phase, macs, 0, 1.0, 1.0) for m, s in records.runs for phase in PHASES],
            columns=list(LEDGER_TYPES),
        )
        return replace(records, ledger=table.astype(LEDGER_TYPES))

    other = runs({("pareco", 0): 1.0, ("us_net", 0): 1.0}, "longer", steps={"pareco": 500})
    table = titled(compared(spent(base, 200), spent(other, 250)), "Test top-1")
    assert table.columns[-2:] == ("passes", "MACs")
    assert [row[-2:] for row in rows(table).values()] == [
        *(["1,600", "100%"], ["2,000", "125%"]),
        *(["1,600", "100%"], ["1,600", "125%"]),
    ]


def test_what_differs_is_every_field_of_the_configuration(base: Records) -> None:
    common = {
        "name": "plain",
        "training.epochs": 3,
        "data.mean": [1.0, 2.0],
        "data fingerprint": "x",
    }
    first = configured(base, common, pareco={"unset.search.half_life": 0.0})
    errors = {("pareco", 0): 1.0}
    same = configured(runs(errors, "b"), common | {"name": "b", "network.divisor": 1})
    other = configured(
        runs(errors, "c", started_from="a file"),
        common
        | {"training.epochs": 4, "data.mean": [2.0, 1.0], "data fingerprint": "y"}
        | {"training.alone": ["2 8", "3 9"]},
        pareco={"unset.search.half_life": 0.1, "unset.search.later": 1},
    )
    earlier = runs(errors, "d", scale="cpu: 5 epochs")

    kinds = rows(compared(first, same, other, earlier).tables[0])

    assert kinds["A"] == ["plain", base.experiment.scale]
    assert kinds["B"] == ["b", "the same"]  # a field that is not there is at its default
    assert kinds["C"][1] == (
        "other images, data.mean [2.0, 1.0], training.alone 2 8; 3 9, training.epochs 4, "
        "search.half_life 0.1 of pareco, started from a file"
    )
    assert kinds["D"] == ["d", "cpu: 5 epochs"]  # what else differs is not known


def test_budgets_begin_where_every_run_has_a_network(base: Records) -> None:
    fronts = {("pareco", 0): [(370, 10.0), (1000, 5.0)], ("pareco", 1): [(410, 10.0)]}
    tables = compared(base, records_of(fronts, experiment="later"))

    table = titled(tables, "Test top-1")
    assert table.columns[2:-2] == ("45%", "60%", "80%", "100%", "area")
    assert rows(table)["pareco B"][1] == "10.00 ± 0.00"
    assert "area is its mean over 45% to 100%" in markdown(tables)


def test_what_cannot_be_compared_is_refused_by_name(base: Records) -> None:
    errors = {("pareco", 0): 1.0}
    letters = [runs(errors, f"e{number}") for number in range(27)]
    for few_or_many in ([base], [base, base], letters):
        assert "two or more experiments, at most 26, each once" in refused(*few_or_many)
    assert len(compared(*letters[:26]).tables[0].rows) == 26
    for absent in ({("s_net", 0): 1.0}, {("pareco", 9): 1.0}):
        assert "plain shares no method with b, or no seed of one" in refused(
            base, runs(absent, "b")
        )
    changes: dict[str, Any] = {
        "data": "digits",
        "network": "resnet20",
        "image_size": 16,
        "classes": 5,
        "test_images": 9,
        "groups": (GroupSize(name="other", maximum=1000),),
    }
    for field, value in changes.items():
        message = refused(base, runs(errors, "b", **{field: value}))
        assert message.startswith(f"b has another {field.replace('_', ' ')} than plain")
    full = dict.fromkeys(base.experiment.full_costs, 1001)
    assert refused(base, runs(errors, "b", full_costs=full)) == (
        "plain and b differ in the full macs: 1,000 and 1,001"
    )
    assert "has no latency_ms. It has: macs" in refused(base, runs(errors, "b"), cost=LATENCY)


def test_latencies_of_two_machines_or_of_a_busy_one_are_not_compared(base: Records) -> None:
    def timed(records: Records, full: float = 2.0, **machine: Any) -> Records:
        costs = {**records.experiment.full_costs, LATENCY: full}
        return replace(
            records,
            experiment=replace(records.experiment, full_costs=costs),
            fronts=records.fronts.assign(**{LATENCY: 0.4}),
            latency={**MACHINE, **machine},
        )

    here, other = timed(base), runs({("pareco", 0): 1.0}, "b")

    tables = compared(here, timed(other, full=2.2), cost=LATENCY)
    assert rows(titled(tables, "Difference"))["pareco B"][1] == "-29.00"
    assert tables.warnings[-1] == "Measured apart: the full network took 2, 2.2 ms."
    for field in ("cpu", "cpu_instructions", "cpu_threads"):
        elsewhere = timed(other, **{field: "another"})  # type: ignore[arg-type]
        assert "of different machines" in refused(here, elsewhere, cost=LATENCY)
    for full in (2.5, 1.6):
        assert "the same idle machine" in refused(here, timed(other, full), cost=LATENCY)
