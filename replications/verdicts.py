"""What the records say of each claim of claims.toml."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import asdict
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from fnmatch import fnmatchcase
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

import rich.text
from pydantic import AfterValidator, BaseModel, Field, model_validator
from rich.console import Console
from rich.table import Table

from pareco.config import Cost
from pareco.reporting.claims import (
    Gain,
    Outcome,
    Verdict,
    area_gain,
    evidence,
    largest_gain,
    shortcomings,
)
from pareco.reporting.records import (
    FOLDER,
    PUBLISHED_SCALE,
    Records,
    blaming,
    read_published,
    read_records,
)
from replications.catalogue import experiment_named, experiment_names, method_names, scales_of

if TYPE_CHECKING:
    from pareco.slimmable import SlimmableNet
    from pareco.widths import Widths

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
ExperimentNames = Annotated[tuple[ExperimentName, ...], Field(strict=False, min_length=1)]


class Claim(BaseModel, frozen=True, extra="forbid", strict=True):
    """A claim, and the experiments that test it."""

    about: ClassVar[Literal["the paper", "costs"]] = "the paper"

    statement: Text
    """The claim in its source's words."""
    source: Text
    replications: ExperimentNames
    cost: Cost
    """Which cost of the networks it is about."""
    why: Text
    """Why this measure and this tolerance."""

    @property
    def cases(self) -> tuple[tuple[str, ...], ...]:
        """The experiments, in groups that one measurement takes."""
        return tuple((name,) for name in self.replications)


class TwoMethods(Claim, frozen=True):
    """A claim that a method beats another one; it must hold in every case."""

    method: MethodName
    baseline: MethodName


class LargestGain(TwoMethods, frozen=True):
    """The largest gain over all budgets is near a number."""

    kind: Literal["largest_gain"]
    needs_interval: ClassVar[bool] = False
    """Whether a number without interval, from one seed, can settle nothing."""

    number: float
    """Percentage points."""
    tolerance: float

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        return f"{self.number:g} points, give or take {self.tolerance:g}"

    def measure(self, records: Sequence[Records]) -> Gain | None:
        """Return the `largest_gain`; None where nothing compares."""
        return largest_gain(*records, cost=self.cost, method=self.method, baseline=self.baseline)

    def holds(self, measured: Gain) -> bool:
        """Return whether it is within the tolerance, and above zero with all its interval."""
        return abs(measured.value - self.number) <= self.tolerance and measured.exceeds(0)


class AreaGain(TwoMethods, frozen=True):
    """The area under the front is smaller; where others are named, by more than in theirs."""

    kind: Literal["area_gain"]
    needs_interval: ClassVar[bool] = True
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
    def cases(self) -> tuple[tuple[str, ...], ...]:
        """The experiments one by one, or in pairs with those that they are compared with."""
        if self.compared_with is None:
            return super().cases
        return tuple(zip(self.replications, self.compared_with, strict=True))

    @property
    def expected(self) -> str:
        """What is claimed, in words."""
        return f"a gain of more than {self.more_than:g} points in every comparison"

    def measure(self, records: Sequence[Records]) -> Gain | None:
        """Return the `area_gain`; None where nothing compares."""
        return area_gain(*records, cost=self.cost, method=self.method, baseline=self.baseline)

    def holds(self, measured: Gain) -> bool:
        """Return whether it is more, with all its interval."""
        return measured.exceeds(self.more_than)


class PublishedCost(Claim, frozen=True):
    """The costs of published networks are those that the cost model counts."""

    about: ClassVar[Literal["the paper", "costs"]] = "costs"
    kind: Literal["published_cost"]
    published_source: Text
    """The `source` of the rows in results/published/; * stands for any characters."""
    published_method: Text
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
    expanded: re.Pattern[str] = re.compile("(?!)")
    """Groups whose name has it get `expansion` times the rounded channels."""

    def rounded(self, millions: Decimal) -> Decimal:
        """Return millions, rounded as the published ones are."""
        rounding = ROUND_FLOOR if self.rounding == "down" else ROUND_HALF_EVEN
        return millions.quantize(Decimal(1).scaleb(-self.decimals), rounding=rounding)


GainClaim = LargestGain | AreaGain
AnyClaim = Annotated[GainClaim | PublishedCost, Field(discriminator="kind")]


