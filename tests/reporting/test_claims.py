"""Measures of claims against values worked out by hand, and their outcomes in simulations."""

from collections import Counter
from typing import Any

import numpy as np
import pytest
from scipy import stats

from pareco.reporting.claims import (
    Gains,
    area_gains,
    budget_gains,
    common_seeds,
    evidence,
    gains_at_costs,
    mean_gains,
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


PERCENTS = (20, 60, 100)


def known(gains: Gains | None) -> Gains:
    assert gains is not None
    return gains


def one_seed() -> Records:
    return records_of({("layers", 0): LAYERS, ("uniform", 0): UNIFORM})


def two_seeds() -> Records:
    """The gains at 60% are 1.5 and 2.1; of the areas 3.3125 and 4.1125."""
    return records_of(
        {
            ("layers", 0): LAYERS,
            ("uniform", 0): UNIFORM,
            ("layers", 1): [(cost, error - 1) for cost, error in LAYERS],
            ("uniform", 1): [(200, 40.0), (600, 29.6), (1000, 25.8)],
        }
    )


def test_gains_are_at_the_budgets_that_were_named() -> None:
    """0.5, 1.5 and 0.2 at 20, 60 and 100%; the 11.5 at 50% do not count, as nobody named it."""
    measured = known(budget_gains(one_seed(), **OF, percents=PERCENTS))
    assert measured.means == pytest.approx([0.5, 1.5, 0.2])
    assert np.isnan(measured.intervals()).all()
    assert str(measured) == (
        "points of error, uniform minus layers: +0.50 at 20%, +1.50 at 60%, +0.20 at 100%"
        " (one seed, no interval)"
    )
    named = known(budget_gains(one_seed(), **OF, percents=(50, 62.5)))
    assert named.means == pytest.approx([11.5, 1.5])
    assert named.places == ("at 50%", "at 62.5%")


def test_gains_are_of_the_mean_over_seeds_with_intervals_for_all_budgets() -> None:
    """Seed 1 gains 1.5, 2.1 and 2.0, so the means are 1.0, 1.8 and 1.1.

    They are 0.5, 0.3 and 0.9 from either seed. Student's quantile for 5% / 3, by its closed form
    tan(pi (p - 1/2)), is 38.1885; the first interval is 1.0 -+ 38.1885 x 0.5.
    """
    measured = known(budget_gains(two_seeds(), **OF, percents=PERCENTS))
    assert measured.means == pytest.approx([1.0, 1.8, 1.1])
    quantile = np.tan(np.pi * (0.5 - 0.05 / 6))
    assert quantile == pytest.approx(38.1885, abs=1e-4)
    low, high = measured.intervals()
    assert low == pytest.approx(measured.means - quantile * np.array([0.5, 0.3, 0.9]))
    assert high == pytest.approx(measured.means + quantile * np.array([0.5, 0.3, 0.9]))
    assert "+1.00 [-18.09, +20.09] at 20%, +1.80" in str(measured)
    assert str(measured).endswith("(2 seeds, 95% t intervals, adjusted for 3)")


def test_a_budget_at_which_one_seed_has_no_network_is_open() -> None:
    """It keeps its place, so that the others are judged as strictly, and nothing contradicts it."""
    fronts = {("layers", seed): [(300, 20.0 + seed), (900, 24.0)] for seed in range(3)}
    fronts |= {("uniform", seed): [(200, 90.0), (400, 10.5 - seed)] for seed in range(3)}
    measured = known(budget_gains(records_of(fronts), **OF, percents=(20, 40)))
    assert np.isnan(measured.means).tolist() == [True, False]
    assert measured.means[1] == pytest.approx(-11.5)
    assert measured.intervals()[1, 1] < 0
    assert measured.outcome(0, 1) == "inconclusive"
    assert measured.deciding_seeds(0, 1) is None
    assert "no network in some seed at 20%, -11.50 [" in str(measured)
    assert budget_gains(records_of(fronts), **OF, percents=(20, 25)) is None


def test_area_gains_are_subtracted_seed_by_seed() -> None:
    """3.3125 as 35 - 31.6875, and 4.1125 as 34.8 - 30.6875: 3.7125 -+ 12.7062 x 0.4."""
    measured = known(area_gains(two_seeds(), **OF))
    assert measured.means == pytest.approx([3.7125])
    assert measured.intervals()[:, 0] == pytest.approx((-1.36998, 8.79498), abs=1e-4)
    assert str(measured) == (
        "points of area under the front, uniform minus layers: +3.71 [-1.37, +8.79]"
        " (2 seeds, 95% t intervals)"
    )


def test_only_common_seeds_are_compared() -> None:
    """Of seed 1 both are there, of seed 0 one method; and then of no seed both."""
    records = records_of({("layers", 0): LAYERS, ("layers", 1): LAYERS, ("uniform", 1): UNIFORM})
    measured = known(area_gains(records, **OF))
    assert (measured.means, measured.seeds) == (pytest.approx([3.3125]), 1)
    assert common_seeds(records, "layers", "uniform") == [1]
    alone = records_of({("layers", 0): LAYERS, ("uniform", 1): UNIFORM})
    assert area_gains(alone, **OF) is None
    assert budget_gains(alone, **OF, percents=PERCENTS) is None
    assert budget_gains(one_seed(), **{**OF, "baseline": "absent"}, percents=PERCENTS) is None
    assert area_gains(one_seed(), alone, **OF) is None


def test_gains_at_costs_are_at_those_of_the_baselines_networks() -> None:
    """At 200: 40 - 39, at 600: 30 - 27.5; what costs 700 plays no part. The mean is 1.75."""
    own = [(150, 39.0), (500, 27.5), (700, 1.0)]
    records = records_of({("pareco", 0): own, ("s_net", 0): [(200, 40.0), (600, 30.0)]})
    found = known(gains_at_costs(records, cost="macs", method="pareco", baseline="s_net"))
    assert found.means.tolist() == [1.75]
    assert found.of == "error at s_net's 2 costs (20, 60%), s_net minus pareco"
    assert found.p_value() == 1.0  # of one seed
    records = records_of({("pareco", 0): own[1:], ("s_net", 0): [(200, 40.0), (600, 30.0)]})
    assert gains_at_costs(records, cost="macs", method="pareco", baseline="s_net") is None


def test_the_p_value_is_that_of_students_table() -> None:
    """Of 1, 2 and 3: t = 2 / (1 / sqrt(3)) = 3.464 with two degrees of freedom, p = 0.0742."""
    found = Gains(of="", places=("",), samples=(np.array([[1.0], [2.0], [3.0]]),))
    assert found.p_value() == pytest.approx(0.0742, abs=5e-5)


def test_an_area_that_is_not_defined_gives_no_gain() -> None:
    """Seed 1 of the method has nothing at 20%, where the area begins that seed 0 has."""
    fronts = {("layers", 0): LAYERS, ("uniform", 0): UNIFORM, ("uniform", 1): UNIFORM}
    records = records_of({**fronts, ("layers", 1): [(900, 24.0)]})
    assert area_gains(records, **OF) is None
    assert area_gains(one_seed(), records, **OF) is None


def test_difference_of_gains_has_welchs_interval() -> None:
    """3.3125 and 4.1125 less 0.3 and -0.3: a standard error of 0.5, from 0.4 and 0.3.

    The degrees of freedom are 0.25^2 / (0.16^2 + 0.09^2) = 1.8546, between those of the quantiles
    12.7062 and 4.3027.
    """
    fronts = {(m, s): UNIFORM for m in ("layers", "uniform") for s in (0, 1)}
    none = records_of(fronts)
    small = records_of(
        fronts
        | {
            ("layers", seed): [(cost, error - gain) for cost, error in UNIFORM]
            for seed, gain in enumerate((0.3, -0.3))
        }
    )
    measured = known(area_gains(two_seeds(), small, **OF))
    assert measured.means == pytest.approx([3.7125])
    welch = stats.ttest_ind([3.3125, 4.1125], [0.3, -0.3], equal_var=False)
    expected = tuple(welch.confidence_interval(0.95))
    assert (expected[1] - expected[0]) / 2 == pytest.approx(0.5 * stats.t.ppf(0.975, 1.8546), 1e-4)
    assert measured.intervals()[:, 0] == pytest.approx(expected)
    assert "uniform minus layers, the first less the second: +3.71 [" in str(measured)
    # Equal seeds say nothing of a spread: not alone, and not beside others that have one.
    for one, other in ((none, none), (two_seeds(), none), (none, two_seeds())):
        assert "(2 seeds, no interval)" in str(known(area_gains(one, other, **OF)))
    single = known(area_gains(one_seed(), none, **OF))
    assert single.means == pytest.approx([3.3125])
    assert np.isnan(single.intervals()).all()
    assert str(single).endswith("(1 to 2 seeds, no interval)")


def gains(*experiments: Any, places: int = 1) -> Gains:
    """Gains of experiments, each given as its n x places values."""
    samples = tuple(np.reshape(each, (-1, places)).astype(float) for each in experiments)
    each = [Gains(of="e", places=("",) * places, samples=(sample,)) for sample in samples]
    return mean_gains(each)


def test_the_mean_of_experiments_weighs_each_the_same() -> None:
    """Of 1, 2, 3 and of 4, 8: the mean of 2 and 6 is 4.

    Variances of the halves are 1 / 12 and 8 / 8, so by Welch and Satterthwaite the degrees of
    freedom are (13 / 12)^2 / ((1 / 12)^2 / 2 + 1) = 1.1695.
    """
    both = gains([1, 2, 3], [4, 8])
    assert both.means == [4]
    assert both.seeds == 2
    low, high = both.intervals()[:, 0]
    assert low + high == pytest.approx(8)
    # Between the quantiles of one and two degrees of freedom, 12.7062 and 4.3027.
    assert 4.3027 < (high - low) / 2 / (13 / 12) ** 0.5 < 12.7062
    difference = mean_gains(
        [
            Gains(of="e", places=("",), samples=(one, other), weights=(1.0, -1.0))
            for one, other in (
                (np.array([[5.0], [7.0]]), np.array([[1.0], [2.0]])),
                (np.array([[3.0], [3.5]]), np.array([[4.0], [4.0]])),
            )
        ]
    )
    assert difference.means == pytest.approx([(4.5 - 0.75) / 2])


@pytest.mark.parametrize(
    ("values", "expected"),
    [  # of three seeds with a deviation of 0.1 the interval reaches 0.2484
        ([0.9, 1.0, 1.1], "reproduced"),  # around the claimed 1.2 and above 0
        ([1.9, 2.0, 2.1], "reproduced"),  # more than is claimed
        ([0.2, 0.3, 0.4], "contradicted"),  # better, but by less
        ([-1.1, -1.0, -0.9], "contradicted"),
        ([0.0, 1.0, 2.0], "inconclusive"),
        ([5.0, 5.0, 5.0], "inconclusive"),
        ([1.1, 1.3], "inconclusive"),  # as two seeds always are
        ([1.0], "inconclusive"),
    ],
)
def test_a_gain_is_judged_against_zero_and_against_the_claimed_number(
    values: list[float], expected: str
) -> None:
    assert gains(values).outcome(above=0, reaching=1.2) == expected


def test_a_gain_up_to_a_number_is_one_budget_that_does_both() -> None:
    """One that is above zero and below the number, and one that is anything, are not enough."""
    small, open_ = [0.1, 0.11, 0.12], [-8.0, 1.0, 9.0]
    large = [1.9, 2.0, 2.1]

    def outcome(*budgets: list[float]) -> str:
        return gains(np.transpose(budgets), places=len(budgets)).outcome(above=0, reaching=1.5)

    assert outcome(small, open_) == "inconclusive"
    assert outcome(small, small) == "contradicted"
    assert outcome(small, open_, large) == "reproduced"


def test_a_direction_has_three_outcomes() -> None:
    for sign, expected in ((1, "reproduced"), (-1, "contradicted")):
        assert gains(sign * np.array([0.9, 1.0, 1.1])).outcome(0, 0) == expected
    assert gains([-0.2, 0.1, 0.5]).outcome(0, 0) == "inconclusive"
    assert gains([0.9, 1.0, 1.1], [0.9, 1.0]).outcome(0, 0) == "inconclusive"


def test_the_same_means_and_spread_may_change_sides_with_more_seeds() -> None:
    """Of mean 0.9 and deviation 0.05: +- 4.3027 x 0.05 / sqrt(3), or 2.2622 x 0.05 / sqrt(10)."""
    found = gains([0.9, 0.95, 0.85])
    assert found.intervals()[:, 0] == pytest.approx([0.77579, 1.02421], abs=1e-5)
    assert found.intervals(10)[:, 0] == pytest.approx([0.86423, 0.93577], abs=1e-5)
    assert found.outcome(0, 1.0) == "reproduced"
    assert found.outcome(0, 1.0, 10) == "contradicted"


def test_seeds_that_would_decide_are_the_least_with_that_spread() -> None:
    """Of mean 1 and deviation 1.2: 2.306 x 1.2 / 3 of nine seeds is below 1, of eight not.

    2.3646 x 1.2 / sqrt(8) = 1.0032 and 2.3060 x 1.2 / 3 = 0.9224, by Student's table.
    """
    values = np.array([1 - 1.2, 1.0, 1 + 1.2])
    assert gains(values).deciding_seeds(0, 0) == 9
    assert gains(values[[0, 2]]).deciding_seeds(0, 0) == 14  # 2.1604 x 1.697 / sqrt(14)
    assert gains(values).deciding_seeds(1.0, 1.0) is None  # its mean is the number
    assert gains([1.0]).deciding_seeds(0, 0) is None
    assert gains([1.0, 1.0, 1.0]).deciding_seeds(0, 0) is None


SPREAD = 0.27
"""Deviation (points) of a difference of two errors of 25%, each over 50,000 test images.

The square root of 2 x 0.25 x 0.75 / 50,000. The greatest of forty such differences of equal fronts
is within 0.6 of 1 in more than nine of ten cases, which once "reproduced" a gain of 1.
"""
BUDGETS = (25, 40, 60, 80)
CASES = 2_000


def simulated(gain: float, seeds: int, number: float, places: int = 4) -> Counter[str]:
    """The outcomes of CASES in which the method gains as much at the first of the places."""
    generator = np.random.default_rng([seeds, places])
    values = generator.normal(0, SPREAD, (CASES, seeds, places))
    values[:, :, 0] += gain
    return Counter(gains(each, places=places).outcome(0, number) for each in values)


def test_equal_methods_rarely_end_in_either_direction() -> None:
    """2.5% each, whatever the spread and the number of seeds; 5% is over 7 standard errors off."""
    for seeds in (3, 5, 10):
        found = simulated(0, seeds, number=0, places=1)
        for outcome in ("reproduced", "contradicted"):
            assert found[outcome] / CASES == pytest.approx(0.025, abs=0.0140)  # 4 standard errors


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_settle_nothing(seeds: int) -> None:
    assert simulated(0, seeds, number=1.0) == {"inconclusive": CASES}


@pytest.mark.parametrize(("seeds", "contradicted"), [(3, 0.0273), (5, 0.9502), (10, 1.0)])
def test_equal_fronts_contradict_a_number_that_their_intervals_exclude(
    seeds: int, contradicted: float
) -> None:
    """As they should, as nothing gains anything: of "up to 1 point", the more seeds the oftener.

    The rates are those of 100,000 cases of scipy's quantiles; 0.0225 is over four standard errors.
    """
    found = simulated(0, seeds, number=1.0)
    assert found["reproduced"] < 0.025 * CASES
    assert found["contradicted"] / CASES == pytest.approx(contradicted, abs=0.0225)


def test_a_gain_of_six_standard_errors_is_reproduced_with_ten_seeds() -> None:
    """At one budget of four; by noncentral Student's t the interval is above 0 in 99%."""
    gain = 6 * SPREAD / 10**0.5
    found = simulated(gain, 10, number=gain)
    assert found["reproduced"] > 0.9 * CASES
    assert found["contradicted"] < 0.05 * CASES


def test_simulated_fronts_end_like_simulated_gains() -> None:
    """Through the records: fronts of ten seeds, of which one method gains at 25% of the cost."""
    generator = np.random.default_rng(1)
    gain, found = 6 * SPREAD / 10**0.5, {0.0: Counter(), 1.0: Counter()}
    for share, outcomes in found.items():
        for _ in range(20):
            noise = generator.normal(0, SPREAD / 2**0.5, (2, 10, 4))
            noise[0, :, 0] -= share * gain
            fronts = {
                (method, seed): [
                    (10 * percent, 40.0 - 5 * place + float(noise[index, seed, place]))
                    for place, percent in enumerate(BUDGETS)
                ]
                for index, method in enumerate(("layers", "uniform"))
                for seed in range(10)
            }
            measured = known(budget_gains(records_of(fronts), **OF, percents=BUDGETS))
            np.testing.assert_allclose(measured.samples[0], noise[1] - noise[0], atol=1e-12)
            outcomes[measured.outcome(0, gain)] += 1
    assert found[0.0]["reproduced"] <= 4  # 2.5% of 20 are 0.5; more than 4 in one of 10,000
    assert found[0.0]["contradicted"] >= 16  # 96% of 20 are 19.2
    assert found[1.0]["reproduced"] >= 16  # 99% of 20 are 19.8
    assert found[1.0]["contradicted"] <= 4


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
