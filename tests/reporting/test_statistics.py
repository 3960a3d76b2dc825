"""Statistics against values worked by hand."""

import math

import numpy as np
import pandas as pd
import pytest

from pareco.reporting.statistics import (
    MEASURES,
    area_under_front,
    errors_at,
    method_order,
    run_measures,
    seed_statistics,
    staircase,
)


def front(*networks: tuple[int, float, float], method: str = "a", seed: int = 0) -> pd.DataFrame:
    """Networks given as (MACs, search loss, test top-1 error)."""
    table = pd.DataFrame(networks, columns=["macs", "search_loss", "test_top1_error"])
    return table.assign(method=method, seed=seed, params=1, widths="1")


FOUR = front((1000, 0.2, 4.0), (150, 0.9, 20.0), (600, 0.4, 12.0), (400, 0.5, 8.0))


def test_selection_follows_the_search_loss_not_the_test_error() -> None:
    errors = errors_at(FOUR, [100, 149, 150, 399, 400, 599, 600, 999, 1000, 2000])
    expected = [np.nan, np.nan, 20, 20, 8, 8, 12, 12, 4, 4]
    np.testing.assert_array_equal(errors, expected)


def test_of_equal_search_losses_the_cheaper_is_selected() -> None:
    tied = front((500, 0.3, 5.0), (300, 0.3, 7.0), (700, 0.3, 1.0))
    np.testing.assert_array_equal(errors_at(tied, [300, 500, 700]), [7, 7, 7])


def test_a_dearer_network_of_higher_search_loss_is_never_selected() -> None:
    dominated = front((300, 0.3, 7.0), (500, 0.6, 1.0), (500, 0.2, 5.0), (500, 0.25, 2.0))
    assert list(staircase(dominated)["test_top1_error"]) == [7, 5]


def test_area_is_the_exact_mean_of_the_steps() -> None:
    # 20 from 200 to 400, 8 to 600, 12 to 1000: the largest network adds no length.
    assert area_under_front(FOUR, 1000) == pytest.approx((200 * 20 + 200 * 8 + 400 * 12) / 800)
    assert area_under_front(front((200, 0.5, 9.0)), 1000) == pytest.approx(9.0)


def test_area_leaves_out_what_is_cheaper_than_the_left_end() -> None:
    cheap = front((50, 0.9, 90.0), (100, 0.8, 30.0), (600, 0.4, 10.0))
    assert area_under_front(cheap, 1000) == pytest.approx((400 * 30 + 400 * 10) / 800)


def test_area_is_undefined_unless_a_network_fits_at_its_left_end() -> None:
    assert math.isnan(area_under_front(front((201, 0.5, 9.0), (900, 0.1, 2.0)), 1000))


def test_measures_of_each_run() -> None:
    both = pd.concat([FOUR, front((399, 0.5, 3.0), method="b", seed=4)])
    measures = run_measures(both, 1000).set_index(["method", "seed"])
    assert measures.loc[[("a", 0)]].to_numpy().tolist() == [[20, 8, 12, 12, 4, 13]]
    np.testing.assert_array_equal(measures.loc[("b", 4)], [np.nan, 3, 3, 3, 3, np.nan])


def test_a_cost_budget_is_exact_in_whole_macs() -> None:
    # 60% of 333 is 199.8, in floating point 0.6 * 335 is just under 201.
    assert math.isnan(run_measures(front((200, 0.5, 9.0)), 333)["60%"].iloc[0])
    assert run_measures(front((201, 0.5, 9.0)), 335)["60%"].iloc[0] == 9


def test_mean_and_sample_deviation_over_seeds() -> None:
    runs = [
        front((200, 0.5, error), method="a", seed=seed) for seed, error in enumerate((4, 6, 11))
    ]
    runs += [front((200, 0.5, 3.0), method="b")]
    table = seed_statistics(run_measures(pd.concat(runs), 1000)).set_index(["method", "measure"])
    assert len(table) == 2 * len(MEASURES)
    assert table.loc[("a", "40%"), "mean"] == pytest.approx(7)
    assert table.loc[("a", "40%"), "deviation"] == pytest.approx(math.sqrt((9 + 1 + 16) / 2))
    assert table.loc[("a", "40%"), "n"] == 3
    assert table.loc[("b", "area"), "mean"] == 3
    assert table["deviation"].isna()[("b", "area")]


def test_a_mean_is_undefined_where_one_seed_has_no_value() -> None:
    runs = pd.concat([front((200, 0.5, 4.0)), front((300, 0.5, 2.0), seed=1)])
    table = seed_statistics(run_measures(runs, 1000)).set_index("measure")
    assert table["mean"].isna()["20%"]
    assert table.loc["40%", "mean"] == 3


def test_the_focus_comes_first_where_it_is_present() -> None:
    assert method_order(["b", "c", "a", "c"], "c") == ["c", "a", "b"]
    assert method_order(["b", "a"], "c") == ["a", "b"]
