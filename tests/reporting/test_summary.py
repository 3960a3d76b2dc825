"""The line that a summary has for each experiment, against hand-worked outcomes."""

from collections.abc import Mapping
from dataclasses import replace
from types import MappingProxyType

import pytest

from pareco.reporting.claims import Verdict
from pareco.reporting.records import Records
from pareco.reporting.summary import SummaryRow, summary_markdown, summary_row
from tests.reporting.claim_records import records_of
from tests.reporting.conftest import ENVIRONMENT

CLAIM = Verdict(
    id="a",
    statement="wide | narrow",
    source="a table",
    experiments=("digits",),
    about="the paper",
    why="noise",
    outcome="contradicted",
    ours="-1 point",
    evidence="none",
)


def of(
    *areas: tuple[str, float],
    seeds: int = 2,
    steps: dict[str, int] | int = 400,
    apart: Mapping[str, float] = MappingProxyType({}),
) -> Records:
    """Methods with one network each, at 20% of the cost: its error is the area.

    The first seed of a method lies as much below the mean as the last above it; 0 unless given.
    """
    fronts = {
        (name, seed): [(200, area + apart.get(name, 0) * (2 * seed / max(seeds - 1, 1) - 1))]
        for name, area in areas
        for seed in range(seeds)
    }
    return records_of(fronts, steps=steps)


def without(records: Records, run: tuple[str, int]) -> Records:
    left = [each != run for each in records.fronts[["method", "seed"]].itertuples(index=False)]
    return replace(records, fronts=records.fronts[left])


@pytest.mark.parametrize(
    ("records", "outcome"),
    [
        (
            of(("own", 3.0), ("b", 4.0)),
            "area: own 3.00, the least of 2 with equal budgets, next b 4.00"
            " (no interval of the difference, so no order)",
        ),
        (  # b minus own -0.4 and -0.6: -0.5 -+ 25.4517 (Student's for 2.5% / 2) x 0.1
            of(("own", 4.5), ("b", 4.0), ("c", 5.0), apart={"b": 0.1}),
            "area: own 4.50, least of 3 with equal budgets b 4.00 (b minus own:"
            " -3.05 to +2.05, 95% t interval, adjusted for 2: no order)",
        ),
        (  # 1 -+ 12.7062 x 0.05
            of(("own", 3.0), ("b", 4.0), apart={"b": 0.05}),
            "area: own 3.00, the least of 2 with equal budgets, next b 4.00"
            " (b minus own: +0.36 to +1.64, 95% t interval)",
        ),
        (
            of(("own", 4.5), ("b", 4.0), ("c", 5.0), seeds=1),
            "area: own 4.50 (others 4.00 to 5.00); one seed, no order",
        ),
        (of(("own", 4.5)), "area: own 4.50"),
        (  # b trained twice as long, so it is in no order
            of(("own", 4.5), ("b", 1.0), ("c", 5.0), steps={"b": 800}),
            "area: own 4.50, the least of 2 with equal budgets, next c 5.00"
            " (no interval of the difference, so no order)",
        ),
        (  # 1 -+ 4.3027 x 0.1 / sqrt(3)
            of(("b", 4.0), ("c", 5.0), seeds=3, apart={"c": 0.1}),
            "area: b 4.00, the least of 2 with equal budgets, next c 5.00"
            " (c minus b: +0.75 to +1.25, 95% t interval)",
        ),
        (  # c has 4.9 and 5.0 with the seeds that b has: 0.95 -+ 12.7062 x 0.05
            without(of(("b", 4.0), ("c", 5.0), seeds=3, apart={"c": 0.1}), ("b", 2)),
            "area: b 4.00, the least of 2 with equal budgets, next c 5.00"
            " (c minus b over the 2 common seeds: +0.31 to +1.59, 95% t interval)",
        ),
    ],
)
def test_the_outcome_orders_only_what_can_be_compared(records: Records, outcome: str) -> None:
    assert summary_row(records, "own").outcome == outcome


def test_runs_and_machines_are_counted() -> None:
    records = of(("own", 3.0), ("b", 4.0), seeds=3)
    gpu = {**ENVIRONMENT, "gpus": ["H100", "H100"], "device": "cuda"}
    runs = {"own": {"seed0": {**records.environment["runs"]["own"]["seed0"], "seconds": 9000.0}}}
    both = {"environments": [gpu, dict(ENVIRONMENT)], "runs": runs}
    row = summary_row(replace(records, environment=both), "own")
    assert row.runs == "2 methods, 3 seeds"
    fewer = records.fronts.query("method == 'own' or seed == 2")
    assert summary_row(replace(records, fronts=fewer), "own").runs == "2 methods, 1 to 3 seeds"
    assert row.machine == "H100, A processor; 2.5 h in all runs"
    assert row.subject == "resnet8 on cifar10, 32 px"
    assert summary_row(records, "own").machine == "A processor; 0 min in all runs"


def test_the_text_links_what_has_run_folds_the_rest_and_keeps_the_papers_claims_apart() -> None:
    absent = SummaryRow(experiment="other", scale="paper", subject="a on b, 8 px")
    ran = summary_row(of(("own", 3.0)), "own")
    cost = replace(CLAIM, about="costs", statement="301 M MACs", outcome="reproduced")
    text = summary_markdown([absent, ran], [CLAIM, cost])
    assert "| [digits](digits/table.md) | paper | resnet8 on cifar10, 32 px |" in text
    folded = "<details><summary>1 experiment not run at the scale of the paper</summary>"
    assert text.index("| [digits]") < text.index(f"{folded}\n\nother (a on b, 8 px).")
    assert "<details>" not in summary_markdown([ran], [CLAIM, cost])
    claims, costs = text.split("## Claims of the paper")[1].split("## Published costs")
    assert "wide \\| narrow" in claims
    assert "301 M" not in claims
    assert "| 301 M MACs | reproduced |" in costs
