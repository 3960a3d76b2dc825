"""Intervals over seeds and differences between methods, against values worked by hand."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from pareco.reporting.statistics import intervals, paired_differences, seed_statistics


def measures(**errors: dict[int, float]) -> pd.DataFrame:
    """One measure of each method, by seed; a second one is its double."""
    rows = {(m, seed): [e, 2 * e] for m, own in errors.items() for seed, e in own.items()}
    index = pd.MultiIndex.from_tuples(rows, names=["method", "seed"])
    return pd.DataFrame(rows.values(), index=index, columns=["40%", "area"])


def numbers(table: pd.DataFrame, method: str, measure: str, *columns: str) -> list[float]:
    """Some columns of the row of a method and a measure."""
    own = (table["method"] == method) & (table["measure"] == measure)
    (row,) = table.loc[own, list(columns)].to_numpy(dtype=float).tolist()
    return row


def test_of_two_seeds_the_interval_is_their_two_values() -> None:
    """A quarter of the resamples has the lower one twice, a quarter the higher one."""
    low, high = intervals(np.array([[4.0, 9.0], [6.5, 1.0]]))
    assert low.tolist() == [4.0, 1.0]
    assert high.tolist() == [6.5, 9.0]


@pytest.mark.parametrize("rows", [0, 1])
def test_fewer_than_two_seeds_have_no_interval(rows: int) -> None:
    assert np.isnan(intervals(np.ones((rows, 3)))).all()
    assert intervals(np.ones((rows, 3))).shape == (2, 3)


def test_equal_values_have_an_interval_without_length() -> None:
    assert intervals(np.full((4, 1), 2.5)).tolist() == [[2.5], [2.5]]


def test_a_column_with_a_nan_has_no_interval_and_leaves_the_others_alone() -> None:
    values = np.random.default_rng(3).normal(size=(6, 3))
    damaged = values.copy()
    damaged[2, 1] = np.nan
    found, clean = intervals(damaged), intervals(values)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[:, [0, 2]], clean[:, [0, 2]])
    assert np.isnan(intervals(np.full((4, 2), np.nan))).all()


def test_intervals_are_always_the_same() -> None:
    values = np.random.default_rng(3).normal(size=(5, 4))
    np.testing.assert_array_equal(intervals(values), intervals(values))


def test_the_interval_of_many_values_is_that_of_the_normal_theory() -> None:
    """Of 400 values; ends agree to a tenth of the standard error.

    An end is the 2.5% quantile of 9,999 resampled means: its own deviation is 2.7% of the standard
    error, so a tenth is beyond 3 deviations, while 90% or 99% intervals miss it by 3 to 6 tenths.
    """
    values = np.random.default_rng(11).normal(7.0, 2.0, size=(400, 1))
    error = stats.sem(values[:, 0])
    expected = stats.norm.interval(0.95, loc=values.mean(), scale=error)
    np.testing.assert_allclose(intervals(values)[:, 0], expected, rtol=0, atol=error / 10)


def test_differences_are_of_the_same_seed() -> None:
    """Only seeds that both methods have count: 1 and 2 of b, 0 of c, none of d."""
    table = paired_differences(
        measures(
            a={0: 5.0, 1: 6.0, 2: 8.0},
            b={1: 7.0, 2: 8.5, 3: 50.0},
            c={0: 4.0, 9: 99.0},
            d={7: 1.0},
        ),
        "a",
    )
    keys = list(zip(table["method"], table["measure"], strict=True))
    assert keys == [(m, name) for m in ("b", "c") for name in ("40%", "area")]
    # 7 - 6 and 8.5 - 8: positive, as the reference has less.
    assert numbers(table, "b", "40%", "mean", "low", "high", "n") == [0.75, 0.5, 1.0, 2]
    assert numbers(table, "b", "40%", "deviation") == [pytest.approx(np.sqrt(0.125))]
    assert numbers(table, "b", "area", "mean") == [1.5]
    assert numbers(table, "c", "40%", "mean", "n") == [-1.0, 1]
    assert np.isnan(numbers(table, "c", "40%", "deviation", "low", "high")).all()


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    """The methods spread over 10 points, their differences not at all."""
    both = measures(a={0: 1.0, 1: 11.0}, b={0: 1.5, 1: 11.5})
    columns = ("mean", "deviation", "low", "high")
    difference = paired_differences(both, "a")
    assert numbers(difference, "b", "40%", *columns) == [0.5, 0.0, 0.5, 0.5]
    assert numbers(seed_statistics(both), "a", "40%", "low", "high") == [1.0, 11.0]


def test_a_difference_to_an_undefined_value_is_undefined() -> None:
    table = paired_differences(measures(a={0: np.nan, 1: 1.0}, b={0: 2.0, 1: 3.0}), "a")
    assert np.isnan(numbers(table, "b", "40%", "mean", "deviation", "low", "high")).all()


def test_a_method_alone_differs_from_none() -> None:
    assert paired_differences(measures(a={0: 1.0, 1: 2.0}), "a").empty


def test_an_absent_reference_is_an_error() -> None:
    with pytest.raises(KeyError, match="absent"):
        paired_differences(measures(a={0: 1.0}), "absent")
