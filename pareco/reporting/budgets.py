"""Whether the methods of an experiment spent the same on training."""

from collections import Counter
from collections.abc import Collection, Sequence

import pandas as pd

from pareco.reporting.records import BUDGET_TYPES

EXEMPT, UNEQUAL = "†", "‡"
_REQUIRED_EQUAL = ["gradient_steps", "passes"]


class UnequalBudgets(ValueError):
    """Methods that are to be compared spent different training budgets."""


def unequal_methods(
    fronts: pd.DataFrame, exempt: Collection[str], methods: Sequence[str]
) -> list[str]:
    """The methods, in the order given, that spent another training budget than most of the rest.

    A budget is a run's gradient steps and forward-backward passes, the same for every seed.
    Exempt methods are left out. Of two equally common budgets the one met first is the standard.
    """
    spent = {
        method: sorted(set(fronts[fronts["method"] == method][_REQUIRED_EQUAL].itertuples(False)))
        for method in methods
        if method not in exempt
    }
    common = Counter(budget for budgets in spent.values() for budget in budgets).most_common(1)
    return [method for method, budgets in spent.items() if budgets != [common[0][0]]]


def budget_marks(
    fronts: pd.DataFrame, exempt: Collection[str], methods: Sequence[str]
) -> dict[str, str]:
    """The mark, EXEMPT or UNEQUAL, of each method that is not to be compared like for like."""
    unequal = unequal_methods(fronts, exempt, methods)
    marks = {**dict.fromkeys(exempt, EXEMPT), **dict.fromkeys(unequal, UNEQUAL)}
    return {method: marks[method] for method in methods if method in marks}


def check_equal_budgets(
    fronts: pd.DataFrame, exempt: Collection[str], methods: Sequence[str]
) -> None:
    """Raise UnequalBudgets, with every method's numbers, where `unequal_methods` finds one."""
    unequal = unequal_methods(fronts, exempt, methods)
    if unequal:
        budgets = budget_table(fronts, [method for method in methods if method not in exempt])
        numbers = "; ".join(
            f"{method}: {row['gradient_steps']} gradient steps, {row['passes']} passes"
            for method, row in budgets.items()
        )
        raise UnequalBudgets(
            f"unequal training budgets ({numbers}): run {', '.join(unequal)} again with the budget"
            " of the others, or compare all the same with allow_unequal_budgets=True"
        )


def budget_table(fronts: pd.DataFrame, methods: Sequence[str]) -> dict[str, dict[str, str]]:
    """Each method's budget by column name: a number, or `least to most` where its seeds differ."""
    return {
        method: {
            column: _extent(fronts.loc[fronts["method"] == method, column])
            for column in BUDGET_TYPES
        }
        for method in methods
    }


def _extent(values: pd.Series) -> str:
    least, most = int(values.min()), int(values.max())
    return f"{least:,}" if least == most else f"{least:,} to {most:,}"
