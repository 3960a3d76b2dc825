"""What the records say of each claim of claims.toml."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from decimal import Decimal
from fnmatch import fnmatchcase
from functools import cache
from itertools import count as numbers_from
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import rich.text
from rich.console import Console
from rich.table import Table

from pareco.reporting.claims import (
    MOST_SEEDS,
    Gains,
    Outcome,
    Verdict,
    common_seeds,
    evidence,
    mean_gains,
    not_run,
    shortcomings,
)
from pareco.reporting.records import FOLDER, PUBLISHED_SCALE, read_published, read_records
from pareco.reporting.statistics import CONFIDENCE, FEWEST_SEEDS, holm
from replications.catalogue import experiment_named, scales_of
from replications.claim_file import (
    PATH,
    AreaGain,
    ClaimFile,
    GainClaim,
    OwnGain,
    PublishedCost,
    read_claims,
)

if TYPE_CHECKING:
    from pareco.slimmable import SlimmableNet
    from pareco.widths import Widths

_MOST_TO_TYPE = 30


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
    colours = {"reproduced": "green", "contradicted": "red"}
    for each in verdicts:
        table.add_row(
            rich.text.Text.assemble(each.statement, "\n", (each.source, "dim")),
            rich.text.Text(each.outcome, colours.get(each.outcome, "yellow")),
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
    ours = {key: claim for key, claim in file.claim.items() if isinstance(claim, OwnGain)}
    found = {key: _own_finding(claim, results) for key, claim in ours.items()}
    adjusted = _adjusted(ours, found)
    families = Counter(claim.family for claim in ours.values())
    for key, claim in file.claim.items():
        if isinstance(claim, PublishedCost):
            outcome, said = _recounted(claim, results, file)
            behind = "counted now from the traced networks; nothing is trained"
        elif isinstance(claim, OwnGain):
            outcome, said = _own(found[key], adjusted.get(key), families[claim.family])
            behind = found[key].evidence
        else:
            outcome, said, behind = _compared(claim, results, file)
        verdicts.append(
            Verdict(
                id=key,
                statement=claim.statement,
                source=claim.source,
                why=claim.why,
                experiments=claim.experiments,
                about=claim.about,
                outcome=outcome,
                ours=said,
                evidence=behind or "no records",
            )
        )
    return verdicts


@dataclass(frozen=True, kw_only=True)
class _OwnFinding:
    """What the records hold of a claim of ours."""

    gains: Gains | None
    """None unless all of the runs are there."""
    text: str
    evidence: str = ""


def _own_finding(claim: OwnGain, results: Path) -> _OwnFinding:
    """Return what the runs for a claim of ours came to, or before they are all there, what is."""
    folder, planned = results / claim.folder, claim.experiment
    if not (folder / FOLDER / "network.json").exists():
        return _OwnFinding(gains=None, text=f"0 of {len(planned.seeds)} seeds have run")
    records = read_records(folder)
    methods, made = [claim.method, claim.baseline], records.experiment
    gains = claim.measure([records])
    behind = evidence(records, methods)
    recipe = f"{planned.scale}, changed: data.name {claim.data}"
    if (made.scale.partition(", equal compute")[0], made.data) != (recipe, claim.data):
        said = f"made with another recipe, {made.scale}: {gains}"
    elif gains is None:
        return _OwnFinding(gains=None, text="no seed of both methods has run")
    elif any(not_run(records, methods, planned.seeds)):
        said = f"{gains.seeds} of {len(planned.seeds)} seeds of both have run, so far: {gains}"
    else:
        return _OwnFinding(gains=gains, text=str(gains), evidence=behind)
    return _OwnFinding(gains=None, text=said, evidence=behind)


def _adjusted(claims: Mapping[str, OwnGain], found: Mapping[str, _OwnFinding]) -> dict[str, float]:
    """Return the p-value of each claim that has a family, adjusted for all claims of that.

    Those that have not run count with 1.
    """
    families: dict[str, dict[str, float]] = {}
    for key, claim in claims.items():
        if claim.family:
            gains = found[key].gains
            families.setdefault(claim.family, {})[key] = gains.p_value() if gains else 1.0
    return {
        key: adjusted
        for values in families.values()
        for key, adjusted in zip(values, holm(list(values.values())), strict=True)
    }


def _own(found: _OwnFinding, adjusted: float | None, family: int) -> tuple[Outcome, str]:
    """Return the outcome of a claim of ours, with its p-value adjusted for so many claims."""
    gains = found.gains
    if gains is None:
        return "not run at that scale", found.text
    outcome = gains.outcome(above=0.0, reaching=0.0)
    text = found.text
    if adjusted is not None:
        text += f", p {gains.p_value():.2g}, with Holm's correction for {family} {adjusted:.2g}"
        gains = replace(gains, family=family)
        if adjusted >= 1 - CONFIDENCE:
            outcome = "inconclusive"
    if outcome == "inconclusive" and (more := gains.deciding_seeds(0.0, 0.0)):
        others = "" if adjusted is None else ", whatever the others come to"
        text += f"; with the same mean and spread {more:,} seeds would decide it{others}"
    return outcome, text


@dataclass(frozen=True, kw_only=True)
class _Finding:
    """What the records of a case hold at one scale."""

    counts: bool
    """Whether the claim can be settled by them."""
    gains: Gains | None
    """None where they have nothing to compare."""
    text: str
    evidence: str
    seeds: Mapping[str, Sequence[int]]
    """The seeds that both methods have, by experiment."""


def _compared(claim: GainClaim, results: Path, file: ClaimFile) -> tuple[Outcome, str, str]:
    """Return what a comparison of methods, in the mean of all cases, came to; the evidence."""
    paper = [_finding(claim, case, PUBLISHED_SCALE, results, file) for case in claim.cases]
    ran = [each for each in paper if each]
    counted = [each for each in ran if each.counts]
    settled = [each.gains for each in counted if each.gains]
    outcome: Outcome = "not run at that scale"
    said = [f"Claimed: {claim.expected}"]
    if len(settled) < len(counted) == len(claim.cases):
        outcome = "inconclusive"
        said.append("Inconclusive: in some seed no network fits into the budgets that are compared")
    elif len(settled) == len(claim.cases):
        gains = mean_gains(settled)
        outcome = gains.outcome(claim.above, claim.reaching)
        if len(settled) > 1:
            said.append(f"Mean of {len(settled)} comparisons: {gains}")
        said += _reading(claim, gains)
        if outcome == "inconclusive":
            seeds = {name: own for each in ran for name, own in each.seeds.items()}
            said += _undecided(claim, gains, seeds)
    else:
        said = [f"{len(counted)} of {len(claim.cases)} comparisons have run at full scale"]
        smaller = (
            _finding(claim, case, scale, results, file)
            for case in claim.cases
            for scale in scales_of(case[0])
            if scale != PUBLISHED_SCALE
        )
        ran += [each for each in smaller if each]
    behind = dict.fromkeys(each.evidence for each in ran)
    return outcome, ". ".join([*said, *(each.text for each in ran)]), "; ".join(behind)


def _reading(claim: GainClaim, gains: Gains) -> Iterator[str]:
    """Yield what the intervals at several budgets say of the direction, and of the size.

    Nothing where there are none, or with fewer than FEWEST_SEEDS.
    """
    low, high = gains.intervals()
    if isinstance(claim, AreaGain) or gains.seeds < FEWEST_SEEDS or np.isnan(low).all():
        return
    number = f"{claim.number:g} points"

    def at(found: np.ndarray) -> str:
        return " and ".join(np.asarray(gains.places)[found])

    sides = {"better": low > 0, "worse": high < 0}
    shown = [f"{side} {at(found)}" for side, found in sides.items() if found.any()]
    yield f"Direction: {', '.join(shown) or 'open at every budget'}"
    if (low > claim.number).any():
        yield f"Size: above {number} {at(low > claim.number)}"
    elif (high >= claim.number).any():
        yield f"Size: {number} lie within the interval {at(high >= claim.number)}"
    else:
        every = "every" if (high < claim.number).all() else "each known"
        yield f"Size: {every} interval lies below {number}"


def _undecided(claim: GainClaim, gains: Gains, seeds: Mapping[str, Sequence[int]]) -> Iterator[str]:
    """Yield how many seeds would settle the claim, and the commands that run them.

    The seeds that there are, by experiment, in the order of the gains' samples.
    """
    agree = gains.agree()
    needed = dict.fromkeys(seeds, FEWEST_SEEDS)
    if gains.seeds < 2:
        yield f"Inconclusive: one seed says nothing of the spread; {FEWEST_SEEDS} are the least"
    elif found := gains.deciding_seeds(claim.above, claim.reaching):
        needed = dict.fromkeys(seeds, found)
        first, last = (
            gains.outcome(claim.above, claim.reaching, number) for number in (found, MOST_SEEDS)
        )
        yield (
            f"Inconclusive: with the same means and spread {found:,} seeds of each experiment"
            f" would decide it, as {first}"
            + (f" (and {MOST_SEEDS:,} as {last})" if last != first else "")
        )
    elif agree.any():
        which = [name for name, own in zip(seeds, agree, strict=True) if own.any()]
        needed |= {name: max(FEWEST_SEEDS, len(seeds[name]) + 1) for name in which}
        places = " and ".join(np.asarray(gains.places)[agree.any(axis=0)])
        yield (
            f"Inconclusive: all seeds of {' and '.join(which)} agree{places and f' {places}'}, so"
            " nothing is known of their spread; one more may tell"
        )
    else:
        yield (
            f"Inconclusive: {MOST_SEEDS:,} seeds with the same means and spread would not decide it"
        )
        return
    commands = [
        _command(
            claim, name, [*own, *islice((n for n in numbers_from(0) if n not in own), missing)]
        )
        for name, own in seeds.items()
        if (missing := needed[name] - len(own)) > 0
    ]
    if max(needed.values()) <= _MOST_TO_TYPE:
        yield f"To run them, with the IMAGENET= or DATA= of before: {'; '.join(commands)}"


def _command(claim: GainClaim, name: str, seeds: Sequence[int]) -> str:
    """Return what to type to have these seeds of an experiment with both methods."""
    return (
        f"make replicate-{name.replace('_', '-')}"
        f' METHODS="{claim.method} {claim.baseline}" SEEDS="{" ".join(map(str, seeds))}"'
    )


def _finding(
    claim: GainClaim, case: tuple[str, ...], scale: str, results: Path, file: ClaimFile
) -> _Finding | None:
    """Return what the records of a case at a scale say of a claim.

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
    doubts = f" (does not count: {'; '.join(dict.fromkeys(reasons))})" if reasons else ""
    name = " against ".join(config.name for config in configs)
    return _Finding(
        counts=not reasons,
        gains=measured,
        text=f"{name}{doubts}: {measured or 'nothing to compare'}",
        evidence="; ".join(evidence(each, methods) for each in records),
        seeds={
            name: common_seeds(each, claim.method, claim.baseline)
            for name, each in zip(case, records, strict=True)
        },
    )


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
    return "contradicted" if differing else "reproduced", text


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
