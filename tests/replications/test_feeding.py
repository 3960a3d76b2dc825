"""The study of what feeds a search: what it trains, what it measures, and what is said of it."""

import csv
import io
import json
import math
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from rich.console import Console

from pareco.config import Machine
from pareco.schema import PHASES
from pareco.widths import Widths
from replications import sweep
from replications.run import Folders
from replications.searches import feeding_results as results
from replications.searches.comparison import write_search_results
from replications.searches.fed_runs import TESTED, FedRun, rank_correlations
from replications.searches.feeding import WAYS, FeedingCommand, ways_of_feeding
from replications.searches.feeding_results import Fed, differences, read_fed, write_fed
from replications.searches.trained import TrainedNetwork
from replications.sweep import Job
from tests.experiments import TINY

SMALL = replace(TINY, scale="cpu", methods=("pareco_exact", "us_net"), seeds=(0,))
SMALL = replace(
    SMALL,
    data=replace(TINY.data, test_images=200),
    training=replace(TINY.training, epochs=1, warmup_epochs=0, batch_size=50, ask_every_steps=3),
    evaluation=replace(TINY.evaluation, calibration_images=100),
)


def command(folder: Path, **fields: Any) -> FeedingCommand:
    folders = Folders(runs=folder / "runs", results=folder / "results")
    fields = {"ways": ("base", "default"), "budgets": (0.5,), **fields}
    return FeedingCommand(
        experiment=SMALL, folders=folders, machine=Machine(device="cpu"), workers=1, **fields
    )


def carried_out(request: FeedingCommand) -> str:
    said = io.StringIO()
    assert request.carried_out(Console(file=said, width=200)) == 0
    return said.getvalue()


