"""One command's work: from finished runs, or from their records, to a folder of results."""

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import rich.console

from pareco.files import write_text
from pareco.reporting.collection import collected_runs, records_of, with_kept_times
from pareco.reporting.figures import FIGURE_FILES, SUFFIXES, experiment_figures, write_figure
from pareco.reporting.records import (
    InvalidRecord,
    Records,
    published_folder,
    published_for,
    read_published,
    read_records,
    write_records,
)
from pareco.reporting.statistics import check_equal_budgets, method_order, run_measures
from pareco.reporting.tables import (
    Tables,
    experiment_tables,
    latex,
    markdown,
    measure_csv,
    terminal,
)
from pareco.tracking import Publication

_RECORDS = ("config.json", "env.json", "splits.json", "front.csv", "visits.csv", "result.json")


def run_publication(folder: Path) -> Publication:
    """The front, figures, records, weights and final numbers of the run in a folder.

    The summary has the errors at fixed costs, area and hypervolume of `run_measures`, and the
    budget. Raises InvalidRecord for a record that is missing or damaged.
    """
    records = records_of([folder])
    experiment = records.experiment
    measures = run_measures(records.fronts, experiment.cost, experiment.full_cost).iloc[0]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    nothing = read_published(folder / "published")
    return Publication(
        front=records.fronts,
        cost=experiment.cost,
        figures=experiment_figures(records, nothing, folder.parent.name),
        artifacts={
            "front": [folder / name for name in _RECORDS],
            "model": sorted(folder.glob("weights/*.safetensors")),
        },
        summary={
            **{f"error/{name}": float(value) for name, value in measures.items()},
            **{f"budget/{name}": int(value) for name, value in result["budget"].items()},
            "scale": experiment.scale,
        },
    )


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written of an experiment, and what a terminal shows of it."""

    records: Records
    tables: Tables
    paths: tuple[Path, ...] = ()
    unfinished: tuple[Path, ...] = ()
    """Folders of runs that were left out as they have not finished."""

    @property
    def shown(self) -> rich.console.Group:
        """The tables, for `rich.print`."""
        return terminal(self.tables)


def collect_records(
    experiment: str,
    runs: Path,
    results: Path,
    *,
    focus: str,
    allow_unequal_budgets: bool = False,
) -> tuple[Path, ...]:
    """Write `results/<experiment>/records/` from the finished runs in `runs`.

    Over earlier records, times, environments and latencies stay as they are where no number of a
    front has changed, see `with_kept_times`. Returns the folders of runs that were left out as
    they have not finished. Raises InvalidRecord for runs that do not fit, and UnequalBudgets
    unless these are allowed, before anything is written.
    """
    collected = collected_runs(experiment, runs)
    records = collected.records
    if not allow_unequal_budgets:
        methods = method_order(records.fronts["method"], focus)
        check_equal_budgets(records.fronts, records.experiment.budget_exempt, methods)
    with suppress(InvalidRecord):  # nothing to keep
        records = with_kept_times(records, read_records(results / experiment))
    write_records(records, results / experiment)
    return collected.unfinished


def render_report(folder: Path, *, focus: str, unfinished: tuple[Path, ...] = ()) -> Report:
    """The report made from the records in `folder`: tables and figures beside them.

    The same records give the same bytes. `focus` is the method that stands first, whose widths are
    drawn, and that others are compared with; where it has no runs it is the first in alphabetical
    order. Published networks come from `published/` beside the folder, or else from this
    repository. Raises InvalidRecord.
    """
    report = loaded_report(folder, focus=focus)
    published = _published(report.records, folder.parent)
    texts = {
        "table.md": markdown(report.tables),
        "table.tex": latex(report.tables),
        "table.csv": measure_csv(report.records, focus),
    }
    for name, text in texts.items():
        write_text(folder / name, text)
    figures = experiment_figures(report.records, published, focus)
    for name in FIGURE_FILES:  # one may be left from earlier records, over another cost
        for suffix in SUFFIXES:
            (folder / f"{name}{suffix}").unlink(missing_ok=True)
    drawn = [f"{name}{suffix}" for name in figures for suffix in SUFFIXES]
    for name in drawn:
        write_figure(figures[Path(name).stem], folder / name)
    paths = tuple(folder / name for name in (*texts, *drawn))
    return replace(report, paths=paths, unfinished=unfinished)


def loaded_report(folder: Path, *, focus: str) -> Report:
    """The report of the records in `folder`, with nothing written."""
    records = read_records(folder)
    tables = experiment_tables(records, _published(records, folder.parent), focus)
    return Report(records=records, tables=tables)


def _published(records: Records, results: Path) -> pd.DataFrame:
    """The published networks to show beside ours; none where the objective is not their cost."""
    found = published_for(records.experiment, read_published(published_folder(results)))
    return found if records.experiment.cost == "macs" else found.iloc[:0]
