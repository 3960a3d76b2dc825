"""What claims.toml holds: each claim, what tests it, and how it is judged."""

from __future__ import annotations

import re
import tomllib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, Field, PositiveInt, model_validator

from pareco.config import Cost, Experiment
from pareco.reporting.claims import About, Gains, area_gains, budget_gains, gains_at_costs
from pareco.reporting.reading import blaming
from pareco.reporting.records import Records
from replications.catalogue import (
    equal_compute_name,
    experiment_named,
    experiment_names,
    method_names,
    scales_of,
)

PATH = Path(__file__).parent / "claims.toml"


def _among(names: Callable[[], list[str]]) -> AfterValidator:
    def known(name: str) -> str:
        if name not in names():
            raise ValueError(f"unknown {name!r}. Known: {', '.join(names())}")
        return name

    return AfterValidator(known)


Text = Annotated[str, Field(min_length=1)]
MethodName = Annotated[str, _among(method_names)]
ExperimentName = Annotated[str, _among(experiment_names)]
Budget = Annotated[float, Field(gt=0, le=100, strict=True)]
ExperimentNames = Annotated[tuple[ExperimentName, ...], Field(strict=False, min_length=1)]


class Claim(BaseModel, frozen=True, extra="forbid", strict=True, allow_inf_nan=False):
    """A claim, and the experiments that test it."""

    about: ClassVar[About] = "the paper"

    statement: Text
    """The claim, in its source's words."""
    source: Text
    replications: ExperimentNames
    cost: Cost
    """Which cost of the networks it is about."""
    why: Text
    """How it is judged, and why so."""

    @property
    def cases(self) -> tuple[tuple[str, ...], ...]:
        """The experiments, in groups that one measurement takes."""
        return tuple((name,) for name in self.replications)

    @property
    def experiments(self) -> tuple[str, ...]:
        """The experiments of all cases, in their order; each is to be there once."""
        return tuple(name for case in self.cases for name in case)


class TwoMethods(Claim, frozen=True):
    """A claim that a method beats another one, in the mean of all cases."""

    method: MethodName
    baseline: MethodName

    @model_validator(mode="after")
    def _two(self) -> Self:
        if self.method == self.baseline:
            raise ValueError(f"method and baseline are both {self.method!r}, name another baseline")
        return self


class GainUpTo(TwoMethods, frozen=True):
    """At some of a few budgets the error is lower by a number."""

    kind: Literal["gain_up_to"]
    number: Annotated[float, Field(gt=0)]
    """Percentage points."""
    budgets: Annotated[tuple[Budget, ...], Field(strict=False, min_length=1)]
    """Percent of the full cost, fixed before anything has run."""
    above: ClassVar[float] = 0.0
    """What the gain must be shown to lie above, for its direction."""

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if list(self.budgets) != sorted(set(self.budgets)):
            raise ValueError("budgets must be in ascending order, each once")
        return self

    @property
    def reaching(self) -> float:
        """How large a gain must be."""
        return self.number

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        shown = ", ".join(f"{budget:g}" for budget in self.budgets)
        return f"up to {self.number:g} points, judged at {shown}% of the full cost"

    def measure(self, records: Sequence[Records]) -> Gains | None:
        """Return the `budget_gains`; None where nothing compares."""
        return budget_gains(
            *records,
            cost=self.cost,
            method=self.method,
            baseline=self.baseline,
            percents=self.budgets,
        )


class AreaGain(TwoMethods, frozen=True):
    """The area under the front is smaller; where others are named, by more than in theirs."""

    kind: Literal["area_gain"]
    more_than: float
    """Percentage points."""
    compared_with: ExperimentNames | None = None
    """The experiments whose gain is subtracted, each from that at its place."""

    @model_validator(mode="after")
    def _in_pairs(self) -> Self:
        if self.compared_with and len(self.compared_with) != len(self.replications):
            raise ValueError("compared_with must be as long as replications")
        return self

    @property
    def above(self) -> float:
        """What the gain must be shown to lie above."""
        return self.more_than

    @property
    def reaching(self) -> float:
        """How large a gain must be: nothing is claimed but that it lies above."""
        return self.more_than

    @property
    def cases(self) -> tuple[tuple[str, ...], ...]:
        """The experiments one by one, or in pairs with those that they are compared with."""
        if self.compared_with is None:
            return super().cases
        return tuple(zip(self.replications, self.compared_with, strict=True))

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        many = ", in the mean of all comparisons" if len(self.cases) > 1 else ""
        return f"more than {self.more_than:g} points{many}"

    def measure(self, records: Sequence[Records]) -> Gains | None:
        """Return the `area_gains`; None where nothing compares."""
        return area_gains(*records, cost=self.cost, method=self.method, baseline=self.baseline)


