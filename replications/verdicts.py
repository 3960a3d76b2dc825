"""What the records say of each claim of claims.toml."""

from __future__ import annotations

import argparse
import json
import re
import tomllib
import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, fields
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from timm.layers import make_divisible

from pareco.config import Cost
from pareco.models import create_model
from pareco.reporting.claims import (
    ClaimOutcome,
    Gain,
    area_gain,
    difference_of_area_gains,
    largest_gain,
    provenance,
    shortcomings,
)
from pareco.reporting.records import (
    FOLDER,
    PUBLISHED_SCALE,
    Records,
    published_folder,
    read_published,
    read_records,
)
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.widths import Widths
from replications.catalogue import experiment_named, experiment_names, method_names, scales_of

PATH = Path(__file__).parent / "claims.toml"


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim, and the experiments that test it."""

    id: str
    statement: str
    """The claim in its source's words."""
    source: str
    replications: tuple[str, ...]
    cost: Cost
    """Which cost of the networks it is about."""
    why: str
    """Why this measure and this tolerance."""


@dataclass(frozen=True, kw_only=True)
class Comparison(Claim):
    """A claim that a method beats another one; it must hold in every case."""

    method: str
    baseline: str

    needs_interval: ClassVar[bool] = False
    """Whether a number without interval, from one seed, can settle nothing."""

    @property
    def cases(self) -> tuple[tuple[str, ...], ...]:
        """The experiments, in groups that one measurement takes."""
        return tuple((name,) for name in self.replications)

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        raise NotImplementedError

    def measure(self, records: Sequence[Records]) -> Gain | None:
        """Return the measure of one case from its records; None where nothing compares."""
        raise NotImplementedError

    def holds(self, measured: Gain) -> bool:
        """Return whether what was measured is what is claimed."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class LargestGain(Comparison):
    """The largest gain over all budgets is near a number."""

    number: float
    """Percentage points."""
    tolerance: float

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        return f"{self.number:g} points, give or take {self.tolerance:g}"

    def measure(self, records: Sequence[Records]) -> Gain | None:
        """Return the `largest_gain`."""
        return largest_gain(records[0], self.cost, self.method, self.baseline)

    def holds(self, measured: Gain) -> bool:
        """Return whether it is within the tolerance, and above zero with all its interval."""
        return abs(measured.value - self.number) <= self.tolerance and measured.exceeds(0)


@dataclass(frozen=True, kw_only=True)
class AreaGain(Comparison):
    """The area under the front is smaller, in every replication."""

    needs_interval: ClassVar[bool] = True

    more_than: float
    """Percentage points."""

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        return f"a gain of more than {self.more_than:g} points in every comparison"

    def measure(self, records: Sequence[Records]) -> Gain | None:
        """Return the `area_gain`."""
        return area_gain(records[0], self.cost, self.method, self.baseline)

    def holds(self, measured: Gain) -> bool:
        """Return whether it is more, with all its interval."""
        return measured.exceeds(self.more_than)


@dataclass(frozen=True, kw_only=True)
class AreaGainDifference(AreaGain):
    """The area shrinks by more than in the replication at the same place of `compared_with`."""

    compared_with: tuple[str, ...]

    @property
    def cases(self) -> tuple[tuple[str, ...], ...]:
        """The pairs of experiments."""
        return tuple(zip(self.replications, self.compared_with, strict=True))

    def measure(self, records: Sequence[Records]) -> Gain | None:
        """Return the `difference_of_area_gains`."""
        return difference_of_area_gains(
            records[0], records[1], self.cost, self.method, self.baseline
        )


@dataclass(frozen=True, kw_only=True)
class PublishedCost(Claim):
    """The costs of published networks are those that the cost model counts."""

    published_source: str
    """The `source` of the rows in results/published/; * stands for any characters."""
    published_method: str
    rows: int
    """How many rows there must be."""
    decimals: int
    """Of the published millions."""
    rounding: Literal["down", "nearest"]
    added: int = 0
    """What the source counts beside ours."""
    divisor: int | None = None
    """Widths are multiples of it; None where all rows are the full network."""
    expansion: int = 1
    expanded: str = "(?!)"
    """A regular expression: groups of `expansion` times the rounded channels."""


KINDS: dict[str, type[Claim]] = {
    "largest_gain": LargestGain,
    "area_gain": AreaGain,
    "area_gain_difference": AreaGainDifference,
    "published_cost": PublishedCost,
}


@dataclass(frozen=True, kw_only=True)
class ClaimFile:
    """What claims.toml holds."""

    gradient_steps: Mapping[str, int]
    """The published schedule of each experiment, in steps."""
    classes: Mapping[str, int]
    """The number of classes of each data set."""
    claims: tuple[Claim, ...]


def read_claims(path: Path, experiments: list[str], methods: list[str]) -> ClaimFile:
    """Return the claims of a file about these experiments and methods.

    Raises `ValueError` naming file, claim and field for what is missing, unknown or of another
    type.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    try:
        if unknown := sorted(set(content) - {"gradient_steps", "classes", "claim"}):
            raise ValueError(f"unknown table {', '.join(unknown)}")
        steps = _value(content.get("gradient_steps"), dict[str, int], "gradient_steps")
        classes = _value(content.get("classes"), dict[str, int], "classes")
        tables = _value(content.get("claim"), list[dict], "claim")
        claims = tuple(_claim(table, number) for number, table in enumerate(tables, 1))
        for position, claim in enumerate(claims):
            _check(claim, experiments, methods, steps)
            if claim.id in [each.id for each in claims[:position]]:
                raise ValueError(f"claim {claim.id!r}: id is used twice")
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return ClaimFile(gradient_steps=steps, classes=classes, claims=claims)