class ClaimFile(BaseModel, frozen=True, extra="forbid", strict=True):
    """What claims.toml holds."""

    gradient_steps: dict[str, int]
    """The published schedule of each experiment, in steps."""
    classes: dict[str, int]
    """The number of classes of each data set."""
    claim: Annotated[dict[str, AnyClaim], Field(min_length=1)]
    """The claims by a short name."""

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for key, claim in self.claim.items():
            for name in (name for case in claim.cases for name in case):
                data = experiment_named(name).data.name
                if isinstance(claim, GainClaim) and name not in self.gradient_steps:
                    raise ValueError(f"gradient_steps lacks {name}, which claim {key!r} names")
                if isinstance(claim, PublishedCost) and data not in self.classes:
                    raise ValueError(f"classes lacks {data}, which claim {key!r} is about")
        return self


def read_claims(path: Path = PATH) -> ClaimFile:
    """Return the claims of a file.

    Raises `ValueError`, in one line that names file, claim and field, for what is missing, unknown
    or of another type.
    """
    with blaming(path):
        return ClaimFile.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))


def print_claims(results: Path, path: Path, as_json: bool, console: Console) -> int:
    """Print each claim of a file with its outcome, our number, and the records behind it.

    Returns 0, whatever was found; raises as of `claim_outcomes`.
    """
    verdicts = claim_outcomes(results, path)
    if as_json:
        console.print_json(data=[asdict(each) for each in verdicts], highlight=False)
        return 0
    table = Table(show_lines=True)
    table.add_column("claim", ratio=1, overflow="fold")
    table.add_column("outcome", width=14)
    table.add_column("ours", ratio=1, overflow="fold")
    colours = {"reproduced": "green", "not reproduced": "red", "not run at that scale": "yellow"}
    for each in verdicts:
        table.add_row(
            rich.text.Text.assemble(each.statement, "\n", (each.source, "dim")),
            rich.text.Text(each.outcome, colours[each.outcome]),
            rich.text.Text.assemble(each.ours, "\n", (each.evidence, "dim")),
        )
    console.print(table)
    return 0


def claim_outcomes(results: Path, path: Path = PATH) -> list[Verdict]:
    """Return the verdict on each claim of a file, in its order, from the records in `results`.

    The same records give the same verdicts. Raises `ValueError` for a fault of the file or a
    published row whose width cannot be read, and `InvalidRecord` for damaged records.
    """
    file = read_claims(path)
    verdicts = []
    for key, claim in file.claim.items():
        if isinstance(claim, PublishedCost):
            outcome, ours = _recounted(claim, results, file)
            behind = "counted now from the traced networks; nothing is trained"
        else:
            outcome, ours, behind = _compared(claim, results, file)
        verdicts.append(
            Verdict(
                id=key,
                statement=claim.statement,
                source=claim.source,
                why=claim.why,
                experiments=tuple(dict.fromkeys(name for case in claim.cases for name in case)),
                about=claim.about,
                outcome=outcome,
                ours=ours,
                evidence=behind or "no records",
            )
        )
    return verdicts


def _compared(claim: GainClaim, results: Path, file: ClaimFile) -> tuple[Outcome, str, str]:
    """Return what a comparison of methods, all of whose cases must hold, came to; the evidence."""
    paper = [_finding(claim, case, PUBLISHED_SCALE, results, file) for case in claim.cases]
    ran = [each for each in paper if each]
    settled = [gain for gain, *_ in ran if gain]
    outcome: Outcome = "not run at that scale"
    if len(settled) == len(claim.cases):
        holds = all(claim.holds(measured) for measured in settled)
        outcome = "reproduced" if holds else "not reproduced"
        said = f"Claimed: {claim.expected}"
    else:
        said = f"{len(settled)} of {len(claim.cases)} comparisons have run at full scale"
        smaller = (
            _finding(claim, case, scale, results, file)
            for case in claim.cases
            for scale in scales_of(case[0])
            if scale != PUBLISHED_SCALE
        )
        ran += [each for each in smaller if each]
    behind = dict.fromkeys(where for *_, where in ran)
    return outcome, ". ".join([said, *(text for _, text, _ in ran)]), "; ".join(behind)


