"""The application `python -m replications`: what each command takes, and who carries it out.

Heavy libraries are imported once a request is known to be good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from pareco.arguments import Flag, chosen_command, in_one_line
from replications.catalogue import experiment_named, experiment_names, name_at, scales_of
from replications.run import Folders, RunCommand

DESCRIPTION = """Replications of slimmable networks, from training to tables.

Exit status: 0 all is done, 1 something failed, 2 a bad request; ended by Ctrl-C 130, by SIGTERM
143: runs save their state, and the same command goes on (a second signal ends them at once)."""
_NAME = (tyro.conf.Positional, tyro.conf.arg(metavar="NAME"))


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """Show the experiments, and the scales at which they can be run."""

    def carried_out(self, console: Console) -> int:
        """Print a line for each experiment; return 0."""
        scales: dict[str, None] = {}
        for name in experiment_names():
            experiment = experiment_named(name)
            scales |= dict.fromkeys(scales_of(name))
            count = len(experiment.seeds)
            seeds = f"{count} seed{'' if count == 1 else 's'}"
            summary = f"{experiment.network.name} on {experiment.data.name}, {seeds}"
            console.print(f"{name:<24} {summary}: {', '.join(experiment.methods)}", highlight=False)
        console.print(f"\nscales (--scale): {', '.join(scales)}", highlight=False)
        return 0


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Make the results of one experiment, or of --all, and the summary and the page of all.

    An experiment that has finished runs is reported from these; one without, and --all, from the
    records in the results.
    """

    name: Annotated[str | None, *_NAME] = None
    """An experiment, or the --name that runs were given."""

    scale: str | None = None
    """Take the runs at this scale."""

    all: Flag = False
    """Make everything in the results again from the records there; runs are not read."""

    folders: Annotated[Folders, tyro.conf.arg(name="")] = field(default_factory=Folders)

    def carried_out(self, console: Console) -> int:
        """Write the results; return 0."""
        if self.all == (self.name is not None):
            raise ValueError("report needs the name of an experiment, or --all without a name")
        name = name_at(self.name, self.scale) if self.name and self.scale else self.name
        runs, results = self.folders.runs, self.folders.results
        if name and not ((runs / name).exists() or (results / name).exists()):
            raise ValueError(f"no runs in {runs / name}, and no records in {results / name}")
        from replications.site import write_all_reports, write_report

        if name is None:
            write_all_reports(results, console)
        else:
            write_report(name, self.folders, console)
        return 0


@dataclass(frozen=True, kw_only=True)
class ClaimsCommand:
    """Show the paper's claims: reproduced, not reproduced, not run at that scale."""

    results: Path = Path("results")
    """Folder of all results."""

    json: Flag = False
    """Print JSON."""

    file: Path | None = None
    """The claims (TOML); by default those of the paper."""

    def carried_out(self, console: Console) -> int:
        """Print each claim with its outcome; return 0."""
        from replications.verdicts import PATH, print_claims

        return print_claims(self.results, self.file or PATH, self.json, console)


@dataclass(frozen=True, kw_only=True)
class WandbSyncCommand:
    """Upload to Weights & Biases what was recorded offline."""

    runs: Path = Path("runs")
    """Folder of all runs."""

    def carried_out(self, console: Console) -> int:
        """Upload; return the exit status: 0 all is there, 1 some of it failed."""
        from replications.wandb_commands import wandb_sync

        return wandb_sync(self.runs, console)


@dataclass(frozen=True, kw_only=True)
class WandbReportCommand:
    """Upload fronts and curves of an experiment to Weights & Biases, and write a report there."""

    name: Annotated[str, *_NAME]
    """The folder in the results."""

    results: Path = Path("results")
    """Folder of all results."""

    json: Path | None = None
    """Write the report to this file instead; nothing is asked of the network."""

    def carried_out(self, console: Console) -> int:
        """Write the report; return 0."""
        from replications.wandb_commands import wandb_report

        return wandb_report(self.name, self.results, self.json, console)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line; return the exit status.

    0 well, 1 something failed, 2 a bad request; ended by a signal: 130 for SIGINT, 143 for SIGTERM.
    """
    rank = os.environ.get("RANK", "0")  # of a launcher's processes one speaks
    try:
        request = chosen_command(
            _commands(arguments), arguments, prog="python -m replications", description=DESCRIPTION
        )
        return request.carried_out(Console(quiet=rank != "0"))
    except SystemExit as end:  # after --help
        return int(end.code or 0)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the checkpoints", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        who = "" if rank == "0" else f" in process {rank}"
        print(f"error{who}: {error}", file=sys.stderr)
        return 2


def _commands(arguments: Sequence[str]) -> dict[str, Any]:
    """Return the commands with the defaults of their flags; those of `run` depend on its NAME."""
    with in_one_line():
        defaults = RunCommand.defaults(arguments)
    return {
        "list": ListCommand(),
        "run": defaults,
        "report": ReportCommand(),
        "claims": ClaimsCommand(),
        "wandb-sync": WandbSyncCommand(),
        "wandb-report": WandbReportCommand(name=tyro.MISSING),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