def _claim(table: dict[str, Any], number: int) -> Claim:
    """Return a claim of the table's kind."""
    name = repr(table["id"]) if isinstance(table.get("id"), str) else f"number {number}"
    rest = dict(table)
    kind = rest.pop("kind", None)
    if kind not in KINDS:
        raise ValueError(f"claim {name}: unknown kind {kind!r}. Known: {', '.join(KINDS)}")
    known = {field.name: field for field in fields(KINDS[kind])}
    if unknown := sorted(set(rest) - set(known)):
        raise ValueError(f"claim {name}: unknown field {', '.join(unknown)} for kind {kind!r}")
    required = [each for each, field in known.items() if field.default is MISSING]
    if missing := [each for each in required if each not in rest]:
        raise ValueError(f"claim {name}: lacks {', '.join(missing)}")
    hints = get_type_hints(KINDS[kind])
    values = {
        each: _value(value, hints[each], f"claim {name}: {each}") for each, value in rest.items()
    }
    return KINDS[kind](**values)


def _value(value: Any, expected: Any, place: str) -> Any:
    """Return the value if it has the type, lists as tuples; else raise `ValueError`."""
    origin, arguments = get_origin(expected), get_args(expected)
    if origin in (types.UnionType, typing.Union):
        return _value(value, arguments[0], place)  # TOML has no None
    if origin is Literal:
        if value not in arguments:
            raise ValueError(f"{place} must be one of {', '.join(arguments)}, got {value!r}")
        return value
    if origin is dict and isinstance(value, dict):
        return {name: _value(each, arguments[1], f"{place}.{name}") for name, each in value.items()}
    if origin in (tuple, list) and isinstance(value, list) and value:
        return origin(_value(each, arguments[0], place) for each in value)
    if expected is float and type(value) is int:
        return float(value)
    if origin is None and type(value) is expected and value != "":
        return value
    wanted = expected.__name__ if origin is None else expected
    raise ValueError(f"{place} must be {wanted}, and not empty, got {value!r}")


def _check(
    claim: Claim, experiments: list[str], methods: list[str], steps: Mapping[str, int]
) -> None:
    """Raise `ValueError` for what a claim names that is not there."""
    place = f"claim {claim.id!r}"
    _check_known(f"{place}: replications", claim.replications, experiments)
    if not isinstance(claim, Comparison):
        return
    if isinstance(claim, AreaGainDifference):
        _check_known(f"{place}: compared_with", claim.compared_with, experiments)
        if len(claim.compared_with) != len(claim.replications):
            raise ValueError(f"{place}: compared_with must be as long as replications")
    _check_known(f"{place}: method", [claim.method], methods)
    _check_known(f"{place}: baseline", [claim.baseline], methods)
    for name in (name for case in claim.cases for name in case):
        if name not in steps:
            raise ValueError(f"gradient_steps lacks {name}, which {place} names")


def _check_known(place: str, names: Iterable[str], known: list[str]) -> None:
    for name in names:
        if name not in known:
            raise ValueError(f"{place}: unknown {name!r}. Known: {', '.join(known)}")


