"""The commands `wandb-sync` and `wandb-report`: what goes to Weights & Biases after the runs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console

from pareco.files import write_text

PROJECT = "pareco"


def wandb_sync(runs: Path, console: Console) -> int:
    """Upload what the server lacks of the runs in a folder; return the exit status.

    0 if all of it is there, 1 if some run failed (it is named). Raises `ValueError` without a key
    or a server.
    """
    _check_reachable()
    from pareco.reporting.report import run_publication
    from pareco.tracking.sync import sync_runs

    failed = count = 0
    for result in sync_runs(runs, project=PROJECT, publication=run_publication):
        count += 1
        failed += bool(result.problem)
        line = f"{result.folder}: {result.problem or 'uploaded'}"
        style = "red" if result.problem else None
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)
    if not count:
        console.print(f"nothing to upload in {runs}", markup=False, highlight=False)
    if failed:
        console.print(f"{failed} of {count} runs were not uploaded; the same command tries again")
    return 1 if failed else 0


def wandb_report(name: str, results: Path, json: Path | None, console: Console) -> int:
    """Write a W&B report of an experiment from its records; return the exit status, 0.

    With a file for JSON it is written there, and nothing is asked of the network. Raises
    `InvalidRecord` without records, `ValueError` without a key or a server.
    """
    if json is None:
        _check_reachable()
    from pareco.reporting import wandb_report as reports
    from pareco.reporting.report import loaded_report
    from pareco.reporting.tables import markdown
    from replications.report_command import FOCUS, how_to_reproduce

    loaded = loaded_report(results / name, focus=FOCUS)
    summaries = reports.summary_runs(loaded.records, FOCUS)
    entity = ""
    if json is None:
        with console.status("uploading a summary of each method"), _told():
            entity = reports.upload_summary(loaded.records, summaries, PROJECT)
    report = reports.wandb_report(
        loaded.records,
        project=PROJECT,
        entity=entity,
        claims=_claims(name, results),
        tables=markdown(loaded.tables),
        command=how_to_reproduce(name),
    )
    if json is not None:
        write_text(json, reports.report_json(report))
    else:
        with _told():
            report.save()
    where = str(json) if json is not None else report.url
    console.print(where, highlight=False, soft_wrap=True, markup=False)
    return 0


def _claims(name: str, results: Path) -> str:
    """The claims that an experiment tests, with what was found, as a table in Markdown."""
    from pareco.reporting.tables import Cell, Table, markdown_table
    from replications.report_command import catalogued
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
    from pareco.tracking.mirror import NO_KEY, unreachable

    problem = unreachable()
    if problem == NO_KEY:
        problem += ": run `wandb login`, or set WANDB_API_KEY"
    if problem is not None:
        raise ValueError(f"Weights & Biases: {problem}")
