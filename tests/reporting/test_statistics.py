"""Statistics of fronts, over seeds and of budgets, against values worked by hand.

Selected errors are compared exactly; areas, volumes and deviations, sums of a few products, to
pytest's relative 1e-6.
"""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from scipy import stats

from pareco.config import COSTS
from pareco.reporting.statistics import (
    HYPERVOLUME,
    UnequalBudgets,
    area_under_front,
    best_methods,
    budget_marks,
    budget_table,
    check_equal_budgets,
    combined_intervals,
    cost_percents,
    errors_at,
    holm,
    hypervolume,
    intervals,
    method_order,
    paired_differences,
    run_measures,
    seed_statistics,
    staircase,
)


def front(*networks: tuple[int, float, float], method: str = "a", seed: int = 0) -> pd.DataFrame:
    """Networks given as (MACs, search loss, test top-1 error)."""
    table = pd.DataFrame(networks, columns=["macs", "search_loss", "test_top1_error"])
    others = dict.fromkeys(COSTS[1:], 1)
    return table.assign(method=method, seed=seed, widths="1", **others)


FOUR = front((1000, 0.2, 4.0), (150, 0.9, 20.0), (600, 0.4, 12.0), (400, 0.5, 8.0))


def test_selection_follows_the_search_loss_not_the_test_error() -> None:
    errors = errors_at(FOUR, "macs", [100, 149, 150, 399, 400, 599, 600, 999, 1000, 2000])
    expected = [np.nan, np.nan, 20, 20, 8, 8, 12, 12, 4, 4]
    np.testing.assert_array_equal(errors, expected)


def test_of_equal_search_losses_the_cheaper_is_selected_and_a_higher_one_never() -> None:
    tied = front((500, 0.3, 5.0), (300, 0.3, 7.0), (700, 0.3, 1.0))
    np.testing.assert_array_equal(errors_at(tied, "macs", [300, 500, 700]), [7, 7, 7])
    dominated = front((300, 0.3, 7.0), (500, 0.6, 1.0), (500, 0.2, 5.0), (500, 0.25, 2.0))
    assert list(staircase(dominated, "macs")["test_top1_error"]) == [7, 5]


def test_area_is_the_exact_mean_of_the_steps() -> None:
    # 20 from 200 to 400, 8 to 600, 12 to 1000: the largest network adds no length.
    assert area_under_front(FOUR, "macs", 1000, 20) == pytest.approx(
        (200 * 20 + 200 * 8 + 400 * 12) / 800
    )
    assert area_under_front(front((200, 0.5, 9.0)), "macs", 1000, 20) == pytest.approx(9.0)
    # What is cheaper than the left end counts from there on.
    cheap = front((50, 0.9, 90.0), (100, 0.8, 30.0), (600, 0.4, 10.0))
    assert area_under_front(cheap, "macs", 1000, 20) == pytest.approx((400 * 30 + 400 * 10) / 800)


def test_area_is_undefined_unless_a_network_fits_at_its_left_end() -> None:
    late = front((201, 0.5, 9.0), (900, 0.1, 2.0))
    assert math.isnan(area_under_front(late, "macs", 1000, 20))
    # 9 from 250 to 900, 2 to 1000.
    expected = (650 * 9 + 100 * 2) / 750
    assert area_under_front(late, "macs", 1000, 25) == pytest.approx(expected)


def test_another_cost_orders_the_same_networks_anew() -> None:
    # By activations the second is the cheapest, and the first is dominated by both others.
    both = front((200, 0.9, 30.0), (600, 0.5, 20.0), (900, 0.1, 10.0)).assign(
        activations=[80, 50, 60]
    )
    assert list(staircase(both, "macs")["test_top1_error"]) == [30, 20, 10]
    assert list(staircase(both, "activations")["test_top1_error"]) == [20, 10]
    errors = errors_at(both, "activations", [49, 50, 59, 60, 80])
    np.testing.assert_array_equal(errors, [np.nan, 20, 20, 10, 10])
    measures = run_measures(both, "activations", 100)
    assert list(measures.columns) == ["50%", "60%", "80%", "100%", "area", "hypervolume"]
    # 20 from 50 to 60, 10 to 100; 50 x 80 and 40 x 10 of the square of 100 x 100.
    area, volume = pytest.approx((200 + 400) / 50), pytest.approx((4000 + 400) / 100)
    assert measures.to_numpy().tolist() == [[20, 10, 10, 10, area, volume]]