class OwnGain(TwoMethods, frozen=True):
    """A claim of this project: in one experiment at a smaller scale, the error is smaller."""

    about: ClassVar[About] = "ours"
    kind: Literal["own_gain"]
    scale: Text
    data: Text
    """The data set of the runs."""
    equal: Literal["passes", "compute"]
    """What methods have in common."""
    at: Literal["area", "costs of the baseline"] = "area"
    """Where errors are compared: in the mean over budgets, or over the baseline's networks, each
    with the network that its cost selects."""
    family: Text | None = None
    """Claims of one family are corrected together (Holm); one without is judged by itself."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        (name, *others) = self.replications
        if others:
            raise ValueError(f"a claim of ours is about one experiment, not {len(others) + 1}")
        if self.scale not in scales_of(name):
            raise ValueError(f"{name} has no scale {self.scale!r}")
        return self

    @property
    def experiment(self) -> Experiment:
        """The experiment that tests it."""
        return experiment_named(self.replications[0], self.scale)

    @property
    def folder(self) -> str:
        """The name of its results."""
        name = self.experiment.name
        return name if self.equal == "passes" else equal_compute_name(name, self.scale)

    def measure(self, records: Sequence[Records]) -> Gains | None:
        """Return the `area_gains` or the `gains_at_costs`; None where nothing compares."""
        (own,) = records
        found = area_gains if self.at == "area" else gains_at_costs
        return found(own, cost=self.cost, method=self.method, baseline=self.baseline)


class PublishedCost(Claim, frozen=True):
    """The costs of published networks are those that the cost model counts."""

    about: ClassVar[About] = "costs"
    kind: Literal["published_cost"]
    published_source: Text
    """The `source` of the rows in results/published/; * stands for any characters."""
    published_method: Text
    rows: PositiveInt
    """How many rows there must be."""
    decimals: Annotated[int, Field(ge=0)]
    """Of the published millions."""
    rounding: Literal["down", "nearest"]
    added: int = 0
    """What the source counts beside ours."""
    divisor: PositiveInt | None = None
    """Widths are multiples of it; None where all rows are the full network."""
    expansion: PositiveInt = 1
    expanded: re.Pattern[str] = re.compile("(?!)")
    """Groups whose name has it get `expansion` times the rounded channels."""

    def rounded(self, millions: Decimal) -> Decimal:
        """Return millions, rounded as the published ones are."""
        rounding = ROUND_FLOOR if self.rounding == "down" else ROUND_HALF_EVEN
        return millions.quantize(Decimal(1).scaleb(-self.decimals), rounding=rounding)


GainClaim = GainUpTo | AreaGain
AnyClaim = Annotated[GainClaim | OwnGain | PublishedCost, Field(discriminator="kind")]


class ClaimFile(BaseModel, frozen=True, extra="forbid", strict=True):
    """What claims.toml holds."""

    gradient_steps: dict[str, PositiveInt]
    """The published schedule of each experiment, in steps."""
    classes: dict[str, PositiveInt]
    """The number of classes of each data set."""
    claim: Annotated[dict[str, AnyClaim], Field(min_length=1)]
    """The claims by a short name."""

    @model_validator(mode="after")
    def _independent(self) -> Self:
        for key, claim in self.claim.items():
            counts = Counter(claim.experiments)
            if repeated := [name for name, count in counts.items() if count > 1]:
                raise ValueError(f"claim {key!r} names {', '.join(repeated)} more than once")
        return self

    @model_validator(mode="after")
    def _complete(self) -> Self:
        steps: dict[str, str] = {}
        classes: dict[str, str] = {}
        for key, claim in self.claim.items():
            if isinstance(claim, PublishedCost):
                data = [experiment_named(name).data.name for name in claim.experiments]
                classes = dict.fromkeys(data, key) | classes
            elif not isinstance(claim, OwnGain):
                steps = dict.fromkeys(claim.experiments, key) | steps
        self._check_read("gradient_steps", self.gradient_steps, steps)
        self._check_read("classes", self.classes, classes)
        return self

    @staticmethod
    def _check_read(table: str, held: Mapping[str, int], needed: Mapping[str, str]) -> None:
        """Raise ValueError unless the table has what is needed, by the claim, and no more."""
        if lacking := [name for name in needed if name not in held]:
            raise ValueError(
                f"{table} lacks {lacking[0]}, which claim {needed[lacking[0]]!r} needs"
            )
        if unread := [name for name in held if name not in needed]:
            raise ValueError(f"{table} has {', '.join(unread)}, which no claim needs: remove it")


def read_claims(path: Path = PATH) -> ClaimFile:
    """Return the claims of a file.

    Raises `ValueError`, in one line that names file, claim and field, for what is missing, unknown
    or of another type.
    """
    with blaming(path):
        return ClaimFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
