"""The commands `wandb-sync` and `wandb-report`: what goes to Weights & Biases after the runs."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from pareco.tracking.server import NO_KEY, unreachable
from pareco.tracking.upload import upload


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


def _check_reachable() -> None:
    """Raise `ValueError`, saying what to do, without a key or a server that answers."""
    problem = unreachable()
    if problem == NO_KEY:
        problem += ": run `wandb login`, or set WANDB_API_KEY"
    if problem is not None:
        raise ValueError(f"Weights & Biases: {problem}")
