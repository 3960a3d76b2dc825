"""Which commands there are; each is imported when it is asked for."""

from __future__ import annotations

import argparse
import importlib
import os
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.markup import escape

Command = Callable[[str | None, list[str], Console], int]

_PLACES = {
    "list": ("replications.list_command", "list_experiments"),
    "run": ("replications.command_line", "run"),
    "report": ("replications.report_command", "report"),
    "claims": ("replications.commands", "claims"),
    "wandb-sync": ("replications.wandb_commands", "wandb_sync"),
    "wandb-report": ("replications.wandb_commands", "wandb_report"),
}
COMMANDS = tuple(_PLACES)
WITH_NAME = ("run", "wandb-report")
"""The commands that need the name of an experiment."""


def carry_out(command: str, name: str | None, arguments: list[str]) -> int:
    """Carry out a command, on an experiment where a name is given; return the exit status.

    0 well, 1 something failed, 2 a bad request, named on standard error.
    """
    from pareco.reporting import InvalidRecord, UnequalBudgets
    from pareco.training import RunError
    from replications.sweep import is_main_process

    module, function = _PLACES[command]
    chosen: Command = getattr(importlib.import_module(module), function)
    try:
        return chosen(name, arguments, Console(quiet=not is_main_process()))
    except (InvalidRecord, UnequalBudgets, RunError, ValueError, OSError) as error:
        who = "" if is_main_process() else f" in process {os.environ['RANK']}"
        errors = Console(stderr=True)
        errors.print(f"[red]error{who}:[/red] {escape(str(error))}", highlight=False)
        return 2


def claims(name: str | None, arguments: list[str], console: Console) -> int:
    """Print what was found about each claim; return 0."""
    from replications.verdicts import PATH, print_claims

    if name is not None:
        raise ValueError("claims takes no name; it goes through all of replications/claims.toml")
    parser = argparse.ArgumentParser(prog="python -m replications claims", allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--file", type=Path, default=PATH, help="the claims (TOML)")
    chosen = parser.parse_args(arguments)
    return print_claims(chosen.results, chosen.file, chosen.json, console)
