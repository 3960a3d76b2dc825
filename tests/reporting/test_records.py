"""The records of an experiment: written, read again, and refused by name where damaged."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pareco.reporting.records import (
    LATENCY,
    InvalidRecord,
    Records,
    read_experiment,
    read_records,
    write_records,
)
from tests.reporting.conftest import FULL

FILES = (
    *("network.json", "fronts.csv", "curves.csv", "visits.csv"),
    *("environment.json", "latency.json"),
)
HOSTILE = 'a,"b"|<script>\'; & \\input{x} – 網'


@pytest.fixture
def folder(records: Records, tmp_path: Path) -> Path:
    """A folder of results with the records of `records`."""
    write_records(records, tmp_path / "digits")
    return tmp_path / "digits"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


def rewritten(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Replace what a JSON file holds by what `change` makes of it."""
    path = folder / "records" / name
    path.write_text(json.dumps(change(json.loads(path.read_text()))))


def test_records_are_read_as_they_were_written(records: Records, folder: Path) -> None:
    """Numbers to the 6 digits after the point that are written."""
    read = read_records(folder)
    assert set(contents(folder)) == set(FILES)
    assert read.experiment == records.experiment
    assert read.environment == records.environment
    assert read.latency == records.latency
    assert read.runs == records.runs
    for name in ("fronts", "curves", "visits"):
        before, after = getattr(records, name), getattr(read, name)
        pd.testing.assert_frame_equal(after, before, rtol=0, atol=5.1e-7)


