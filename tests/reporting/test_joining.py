"""Runs that finish at different times: joined records are those of all runs at once."""

import json
import shutil
from dataclasses import replace
from io import StringIO
from pathlib import Path
from unittest.mock import Mock

import pytest
from rich.console import Console

from pareco.config import completed
from pareco.reporting import InvalidRecord
from pareco.reporting.collection import collected_runs, joined
from pareco.reporting.page.document import what_it_shows
from pareco.reporting.records import Records, read_records, write_records
from pareco.reporting.report import collect_records, render_report
from replications import site
from replications.__main__ import ReportCommand
from replications.run import Folders
from tests.experiments import TINY
from tests.reporting.conftest import changed, write_latency

LATER = {name: completed({})[name] for name in ("network.divisor", "training.nesterov")}
LATER |= {"unset.search.half_life": 0.0, "unset.search.part_in_training": None}
"""Fields at their defaults, and what the paper's search takes for some that are left unset."""


def written(records: Records, folder: Path) -> dict[str, bytes]:
    write_records(records, folder)
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


def parted(runs: Path, folder: Path) -> tuple[Records, Records]:
    """Return the records of seed 1 of each method, and those of the rest: seed 0."""
    for seed in (0, 1):
        for path in sorted((runs / "digits").glob(f"*/seed{seed}")):
            shutil.copytree(path, folder / f"part{seed}" / path.relative_to(runs))
    first, second = (collected_runs("digits", folder / f"part{seed}")[0] for seed in (0, 1))
    return second, first


def test_parts_make_the_records_of_all_runs_to_the_byte(runs: Path, tmp_path: Path) -> None:
    whole = written(collected_runs("digits", runs)[0], tmp_path / "whole")
    new, before = parted(runs, tmp_path)
    assert written(joined(new, before), tmp_path / "joined") == whole
    assert written(joined(before, new), tmp_path / "turned") == whole
    assert written(joined(new, joined(before, new)), tmp_path / "again") == whole


def test_what_is_new_takes_the_place_of_the_same_run(runs: Path, tmp_path: Path) -> None:
    before = collected_runs("digits", runs)[0]
    metrics = runs / "digits/pareco/seed0/metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"loss_largest": ', '"loss_largest": 1'))
    shutil.rmtree(runs / "digits/random")
    new = collected_runs("digits", runs)[0]
    curves = joined(new, before).curves
    assert len(curves) == len(before.curves)
    own = curves["method"].isin(["pareco", "uniform"])
    assert curves[own].reset_index(drop=True).equals(new.curves)


def test_other_configurations_are_refused(runs: Path, tmp_path: Path) -> None:
    new, before = parted(runs, tmp_path)
    for file in (tmp_path / "part0").rglob("config.json"):
        changed(file, **{"training.weight_decay": 0.5})
    other = collected_runs("digits", tmp_path / "part0")[0]
    why = r"another configuration \(training.weight_decay: 0.5 there, 4e-05 now\)"
    with pytest.raises(InvalidRecord, match=rf"'digits' are of {why}"):
        joined(new, other)
    earlier = replace(before, configuration={})
    with pytest.raises(InvalidRecord, match="'digits' are of an unknown one"):
        joined(new, earlier)


def test_the_words_of_a_scale_are_no_part_of_a_configuration(runs: Path, tmp_path: Path) -> None:
    """What they tell of are fields of their own."""
    new, _ = parted(runs, tmp_path)
    for file in (tmp_path / "part0").rglob("config.json"):
        changed(file, scale="paper, in other words")
    other = collected_runs("digits", tmp_path / "part0")[0]
    assert len(joined(new, other).runs) == 6


def test_a_field_of_a_later_version_joins_at_its_default(runs: Path, tmp_path: Path) -> None:
    """An earlier run's `config.json` lacks it."""
    new, _ = parted(runs, tmp_path)
    for file in (tmp_path / "part0").rglob("config.json"):
        stored = json.loads(file.read_text())
        file.write_text(json.dumps(stored | LATER))
    same = collected_runs("digits", tmp_path / "part0")[0]
    for file in (tmp_path / "part0").rglob("config.json"):
        stored = json.loads(file.read_text())
        file.write_text(json.dumps({key: stored[key] for key in stored.keys() - LATER.keys()}))
    earlier = collected_runs("digits", tmp_path / "part0")[0]
    assert same.configuration["common"] == earlier.configuration["common"]
    assert len(joined(new, earlier).runs) == 6
    for file in (tmp_path / "part0").rglob("config.json"):
        changed(file, **{"unset.search.half_life": 0.1})
    for file in (tmp_path / "part1").rglob("config.json"):
        changed(file, **{"unset.search.half_life": 0.2})
    new, other = (collected_runs("digits", tmp_path / part)[0] for part in ("part1", "part0"))
    why = r"configuration \(unset.search.half_life of pareco: 0.1 there, 0.2 now; unset"
    with pytest.raises(InvalidRecord, match=why):
        joined(new, other)