def here(jobs: Sequence[Job], *, on_done: Callable[[Job], None], **_: Any) -> list[Job]:
    """Do the jobs in this process, where nothing has to be imported again."""
    for job in jobs:
        sweep._execute(job, lambda report: None)
        on_done(job)
    return []


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs and results of a small study."""
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        patch.setattr(sweep, "run_jobs", here)
        carried_out(command(folder))
    return folder


def test_a_way_moves_one_field_from_a_base_that_is_fed_as_in_the_paper() -> None:
    ways, papers = ways_of_feeding(2), TINY.search.resolved()
    base = replace(TINY.search, **ways["base"])
    # M, as in the paper
    assert base.resolved() == replace(papers, visits_per_ask=2, part_in_training=0.5)
    for way in WAYS:
        moved = {name for name, value in ways[way].items() if value != ways["base"][name]}
        several = {"base": 0, "together": 5, "default": 6}
        assert moved == {way} if way not in several else len(moved) >= several[way] - 1, way
        replace(TINY.search, **ways[way])  # no field is unknown, no value refused
    assert set(ways["default"].values()) == {None}


def test_the_record_has_a_row_for_each_run_and_what_is_made_of_it(finished: Path) -> None:
    folder = finished / "results" / "search"
    fed = read_fed(folder)
    assert fed[["way", "budget", "seed"]].to_numpy().tolist() == [
        ["base", 0.5, 0],
        ["default", 0.5, 0],
        ["us_net", 0.5, 0],
    ]
    # Nothing is searched in training where its own passes are measurements, or nothing visits.
    assert (fed["search_macs"] > 0).tolist() == [True, False, False]
    assert ((fed["search_macs"] + fed["choice_macs"]) < 0.6 * fed["training_macs"]).all()
    assert fed["rank_correlation"].isna().tolist()[2]
    text = (folder / "README.md").read_text()
    assert "| base | 1 |" in text
    assert "Budget: 50% of the training's MACs" in text
    assert "tiny-cpu" in text
    origin = json.loads((folder / "feeding.json").read_text())
    assert [each["device"] for each in origin["environments"]] == ["cpu"]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(before) == {
        "README.md",
        *(f"feeding.{each}" for each in ("csv", "json", "png", "svg")),
    }
    write_search_results(folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_a_finished_study_trains_nothing_and_makes_a_lost_record_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_execute", lambda job, _: pytest.fail(f"{job}"))
    record = finished / "results" / "search" / results.RECORD
    before = record.read_bytes()
    record.unlink()
    assert "3 of 3 runs have finished before" in carried_out(command(finished))
    assert record.read_bytes() == before


def test_what_is_on_record_is_not_trained_again_wherever_it_was(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "_execute", lambda job, _: pytest.fail(f"{job}"))
    shutil.copytree(finished / "results", tmp_path / "results")
    before = (tmp_path / "results" / "search" / results.RECORD).read_bytes()
    assert "3 of 3 runs have finished before" in carried_out(command(tmp_path))
    assert (tmp_path / "results" / "search" / results.RECORD).read_bytes() == before


def test_a_run_whose_visits_are_not_tested_yet_is_not_done(finished: Path) -> None:
    job = command(finished).with_methods_placed()
    there = replace(job, experiment=job.configured()).jobs()
    runs = [replace(run, on_record=False) for run in there]  # type: ignore[call-arg]
    assert [run.done for run in runs] == [True] * 3
    tested = runs[0].folder / TESTED
    text = tested.read_text()
    tested.unlink()
    assert not runs[0].done
    runs[0].follow_up()
    assert tested.read_text() == text


def test_visits_are_tested_as_plain_networks_are(finished: Path) -> None:
    """The last loss is that of visits.csv, the other one of an extracted network by torch."""
    (folder,) = (finished / "runs").glob("tiny-cpu-base-0.5/pareco_exact/seed0")
    rows, own = (
        list(csv.DictReader((folder / name).read_text().splitlines()))
        for name in (TESTED, "visits.csv")
    )
    visits = {each["visit"]: each for each in own}
    assert len(rows) == sum(bool(each["asked_loss"]) for each in visits.values()) > 5
    assert all(each["asked_loss"] == visits[each["visit"]]["asked_loss"] for each in rows)
    assert any(each["asked_loss"] != visits[each["visit"]]["final_loss"] for each in rows)
    trained = TrainedNetwork(folder=folder, search_images=0)
    widths = Widths(map(int, rows[-1]["widths"].split()))
    plain = trained.net.extract(widths, trained.evaluator.statistics(widths)).eval()
    images, labels = trained.data.test.normalized(torch.arange(len(trained.data.test)))
    with torch.no_grad():
        loss = float(torch.nn.functional.cross_entropy(plain(images), labels))
    assert float(rows[-1]["test_loss"]) == pytest.approx(loss, abs=1e-5)  # sums of other batches


def test_a_row_has_the_areas_and_macs_of_its_run(finished: Path) -> None:
    (folder,) = (finished / "runs").glob("tiny-cpu-base-0.5/pareco_exact/seed0")
    front = pd.read_csv(folder / "front.csv")
    result = json.loads((folder / "result.json").read_text())
    full, own = result["full_costs"]["macs"], read_fed(finished / "results" / "search").iloc[0]
    budgets = np.linspace(0.2, 1, 2_001)
    errors = []
    for budget in budgets:
        paid = front[front["macs"] <= budget * full]
        errors.append(paid.loc[paid["search_loss"].idxmin(), "test_top1_error"])
    assert own["area"] == pytest.approx(np.mean(errors), abs=0.1)  # a sum over 2,001 points
    assert own["error_at_60"] == pytest.approx(errors[1_000], rel=1e-5)
    for phase in PHASES[:3]:
        spent = result["ledger"][phase]
        assert own[f"{phase}_macs"] == spent["forward_macs"] + spent["backward_macs"]


def test_a_rank_correlation_with_macs_held_is_that_of_what_they_leave() -> None:
    draw = np.random.default_rng(0)
    macs = draw.uniform(size=40)
    noise = draw.normal(size=(2, 40))
    table = pd.DataFrame(
        {"macs": macs, "asked_loss": noise[0] - macs, "test_loss": noise[0] + noise[1] - 9 * macs}
    )
    plain, held = rank_correlations(table)
    ranks = table.rank()
    line = np.stack([np.ones(40), ranks["macs"]], axis=1)
    left = [
        ranks[name] - line @ np.linalg.lstsq(line, ranks[name])[0]
        for name in ("asked_loss", "test_loss")
    ]
    assert held == pytest.approx(np.corrcoef(left)[0, 1], abs=1e-9)
    squares = ((ranks["asked_loss"] - ranks["test_loss"]) ** 2).sum()
    assert plain == pytest.approx(1 - 6 * squares / (40 * (40**2 - 1)))  # no ties
    for few in (table[:2], table.assign(asked_loss=1.0), table[:0]):
        assert all(map(math.isnan, rank_correlations(few)))


def fed(way: str, seed: int, correlation: float, area: float) -> Fed:
    errors = (30.0, 30.0, 30.0, 30.0, 30.0)
    return Fed(way, 0.1, seed, 64, correlation, 0.5, area, *errors, 1000, 50, 30, 9.0)


def test_differences_are_seed_by_seed_with_students_interval(tmp_path: Path) -> None:
    rows = [fed("base", seed, 0.5, 30 + seed) for seed in range(3)]
    rows += [fed("trains", 0, 0.6, 29.0), fed("trains", 1, 0.8, 29.5), fed("trains", 2, 0.7, 31.0)]
    rows += [fed("us_net", 0, math.nan, 35.0)]
    write_fed(tmp_path, rows[::-1], ("base", "trains"))
    results.write_origin(tmp_path, {"experiment": "small", "scale": "tiny"})
    table = read_fed(tmp_path)
    assert table["way"].tolist() == ["base"] * 3 + ["trains"] * 3 + ["us_net"]
    found = differences(table, "area")
    mean, low, high = found[0.1, "trains"]
    reach = 4.302653 * 0.288675 / math.sqrt(3)  # of -1, -1.5, -1: t of 2 degrees, deviation
    assert (mean, low, high) == pytest.approx((-7 / 6, -7 / 6 - reach, -7 / 6 + reach), abs=1e-5)
    assert found[0.1, "us_net"][0] == 5
    assert (0.1, "us_net") not in differences(table, "rank_correlation")
    text = results.write_feeding(tmp_path)
    assert "| trains | 3 | 0.70 | +0.20 (-0.05 to +0.45) | 0.50 | 29.83 | +1.17 (+0.45" in text
    assert "| us_net | 1 | – | – | 0.50 | 35.00 | -5.00 | 5.00 | 3.00 | 9 |" in text
    write_fed(tmp_path, [fed("us_net", 0, math.nan, 36.0)], ("base", "trains"))
    assert read_fed(tmp_path)["area"].tolist()[-1] == 36.0
    assert len(read_fed(tmp_path)) == 7


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"ways": ("bas",)}, "--ways: unknown 'bas'. Known: base, refresh_images"),
        ({"ways": ()}, "--ways and --budgets must name at least one"),
        ({"budgets": (0.1, 0.0)}, "budgets above 0"),
    ],
)
def test_a_study_of_nothing_known_is_refused(
    tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        command(tmp_path, **fields)


def test_a_budget_that_pays_no_choice_and_another_study_are_refused(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweep, "run_jobs", lambda *_, **__: pytest.fail("begun"))
    console = Console(file=io.StringIO())
    with pytest.raises(ValueError, match="method pareco_exact asked for the losses of 2 networks"):
        command(finished, budgets=(1e-4,)).carried_out(console)
    other = replace(SMALL, training=replace(SMALL.training, lr_per_256=0.3))
    request = replace(command(finished), experiment=other)
    with pytest.raises(ValueError, match="Keep this experiment apart with --name NAME or"):
        request.carried_out(console)
    elsewhere = replace(request.folders, runs=finished / "others")
    with pytest.raises(ValueError, match=r"what is on record has scale .* with --results FOLDER"):
        replace(request, folders=elsewhere).carried_out(console)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="side by side, with --workers"):
        command(finished)._check()


def test_a_run_says_how_it_is_fed(finished: Path) -> None:
    (first, *_) = command(finished).jobs()
    assert isinstance(first, FedRun)
    assert str(first) == "base 0.5 seed 0"
    configuration = json.loads(
        (finished / "runs/tiny-cpu-base-0.5/pareco_exact/seed0/config.json").read_text()
    )
    assert configuration["scale"].endswith(", fed: base, search budget 0.5")
    assert configuration["search.budget"] == 0.5
    assert configuration["search.losses_from"] == "refresh"


pytestmark = pytest.mark.slow
