"""One command's work: from finished runs, or from their records, to a folder of results."""

from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd
import rich.console

from pareco.files import write_text
from pareco.reporting.budgets import check_equal_budgets
from pareco.reporting.figures import FIGURE_FILES, SUFFIXES, experiment_figures, write_figure
from pareco.reporting.published import published_folder, published_for, read_published
from pareco.reporting.records import Records, read_records, write_records
from pareco.reporting.runs import collected_runs
from pareco.reporting.statistics import method_order
from pareco.reporting.table_formats import Tables, latex, markdown, terminal
from pareco.reporting.tables import experiment_tables, measure_csv


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
    allow_unequal_budgets: bool = False,
    focus: str = "pareco",
) -> tuple[Path, ...]:
    """Write `results/<experiment>/records/` from the finished runs in `runs`.

    Returns the folders of runs that were left out as they have not finished. Raises InvalidRecord
    for runs that do not fit, and UnequalBudgets unless these are allowed, before anything is
    written.
    """
    collected = collected_runs(experiment, runs)
    if not allow_unequal_budgets:
        fronts = collected.records.fronts
        exempt = collected.records.experiment.budget_exempt
        check_equal_budgets(fronts, exempt, method_order(fronts["method"], focus))
    write_records(collected.records, results / experiment)
    return collected.unfinished


def render_report(
    folder: Path, *, focus: str = "pareco", unfinished: tuple[Path, ...] = ()
) -> Report:
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


def loaded_report(folder: Path, *, focus: str = "pareco") -> Report:
    """The report of the records in `folder`, with nothing written."""
    records = read_records(folder)
    tables = experiment_tables(records, _published(records, folder.parent), focus)
    return Report(records=records, tables=tables)


def _published(records: Records, results: Path) -> pd.DataFrame:
    """The published networks to show beside ours; none where the objective is not their cost."""
    found = published_for(records.experiment, read_published(published_folder(results)))
    return found if records.experiment.cost == "macs" else found.iloc[:0]
