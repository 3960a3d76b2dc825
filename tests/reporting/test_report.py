"""From run folders to records, from records to results: the same bytes each time."""

import io
import shutil
from pathlib import Path

import pandas as pd
import pytest
import rich.console

from pareco.reporting import InvalidRecord, UnequalBudgets
from pareco.reporting.rendering import markdown, terminal
from pareco.reporting.report import collect_records, loaded_report, render_report
from pareco.schema import BUDGET_TYPES, FRONT_TYPES
from tests.reporting.conftest import (
    COUNTS_OF_CIFAR,
    changed,
    run_elsewhere,
    write_latency,
    write_run,
)

RECORDS = {
    f"records/{name}"
    for name in (
        *("network.json", "config.json", "environment.json"),
        *("fronts.csv", "curves.csv", "visits.csv"),
    )
}
TABLES = {"table.md", "table.tex", "table.csv"}
FIGURES = {
    f"{name}{suffix}"
    for name in (
        *("error_vs_flops", "error_vs_peak_activations"),
        *("front_points", "widths", "curves", "visits", "predictions"),
    )
    for suffix in (".svg", ".png")
}
PUBLISHED = """\
network,data,image_size,classes,train_images,test_images,method,config,macs_millions,params_millions,top1_error,source,note
resnet8,cifar10,32,10,50000,10000,US-Net,width 0.7,2.06,,8.25,"A paper, table 2",
resnet8,cifar10,224,10,50000,10000,US-Net,width 0.7,2.06,,1.0,Another size,
"""


