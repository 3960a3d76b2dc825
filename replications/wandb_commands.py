"""The commands `wandb-sync` and `wandb-report`: what goes to Weights & Biases after the runs."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pareco.files import write_text

PROJECT = "pareco"


@dataclass(frozen=True, kw_only=True)
class WandbSyncCommand:
    """Upload to Weights & Biases what was recorded offline."""

    runs: Path = Path("runs")
    """Folder of all runs."""

    def carried_out(self, console: Console) -> int:
        """Upload what the server lacks of the runs; return the exit status.

        0 if all of it is there, 1 if some run failed (it is named). Raises `ValueError` without a
        key or a server, `FileNotFoundError` without the folder.
        """
        if not self.runs.is_dir():
            raise FileNotFoundError(f"--runs {self.runs}: no such folder")
        _check_reachable()
        from pareco.reporting.report import run_publication
        from pareco.tracking.sync import sync_runs

        count, failed = 0, 0
        for folder, problem in sync_runs(self.runs, project=PROJECT, publication=run_publication):
            count, failed = count + 1, failed + bool(problem)
            console.out(f"{folder}: {problem or 'uploaded'}", style="red" if problem else None)
        if not count:
            console.out(f"nothing to upload in {self.runs}")
        if failed:
            console.out(f"{failed} of {count} runs were not uploaded; the same command tries again")
        return 1 if failed else 0


@dataclass(frozen=True, kw_only=True)
class WandbReportCommand:
    """Upload fronts and curves of an experiment to Weights & Biases, and write a report there."""

    name: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """The folder in the results."""

    results: Path = Path("results")
    """Folder of all results."""

    json: Path | None = None
    """Write the report to this file instead; nothing is asked of the network."""

    def carried_out(self, console: Console) -> int:
        """Write the report from the experiment's records; return 0.

        Raises `InvalidRecord` without records, `ValueError` without a key or a server.
        """
        if self.json is None:
            _check_reachable()
        from pareco.reporting import wandb_report as reports
        from pareco.reporting.rendering import markdown
        from pareco.reporting.report import loaded_report
        from replications.catalogue import FOCUS, REFERENCE
        from replications.reproducing import how_to_reproduce

        loaded = loaded_report(self.results / self.name, focus=FOCUS, reference=REFERENCE)
        make = partial(
            reports.wandb_report,
            loaded.records,
            project=PROJECT,
            claims=_claims(self.name, self.results),
            tables=markdown(loaded.tables),
            command=how_to_reproduce(loaded.records),
        )
        if self.json is not None:
            write_text(self.json, reports.report_json(make(entity="")))
            console.out(self.json)
            return 0
        try:
            with console.status("uploading a summary of each method"):
                report = make(entity=reports.upload_summary(loaded.records, FOCUS, PROJECT))
                report.save()
        except Exception as error:  # wandb has many for a server's refusal
            raise ValueError(f"Weights & Biases: {type(error).__name__}: {error}") from error
        console.out(report.url)
        return 0


def _claims(name: str, results: Path) -> str:
    """The claims that an experiment tests, with what was found, as a table in Markdown."""
    from pareco.reporting.rendering import Cell, Table, markdown_table
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


def _check_reachable() -> None:
    """Raise `ValueError`, saying why, without a key or a server that answers."""
    from pareco.tracking.mirror import unreachable

    if problem := unreachable():
        raise ValueError(f"Weights & Biases: {problem}")
