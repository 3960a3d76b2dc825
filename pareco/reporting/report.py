"""One command's work: from finished runs, or from their records, to a folder of results."""

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import pandas as pd

from pareco.config import Experiment
from pareco.files import write_text
from pareco.reporting.collection import (
    collected_runs,
    configured_otherwise,
    joined,
    records_of,
    with_kept_times,
)
from pareco.reporting.figures import FIGURE_FILES, SUFFIXES, experiment_figures, write_figure
from pareco.reporting.reading import InvalidRecord, read_json
from pareco.reporting.records import (
    FOLDER,
    Records,
    published_for,
    read_published,
    read_records,
    write_records,
)
from pareco.reporting.rendering import Tables, latex, markdown
from pareco.reporting.statistics import check_equal_budgets, run_measures
from pareco.reporting.tables import experiment_tables, measure_csv
from pareco.reporting.work import spending
from pareco.schema import BUDGET_TYPES, PUBLISHED_TYPES, RESULT
from pareco.tracking import Publication

_RECORDS = ("config.json", "env.json", "splits.json", "front.csv", "visits.csv", "result.json")


def run_publication(folder: Path) -> Publication:
    """The front, figures, records, weights and final numbers of the run in a folder.

    The summary has the errors at fixed costs, area and hypervolume of `run_measures`, the budget,
    and what the ledger has. Raises InvalidRecord for a record that is missing or damaged.
    """
    records = records_of([folder])
    experiment = records.experiment
    measures = run_measures(records.fronts, experiment.cost, experiment.full_cost).iloc[0]
    nothing = pd.DataFrame(columns=list(PUBLISHED_TYPES))
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
            **{f"budget/{name}": int(records.fronts[name].iloc[0]) for name in BUDGET_TYPES},
            **_spent(records),
            **{f"seconds/{part}": each for part, each in _parts(folder).items()},
            "scale": experiment.scale,
        },
    )


def _parts(folder: Path) -> Mapping[str, float]:
    """What the time of a run went to, as far as its result says so."""
    return read_json(folder / "result.json", RESULT).parts or {}


def _spent(records: Records) -> dict[str, float]:
    """What each phase of a run took, and all of it, as W&B's summary has it; what is known."""
    spent = spending(records, [records.runs[0][0]]).iloc[0].dropna()
    units = {name: name if "seconds" in name else f"{name}_macs" for name in spent.index}
    return {f"ledger/{units[name]}": float(value) for name, value in spent.items()}


@dataclass(frozen=True, kw_only=True)
class Report:
    """The records of an experiment, its tables, and the files that were written of them."""

    records: Records
    tables: Tables
    paths: tuple[Path, ...] = ()


def collect_records(
    experiment: str,
    runs: Path,
    results: Path,
    *,
    allow_unequal_budgets: bool = False,
    add: bool = False,
    planned: Experiment | None = None,
) -> tuple[Path, ...]:
    """Write `results/<experiment>/records/` from the finished runs in `runs`.

    Each method is to have the seeds that it has in `planned` and, at least, those that earlier
    records of the same configuration say. To `add` is to keep the runs there that `runs` has not
    finished, which must be of the same configuration. Over earlier records, times, environments and
    latencies stay as they are where no number of a front has changed, see `with_kept_times`.
    Returns the folders of runs that were left out as they have not finished. Raises InvalidRecord
    for runs that do not fit, and UnequalBudgets unless these are allowed, before anything is
    written.
    """
    records, unfinished = collected_runs(experiment, runs)
    if add and (results / experiment / FOLDER).exists():
        records = joined(records, read_records(results / experiment))
    if planned is not None:
        ran = records.fronts.groupby("method")["seed"].nunique()
        fewer = {name: len(planned.seeds_of(name)) for name in planned.reference_methods}
        fewer = {name: count for name, count in fewer.items() if ran.get(name, 0) <= count}
        told = {"planned_seeds": len(planned.seeds), "planned_fewer": fewer}
        records = replace(records, experiment=replace(records.experiment, **told))
    if not allow_unequal_budgets:
        ran = records.experiment
        check_equal_budgets(records.fronts, ran.budget_exempt, ran.equal)
    with suppress(InvalidRecord):  # nothing to keep
        before = read_records(results / experiment)
        records = with_kept_times(records, before)
        there = before.configuration
        if there and not configured_otherwise(records.configuration, there):
            now, known = records.experiment, before.experiment
            told = {"planned_seeds": max(now.planned_seeds, known.planned_seeds)}
            fewer = known.planned_fewer if planned is None else now.planned_fewer
            records = replace(records, experiment=replace(now, **told, planned_fewer=fewer))
    write_records(records, results / experiment)
    return unfinished


def render_report(folder: Path, *, focus: str, reference: str = "") -> Report:
    """The report made from the records in `folder`: tables and figures beside them.

    The same records give the same bytes. `focus` is the method that stands first, whose widths are
    drawn, and that others are compared with; where it has no runs it is the first in alphabetical
    order. What methods took is relative to `reference` or, where that has no runs, to the first
    method. Published networks come from `published/` beside the folder, or else from this
    repository. Raises InvalidRecord.
    """
    report = loaded_report(folder, focus=focus, reference=reference)
    published = published_for(report.records.experiment, read_published(folder.parent))
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
    return replace(report, paths=tuple(folder / name for name in (*texts, *drawn)))


def loaded_report(folder: Path, *, focus: str, reference: str = "") -> Report:
    """The report of the records in `folder`, with nothing written."""
    records = read_records(folder)
    published = published_for(records.experiment, read_published(folder.parent))
    tables = experiment_tables(records, published, focus, reference)
    return Report(records=records, tables=tables)
