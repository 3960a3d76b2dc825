"""The command `claims`: what is reproduced, what is not, and what has not run at that scale."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from pareco.reporting.claims import ClaimOutcome, Measured, provenance, shortcomings
from pareco.reporting.experiment import PUBLISHED_SCALE
from pareco.reporting.records import FOLDER, read_records
from replications.catalogue import experiment_named, experiment_names, known_methods, scales_of
from replications.claim_file import (
    PATH,
    ClaimFile,
    Comparison,
    PublishedCost,
    read_claims,
)

_COLOURS = {"reproduced": "green", "not reproduced": "red", "not run at that scale": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the records of one case say at one scale."""

    name: str
    """The experiments, by the names of their results."""
    measured: Measured | None
    reasons: tuple[str, ...]
    """Why it does not settle the claim."""
    evidence: str

    def __str__(self) -> str:
        """The name, the number, and why it does not count where it does not."""
        reasons = f" (does not count: {'; '.join(self.reasons)})" if self.reasons else ""
        return f"{self.name}{reasons}: {self.measured or 'nothing to compare'}"


def claims(name: str | None, arguments: list[str], console: Console) -> int:
    """Print each claim with its outcome, our number, and the records behind it; return 0."""
    if name is not None:
        raise ValueError("claims takes no name; it goes through all of replications/claims.toml")
    parser = argparse.ArgumentParser(prog="python -m replications claims", allow_abbrev=False)
    parser.add_argument("--results", type=Path, default=Path("results"), help="folder of results")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--file", type=Path, default=PATH, help="the claims (TOML)")
    chosen = parser.parse_args(arguments)
    outcomes = claim_outcomes(chosen.results, chosen.file)
    if chosen.json:
        text = json.dumps([asdict(each) for each in outcomes], indent=2)
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(_shown(outcomes))
    return 0


def claim_outcomes(results: Path, path: Path = PATH) -> list[ClaimOutcome]:
    """Return what the records in `results` say of each claim of a file, in its order.

    The same records give the same outcomes. Raises `ValueError` for a fault of the file, and
    `InvalidRecord` for damaged records.
    """
    file = read_claims(path, experiment_names(), list(known_methods()))
    outcomes = []
    for claim in file.claims:
        if isinstance(claim, PublishedCost):
            from replications.published_costs import cost_outcome

            outcomes.append(cost_outcome(claim, results, file))
        else:
            assert isinstance(claim, Comparison)
            outcomes.append(_compared(claim, results, file))
    return outcomes


def _compared(claim: Comparison, results: Path, file: ClaimFile) -> ClaimOutcome:
    """Return the outcome of a comparison of methods: all its cases must hold."""
    found = [_trial(claim, case, PUBLISHED_SCALE, results, file) for case in claim.cases]
    ran = [trial for trial in found if trial is not None]
    settled = [trial.measured for trial in ran if not trial.reasons and trial.measured]
    outcome = "not run at that scale"
    shown = [str(trial) for trial in ran]
    if len(settled) == len(claim.cases):
        holds = all(claim.holds(measured) for measured in settled)
        outcome = "reproduced" if holds else "not reproduced"
        shown.insert(0, f"Claimed: {claim.expected}")
    else:
        smaller = list(_smaller(claim, results, file))
        ran += smaller
        shown.insert(0, f"{len(settled)} of {len(claim.cases)} comparisons have run at full scale")
        shown += [str(trial) for trial in smaller]
    return ClaimOutcome(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        experiments=tuple(dict.fromkeys(name for case in claim.cases for name in case)),
        about="the paper",
        why=claim.why,
        outcome=outcome,
        ours=". ".join(shown),
        evidence="; ".join(dict.fromkeys(trial.evidence for trial in ran)) or "no records",
    )


def _smaller(claim: Comparison, results: Path, file: ClaimFile) -> Iterator[Trial]:
    """Yield what there is at smaller scales."""
    for case in claim.cases:
        for scale in scales_of(case[0]):
            if scale == PUBLISHED_SCALE or any(scale not in scales_of(name) for name in case):
                continue
            trial = _trial(claim, case, scale, results, file)
            if trial is not None and trial.measured is not None:
                yield trial


def _trial(
    claim: Comparison, case: tuple[str, ...], scale: str, results: Path, file: ClaimFile
) -> Trial | None:
    """Return what the records of a case say at a scale; None where not all are there."""
    configs = [experiment_named(name, scale) for name in case]
    folders = [results / config.name for config in configs]
    if not all((folder / FOLDER / "network.json").exists() for folder in folders):
        return None
    methods = [claim.method, claim.baseline]
    records = [read_records(folder) for folder in folders]
    reasons = []
    for name, config, each in zip(case, configs, records, strict=True):
        made = each.experiment
        same = (
            (made.network, config.network.name),
            (made.data, config.data.name),
            (made.image_size, config.data.image_size),
            (made.cost, config.cost),
        )
        reasons += [f"made with {one}, not {other}" for one, other in same if one != other]
        reasons += shortcomings(each, methods, config.seeds, file.gradient_steps[name])
    measured = claim.measure(records)
    if claim.needs_interval and measured is not None and not measured.has_interval:
        reasons.append("too few seeds for an interval, so for a direction")
    return Trial(
        name=" against ".join(config.name for config in configs),
        measured=measured,
        reasons=tuple(dict.fromkeys(reasons)),
        evidence="; ".join(provenance(each, methods) for each in records),
    )


def _shown(outcomes: list[ClaimOutcome]) -> Table:
    """Return a table that can be read in 80 columns."""
    table = Table(show_lines=True)
    table.add_column("claim", ratio=1, overflow="fold")
    table.add_column("outcome", width=14)
    table.add_column("ours", ratio=1, overflow="fold")
    for each in outcomes:
        colour = _COLOURS[each.outcome]
        table.add_row(
            f"{escape(each.statement)}\n[dim]{escape(each.source)}[/dim]",
            f"[{colour}]{each.outcome}[/{colour}]",
            f"{escape(each.ours)}\n[dim]{escape(each.evidence)}[/dim]",
        )
    return table
