"""The commands `wandb-sync` and `wandb-report`: what goes to Weights & Biases after the runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pareco.files import write_text
from pareco.tracking.mirror import NO_KEY, unreachable
from pareco.tracking.sync import upload

PROJECT = "pareco"


def wandb_sync(name: str | None, arguments: list[str], console: Console) -> int:
    """Upload what was recorded offline, run by run; return the exit status.

    0 if all of it is there, 1 if some part failed (it is named), 2 without a key or a server.
    """
    if name is not None:
        raise ValueError("wandb-sync takes no name; --runs FOLDER says which runs")
    parser = argparse.ArgumentParser(prog="python -m replications wandb-sync", allow_abbrev=False)
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="the folder of all runs")
    runs = parser.parse_args(arguments).runs
    _check_reachable()
    failed = count = 0
    for outcome in upload(runs):
        count += 1
        failed += bool(outcome.problem)
        text = escape(f"{outcome.part.parent}: {outcome.problem or outcome.done}")
        line = f"[red]failed[/red] {text}" if outcome.problem else text
        console.print(line, highlight=False, soft_wrap=True)
    if not count:
        console.print(f"nothing to upload in {runs}", highlight=False)
    if failed:
        console.print(f"{failed} of {count} parts were not uploaded; the same command tries again")
    return 1 if failed else 0


def wandb_report(name: str | None, arguments: list[str], console: Console) -> int:
    """Write a W&B report of an experiment from its records; return the exit status.

    0 if it is there, 2 without records, a key or a server. With --json FILE it is written to a
    file, and nothing is asked of the network.
    """
    if name is None:
        raise ValueError("wandb-report needs the name of an experiment in the results")
    prog = f"python -m replications wandb-report {name}"
    parser = argparse.ArgumentParser(prog=prog, allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--json", type=Path, help="write the report to a file instead")
    chosen = parser.parse_args(arguments)
    if chosen.json is None:
        _check_reachable()
    from pareco.reporting import wandb_report as reports
    from pareco.reporting.report import loaded_report
    from pareco.reporting.tables import markdown
    from pareco.reporting.wandb_report import summary_runs, upload_summary
    from replications.site import FOCUS, how_to_reproduce

    loaded = loaded_report(chosen.results / name, focus=FOCUS)
    summaries = summary_runs(loaded.records, FOCUS)
    entity = ""
    if chosen.json is None:
        with console.status("uploading a summary of each method"), _told():
            entity = upload_summary(loaded.records, summaries, PROJECT)
    report = reports.wandb_report(
        loaded.records,
        summaries,
        project=PROJECT,
        entity=entity,
        claims=_claims(name, chosen.results),
        tables=markdown(loaded.tables),
        command=how_to_reproduce(name),
    )
    if chosen.json is not None:
        write_text(chosen.json, reports.spec_json(report))
        console.print(str(chosen.json), highlight=False, soft_wrap=True)
    else:
        with _told():
            report.save()
        console.print(report.url, highlight=False, soft_wrap=True, markup=False)
    return 0


def _claims(name: str, results: Path) -> str:
    """The claims that an experiment tests, with what was found, as a table in Markdown."""
    from pareco.reporting.tables import Cell, Table, markdown_table
    from replications.catalogue import catalogued
    from replications.verdicts import claim_outcomes

    tested = {experiment for known, experiment, _ in catalogued() if known == name}
    rows = tuple(
        tuple(map(Cell, (each.statement, each.outcome, each.ours, each.source)))
        for each in (claim_outcomes(results) if tested else ())
        if tested & set(each.experiments)
    )
    if not rows:
        return "This experiment tests none of the paper's claims."
    return markdown_table(Table("", ("claim", "outcome", "ours", "source"), rows), align="---")


@contextmanager
def _told() -> Iterator[None]:
    """Raise `ValueError` in place of the many exceptions that wandb has for a server's refusal."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"Weights & Biases: {type(error).__name__}: {error}") from error


def _check_reachable() -> None:
    """Raise `ValueError`, saying what to do, without a key or a server that answers."""
    problem = unreachable()
    if problem == NO_KEY:
        problem += ": run `wandb login`, or set WANDB_API_KEY"
    if problem is not None:
        raise ValueError(f"Weights & Biases: {problem}")