def contents(folder: Path) -> dict[str, bytes]:
    """The files in a folder and below it by their relative paths."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.slow
def test_records_alone_give_the_same_bytes_again(runs: Path, tmp_path: Path) -> None:
    """Beside published networks, with measured latency and a method that is exempt."""
    unfinished = write_run(runs, "random", 9, finished=False)
    write_run(runs, "alone", 0, budget_exempt=True)
    write_latency(runs)
    for path in runs.glob("digits/*/*/result.json"):
        changed(path, **COUNTS_OF_CIFAR)
    results = tmp_path / "results"
    (results / "published").mkdir(parents=True)
    (results / "published" / "some.csv").write_text(PUBLISHED)
    left_out = collect_records("digits", runs, results)
    assert left_out == (unfinished,)
    records = {*RECORDS, "records/latency.json"}
    assert contents(results / "digits").keys() == records
    report = render_report(results / "digits", focus="pareco")
    first = contents(results / "digits")
    latency = {"error_vs_latency.svg", "error_vs_latency.png"}
    assert first.keys() == records | TABLES | FIGURES | latency
    assert {path.name for path in report.paths} == TABLES | FIGURES | latency
    assert all(path.exists() for path in report.paths)
    assert "| alone † |" in first["table.md"].decode()
    assert "| US-Net, published [1] | – | – | – | 8.25 | 8.25 | 8.25 | – |" in (
        first["table.md"].decode()
    )
    assert "Another size" not in first["table.md"].decode()
    assert "US-Net, published" in first["error_vs_flops.svg"].decode()

    for name in ("digits/records", "published"):
        shutil.copytree(results / name, tmp_path / "again" / name)
    render_report(tmp_path / "again" / "digits", focus="pareco")
    assert contents(tmp_path / "again" / "digits") == first
    shutil.rmtree(runs / "digits" / "random" / "seed9")
    collect_records("digits", runs, tmp_path / "third")
    assert contents(tmp_path / "third" / "digits") == {name: first[name] for name in records}


def test_runs_again_with_the_same_fronts_change_no_file(runs: Path, tmp_path: Path) -> None:
    """As on another machine. Where there are no records, times and latencies differ."""
    results, timed = tmp_path / "results", {"records/environment.json", "records/latency.json"}
    write_latency(runs)
    collect_records("digits", runs, results)
    first = contents(results / "digits")
    run_elsewhere(runs)
    collect_records("digits", runs, results)
    assert contents(results / "digits") == first
    collect_records("digits", runs, tmp_path / "new")
    new = contents(tmp_path / "new" / "digits")
    assert {name for name in first if first[name] != new[name]} == timed
    (runs / "digits" / "latency.json").unlink()
    collect_records("digits", runs, results)
    assert contents(results / "digits") == first
    (results / "digits" / "records" / "fronts.csv").write_text("damaged")
    collect_records("digits", runs, results)
    assert contents(results / "digits").keys() == first.keys() - {"records/latency.json"}


def test_figures_of_earlier_records_are_removed(tmp_path: Path) -> None:
    """Of another cost, of latencies and of searches that are no longer there; notes stay."""
    folder = tmp_path / "results" / "digits"
    write_run(tmp_path / "runs", "uniform", 0, cost="peak_activations")
    collect_records("digits", tmp_path / "runs", folder.parent)
    stale = {"error_vs_params.svg", "error_vs_latency.png", "visits.png", "predictions.svg"}
    for name in {*stale, "notes.txt", "other.svg"}:
        (folder / name).write_text("earlier")
    report = render_report(folder, focus="pareco")
    expected = {name for name in FIGURES if name.partition(".")[0] not in ("visits", "predictions")}
    assert contents(folder).keys() == RECORDS | TABLES | expected | {"notes.txt", "other.svg"}
    assert {path.name for path in report.paths} == TABLES | expected
    assert set(pd.read_csv(folder / "table.csv")["cost"]) == {"peak_activations"}


def test_the_scale_is_in_every_output_that_is_read(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", "pareco", 0, scale="short: 1/10 of the epochs")
    collect_records("digits", tmp_path / "runs", tmp_path / "results")
    report = render_report(tmp_path / "results" / "digits", focus="pareco")
    label = "scale: short: 1/10 of the epochs, not the published schedule"
    console = rich.console.Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(terminal(report.tables))
    written = contents(tmp_path / "results" / "digits")
    assert label in capture.get().splitlines()
    assert written["table.md"].decode().splitlines()[2] == f"**{label}**"
    captions = [line for line in written["table.tex"].decode().splitlines() if "caption" in line]
    assert len(captions) == 6
    assert all(label in caption for caption in captions)
    drawn = {name: content.decode() for name, content in written.items() if name.endswith(".svg")}
    assert len(drawn) == 7
    for name, text in drawn.items():
        comments = " ".join(part.partition("-->")[0].strip() for part in text.split("<!--"))
        assert label in comments, name
    assert '"scale": "short: 1/10 of the epochs"' in written["records/network.json"].decode()


def test_loading_writes_nothing_and_fronts_have_fixed_columns_and_format(
    runs: Path, tmp_path: Path
) -> None:
    collect_records("digits", runs, tmp_path / "results")
    folder = tmp_path / "results" / "digits"
    report = loaded_report(folder, focus="uniform")
    assert report.tables.tables[0].rows[0][0].text == "uniform"
    assert (contents(folder).keys(), report.paths) == (RECORDS, ())
    path = folder / "records" / "fronts.csv"
    header, first, *_ = path.read_text().splitlines()
    assert header == ",".join([*FRONT_TYPES, *BUDGET_TYPES])
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert cells["method"] == "pareco"
    assert cells["macs"] == "741600"
    assert len(cells["test_top1_error"].partition(".")[2]) == 6
    assert cells["passes"] == "1600"


def test_nothing_is_written_of_runs_that_do_not_fit(runs: Path, tmp_path: Path) -> None:
    write_run(runs, "other", 0, network="resnet20")
    with pytest.raises(InvalidRecord, match="differ in network"):
        collect_records("digits", runs, tmp_path / "results")
    assert not (tmp_path / "results").exists()


def test_nothing_is_written_from_records_that_are_damaged(runs: Path, tmp_path: Path) -> None:
    folder = tmp_path / "results" / "digits"
    collect_records("digits", runs, folder.parent)
    (folder / "records" / "visits.csv").write_text("damaged")
    with pytest.raises(InvalidRecord, match=r"visits\.csv"):
        render_report(folder, focus="pareco")
    assert contents(folder).keys() == RECORDS


def test_unequal_budgets_write_nothing_unless_allowed(runs: Path, tmp_path: Path) -> None:
    budget = {
        "gradient_steps": 300,
        "passes": 1200,
        "search_evaluations": 0,
        "widths_visited": 4,
    }
    write_run(runs, "short", 0, budget=budget)
    results = tmp_path / "results"
    with pytest.raises(UnequalBudgets, match="short: 300 gradient steps, 1,200 passes"):
        collect_records("digits", runs, results)
    assert not results.exists()
    collect_records("digits", runs, results, allow_unequal_budgets=True)
    assert "| short ‡ |" in markdown(loaded_report(results / "digits", focus="pareco").tables)