@pytest.mark.parametrize(
    ("cheapest", "percents"),
    [
        (1, (20, 40, 60, 80, 100)),
        (200, (20, 40, 60, 80, 100)),
        (201, (25, 40, 60, 80, 100)),
        (250, (25, 40, 60, 80, 100)),
        (396, (40, 60, 80, 100)),
        (420, (45, 60, 80, 100)),
        (1000, (80, 100)),
    ],
)
def test_budgets_begin_where_a_network_fits(cheapest: int, percents: tuple[int, ...]) -> None:
    networks = front((cheapest, 0.5, 9.0), (1000, 0.1, 2.0))
    assert cost_percents(networks, "macs", 1000) == percents


def test_the_hypervolume_is_a_sum_of_rectangles() -> None:
    # From 30% on 80 points below 100, from 50% on 15 more; the full network adds no length.
    steps = front((300, 0.9, 20.0), (500, 0.5, 5.0), (1000, 0.1, 1.0))
    assert hypervolume(steps, "macs", 1000) == pytest.approx(0.7 * 80 + 0.5 * 15)
    # A network that no budget selects adds nothing, even where its test error is low.
    unselected = front((300, 0.9, 20.0), (500, 0.5, 5.0), (400, 0.95, 1.0))
    assert hypervolume(unselected, "macs", 1000) == pytest.approx(0.7 * 80 + 0.5 * 15)
    assert hypervolume(front((1000, 0.1, 1.0)), "macs", 1000) == 0
    assert hypervolume(front((100, 0.1, 100.0)), "macs", 1000) == 0


def test_the_hypervolume_is_that_of_botorch() -> None:
    generator = np.random.default_rng(5)
    losses = np.sort(generator.uniform(0, 1, 30))[::-1]
    costs, errors = np.sort(generator.integers(1, 120, 30)), generator.uniform(0, 100, 30)
    table = front(*zip(costs.tolist(), losses.tolist(), errors.tolist(), strict=True))
    selected = staircase(table, "macs")[["macs", "test_top1_error"]].to_numpy() / 100
    assert len(selected) > 20
    expected = Hypervolume(-torch.ones(2)).compute(-torch.from_numpy(selected))
    assert hypervolume(table, "macs", 100) == pytest.approx(100 * expected)


def test_a_latency_is_a_cost_like_any_other() -> None:
    """Milliseconds are no whole numbers; a budget of exactly a network's time can pay it."""
    times = [0.1 + 0.2, 0.7, 1.1]
    table = front((1, 0.9, 30.0), (2, 0.5, 20.0), (3, 0.1, 10.0)).assign(latency_ms=times)
    budgets = [np.nextafter(times[0], 0), times[0], 0.7, np.nextafter(1.1, 0), 1.1]
    errors = errors_at(table, "latency_ms", budgets)
    np.testing.assert_array_equal(errors, [np.nan, 30, 20, 20, 10])
    assert cost_percents(table, "latency_ms", 1.1) == (30, 40, 60, 80, 100)
    # The second is slower than the full network.
    slow = table.assign(latency_ms=[0.5, 1.5, 0.5]).iloc[:2]
    assert hypervolume(slow, "latency_ms", 1.0) == pytest.approx(50 * 0.7)
    assert area_under_front(slow, "latency_ms", 1.0, 50) == pytest.approx(30)


def test_measures_of_each_run() -> None:
    both = pd.concat([FOUR, front((399, 0.5, 3.0), method="b", seed=4)])
    measures = run_measures(both, "macs", 1000)
    # Of a: 850 x 80 and, from 400 on, 600 x 12 more; the network of error 12 adds nothing.
    expected = [20, 8, 12, 12, 4, 13, pytest.approx((850 * 80 + 600 * 12) / 1000)]
    assert measures.loc[[("a", 0)]].to_numpy().tolist() == [expected]
    expected = [np.nan, 3, 3, 3, 3, np.nan, 601 * 97 / 1000]
    own = measures.loc[[("b", 4)]].to_numpy()[0]
    np.testing.assert_allclose(own, expected, rtol=1e-12)


def test_a_cost_budget_is_exact_in_whole_macs() -> None:
    # 60% of 333 is 199.8, in floating point 0.6 * 335 is just under 201.
    cheap = front((1, 0.9, 50.0), method="b")
    unfit = run_measures(pd.concat([front((200, 0.5, 9.0)), cheap]), "macs", 333)
    np.testing.assert_array_equal(unfit.loc[("a", 0), ["40%", "60%", "80%"]], [np.nan, np.nan, 9])
    fit = run_measures(pd.concat([front((201, 0.5, 9.0)), cheap]), "macs", 335)
    assert fit.loc[("a", 0), "60%"] == 9