def test_latencies_stay_where_every_network_has_one(runs: Path, tmp_path: Path) -> None:
    new, before = parted(runs, tmp_path)
    write_latency(runs)
    measured = collected_runs("digits", runs)[0]
    assert joined(measured, before).latency == measured.latency
    assert joined(new, measured).latency == measured.latency
    write_latency(tmp_path / "part0")
    some = collected_runs("digits", tmp_path / "part0")[0]
    assert some.latency is not None
    assert written(joined(new, some), tmp_path / "few") == written(
        joined(new, before), tmp_path / "none"
    )


def test_the_records_are_added_to(runs: Path, tmp_path: Path) -> None:
    parted(runs, tmp_path)
    results = tmp_path / "results"
    for part in ("part0", "part1"):  # the first finds nothing to be added to
        collect_records("digits", tmp_path / part, results, add=True)
    expected = written(collected_runs("digits", runs)[0], tmp_path / "whole")
    found = {path.name: path.read_bytes() for path in (results / "digits/records").iterdir()}
    assert found == expected


def test_a_report_says_that_it_leaves_latencies_out(
    runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the runs that are added have networks that were not timed."""
    monkeypatch.setattr(site, "write_site", Mock())
    monkeypatch.setattr(site, "render_report", Mock(return_value=Mock(paths=())))
    monkeypatch.setattr(site, "terminal", Mock(return_value=""))
    parted(runs, tmp_path)
    write_latency(tmp_path / "part0")
    results = tmp_path / "results"

    def said(part: str) -> str:
        text = StringIO()
        folders = Folders(runs=tmp_path / part, results=results, add=True)
        ReportCommand(name="digits", folders=folders).carried_out(Console(file=text))
        return text.getvalue()

    assert "latency left out" not in said("part0")
    assert read_records(results / "digits").latency is not None
    assert "latency left out: what was measured is not of all these networks" in said("part1")
    assert read_records(results / "digits").latency is None
    assert "latency left out" not in said("part1")


def test_a_table_says_how_many_of_the_seeds_have_run(runs: Path, tmp_path: Path) -> None:
    shutil.rmtree(runs / "digits/uniform/seed1")
    planned = replace(TINY, seeds=(0, 1, 2), reference_methods=("random",), reference_seeds=2)
    collect_records("digits", runs, tmp_path, planned=planned)
    text = (render_report(tmp_path / "digits", focus="pareco").paths[0]).read_text()
    assert "| pareco | 2 of 3 |" in text
    assert "| uniform | 1 of 3 |" in text
    assert "| random | 2 |" in text
    records = read_records(tmp_path / "digits")
    assert records.experiment.planned_fewer == {"random": 2}
    every = replace(records.experiment, planned_fewer=dict.fromkeys(records.environment["runs"], 2))
    assert what_it_shows(replace(records, experiment=every), "pareco")
    shutil.copytree(tmp_path / "digits", tmp_path / "more" / "digits")
    more = replace(planned, reference_seeds=1)  # asked for by name, and so run with two
    collect_records("digits", runs, tmp_path / "more", planned=more)
    assert not read_records(tmp_path / "more" / "digits").experiment.planned_fewer
    assert "Methods planned with fewer seeds are for reference" in text
    assert "| **" not in text  # two seeds, of the others
    collect_records("digits", runs, tmp_path)  # by who does not know what was planned
    assert read_records(tmp_path / "digits").experiment == records.experiment
    for file in runs.rglob("config.json"):
        changed(file, **{"training.weight_decay": 0.5})
    collect_records("digits", runs, tmp_path)
    assert not read_records(tmp_path / "digits").experiment.planned_seeds  # of others
    csv = (tmp_path / "digits" / "table.csv").read_text().splitlines()
    assert {line.rpartition(",")[2] for line in csv if line.startswith("random,")} == {"yes"}
