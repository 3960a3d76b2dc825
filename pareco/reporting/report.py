"""One command's work: from finished runs to an experiment's folder of results."""

from dataclasses import dataclass, replace
from pathlib import Path

import rich.console

from pareco.reporting.budgets import check_equal_budgets
from pareco.reporting.costs import COST_WORDS
from pareco.reporting.environment import environment_json
from pareco.reporting.figures import error_figure, widths_figure, write_figure
from pareco.reporting.records import (
    BUDGET_TYPES,
    FRONT_TYPES,
    collected_runs,
    read_experiment,
    read_fronts,
)
from pareco.reporting.statistics import method_order
from pareco.reporting.tables import experiment_tables, markdown, terminal

_SUFFIXES = (".svg", ".png")


@dataclass(frozen=True, kw_only=True)
class Report:
    """What was written, and what a terminal shows of it."""

    tables: rich.console.Group
    """For `rich.print`."""
    paths: tuple[Path, ...]
    unfinished: tuple[Path, ...]
    """Folders of runs that were left out as they have not finished."""


def write_report(
    experiment: str,
    runs: Path,
    results: Path,
    *,
    allow_unequal_budgets: bool = False,
    focus: str = "pareco",
) -> Report:
    """The report written to `results/<experiment>/` from the finished runs in `runs`.

    `fronts.csv` and `network.json` come first, all else from them by `render_report`; a re-run
    gives the same bytes. `environment.json` holds what it does not repeat: times and hardware.
    Raises InvalidRecord for records that do not fit, and UnequalBudgets unless these are allowed,
    before anything is written.
    """
    collected = collected_runs(experiment, runs)
    if not allow_unequal_budgets:
        methods = method_order(collected.fronts["method"], focus)
        check_equal_budgets(collected.fronts, collected.experiment.budget_exempt, methods)
    environment = environment_json(collected.finished)
    folder = results / experiment
    folder.mkdir(parents=True, exist_ok=True)
    collected.fronts.to_csv(
        folder / "fronts.csv", index=False, float_format="%.6f", lineterminator="\n"
    )
    (folder / "network.json").write_text(collected.experiment.to_json(), encoding="utf-8")
    (folder / "environment.json").write_text(environment, encoding="utf-8")
    report = render_report(folder, focus=focus, unfinished=collected.unfinished)
    return replace(report, paths=(*report.paths, folder / "environment.json"))


def render_report(
    folder: Path, *, focus: str = "pareco", unfinished: tuple[Path, ...] = ()
) -> Report:
    """The report made again from `fronts.csv` and `network.json` in `folder`, without the runs.

    `environment.json` stays as it is. `focus` is the method that stands first and whose widths are
    drawn; where it has no runs it is the first in alphabetical order.
    """
    experiment = read_experiment(folder / "network.json")
    fronts = read_fronts(folder / "fronts.csv", {**FRONT_TYPES, **BUDGET_TYPES})
    tables = experiment_tables(experiment, fronts, focus)
    (folder / "table.md").write_text(markdown(tables), encoding="utf-8")
    _remove_plots(folder)
    errors = error_figure(experiment, fronts, focus)
    figures = {f"{experiment.words.figure}{suffix}": errors for suffix in _SUFFIXES}
    figures["widths.png"] = widths_figure(experiment, fronts, focus)
    for name, figure in figures.items():
        write_figure(figure, folder / name)
    names = ("fronts.csv", "network.json", "table.md", *figures)
    return Report(
        tables=terminal(tables),
        paths=tuple(folder / name for name in names),
        unfinished=unfinished,
    )


def _remove_plots(folder: Path) -> None:
    """Remove the plots, one of which may be over another cost, as earlier results had it."""
    for words in COST_WORDS.values():
        for suffix in _SUFFIXES:
            (folder / f"{words.figure}{suffix}").unlink(missing_ok=True)
