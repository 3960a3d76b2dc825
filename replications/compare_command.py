"""The command that shows what a change does: experiments of the results beside one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro
from rich.console import Console

from pareco.arguments import Flag
from replications.catalogue import FOCUS

if TYPE_CHECKING:
    from pareco.reporting.records import Records


@dataclass(frozen=True, kw_only=True)
class CompareCommand:
    """Compare experiments in the results, such as one with a flag and one without.

    Errors and areas of each method that the first shares with another, and what differs from the
    first, seed by seed, with intervals.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="NAME")]
    """Folders of the results, such as digits-smoke, the first to be compared with."""

    cost: str | None = None
    """Over what, such as macs, params, peak_activations or latency_ms (as it was measured); by
    default over the cost of the first experiment."""

    markdown: Flag = False
    """Print Markdown, with the differences at all budgets."""

    measure: Flag = False
    """First measure the latency of all their networks anew, in turns and on this machine, so that
    the times can be compared; it becomes that of their records."""

    device: Literal["auto", "cpu"] = "auto"
    """On what is measured: the GPU where there is one, or the processor."""

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
        if self.measure:
            comparison_tables(compared, compared[0].experiment.cost, FOCUS)  # refuses before
            compared = self._measured(compared, console)
        tables = comparison_tables(compared, cost, FOCUS)
        if self.markdown:
            print(markdown(tables), end="")
        else:
            console.print(terminal(tables))
        return 0

    def _measured(self, compared: Sequence[Records], console: Console) -> list[Records]:
        """Return the records with latencies that were measured together, and write them."""
        from pareco.config import Machine
        from pareco.latency import latencies_of
        from pareco.reporting.records import COMMON, with_latency, without_latency, write_records
        from pareco.reporting.report import render_report
        from pareco.training.preparation import stored_experiment
        from replications.catalogue import REFERENCE
        from replications.site import write_site

        first = compared[0]
        if not first.configuration or first.experiment.classes is None:
            raise ValueError(f"the records of {self.names[0]} do not say what network it is")
        own = {**first.configuration[COMMON], "method": first.runs[0][0]}
        experiment = stored_experiment(own)
        widths = {each for records in compared for each in records.fronts["widths"]}
        with console.status(f"measuring {len(widths)} networks"):
            latency = latencies_of(
                widths,
                experiment,
                first.experiment.classes,
                len(experiment.data.mean),
                Machine(device=self.device),
            )
        timed = [with_latency(without_latency(each), latency) for each in compared]
        for name, records in zip(self.names, timed, strict=True):
            write_records(records, self.results / name)
            render_report(self.results / name, focus=FOCUS, reference=REFERENCE)
        write_site(self.results, console)
        return timed
