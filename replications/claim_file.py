"""The claims of claims.toml, typed and checked."""

from __future__ import annotations

import tomllib
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

from pareco.cost import Cost
from pareco.reporting.claims import (
    Measured,
    area_gain,
    difference_of_area_gains,
    largest_gain,
)
from pareco.reporting.records import Records

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

    def measure(self, records: Sequence[Records]) -> Measured | None:
        """Return the measure of one case from its records; None where nothing compares."""
        raise NotImplementedError

    def holds(self, measured: Measured) -> bool:
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

    def measure(self, records: Sequence[Records]) -> Measured | None:
        """Return the `largest_gain`."""
        return largest_gain(records[0], self.cost, self.method, self.baseline)

    def holds(self, measured: Measured) -> bool:
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

    def measure(self, records: Sequence[Records]) -> Measured | None:
        """Return the `area_gain`."""
        return area_gain(records[0], self.cost, self.method, self.baseline)

    def holds(self, measured: Measured) -> bool:
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

    def measure(self, records: Sequence[Records]) -> Measured | None:
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