_COLOURS = {"reproduced": "green", "not reproduced": "red", "not run at that scale": "yellow"}


@dataclass(frozen=True, kw_only=True)
class Trial:
    """What the records of one case say at one scale."""

    name: str
    """The experiments, by the names of their results."""
    measured: Gain | None
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
    file = read_claims(path, experiment_names(), method_names())
    outcomes = []
    for claim in file.claims:
        if isinstance(claim, PublishedCost):
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


_ROUNDING = {"down": ROUND_FLOOR, "nearest": ROUND_HALF_EVEN}


def cost_outcome(claim: PublishedCost, results: Path, file: ClaimFile) -> ClaimOutcome:
    """Return whether all published costs are those that our cost model counts.

    Raises `InvalidRecord` for damaged published numbers, and `ValueError` for a row whose width
    cannot be read.
    """
    published = read_published(published_folder(results))
    named = published["source"].map(lambda each: fnmatchcase(str(each), claim.published_source))
    published = published[named.astype(bool)]
    published = published[published["method"] == claim.published_method]
    found, differing = 0, []
    for name in claim.replications:
        config = experiment_named(name)
        size = config.data.image_size
        rows = published[
            (published["network"] == config.network.name)
            & (published["data"] == config.data.name)
            & (published["image_size"] == size)
            & published[f"{claim.cost}_millions"].notna()
        ]
        if rows.empty:
            continue
        net = _shapes(config.network.name, size, file.classes[config.data.name])
        for row in rows.to_dict("records"):
            found += 1
            theirs = _decimal(row[f"{claim.cost}_millions"], claim)
            ours = counted_millions(claim, net, str(row["config"]))
            if ours != theirs:
                differing.append(f"{name} {row['config']}: {ours}, published {theirs}")
    return _outcome(claim, found, differing)


def counted_millions(claim: PublishedCost, net: SlimmableNet, config: str) -> Decimal:
    """Return the millions that our cost model gives a published network, rounded as published."""
    widths = net.space.largest
    if claim.divisor is not None:
        match = re.search(r"(?:^|width )([0-9.]+)$", config)
        if not match:
            raise ValueError(f"claim {claim.id!r}: no multiplier in the published {config!r}")
        widths = rounded_widths(claim, net, float(match[1]), claim.divisor)
    count = int(net.cost.of(claim.cost, widths)) + claim.added
    step = Decimal(1).scaleb(-claim.decimals)
    return (Decimal(count) / 1_000_000).quantize(step, rounding=_ROUNDING[claim.rounding])


def rounded_widths(
    claim: PublishedCost, net: SlimmableNet, multiplier: float, divisor: int
) -> Widths:
    """Return uniform widths in multiples of the divisor, with expansion after the rounding."""
    counts = []
    for group in net.space.groups:
        factor = claim.expansion if re.search(claim.expanded, group.name) else 1
        rounded = make_divisible(group.maximum / factor * multiplier, divisor)
        counts.append(factor * int(rounded))
    return Widths(counts)


def _shapes(name: str, size: int, classes: int) -> SlimmableNet:
    """Return the network without memory for its weights."""
    model = create_model(name, num_classes=classes).to("meta")
    return make_slimmable(model, torch.zeros(1, 3, size, size, device="meta"))


def _decimal(millions: float, claim: PublishedCost) -> Decimal:
    return Decimal(str(millions)).quantize(Decimal(1).scaleb(-claim.decimals))


def _outcome(claim: PublishedCost, found: int, differing: list[str]) -> ClaimOutcome:
    ours = f"{found - len(differing)} of {found} published counts agree to the last digit"
    if claim.added:
        ours += f", with the {claim.added:,} that the source counts beside ours"
    if differing:
        ours += f"; not {'; '.join(differing)}"
    complete = found == claim.rows
    if not complete:
        ours = f"{found} of the {claim.rows} published rows are there. {ours}"
    outcome = "not run at that scale"
    if complete:
        outcome = "not reproduced" if differing else "reproduced"
    return ClaimOutcome(
        id=claim.id,
        statement=claim.statement,
        source=claim.source,
        experiments=claim.replications,
        about="costs",
        why=claim.why,
        outcome=outcome,
        ours=ours,
        evidence="counted now from the traced networks; nothing is trained",
    )
