"""What `report` writes: records from runs, tables and figures from records, the whole site."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from rich.console import Console

from pareco.config import Experiment, Machine
from pareco.files import write_text
from pareco.latency import LATENCY_FILE, measure_latencies
from pareco.reporting import InvalidRecord
from pareco.reporting.figures import (
    FIGURE_FILES,
    SUFFIXES,
    side_by_side_figure,
    write_figure,
)
from pareco.reporting.page import Section, page_html
from pareco.reporting.records import (
    FOLDER,
    PUBLISHED_SCALE,
    ExperimentRecord,
    Records,
    read_records,
)
from pareco.reporting.rendering import terminal
from pareco.reporting.report import Report, collect_records, loaded_report, render_report
from pareco.reporting.summary import SummaryRow, summary_markdown, summary_row
from replications.bench_deployed import deployed_table
from replications.bench_goals import goals_table
from replications.catalogue import (
    FOCUS,
    OPENING,
    REFERENCE,
    catalogued,
    equal_compute_name,
    experiment_named,
)
from replications.reproducing import how_to_reproduce
from replications.run import Folders
from replications.verdicts import claim_outcomes

SHEETS: Mapping[str, tuple[str, ...]] = {
    "imagenet": ("imagenet_mbv2", "imagenet_mbv3", "imagenet_resnet18"),
    "cifar": tuple(
        f"cifar{classes}_resnet{depth}" for classes in (10, 100) for depth in (20, 32, 44, 56)
    ),
}
"""What stands side by side, by FLOPs: the paper's; at smaller scales others of the family too."""


def write_report(
    name: str, folders: Folders, console: Console, asked: Experiment | None = None
) -> None:
    """Write the results of one experiment, show its tables, and renew the site.

    They are made from its finished runs, or without one from the records in the results. How many
    seeds were planned is said by the catalogue or, of a name that it lacks, by what was `asked`.
    Raises `InvalidRecord` where neither runs nor records are there.
    """
    runs, results, unfinished = folders.runs, folders.results, ()
    if any((runs / name).glob("*/seed*/DONE")):
        allowed = folders.allow_unequal_budgets
        unfinished = collect_records(
            name,
            runs,
            results,
            allow_unequal_budgets=allowed,
            add=folders.add,
            planned=planned(name) or asked,
        )
    else:
        console.out(f"no runs in {runs / name}: from the records")
    with console.status("tables and figures"):
        written = render_report(results / name, focus=FOCUS, reference=REFERENCE)
    console.print(terminal(written.tables))
    for path in unfinished:
        console.out(f"left out, not finished: {path}")
    for path in written.paths:
        console.out(path)
    write_site(results, console)


def write_measured_report(
    experiment: Experiment, folders: Folders, machine: Machine, console: Console
) -> None:
    """Measure latencies where a network is new, then write the results of one experiment."""
    name, runs, results = experiment.name, folders.runs, folders.results
    network, here = experiment.network.name, runs / name / LATENCY_FILE
    recorded: list[str] = []
    with suppress(InvalidRecord):  # then there is nothing to keep
        made = read_records(results / name)
        same = (network, experiment.data.image_size) == (
            made.experiment.network,
            made.experiment.image_size,
        )
        if same and made.latency is not None and not here.exists():
            shutil.copyfile(results / name / FOLDER / LATENCY_FILE, here)
        if same and folders.add:
            recorded = made.fronts["widths"].tolist()
    try:
        with console.status("measuring the latency of the networks on the fronts"):
            measure_latencies(experiment, runs, machine, recorded)
    except (RuntimeError, MemoryError) as error:
        console.print(f"no latency: {error}", style="yellow", markup=False)
    write_report(name, folders, console, experiment)


def planned(name: str) -> Experiment | None:
    """Return the experiment of this name in the catalogue; None where it isn't there."""
    for known, experiment, scale in catalogued():
        if name in (known, equal_compute_name(known, scale)):
            return experiment_named(experiment, scale)
    return None


def write_all_reports(results: Path, console: Console) -> None:
    """Write the results of every experiment anew from its records, and renew the site."""
    found = recorded(results)
    if not found:
        raise InvalidRecord(f"there are no records in {results}/*/{FOLDER}")
    for name in found:
        with console.status("tables and figures"):
            written = render_report(results / name, focus=FOCUS, reference=REFERENCE)
        console.out(f"{name}: {len(written.paths)} files")
    write_site(results, console)


