"""From run folders to a folder of results, the same bytes each time."""

from collections.abc import Callable
from pathlib import Path

import pytest

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
    for name in FILES - {"fronts.csv", "network.json"}:
        (folder / name).unlink()
    render_report(folder)
    assert contents(folder) == before


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
