"""A run whose cost is latency, from a table that is made up."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import pytest

from pareco.latency_table import LatencyTable
from pareco.reporting.collection import collected_runs
from pareco.reporting.records import read_records, write_records
from pareco.schema import LATENCY_TABLE
from pareco.training import RunError, execute_run
from pareco.training.preparation import initial_network, planner_before
from pareco.widths import Widths
from replications.catalogue import method_named
from tests.experiments import TINY
from tests.latency_tables import made_up_table, written_table


def jagged(count: int) -> float:
    """Return microseconds of an operator that is slower at odd counts than at the next even one."""
    return 10.0 + count + 3 * (count % 2)


@pytest.fixture
def table() -> LatencyTable:
    """Return a table in which latency falls here and there as a layer widens."""
    return made_up_table(initial_network(TINY, 10, 1, 0), jagged)


@pytest.mark.parametrize("name", ["pareco_exact", pytest.param("pareco", marks=pytest.mark.slow)])
def test_the_front_is_that_of_foretold_latency(
    name: str, table: LatencyTable, tmp_path: Path
) -> None:
    path = written_table(table, tmp_path)
    experiment = replace(TINY, cost="latency", latency_table=str(path), methods=(name,))
    folder = tmp_path / "runs" / "tiny" / name / "seed0"
    execute_run(experiment, method_named(name), 0, folder)
    front = list(csv.DictReader((folder / "front.csv").read_text().splitlines()))
    found = [int(row["latency"]) for row in front]
    foretold = table.milliseconds([Widths.parse(row["widths"]) for row in front])
    assert found == [round(1e6 * each) for each in foretold.tolist()]
    assert len(front) > 1
    assert found == sorted(found)
    losses = [float(row["search_loss"]) for row in front]
    assert losses == sorted(losses, reverse=True)
    config = json.loads((folder / "config.json").read_text())
    assert config["latency_from"].startswith("sha256:")
    assert str(path) not in (folder / "config.json").read_text()
    assert (folder / LATENCY_TABLE).read_bytes() == path.read_bytes()

    records, _ = collected_runs("tiny", tmp_path / "runs")
    write_records(records, tmp_path / "tiny")
    again = read_records(tmp_path / "tiny")
    assert again.latency_table == path.read_text()
    assert again.fronts["latency"].tolist() == found
    assert again.experiment.full_costs["latency"] == again.experiment.full_cost
    assert again.experiment.words.full(2.5e6) == (
        "2.5 ms foretold latency (from a table of operators)"
    )

    path.write_text(replace(table, scale=3.0).to_json())
    with pytest.raises(RunError, match=r"latency_from: sha256:\w+ there, sha256:\w+ now"):
        execute_run(experiment, method_named(name), 0, folder)


def test_a_plan_needs_the_table(table: LatencyTable, tmp_path: Path) -> None:
    experiment = replace(TINY, cost="latency")
    with pytest.raises(ValueError, match=r"needs a table.*--latency-table FILE"):
        planner_before(experiment).plan(method_named("pareco"), 0)
    known = replace(experiment, latency_table=str(written_table(table, tmp_path)))
    assert planner_before(known).plan(method_named("pareco"), 0).total > 0