def test_the_focus_comes_first_where_it_is_present() -> None:
    assert method_order(["b", "c", "a", "c"], "c") == ["c", "a", "b"]
    assert method_order(["b", "a"], "c") == ["a", "b"]


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


def test_mean_and_sample_deviation_over_seeds() -> None:
    """The interval is 7 -+ 4.30265 x 3.60555 / sqrt(3), by Student's table of quantiles."""
    table = seed_statistics(measures(a={0: 4, 1: 6, 2: 11}, b={0: 3}, c={0: np.nan, 1: 2}))
    assert len(table) == 3 * 2
    columns = ("mean", "deviation", "low", "high")
    expected = [7, math.sqrt((9 + 1 + 16) / 2), -1.956686, 15.956686, 3]
    assert numbers(table, "a", "40%", *columns, "n") == pytest.approx(expected)
    assert numbers(table, "b", "area", "mean", "n") == [6, 1]
    assert np.isnan(numbers(table, "b", "area", *columns[1:])).all()
    assert np.isnan(numbers(table, "c", "40%", *columns)).all()  # as soon as one seed has no value


def test_intervals_are_those_of_students_tables() -> None:
    """5.25 -+ 12.7062 x 1.25 and 5 -+ 12.7062 x 4, as the quantile for two values is 12.7062."""
    low, high = intervals(np.array([[4.0, 9.0], [6.5, 1.0]]))
    assert low == pytest.approx([5.25 - 15.88276, 5 - 50.82482], abs=1e-5)
    assert high == pytest.approx([5.25 + 15.88276, 5 + 50.82482], abs=1e-5)
    for rows in (0, 1):
        assert np.isnan(intervals(np.ones((rows, 3)))).all()
        assert intervals(np.ones((rows, 3))).shape == (2, 3)


@pytest.mark.parametrize("comparisons", [1, 4])
@pytest.mark.parametrize("count", [2, 3, 10, 400])
def test_intervals_are_those_of_scipys_t_test(count: int, comparisons: int) -> None:
    values = np.random.default_rng(11).normal(7.0, 2.0, size=(count, 3))
    level = 1 - 0.05 / comparisons
    expected = stats.ttest_1samp(values, 0).confidence_interval(level)
    np.testing.assert_allclose(intervals(values, comparisons), expected, rtol=1e-12)


def test_values_that_agree_say_nothing_of_their_spread() -> None:
    """Nor those that differ only as sums of floating-point numbers do."""
    assert np.isnan(intervals(np.full((4, 1), 2.5))).all()
    assert np.isnan(intervals(np.array([[0.1 + 0.2], [0.3], [0.3]]))).all()
    assert not np.isnan(intervals(np.array([[2.5], [2.502]]))).any()


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_intervals_cover_the_true_mean_as_often_as_they_say(count: int) -> None:
    """Of 20,000 samples 95%, to four standard errors of that part: 4 x sqrt(0.95 x 0.05 / 20,000).

    The intervals of a percentile bootstrap cover it 50% of the time with two values.
    """
    values = np.random.default_rng(count).normal(3.0, 2.0, size=(count, 20_000))
    low, high = intervals(values)
    assert ((low <= 3) & (high >= 3)).mean() == pytest.approx(0.95, abs=0.0062)
    # Four at once, independent: 0.9875 ** 4 = 95.1% of 5,000, to four standard errors as well.
    low, high = intervals(values, comparisons=4).reshape(2, 4, -1)
    assert 0.938 < ((low <= 3) & (high >= 3)).all(axis=0).mean() < 0.964


def test_the_interval_of_two_samples_is_welchs() -> None:
    generator = np.random.default_rng(8)
    one, other = generator.normal(5, 1, (3, 4)), generator.normal(3, 4, (7, 4))
    expected = stats.ttest_ind(one, other, equal_var=False).confidence_interval(0.95)
    np.testing.assert_allclose(combined_intervals([one, other], [1, -1]), expected, rtol=1e-12)
    for few in (one[:1], one[:0]):
        assert np.isnan(combined_intervals([few, other], [1, -1])).all()


