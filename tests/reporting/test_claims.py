"""Measures of claims against values worked out by hand."""

import math
from typing import Any

import pytest

from pareco.reporting.claims import (
    Gain,
    area_gain,
    evidence,
    largest_gain,
    shortcomings,
)
from pareco.reporting.records import Records
from tests.reporting.claim_records import records_of
from tests.reporting.conftest import ENVIRONMENT

UNIFORM = [(200, 40.0), (600, 30.0), (1000, 25.0)]
"""Errors 40 from 20% on, 30 from 60%, 25 at 100%: an area of (400*40 + 400*30) / 800 = 35."""

LAYERS = [(150, 39.5), (500, 28.5), (700, 26.0), (1000, 24.8)]
"""An area from 20% on of (300*39.5 + 200*28.5 + 300*26) / 800 = 31.6875."""

OF: dict[str, Any] = {"cost": "macs", "method": "layers", "baseline": "uniform"}


def known(gain: Gain | None) -> Gain:
    assert gain is not None
    return gain


def one_seed() -> Records:
    return records_of({("layers", 0): LAYERS, ("uniform", 0): UNIFORM})


def two_seeds() -> Records:
    """The gains at 600, the best budget, are 1.5 and 2.1; of the areas 3.3125 and 4.3125."""
    return records_of(
        {
            ("layers", 0): LAYERS,
            ("uniform", 0): UNIFORM,
            ("layers", 1): [(cost, error - 1) for cost, error in LAYERS],
            ("uniform", 1): [(200, 40.0), (600, 29.6), (1000, 25.8)],
        }
    )


def test_largest_gain_is_at_the_costs_of_the_baselines_networks() -> None:
    """Gains 0.5, 1.5 and 0.2 at 200, 600, 1000; between them, at 500, 11.5 do not count."""
    measured = known(largest_gain(one_seed(), **OF))
    assert measured.value == pytest.approx(1.5)
    assert math.isnan(measured.low)
    assert str(measured) == (
        "+1.50 points of error, uniform minus layers (one seed, no interval) at 60% of the full"
        " cost, the greatest of 3 budgets, so it leans high"
    )


def test_largest_gain_is_of_the_mean_over_seeds() -> None:
    """Seed 1 gains 1.5, 2.1 and 2.0, so the means are 1.0, 1.8 and 1.1.

    Student's quantile for two seeds is 12.7062 (tables of it): 1.8 -+ 12.7062 x 0.3.
    """
    measured = known(largest_gain(two_seeds(), **OF))
    assert measured.value == pytest.approx(1.8)
    assert (measured.low, measured.high) == pytest.approx((-2.01186, 5.61186), abs=1e-4)
    assert "95% t interval -2.01 to +5.61" in str(measured)


def test_a_budget_at_which_one_seed_has_no_network_does_not_count() -> None:
    """At 200 the method has none, which would be the largest gain; a gain may be negative."""
    records = records_of(
        {("layers", 0): [(300, 20.0), (900, 24.0)], ("uniform", 0): [(200, 90.0), (400, 20.5)]}
    )
    measured = known(largest_gain(records, **OF))
    assert measured.value == pytest.approx(0.5)
    assert "the greatest of 1 budgets" in str(measured)
    worse = records_of({("layers", 0): [(100, 50.0)], ("uniform", 0): UNIFORM})
    assert known(largest_gain(worse, **OF)).value == pytest.approx(40 - 50)


def test_area_gains_are_subtracted_seed_by_seed() -> None:
    """3.3125 as 35 - 31.6875, and 4.1125 as 34.8 - 30.6875: 3.7125 -+ 12.7062 x 0.4."""
    measured = known(area_gain(two_seeds(), **OF))
    assert measured.value == pytest.approx(3.7125)
    assert (measured.low, measured.high) == pytest.approx((-1.36998, 8.79498), abs=1e-4)


def test_only_common_seeds_are_compared() -> None:
    """Of seed 1 both are there, of seed 0 one method; and then of no seed both."""
    records = records_of({("layers", 0): LAYERS, ("layers", 1): LAYERS, ("uniform", 1): UNIFORM})
    measured = known(area_gain(records, **OF))
    assert measured.value == pytest.approx(3.3125)
    assert not measured.has_interval
    alone = records_of({("layers", 0): LAYERS, ("uniform", 1): UNIFORM})
    assert area_gain(alone, **OF) is None
    assert largest_gain(alone, **OF) is None
    assert largest_gain(one_seed(), **{**OF, "baseline": "absent"}) is None
    assert area_gain(one_seed(), alone, **OF) is None


