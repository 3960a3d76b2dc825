"""From run folders to a folder of results, the same bytes each time."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import rich.console

from pareco.reporting import UnequalBudgets, render_report, write_report
from pareco.reporting.records import BUDGET_TYPES, FRONT_TYPES

WriteRun = Callable[..., Path]

FILES = {
    "fronts.csv",
    "network.json",
    "table.md",
    "error_vs_flops.svg",
    "error_vs_flops.png",
    "widths.png",
    "environment.json",
}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_same_runs_give_the_same_bytes(runs: Path, tmp_path: Path, write_run: WriteRun) -> None:
    unfinished = write_run(runs, "random", 9, finished=False)
    report = write_report("digits", runs, tmp_path / "first")
    write_report("digits", runs, tmp_path / "second")
    first = contents(tmp_path / "first" / "digits")
    assert first.keys() == FILES
    assert {path.name for path in report.paths} == FILES
    assert all(path.exists() for path in report.paths)
    assert report.unfinished == (unfinished,)
    assert contents(tmp_path / "second" / "digits") == first


def test_tables_and_figures_are_made_again_without_the_runs(
    runs: Path, tmp_path: Path, write_run: WriteRun
) -> None:
    folder = tmp_path / "results" / "digits"
    write_run(runs, "alone", 0, budget_exempt=True)
    write_report("digits", runs, folder.parent)
    before = contents(folder)
    assert "| alone † |" in before["table.md"].decode()
    for name in FILES - {"fronts.csv", "network.json", "environment.json"}:
        (folder / name).unlink()
    rendered = render_report(folder)
    assert contents(folder) == before
    assert {path.name for path in rendered.paths} == FILES - {"environment.json"}


def test_only_the_environment_knows_times_and_hardware(
    runs: Path, tmp_path: Path, write_run: WriteRun
) -> None:
    """A re-run on another machine changes environment.json and nothing else."""
    write_report("digits", runs, tmp_path / "first")
    timing = {"seconds": 7.25, "images_per_second": None, "data_waiting_percent": None}
    for method in ("pareco", "random", "uniform"):
        for seed in (0, 1):
            folder = write_run(tmp_path / "again", method, seed, timing=timing, damaged_images=3)
            sessions = json.loads((folder / "env.json").read_text())
            (folder / "env.json").write_text(json.dumps([{**sessions[0], "cpu": "Another"}]))
    write_report("digits", tmp_path / "again", tmp_path / "second")
    first, second = (contents(tmp_path / name / "digits") for name in ("first", "second"))
    different = {name for name in FILES if first[name] != second[name]}
    assert different == {"environment.json"}


def test_the_plot_is_named_after_the_cost_and_leaves_no_other(
    tmp_path: Path, write_run: WriteRun
) -> None:
    results = tmp_path / "results"
    write_run(tmp_path / "flops", "pareco", 0)
    write_report("digits", tmp_path / "flops", results)
    write_run(tmp_path / "memory", "pareco", 0, cost="peak_activations")
    report = write_report("digits", tmp_path / "memory", results)
    plots = {"error_vs_peak_activations.svg", "error_vs_peak_activations.png"}
    expected = FILES - {"error_vs_flops.svg", "error_vs_flops.png"} | plots
    assert contents(results / "digits").keys() == expected
    assert {path.name for path in report.paths} == expected


def test_the_scale_is_in_every_output_that_is_read(tmp_path: Path, write_run: WriteRun) -> None:
    write_run(tmp_path / "runs", "pareco", 0, scale="short: 1/10 of the epochs")
    report = write_report("digits", tmp_path / "runs", tmp_path / "results")
    label = "scale: short: 1/10 of the epochs, not the published schedule"
    console = rich.console.Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(report.tables)
    written = contents(tmp_path / "results" / "digits")
    assert label in capture.get()
    assert label in written["table.md"].decode()
    assert f"<!-- {label} -->" in written["error_vs_flops.svg"].decode()
    assert '"scale": "short: 1/10 of the epochs"' in written["network.json"].decode()


def test_fronts_have_fixed_columns_and_format(runs: Path, tmp_path: Path) -> None:
    write_report("digits", runs, tmp_path / "results")
    header, first, *_ = (tmp_path / "results/digits/fronts.csv").read_text().splitlines()
    assert header == ",".join([*FRONT_TYPES, *BUDGET_TYPES])
    cells = dict(zip(header.split(","), first.split(","), strict=True))
    assert cells["method"] == "pareco"
    assert cells["macs"] == "741600"
    assert len(cells["test_top1_error"].partition(".")[2]) == 6
    assert cells["passes"] == "1600"


def test_unequal_budgets_write_nothing_unless_allowed(
    runs: Path, tmp_path: Path, write_run: WriteRun
) -> None:
    budget = {
        "gradient_steps": 300,
        "passes": 1200,
        "search_evaluations": 0,
        "widths_visited": 4,
    }
    write_run(runs, "short", 0, budget=budget)
    results = tmp_path / "results"
    with pytest.raises(UnequalBudgets, match="short: 300 gradient steps, 1,200 passes"):
        write_report("digits", runs, results)
    assert not results.exists()
    write_report("digits", runs, results, allow_unequal_budgets=True)
    assert "| short ‡ |" in (results / "digits" / "table.md").read_text()