def test_a_sample_that_agrees_is_not_known_exactly_in_a_mean() -> None:
    """As alone, in each column by itself, whatever the weights and the rows to foretell.

    Of the second column, both samples spread: by scipy, as any two.
    """
    agreeing = np.array([[0.5, 0.1 + 0.2], [0.5, 0.3], [0.5, 1.0]])
    spread = np.array([[0.4, 0.4], [0.5, 0.5], [0.6, 0.6]])
    for samples in ([agreeing, spread], [spread, agreeing]):
        found = combined_intervals(samples, [1, -1])
        assert np.isnan(found[:, 0]).all()
        expected = stats.ttest_ind(*(each[:, 1] for each in samples), equal_var=False)
        np.testing.assert_allclose(found[:, 1], expected.confidence_interval(0.95), rtol=1e-12)
        assert np.isnan(combined_intervals(samples, [1e6, 1e6], rows=[100, 100])[:, 0]).all()


@pytest.mark.parametrize("spreads", [(1, 1, 1, 1), (1, 3, 9, 1)])
@pytest.mark.parametrize("count", [3, 10])
def test_the_interval_of_a_mean_of_experiments_covers_it(
    count: int, spreads: tuple[float, ...]
) -> None:
    """The approximation of Welch and Satterthwaite is off by up to two points with three seeds."""
    generator = np.random.default_rng(count)
    samples = [generator.normal(1, spread, (count, 20_000)) for spread in spreads]
    low, high = combined_intervals(samples, [0.25] * 4)
    assert ((low <= 1) & (high >= 1)).mean() == pytest.approx(0.955, abs=0.0175)


def test_more_rows_of_the_same_spread_are_foretold() -> None:
    """Of 8 values, two of each of four, the deviation is sqrt(3 x 2 / 7) of that of the four."""
    values = np.array([[1.0], [2.0], [4.0], [7.0]])
    doubled = intervals(np.concatenate([values, values]))
    foretold = combined_intervals([values], [1.0], rows=[8])
    reach = (foretold[1] - foretold[0]) / (doubled[1] - doubled[0])
    assert reach == pytest.approx([math.sqrt(7 / 6)])


def test_a_column_with_a_nan_has_no_interval_and_leaves_the_others_alone() -> None:
    values = np.random.default_rng(3).normal(size=(6, 3))
    damaged = values.copy()
    damaged[2, 1] = np.nan
    found, clean = intervals(damaged), intervals(values)
    assert np.isnan(found[:, 1]).all()
    np.testing.assert_array_equal(found[:, [0, 2]], clean[:, [0, 2]])
    assert np.isnan(intervals(np.full((4, 2), np.nan))).all()