def _finding(
    claim: GainClaim, case: tuple[str, ...], scale: str, results: Path, file: ClaimFile
) -> tuple[Gain | None, str, str] | None:
    """Return the gain of a case at a scale where it settles the claim, its text, and its evidence.

    None where records are missing, or at a smaller scale have nothing to compare.
    """
    if any(scale not in scales_of(name) for name in case):
        return None
    configs = [experiment_named(name, scale) for name in case]
    folders = [results / config.name for config in configs]
    if not all((folder / FOLDER / "network.json").exists() for folder in folders):
        return None
    methods = [claim.method, claim.baseline]
    records = [read_records(folder) for folder in folders]
    measured = claim.measure(records)
    if measured is None and scale != PUBLISHED_SCALE:
        return None
    reasons = []
    for name, config, each in zip(case, configs, records, strict=True):
        made = each.experiment
        theirs = (made.network, made.data, made.image_size, made.cost)
        ours = (config.network.name, config.data.name, config.data.image_size, config.cost)
        differing = [pair for pair in zip(theirs, ours, strict=True) if pair[0] != pair[1]]
        reasons += [f"made with {one}, not {other}" for one, other in differing]
        reasons += shortcomings(each, methods, config.seeds, file.gradient_steps[name])
    if claim.needs_interval and measured is not None and not measured.has_interval:
        reasons.append("too few seeds for an interval, so for a direction")
    doubts = f" (does not count: {'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    name = " against ".join(config.name for config in configs)
    text = f"{name}{doubts}: {measured or 'nothing to compare'}"
    behind = "; ".join(evidence(each, methods) for each in records)
    return None if reasons else measured, text, behind


def _recounted(claim: PublishedCost, results: Path, file: ClaimFile) -> tuple[Outcome, str]:
    """Return whether all published costs are those that our cost model counts, and how many are."""
    published = read_published(results)
    cited = published["source"].map(lambda each: fnmatchcase(str(each), claim.published_source))
    column = f"{claim.cost}_millions"
    known = (published["method"] == claim.published_method) & published[column].notna()
    published = published[known & cited.astype(bool)]  # of an empty table too
    found, differing = 0, []
    for name in claim.replications:
        config = experiment_named(name)
        network, data, size = config.network.name, config.data.name, config.data.image_size
        rows = published.query("network == @network and data == @data and image_size == @size")
        found += len(rows)
        for row, millions in zip(rows["config"], rows[column], strict=True):
            net = _traced(network, size, file.classes[data])
            theirs = claim.rounded(Decimal(str(millions)))
            count = int(net.cost.of(claim.cost, _widths(claim, net, str(row))))
            ours = claim.rounded(Decimal(count + claim.added) / 1_000_000)
            if ours != theirs:
                differing.append(f"{name} {row}: {ours}, published {theirs}")
    text = f"{found - len(differing)} of {found} published counts agree to the last digit"
    if claim.added:
        text += f", with the {claim.added:,} that the source counts beside ours"
    if differing:
        text += f"; not {'; '.join(differing)}"
    if found != claim.rows:
        text = f"{found} of the {claim.rows} published rows are there. {text}"
        return "not run at that scale", text
    return "not reproduced" if differing else "reproduced", text


@cache
def _traced(network: str, image_size: int, classes: int) -> SlimmableNet:
    """Return the network without memory for its weights; its cost and space are all that counts."""
    import torch

    from pareco.models import create_model
    from pareco.slimmable import make_slimmable

    model = create_model(network, num_classes=classes).to("meta")
    return make_slimmable(model, torch.zeros(1, 3, image_size, image_size, device="meta"))


def _widths(claim: PublishedCost, net: SlimmableNet, config: str) -> Widths:
    """Return the widths of a published row: the largest, or uniform ones with the claim's rounding.

    Those are multiples of the divisor, and the expansion comes after the rounding.
    """
    from timm.layers import make_divisible

    from pareco.widths import Widths

    if claim.divisor is None:
        return net.space.largest
    match = re.search(r"(?:^|width )([0-9.]+)$", config)
    if not match:
        raise ValueError(f"no multiplier in {config!r}, published in {claim.published_source}")
    counts = []
    for group in net.space.groups:
        factor = claim.expansion if claim.expanded.search(group.name) else 1
        rounded = make_divisible(group.maximum / factor * float(match[1]), claim.divisor)
        counts.append(factor * int(rounded))
    return Widths(counts)
