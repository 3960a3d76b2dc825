"""The command that shows what a change does: experiments of the results beside one of them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from pareco.arguments import Flag
from replications.catalogue import FOCUS


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare experiments in the results, such as one with a flag and one without.

    Errors and areas of each method that the first shares with another, and what differs from the
    first, seed by seed, with intervals.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Folders of the results, the first to be compared with."""

    cost: str | None = None
    """Over what, such as macs, params, peak_activations or latency_ms (as it was measured); by
    default over the cost of the first experiment."""

    markdown: Flag = False
    """Print Markdown, with the differences at all budgets."""

    results: Path = Path("results")
    """Folder of all results."""

    def carried_out(self, console: Console) -> int:
        """Print the tables; return 0. Raises `ValueError` for what cannot be compared."""
        if not self.names:
            raise ValueError("give the names of two or more experiments, each once")
        known = sorted(path.parent.name for path in self.results.glob("*/records"))
        for name in self.names:
            if name not in known:
                there = ", ".join(known) or "nothing"
                raise ValueError(f"no records of {name!r} in {self.results}. There are: {there}")
        from pareco.reporting.across import comparison_tables
        from pareco.reporting.records import read_records
        from pareco.reporting.rendering import markdown, terminal

        compared = [read_records(self.results / name) for name in self.names]
        cost = self.cost or compared[0].experiment.cost
        tables = comparison_tables(compared, cost, FOCUS)
        if self.markdown:
            print(markdown(tables), end="")
        else:
            console.print(terminal(tables))
        return 0