def test_holms_correction_is_that_of_the_textbook() -> None:
    """R's p.adjust(c(0.01, 0.04, 0.03, 0.005), "holm") is 0.03, 0.06, 0.06, 0.02."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.4, 1.0]) == pytest.approx([0.8, 1.0])
    assert holm([]) == []


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
    # 7 - 6 and 8.5 - 8: positive, as the reference has less; -+ 12.7062 x 0.25.
    expected = pytest.approx([0.75, -2.426551, 3.926551, 2])
    assert numbers(table, "b", "40%", "mean", "low", "high", "n") == expected
    assert numbers(table, "b", "40%", "deviation") == [pytest.approx(np.sqrt(0.125))]
    assert numbers(table, "b", "area", "mean") == [1.5]
    assert numbers(table, "c", "40%", "mean", "n") == [-1.0, 1]
    assert np.isnan(numbers(table, "c", "40%", "deviation", "low", "high")).all()


def test_pairing_takes_out_what_seeds_have_in_common() -> None:
    """The methods spread over 10 points, their differences, 0.5 and 0.7, hardly at all."""
    both = measures(a={0: 1.0, 1: 11.0}, b={0: 1.5, 1: 11.7})
    columns = ("mean", "deviation", "low", "high")
    difference = paired_differences(both, "a")
    expected = pytest.approx([0.6, 0.1 * math.sqrt(2), 0.6 - 1.27062, 0.6 + 1.27062])
    assert numbers(difference, "b", "40%", *columns) == expected
    expected = pytest.approx([6 - 63.53102, 6 + 63.53102])
    assert numbers(seed_statistics(both), "a", "40%", "low", "high") == expected
    undefined = paired_differences(measures(a={0: np.nan, 1: 1.0}, b={0: 2.0, 1: 3.0}), "a")
    assert np.isnan(numbers(undefined, "b", "40%", *columns)).all()


def test_best_are_those_that_the_seeds_do_not_tell_apart() -> None:
    """c is worse by 2.0, 2.1 and 2.2, beyond doubt; b by 1, -1 and 1; d would be, but is not asked.

    Of the second measure, doubled errors, the same; of a hypervolume more is better.
    """
    table = measures(
        a={0: 5.0, 1: 6.0, 2: 7.0},
        b={0: 6.0, 1: 5.0, 2: 8.0},
        c={0: 7.0, 1: 8.1, 2: 9.2},
        d={0: 1.0, 1: 1.1, 2: 1.2},
    )
    asked = ["a", "b", "c"]
    assert best_methods(table, asked) == {"40%": {"a", "b"}, "area": {"a", "b"}}
    volumes = table.rename(columns={"area": HYPERVOLUME})
    assert best_methods(volumes, asked)[HYPERVOLUME] == {"b", "c"}
    assert best_methods(table, []) == {"40%": set(), "area": set()}
    assert best_methods(table.drop(index=("b", 1)), asked) == {"40%": set(), "area": set()}
    undefined = table.copy()
    undefined.loc[("a", 1), "40%"] = np.nan
    assert best_methods(undefined, asked)["40%"] == {"b", "c"}
    assert best_methods(undefined * np.nan, asked)["40%"] == set()
    assert best_methods(table, ["c"])["40%"] == {"c"}


def test_the_best_is_adjusted_for_the_pairs_that_it_was_chosen_among() -> None:
    """b is worse by 0.75, 1 and 1.25, so by 6.93 standard errors.

    By Student's table that tells two methods apart, or three if a were named beforehand (6.21);
    of the three pairs of three methods the quantile is 7.65.
    """
    both = {"a": {0: 1.0, 1: 2.0, 2: 3.0}, "b": {0: 1.75, 1: 3.0, 2: 4.25}}
    table = measures(**both, c={0: 3.5, 1: 2.0, 2: 1.0})
    assert best_methods(table, ["a", "b"])["40%"] == {"a"}
    assert best_methods(table, ["a", "b", "c"])["40%"] == {"a", "b", "c"}


@pytest.mark.parametrize("count", [3, 10])
def test_equal_methods_are_rarely_told_apart(count: int) -> None:
    """Of seven, some in 2.4% (three seeds) and 3.5% (ten) of 40,000 cases of normal values.

    Below 5% by more than two standard errors of 400 cases; for as many comparisons as there are
    other methods it is 7.8% and 10.5%.
    """
    methods, cases = list("abcdefg"), 400
    values = np.random.default_rng(count).normal(30, 0.3, (7 * count, cases))
    index = pd.MultiIndex.from_product([methods, range(count)], names=["method", "seed"])
    best = best_methods(pd.DataFrame(values, index, [f"{i}" for i in range(cases)]), methods)
    assert sum(len(names) < 7 for names in best.values()) < 0.05 * cases


def test_a_method_alone_differs_from_none_and_an_absent_reference_is_an_error() -> None:
    assert paired_differences(measures(a={0: 1.0, 1: 2.0}), "a").empty
    with pytest.raises(KeyError, match="absent"):
        paired_differences(measures(a={0: 1.0}), "absent")


def fronts(**steps_by_seed: list[int]) -> pd.DataFrame:
    """Two networks per run, with four passes per step."""
    rows = [
        (method, seed, steps, 4 * steps, 50 + seed, 40)
        for method, budgets in steps_by_seed.items()
        for seed, steps in enumerate(budgets)
        for _ in range(2)
    ]
    columns = ["method", "seed", "gradient_steps", "passes", "search_evaluations", "widths_visited"]
    return pd.DataFrame(rows, columns=columns)


def test_unequal_budgets_are_named_with_their_numbers() -> None:
    """But not numbers of search evaluations, which each seed has its own."""
    table = fronts(a=[100, 100], b=[100, 100])
    check_equal_budgets(table, [])
    assert budget_marks(table, [], ["a", "b"]) == {}
    message = r"a: 100 .* steps, 400 passes; b: .*c: 1,200 .* steps, 4,800 passes\): run c again"
    with pytest.raises(UnequalBudgets, match=message):
        check_equal_budgets(fronts(a=[100], b=[100], c=[1200]), [])


def test_a_method_whose_seeds_differ_is_unequal() -> None:
    table = fronts(a=[100, 100], b=[100, 90])
    assert budget_marks(table, [], ["a", "b"]) == {"b": "‡"}
    assert budget_table(table, ["b"]) == {"b": ["90 to 100", "360 to 400", "50 to 51", "40"]}


def test_exempt_methods_are_marked_and_do_not_set_the_standard() -> None:
    table = fronts(a=[900, 900], b=[100], c=[100], d=[7])
    check_equal_budgets(table, ["a", "d"])
    assert budget_marks(table, ["a"], ["b", "a", "c", "d"]) == {"a": "†", "d": "‡"}
    check_equal_budgets(fronts(a=[1], b=[2]), ["a", "b"])
