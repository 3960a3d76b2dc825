"""Unequal training budgets are found, named and marked."""

import pandas as pd
import pytest

from pareco.reporting.statistics import (
    UnequalBudgets,
    budget_marks,
    budget_table,
    check_equal_budgets,
    unequal_methods,
)


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


def test_equal_budgets_pass_whatever_the_search_evaluations() -> None:
    table = fronts(a=[100, 100], b=[100, 100])
    check_equal_budgets(table, [], ["a", "b"])
    assert budget_marks(table, [], ["a", "b"]) == {}


def test_unequal_budgets_are_named_with_their_numbers() -> None:
    table = fronts(a=[100], b=[100], c=[1200])
    message = (
        r"a: 100 gradient steps, 400 passes; b: .*c: 1,200 gradient steps, 4,800 passes\)"
        r": run c again"
    )
    with pytest.raises(UnequalBudgets, match=message):
        check_equal_budgets(table, [], ["a", "b", "c"])


def test_a_method_whose_seeds_differ_is_unequal() -> None:
    table = fronts(a=[100, 100], b=[100, 90])
    assert unequal_methods(table, [], ["a", "b"]) == ["b"]
    assert budget_table(table, ["b"])["b"]["gradient_steps"] == "90 to 100"


def test_exempt_methods_are_marked_and_do_not_set_the_standard() -> None:
    table = fronts(a=[900, 900], b=[100], c=[100], d=[7])
    check_equal_budgets(table, ["a", "d"], ["a", "b", "c", "d"])
    assert budget_marks(table, ["a"], ["b", "a", "c", "d"]) == {"a": "†", "d": "‡"}


def test_only_exempt_methods_have_nothing_to_be_unequal_to() -> None:
    assert unequal_methods(fronts(a=[1], b=[2]), ["a", "b"], ["a", "b"]) == []
