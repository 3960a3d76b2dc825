"""Experiments beside one of them: hand-worked differences, what differs, what is refused."""

from dataclasses import replace
from typing import Any

import pytest
from scipy.stats import t

from pareco.reporting.across import comparison_tables
from pareco.reporting.records import LATENCY, Records
from pareco.reporting.rendering import Table, Tables, markdown
from tests.reporting.claim_records import records_of

MACHINE = {"cpu": "one", "cpu_threads": 1, "batch_size": 1, "device": "cpu", "gpus": []}


def runs(errors: dict[tuple[str, int], float], name: str, **changes: Any) -> Records:
    """Return runs of a network each, at a fifth of the cost, so that areas are its errors."""
    fronts = {run: [(200, error)] for run, error in errors.items()}
    return records_of(fronts, experiment=name, **changes)


def rows(table: Table) -> dict[str, list[str]]:
    return {row[0].text: [cell.text for cell in row[1:]] for row in table.rows}


def titled(tables: Tables, start: str) -> Table:
    return next(each for each in tables.tables if each.title.startswith(start))


@pytest.fixture
def base() -> Records:
    return runs(
        {("pareco", 0): 30.0, ("pareco", 1): 32.0, ("pareco", 2): 31.0, ("us_net", 0): 40.0},
        "plain",
        scale="cpu: 3 epochs, changed: data.name other",
    )


def test_differences_are_over_the_seeds_that_both_have_and_of_each_method_by_itself(
    base: Records,
) -> None:
    errors = {("pareco", 1): 30.0, ("pareco", 2): 30.0, ("pareco", 7): 1.0, ("us_net", 0): 43.0}
    other = runs(errors | {("s_net", 0): 5.0}, "changed", scale=base.experiment.scale)

    tables = comparison_tables([base, other], "macs", "pareco")

    found = rows(titled(tables, "Difference to A"))
    reach = t.ppf(0.975, 1) * 0.5  # of -2 and -1: the standard error of the mean is 1/2
    assert found["pareco B"][:2] == ["2", f"-1.50 [{-1.5 - reach:.2f}, {-1.5 + reach:+.2f}]"]
    assert found["us_net B"][:2] == ["1", "+3.00 [–]"]
    assert list(found) == ["pareco B", "us_net B"]  # s_net is in one alone
    absolute = rows(titled(tables, "Test top-1"))
    assert absolute["pareco A"][:2] == ["3", "31.00 ± 1.00"]
    assert absolute["us_net B"][:2] == ["1", "43.00 ± –"]


def test_what_differs_is_said_of_each_but_the_first(base: Records) -> None:
    scale = "cpu: 3 epochs, changed: data.name other, network.granularity stage"
    other = runs({("pareco", 0): 1.0}, "b", scale=scale, started_from="weights.safetensors")
    same = runs({("pareco", 0): 1.0}, "c", scale=base.experiment.scale)
    shorter = runs({("pareco", 0): 1.0}, "d", scale="cpu: 3 epochs")

    kinds = rows(comparison_tables([base, other, same, shorter], "macs", "pareco").tables[0])

    assert kinds["A"] == ["plain", base.experiment.scale]
    assert kinds["B"] == ["b", "network.granularity stage, started from weights.safetensors"]
    assert kinds["C"] == ["c", "the same"]
    assert kinds["D"] == ["d", "not changed: data.name other"]


def test_budgets_begin_where_every_experiment_has_a_network(base: Records) -> None:
    later = records_of({("pareco", 0): [(370, 10.0), (1000, 5.0)]}, experiment="later")

    table = titled(comparison_tables([base, later], "macs", "pareco"), "Test top-1")

    assert table.columns[2:] == ("20%", "40%", "60%", "80%", "100%", "area", "MACs")
    assert rows(table)["pareco B"][1] == "–"  # nothing fits: no number, and no area
    assert "area is its mean over 20% to 100%" in markdown(
        comparison_tables([base, later], "macs", "pareco")
    )


def test_what_cannot_be_compared_is_refused_by_name(base: Records) -> None:
    def refused(*compared: Records, cost: str = "macs") -> str:
        try:
            comparison_tables(compared, cost, "pareco")
        except ValueError as error:
            return str(error)
        raise AssertionError("nothing was refused")

    errors = {("pareco", 0): 1.0}
    assert "two or more" in refused(base)
    assert "each once" in refused(base, base)
    assert refused(base, runs({("s_net", 0): 1.0}, "b")) == "plain shares no method with b"
    assert "b has another data than plain: digits" in refused(
        base, runs(errors, "b", data="digits")
    )
    assert "b has another image size" in refused(base, runs(errors, "b", image_size=16))
    assert "has no latency_ms. It has: macs" in refused(base, runs(errors, "b"), cost=LATENCY)


def test_latencies_of_two_machines_are_not_compared(base: Records) -> None:
    def timed(records: Records, **machine: Any) -> Records:
        full = {**records.experiment.full_costs, LATENCY: 2.0}
        return replace(
            records,
            experiment=replace(records.experiment, full_costs=full),
            fronts=records.fronts.assign(**{LATENCY: 0.4}),
            latency={**MACHINE, **machine},
        )

    here, other = timed(base), runs({("pareco", 0): 1.0}, "b")

    tables = comparison_tables([here, timed(other)], LATENCY, "pareco")
    assert rows(titled(tables, "Difference"))["pareco B"][1] == "-29.00"
    with pytest.raises(ValueError, match="of different machines"):
        comparison_tables([here, timed(other, cpu="two")], LATENCY, "pareco")
