"""The command `report`: records from runs, tables and figures from records, and the whole site."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pareco.files import write_text
from pareco.reporting import InvalidRecord
from pareco.reporting.figures import FIGURE_FILES
from pareco.reporting.page import Section, page_html
from pareco.reporting.records import FOLDER, PUBLISHED_SCALE
from pareco.reporting.report import Report, collect_records, loaded_report, render_report
from pareco.reporting.summary import SummaryRow, summary_markdown, summary_row
from pareco.reporting.tables import terminal
from replications.catalogue import experiment_named, experiment_names, scales_of
from replications.verdicts import claim_outcomes

FOCUS = "pareco"


@dataclass(frozen=True, kw_only=True)
class Folders:
    """Where runs are kept and results are written."""

    runs: Path = Path("runs")
    """Folder of all runs: RUNS/<experiment>/<method>/seed<k>."""

    results: Path = Path("results")
    """Folder of all results: RESULTS/<experiment>."""

    allow_unequal_budgets: bool = False
    """Report methods side by side though their training budgets differ."""


@dataclass(frozen=True, kw_only=True)
class ReportArguments:
    """Make the results of one experiment, or of --all, and the summary and the page of all.

    An experiment that has finished runs is reported from these; one without, and --all, from the
    records in the results. --scale SCALE takes the runs of the experiment at that scale.
    """

    folders: Annotated[Folders, tyro.conf.arg(name="")]

    all: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Make everything in the results again from the records there; runs are not read."""


def report(name: str | None, arguments: list[str], console: Console) -> int:
    """Write the results of an experiment, or of all; return the exit status.

    `name` is an experiment, which a scale may be given with, or a name that runs were given.
    Raises `InvalidRecord` where neither runs nor records are there.
    """
    scale, rest = scale_and_rest(f"report {name or ''}".strip(), arguments)
    default = ReportArguments(folders=Folders())
    prog = f"python -m replications report{f' {name}' if name else ''}"
    chosen = tyro.cli(ReportArguments, default=default, args=rest, prog=prog)
    if chosen.all == (name is not None):
        raise ValueError("report needs the name of an experiment, or --all without a name")
    if name is not None:
        folder = name if scale is None else experiment_named(name, scale).name
        write_report(folder, chosen.folders, console)
        return 0
    found = recorded(chosen.folders.results)
    if not found:
        raise InvalidRecord(f"there are no records in {chosen.folders.results}/*/{FOLDER}")
    reports = []
    for each in found:
        with console.status(f"{each}: tables and figures"):
            reports.append(render_report(chosen.folders.results / each, focus=FOCUS))
        console.print(f"{each}: {len(reports[-1].paths)} files", highlight=False)
    write_site(chosen.folders.results, console)
    return 0


def write_report(name: str, folders: Folders, console: Console) -> None:
    """Write the results of one experiment, show its tables, and renew the site."""
    unfinished: tuple[Path, ...] = ()
    has_runs = any((folders.runs / name).glob("*/seed*/DONE"))
    known = recorded(folders.results)
    if not has_runs and name not in known:
        there = f" (they are there of {', '.join(known)})" if known else ""
        raise InvalidRecord(
            f"no finished run of {name!r} in {folders.runs / name},"
            f" and no records in {folders.results / name / FOLDER}{there}"
        )
    if not has_runs:
        console.print(f"no runs in {folders.runs / name}: from the records", highlight=False)
    else:
        unfinished = collect_records(
            name,
            folders.runs,
            folders.results,
            allow_unequal_budgets=folders.allow_unequal_budgets,
        )
    with console.status("tables and figures"):
        written = render_report(folders.results / name, focus=FOCUS)
    console.print(terminal(written.tables))
    for path in unfinished:
        console.print(f"left out, not finished: {path}")
    for path in written.paths:
        console.print(str(path), highlight=False)
    write_site(folders.results, console)


def write_site(results: Path, console: Console) -> None:
    """Write the summary and the page over all results, and show where they are."""
    with console.status("summary and page"):
        claims = claim_outcomes(results)
        found = [loaded_report(results / name, focus=FOCUS) for name in recorded(results)]
        rows = summary_rows(found)
        write_text(results / "README.md", summary_markdown(rows, claims))
        sections = [section(each, results) for each in found]
        write_text(results / "index.html", page_html(sections, claims, rows))
    for name in ("README.md", "index.html"):
        console.print(str(results / name), highlight=False)


def summary_rows(reports: list[Report]) -> list[SummaryRow]:
    """Return a row for every experiment at the published scale, run or not, and for all others."""
    ran = {each.records.experiment.experiment: each for each in reports}
    rows = []
    for name, experiment, scale in catalogued():
        if name in ran:
            rows.append(summary_row(ran.pop(name).records, FOCUS))
        elif scale == PUBLISHED_SCALE:
            config = experiment_named(experiment)
            size = config.data.image_size
            subject = f"{config.network.name} on {config.data.name}, {size} px"
            rows.append(SummaryRow(experiment=name, scale=scale, subject=subject))
    return [*rows, *(summary_row(each.records, FOCUS) for each in ran.values())]


def section(report: Report, results: Path) -> Section:
    """Return an experiment's section of the page."""
    folder = results / report.records.experiment.experiment
    return Section(
        records=report.records,
        tables=report.tables,
        figures={
            name: (folder / f"{name}.svg").read_bytes()
            for name in FIGURE_FILES
            if (folder / f"{name}.svg").exists()
        },
        how=how_to_reproduce(report.records.experiment.experiment),
        focus=FOCUS,
    )


def how_to_reproduce(name: str) -> str:
    """Return the command that makes an experiment's results."""
    for known, experiment, scale in catalogued():
        if name == known:
            target = f"make replicate-{experiment.replace('_', '-')}"
            return target if scale == PUBLISHED_SCALE else f"{target} SCALE={scale}"
    return f"python -m replications run EXPERIMENT --name {name}"


def scale_and_rest(command: str, arguments: list[str]) -> tuple[str | None, list[str]]:
    """Return the scale that is asked for (None: none is), and the other arguments."""
    parser = argparse.ArgumentParser(
        prog=f"python -m replications {command}", add_help=False, allow_abbrev=False
    )
    parser.add_argument("--scale")
    known, rest = parser.parse_known_args(arguments)
    return known.scale, rest


def recorded(results: Path) -> list[str]:
    """Return the experiments that have records in the results, in the order of the catalogue."""
    found = {path.parent.parent.name for path in results.glob(f"*/{FOLDER}/network.json")}
    known = [name for name, *_ in catalogued() if name in found]
    return [*known, *sorted(found - set(known))]


def catalogued() -> Iterator[tuple[str, str, str]]:
    """Yield the name that each experiment has at each scale, the experiment, and the scale."""
    for experiment in experiment_names():
        for scale in scales_of(experiment):
            yield experiment_named(experiment, scale).name, experiment, scale
