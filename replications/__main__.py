"""The application `python -m replications`: what each command takes, and who carries it out.

Heavy libraries are imported once a request is known to be good.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pareco.arguments import Flag, chosen_command, in_one_line, plain_console
from replications.bench import BenchCommand
from replications.catalogue import (
    catalogued,
    check_scale,
    experiment_named,
    experiment_names,
    name_at,
)
from replications.compare_command import CompareCommand
from replications.data_command import DataCommand
from replications.plan_command import CostsCommand, PlanCommand
from replications.run import Folders, RunCommand
from replications.scales import PUBLISHED
from replications.searches.command import SearchesCommand
from replications.searches.feeding import FeedingCommand
from replications.wandb_commands import WandbReportCommand, WandbSyncCommand

DESCRIPTION = """Replications of slimmable networks, from training to tables.

Exit status: 0 all is done, 1 something failed, 2 a bad request; ended by Ctrl-C 130, by SIGTERM
143: runs save their state, and the same command goes on (a second signal ends them at once)."""


@dataclass(frozen=True, kw_only=True)
class ListCommand:
    """Show the experiments, and the scales at which they can be run."""

    def carried_out(self, console: Console) -> int:
        """Print a line for each experiment; return 0."""
        for name in experiment_names():
            experiment = experiment_named(name)
            seeds = " ".join(map(str, experiment.seeds))
            summary = f"{experiment.network.name} on {experiment.data.name}, seeds {seeds}"
            fewer = f" (with {experiment.reference_seeds} of the seeds)"
            methods = (
                f"{each}{fewer if each in experiment.reference_methods else ''}"
                for each in experiment.methods
            )
            console.print(f"{name:<24} {summary}: {', '.join(methods)}")
        scales = dict.fromkeys(scale for _, _, scale in catalogued())
        console.print(f"\nscales (--scale): {', '.join(scales)}")
        return 0


@dataclass(frozen=True, kw_only=True)
class ReportCommand:
    """Make the results of one experiment, or of --all, and the summary and the page of all.

    An experiment that has finished runs is reported from these; one without, and --all, from the
    records in the results.
    """

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="NAME")] = None
    """An experiment, or the --name that runs were given."""

    scale: str = PUBLISHED
    """Take the runs at this scale."""

    all: Flag = False
    """Make everything in the results again from the records there; runs are not read."""

    folders: Annotated[Folders, tyro.conf.arg(name="")] = field(default_factory=Folders)

    def carried_out(self, console: Console) -> int:
        """Write the results; return 0."""
        if self.all == (self.name is not None):
            raise ValueError("report needs the name of an experiment, or --all without a name")
        if self.all and self.folders.add:
            raise ValueError("--all reads no runs, so there is nothing to --add to the records")
        check_scale(self.scale)
        name = self.name and name_at(self.name, self.scale)
        runs, results = self.folders.runs, self.folders.results
        known = [path.parent.name for path in sorted(results.glob("*/records"))]
        if name and name not in known and not any((runs / name).glob("*/seed*/DONE")):
            there = f" (there are of {', '.join(known)})" if known else ""
            raise ValueError(f"no finished run in {runs / name}, no records in {results}{there}")
        from pareco.latency import LATENCY_FILE
        from pareco.reporting.records import FOLDER
        from replications.site import write_all_reports, write_report

        if name is None:
            write_all_reports(results, console)
        else:
            recorded = results / name / FOLDER / LATENCY_FILE
            measured = recorded.exists() or (runs / name / LATENCY_FILE).exists()
            write_report(name, self.folders, console)
            if measured and not recorded.exists():
                console.out(
                    "latency left out: what was measured is not of all these networks; `run` with "
                    "the same --method and --seed, and --add, measures all of them together"
                )
        return 0


@dataclass(frozen=True, kw_only=True)
class ClaimsCommand:
    """Show claims, the paper's and ours: reproduced, contradicted, inconclusive, not run."""

    results: Path = Path("results")
    """Folder of all results."""

    json: Flag = False
    """Print JSON."""

    file: Path | None = None
    """The claims (TOML); by default those of replications/claims.toml."""

    def carried_out(self, console: Console) -> int:
        """Print each claim with its outcome; return 0. Raises `FileNotFoundError`."""
        if not self.results.is_dir():
            raise FileNotFoundError(f"--results {self.results}: no such folder")
        from replications.claim_file import PATH
        from replications.verdicts import print_claims

        return print_claims(self.results, self.file or PATH, self.json, console)


def main(arguments: Sequence[str]) -> int:
    """Carry out a command line; return the exit status.

    0 well, 1 something failed, 2 a bad request; ended by a signal: 130 for SIGINT, 143 for SIGTERM.
    """
    rank = os.environ.get("RANK", "0")  # of a launcher's processes one speaks
    try:
        with in_one_line():
            commands = {
                "list": ListCommand(),
                "run": RunCommand.defaults(arguments, "run"),  # as of the experiment that is named
                "plan": PlanCommand.defaults(arguments, "plan"),
                "costs": CostsCommand(),
                "data": DataCommand(folder=tyro.MISSING),
                "report": ReportCommand(),
                "compare": CompareCommand(names=tyro.MISSING),
                "claims": ClaimsCommand(),
                "bench": BenchCommand(),
                "searches": SearchesCommand(),
                "feeding": FeedingCommand(),
                "wandb-sync": WandbSyncCommand(),
                "wandb-report": WandbReportCommand(name=tyro.MISSING),
            }
            request = chosen_command(
                commands, arguments, prog="python -m replications", description=DESCRIPTION
            )
        return request.carried_out(plain_console(quiet=rank != "0"))
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from the checkpoints", file=sys.stderr)
        return 130
    except (ValueError, OSError) as error:
        who = "" if rank == "0" else f" in process {rank}"
        print(f"error{who}: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