def test_an_area_that_is_not_defined_gives_no_gain() -> None:
    """Seed 1 of the method has nothing at 20%, where the area begins that seed 0 has."""
    fronts = {("layers", 0): LAYERS, ("uniform", 0): UNIFORM, ("uniform", 1): UNIFORM}
    records = records_of({**fronts, ("layers", 1): [(900, 24.0)]})
    assert area_gain(records, **OF) is None
    assert area_gain(one_seed(), records, **OF) is None


def test_difference_of_gains_has_welchs_interval() -> None:
    """3.3125 and 4.1125 less 0 and 0: one degree of freedom is left, so as for the gains alone."""
    none = records_of({(m, s): UNIFORM for m in ("layers", "uniform") for s in (0, 1)})
    measured = known(area_gain(two_seeds(), none, **OF))
    assert measured.value == pytest.approx(3.7125)
    assert (measured.low, measured.high) == pytest.approx((-1.36998, 8.79498), abs=1e-4)
    same = known(area_gain(none, none, **OF))
    assert (same.value, same.low, same.high) == (0, 0, 0)
    single = known(area_gain(one_seed(), none, **OF))
    assert single.value == pytest.approx(3.3125)
    assert math.isnan(single.low)


def test_a_number_exceeds_another_only_with_its_whole_interval() -> None:
    assert Gain(value=1, low=0.2, high=2).exceeds(0)
    assert not Gain(value=1, low=-0.1, high=2).exceeds(0)
    assert not Gain(value=0, low=math.nan).exceeds(0)
    assert Gain(value=0.1, low=math.nan).exceeds(0)


def test_what_keeps_runs_from_settling_a_claim() -> None:
    methods = ("layers", "uniform")
    assert list(shortcomings(one_seed(), methods, (0,), 400)) == []
    assert list(shortcomings(one_seed(), methods, (0, 1), 400)) == [
        "not run: layers seed 1, uniform seed 1"
    ]
    assert list(shortcomings(one_seed(), (*methods, "third"), (0,), 400)) == [
        "not run: third seed 0"
    ]
    assert list(shortcomings(one_seed(), methods, (0,), 500)) == ["400 gradient steps, not 500"]


def test_another_scale_and_unequal_budgets_are_said() -> None:
    fronts = {("layers", 0): LAYERS, ("uniform", 0): UNIFORM}
    methods = ("layers", "uniform")
    short = records_of(fronts, scale="short: 1/10 of the published epochs")
    assert list(shortcomings(short, methods, (0, 1, 2), 4000)) == [
        "scale short: 1/10 of the published epochs"
    ]
    unequal = records_of(fronts, steps={"uniform": 800})
    assert list(shortcomings(unequal, methods, (0,), 400)) == [
        "800 gradient steps, not 400",
        "unequal training budgets: uniform",
    ]
    exempt = records_of(fronts, budget_exempt=("layers",))
    assert list(shortcomings(exempt, methods, (0,), 400)) == ["unequal training budgets: layers"]


def test_evidence_names_folder_commit_and_seeds() -> None:
    assert evidence(two_seeds(), ("layers", "uniform")) == (
        "digits/records: commit 0123abc; seeds 0, 1"
    )
    fronts = {("layers", 3): LAYERS}
    dirty = records_of(fronts, environment={**ENVIRONMENT, "commit": "0123abcdef", "dirty": True})
    assert evidence(dirty, ("layers", "uniform")) == (
        "digits/records: commit 0123abc with uncommitted changes; seed 3"
    )
    unknown = records_of(fronts, environment={**ENVIRONMENT, "commit": None, "dirty": None})
    assert evidence(unknown, ("layers",)) == "digits/records: commit unknown; seed 3"
    versions = {"packages": {"pareco": "0.1.0"}, "commit": None, "dirty": None}
    installed = records_of(fronts, environment=ENVIRONMENT | versions)
    assert (
        evidence(installed, ("layers",)) == "digits/records: commit unknown (PareCO 0.1.0); seed 3"
    )