def write_site(results: Path, console: Console) -> None:
    """Write the summary and the page over all results, and show where they are."""
    with console.status("summary and page"):
        claims = claim_outcomes(results)
        found = [
            loaded_report(results / name, focus=FOCUS, reference=REFERENCE)
            for name in recorded(results)
        ]
        rows = summary_rows(found)
        sheets = _write_sheets([each.records for each in found], results)
        measured = [table for table in (goals_table(results),) if table]
        if (results / "bench" / "deployed.csv").exists():
            measured.append(deployed_table(results))
        write_text(results / "README.md", summary_markdown(rows, claims, sheets, measured))
        sections = [section(each, results) for each in found]
        write_text(results / "index.html", page_html(sections, claims, rows, measured))
    for name in ("README.md", "index.html"):
        console.out(results / name)


def _write_sheets(found: Sequence[Records], results: Path) -> list[str]:
    """Draw what has run of ImageNet, and of CIFAR, side by side at each scale; return the names.

    The paper's figure is drawn from one experiment on; that of another scale, which would say
    nothing beside a single experiment's own, from two on. An earlier one of fewer is removed.
    """
    ran = {each.experiment.experiment: each for each in found}
    written = []
    for (family, scale), names in _families(ran).items():
        panels = [ran[name] for name in names if name in ran]
        paths = [results / f"{family}-{scale}{suffix}" for suffix in SUFFIXES]
        if len(panels) < (1 if scale == PUBLISHED_SCALE else 2):
            for path in paths:
                path.unlink(missing_ok=True)
            continue
        absent = [name for name in names if name not in ran]
        departures = {each.experiment.experiment: _departure(each.experiment) for each in panels}
        figure = side_by_side_figure(panels, absent, scale, FOCUS, departures)
        for path in paths:
            write_figure(figure, path)
        written.append(f"{family}-{scale}")
    return written


def _families(ran: Collection[str]) -> dict[tuple[str, str], list[str]]:
    """Return the experiments of each family at each scale; at equal compute those that have run."""
    names: dict[tuple[str, str], list[str]] = {}
    for name, experiment, scale in catalogued():
        for family, published in SHEETS.items():
            ours = scale != PUBLISHED_SCALE and experiment.startswith(family)
            by_macs = ours and experiment_named(experiment, scale).cost == "macs"
            if experiment in published or by_macs:
                equal = equal_compute_name(name, scale)
                names.setdefault((family, scale), []).append(name)
                names[family, scale] += [equal] if equal in ran else []
    return names


def _departure(record: ExperimentRecord) -> str:
    """Return in what a record differs from what its name has in the catalogue; empty if in nothing.

    That it is at equal compute is not among it.
    """
    experiment = planned(record.experiment)
    assert experiment is not None
    equal = f", equal compute: {record.equal_macs or 0:,} MACs before the test"
    own = record.scale.replace(equal, "")
    named = experiment.scale
    return own.removeprefix(named).lstrip(",; ") if own.startswith(named) else own


def summary_rows(reports: Sequence[Report]) -> list[SummaryRow]:
    """Return a row for every experiment that has run, then for those of the paper that have not."""
    ran = {each.records.experiment.experiment for each in reports}
    rows = [summary_row(each.records, FOCUS) for each in reports]
    for name, experiment, scale in catalogued():
        config = experiment_named(experiment)
        if name not in ran and scale == PUBLISHED_SCALE == config.scale:
            size = config.data.image_size
            subject = f"{config.network.name} on {config.data.name}, {size} px"
            rows.append(SummaryRow(experiment=name, scale=scale, subject=subject))
    return rows


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
        how=how_to_reproduce(report.records),
        focus=FOCUS,
    )


def recorded(results: Path) -> list[str]:
    """Return the experiments that have records in the results: OPENING, then as in the catalogue.

    Each with that at equal compute behind it; those of somebody's own last.
    """
    found = {path.parent.parent.name for path in results.glob(f"*/{FOLDER}/network.json")}
    known = [
        name
        for planned, experiment, scale in sorted(catalogued(), key=lambda each: each[1] != OPENING)
        for name in (planned, equal_compute_name(planned, scale))
        if name in found
    ]
    return [*known, *sorted(found - set(known))]
