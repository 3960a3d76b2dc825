"""What our cost model counts for networks whose costs were published; nothing is trained."""

from __future__ import annotations

import re
from decimal import ROUND_FLOOR, ROUND_HALF_EVEN, Decimal
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from timm.layers import make_divisible

from pareco.models import create_model
from pareco.reporting.claims import ClaimOutcome
from pareco.reporting.published import published_folder, read_published
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.widths import Widths
from replications.catalogue import experiment_named
from replications.claim_file import ClaimFile, PublishedCost

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