def test_records_are_stable_to_the_byte(folder: Path, tmp_path: Path) -> None:
    write_records(read_records(folder), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    for name, content in contents(folder).items():
        assert b"\r" not in content, name
        assert content.endswith(b"\n"), name


def test_records_know_no_latency_but_in_its_file(records: Records, folder: Path) -> None:
    for name, content in contents(folder).items():
        assert (b"latency" in content or b"milliseconds" in content) is (name == "latency.json")
    costs = {name: cost for name, cost in records.experiment.full_costs.items() if name != LATENCY}
    experiment = replace(records.experiment, full_costs=costs)
    fronts = records.fronts.drop(columns=LATENCY)
    without = replace(records, experiment=experiment, fronts=fronts, latency=None)
    write_records(without, folder)
    assert set(contents(folder)) == {*FILES} - {"latency.json"}
    assert read_records(folder).latency is None
    assert LATENCY not in read_records(folder).fronts


def test_latencies_that_lack_a_network_are_left_out(folder: Path) -> None:
    def reduced(record: dict[str, Any]) -> dict[str, Any]:
        del record["milliseconds"][FULL]
        return record

    assert LATENCY in read_records(folder).fronts
    rewritten(folder, "latency.json", reduced)
    read = read_records(folder)
    assert read.latency is None
    assert LATENCY not in {*read.fronts, *read.experiment.full_costs}


def test_an_experiment_survives_network_json(records: Records, tmp_path: Path) -> None:
    costs = {name: cost for name, cost in records.experiment.full_costs.items() if name != LATENCY}
    experiment = replace(
        records.experiment,
        full_costs=costs,
        budget_exempt=("independent",),
        cost="params",
        scale="half the classes",
    )
    (tmp_path / "network.json").write_text(experiment.to_json())
    assert read_experiment(tmp_path / "network.json") == experiment


def test_hostile_names_are_text_and_stay_as_they_are(records: Records, tmp_path: Path) -> None:
    name = {"method": {"pareco": HOSTILE, "random": "NaN", "uniform": "="}}
    changed = replace(
        records,
        experiment=replace(records.experiment, network=HOSTILE, scale=HOSTILE),
        fronts=records.fronts.replace(name),
        curves=records.curves.replace(name),
        visits=records.visits.replace({**name, "origin": {"model": HOSTILE}}),
    )
    write_records(changed, tmp_path / "digits")
    read = read_records(tmp_path / "digits")
    assert [method for method, _ in read.runs] == [HOSTILE, HOSTILE, "NaN", "NaN", "=", "="]
    assert read.experiment.network == HOSTILE
    assert list(read.curves["method"].unique()) == [HOSTILE, "NaN", "="]
    assert set(read.visits["origin"]) == {"uniform", "largest", HOSTILE, "random"}


@pytest.mark.parametrize("name", ["../../elsewhere", "other"])
def test_records_of_another_experiment_than_the_folders_are_refused(
    records: Records, tmp_path: Path, name: str
) -> None:
    moved = replace(records, experiment=replace(records.experiment, experiment=name))
    write_records(moved, tmp_path / "digits")
    with pytest.raises(InvalidRecord, match=f"is that of '{name}', not of its folder"):
        read_records(tmp_path / "digits")


@pytest.mark.parametrize("change", [{"environments": []}, {"runs": {"a": {"seed0": {}}}}, {}])
def test_an_incomplete_environment_is_named(
    records: Records, tmp_path: Path, change: dict[str, object]
) -> None:
    content = {**records.environment, **change} if change else {}
    write_records(replace(records, environment=content), tmp_path / "digits")
    with pytest.raises(InvalidRecord, match=r"environment\.json"):
        read_records(tmp_path / "digits")


@pytest.mark.parametrize("name", [name for name in FILES if name != "latency.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / "records" / name).unlink()
    with pytest.raises(InvalidRecord, match=rf"records/{name}.*No such file"):
        read_records(folder)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"{", b"\xff\xfe\x00", b"\x80\x04N."])
def test_a_file_that_is_something_else_is_named(folder: Path, name: str, content: bytes) -> None:
    """The last is None as pickle writes it."""
    (folder / "records" / name).write_bytes(content)
    with pytest.raises(InvalidRecord, match=rf"records/{name}"):
        read_records(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("fronts.csv", "search_loss", "loss", "search_loss"),
        ("fronts.csv", "16 16 32 32 64", "16 16 32 32", "4 counts for 5 groups"),
        ("fronts.csv", "16 16 32 32 64", "16 16 33 32 64", "33 channels in group 'layer2.0' of 32"),
        ("fronts.csv", "16 16 32 32 64", "16 0 32 32 64", "0 channels in group 'layer1.0' of 16"),
        ("fronts.csv", "16 16 32 32 64", "16 x 32 32 64", "'x'"),
        ("fronts.csv", ",4120000,", ",4120001,", "macs outside 1 to 4120000, the full network's"),
        ("fronts.csv", ",4120000,", ",0,", "macs outside 1 to"),
        ("fronts.csv", ",4120000,", ",1.5,", "."),
        ("fronts.csv", ",512,", ",,", "."),
        ("curves.csv", "loss_smallest", "loss", "loss_smallest"),
        ("curves.csv", "pareco,0,20,", "pareco,0,,", "."),
        ("curves.csv", "pareco,0,20,", "pareco,0,20,inf,1\npareco,0,20,", "column loss_largest"),
        ("visits.csv", "pareco,0,", "pareco,,", "."),
        ("visits.csv", "origin", "source", "origin"),
        ("network.json", '"macs"', '"watts"', "'macs'|watts"),
        ("network.json", '"scale": "paper"', '"scale": ""', "scale '' is not one line"),
        ("network.json", '"image_size"', '"size"', "lacks 'image_size'"),
        ("latency.json", '"cpu_threads"', '"threads"', "lacks 'cpu_threads'"),
        ("latency.json", "2.6", "-2.6", f"no time: that of '{FULL}'"),
        ("latency.json", "2.6", "NaN", "no time"),
        ("latency.json", "2.6", "Infinity", "no time"),
        ("latency.json", "2.6", '"fast"', "could not convert"),
        ("latency.json", '"milliseconds": {', '"milliseconds": [], "others": {', "'list'"),
    ],
)
def test_damage_is_named_with_its_file(
    folder: Path, name: str, old: str, new: str, message: str
) -> None:
    path = folder / "records" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InvalidRecord, match=rf"records/{name}.*(?:{message})"):
        read_records(folder)


def test_records_without_any_network_are_refused(folder: Path) -> None:
    path = folder / "records" / "fronts.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    with pytest.raises(InvalidRecord, match=r"fronts.csv: there is no network in it"):
        read_records(folder)


def test_records_may_have_no_curve_and_no_visit(folder: Path) -> None:
    for name in ("curves.csv", "visits.csv"):
        path = folder / "records" / name
        path.write_text(path.read_text().splitlines()[0] + "\n")
    read = read_records(folder)
    assert read.curves.empty
    assert read.visits.empty
