"""Error at fixed costs, area under the front, hypervolume: per run, over seeds, between methods.

A cost is a column of a front, such as `macs`; it is reported in whole percent of the full
network's. Errors are percent. Of both, less is better; of hypervolume, more.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import pandas as pd
from scipy.stats import bootstrap

from pareco.config import COSTS
from pareco.reporting.records import Records
from pareco.schema import BUDGET_TYPES

AREA = "area"
HYPERVOLUME = "hypervolume"
RESAMPLES = 9_999
_GRID = (20, 40, 60, 80, 100)
_STEP = 5


def method_order(methods: Iterable[str], focus: str) -> list[str]:
    """The distinct methods: `focus` first where it is among them, then alphabetically."""
    return sorted(set(methods), key=lambda method: (method != focus, method))


def staircase(front: pd.DataFrame, cost: str) -> pd.DataFrame:
    """The networks of one run that some budget of `cost` selects, by ascending cost.

    A budget selects the network of the lowest search loss among those it can pay, the cheaper of
    two that tie: an honest choice, as the test error plays no part in it. Hence search losses
    descend along the result; test errors need not.
    """
    others = [name for name in COSTS if name != cost]
    ordered = front.sort_values([cost, "search_loss", *others, "widths"], ignore_index=True)
    losses = ordered["search_loss"].to_numpy(dtype=np.float64)
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], losses[:-1])))
    return ordered[losses < best_before].reset_index(drop=True)


def errors_at(front: pd.DataFrame, cost: str, budgets: Sequence[float] | np.ndarray) -> np.ndarray:
    """Test top-1 errors (n, percent) of the networks that n budgets of `cost` select.

    NaN where no network fits.
    """
    steps = staircase(front, cost)
    errors = np.concatenate(([np.nan], steps["test_top1_error"].to_numpy(dtype=np.float64)))
    return errors[np.searchsorted(steps[cost].to_numpy(), np.asarray(budgets), side="right")]


def cost_percents(fronts: pd.DataFrame, cost: str, full_cost: float) -> tuple[int, ...]:
    """The budgets of the tables, in ascending percent of the full cost: the last is 100.

    They are 20, 40, 60, 80 and 100 where some network of `fronts` fits into 20%. Otherwise, as
    with activations (which fall in proportion to the widths, MACs with their square), the first
    is the least multiple of 5 into which one fits, at most 80, and the smaller ones are left out.
    """
    least = ceil(100 * float(fronts[cost].min()) / full_cost)
    first = min(max(_GRID[0], -(-least // _STEP) * _STEP), _GRID[-2])
    return (first, *(percent for percent in _GRID if percent > first))


def area_under_front(front: pd.DataFrame, cost: str, full_cost: float, first: int) -> float:
    """The mean over budgets, from `first` to 100% of the full cost, of the error each selects.

    The exact integral of that step function over its length, so in percent of error; less is
    better. NaN unless a network fits at `first`, as nothing says what to integrate before one does.
    """
    left, right = first * full_cost / 100, float(full_cost)
    steps = staircase(front, cost)
    if steps.empty or steps[cost].iloc[0] * 100 > first * full_cost:
        return float("nan")
    edges = np.clip(np.append(steps[cost].to_numpy(dtype=np.float64), right), left, right)
    return float(np.diff(edges) @ steps["test_top1_error"].to_numpy() / (right - left))


def hypervolume(front: pd.DataFrame, cost: str, full_cost: float) -> float:
    """The part (percent) of the square of errors and costs up to 100% that one run dominates.

    Of the networks that budgets select, with the reference point (100% error, 100% of the full
    cost); more is better. A network that costs as much as the full one adds nothing.
    """
    steps = staircase(front, cost)
    edges = np.clip(np.append(steps[cost].to_numpy(dtype=np.float64), full_cost), 0, full_cost)
    least = np.minimum.accumulate(steps["test_top1_error"].to_numpy(dtype=np.float64))
    return float(np.diff(edges) @ (100 - least) / full_cost)


def run_measures(fronts: pd.DataFrame, cost: str, full_cost: float) -> pd.DataFrame:
    """One row per run, indexed by `method` and `seed`; its columns are the measures.

    They are the error at each of the `cost_percents`, named such as `20%`, the AREA from the first
    of these, and the HYPERVOLUME; NaN where one is not defined.
    """
    percents = cost_percents(fronts, cost, full_cost)
    budgets = [percent * full_cost / 100 for percent in percents]
    rows = {
        run: [
            *errors_at(front, cost, budgets),
            area_under_front(front, cost, full_cost, percents[0]),
            hypervolume(front, cost, full_cost),
        ]
        for run, front in fronts.groupby(["method", "seed"], sort=True)
    }
    columns = [*(f"{percent}%" for percent in percents), AREA, HYPERVOLUME]
    index = pd.MultiIndex.from_tuples(rows, names=["method", "seed"])
    return pd.DataFrame(rows.values(), index=index, columns=columns)


def seed_statistics(measures: pd.DataFrame) -> pd.DataFrame:
    """One row per method and measure: `mean`, `deviation`, `low`, `high` and `n` seeds.

    Takes what `run_measures` returns. The deviation is the sample's (n - 1), low and high are the
    `intervals`. A mean is NaN as soon as one seed's value is, so that all means are over the same
    seeds; for a single seed only the mean is there.
    """
    columns = ["method", "measure", "mean", "deviation", "low", "high", "n"]
    rows = []
    for method, runs in measures.groupby(level="method", sort=True):
        values = runs.to_numpy(dtype=np.float64)
        low, high = intervals(values)
        deviations = values.std(axis=0, ddof=1) if len(values) > 1 else np.full_like(low, np.nan)
        numbers = np.stack([values.mean(axis=0), deviations, low, high], axis=1).tolist()
        names = zip(measures.columns, numbers, strict=True)
        rows += [(method, measure, *own, len(values)) for measure, own in names]
    return pd.DataFrame(rows, columns=columns)


def paired_differences(measures: pd.DataFrame, reference: str) -> pd.DataFrame:
    """How much more each other method has than the method `reference`, seed by seed.

    Rows and columns as of `seed_statistics`; only seeds that both methods have count, and a
    method without any is left out. Of errors, a positive difference means that `reference` is
    better. Raises KeyError where `reference` has no runs.
    """
    own = measures.xs(reference, level="method")
    others = measures.drop(index=reference, level="method")
    paired = others.subtract(own.reindex(others.index, level="seed"))
    common = others.index.get_level_values("seed").isin(own.index)
    return seed_statistics(paired[common])


def intervals(values: np.ndarray) -> np.ndarray:
    """The bootstrap 95% intervals (2 x m: low, high) of the means of `n x m` values.

    By percentiles of RESAMPLES resamples of the n rows, always the same ones. NaN for fewer than
    two rows and for a column with a NaN. (With few rows they are too narrow: of two, an interval
    is the two values themselves.)
    """
    low_and_high = np.full((2, values.shape[1]), np.nan)
    known = ~np.isnan(values).any(axis=0)
    if len(values) > 1 and known.any():
        found = bootstrap(
            (values[:, known],),
            np.mean,
            n_resamples=RESAMPLES,
            method="percentile",
            axis=0,
            rng=0,
        ).confidence_interval
        low_and_high[:, known] = found.low, found.high
    return low_and_high


EXEMPT, UNEQUAL = "†", "‡"
_REQUIRED_EQUAL = ["gradient_steps", "passes"]


class UnequalBudgets(ValueError):
    """Methods that are to be compared spent different training budgets."""


def budget_marks(
    fronts: pd.DataFrame, exempt: Collection[str], methods: Sequence[str]
) -> dict[str, str]:
    """The mark, EXEMPT or UNEQUAL, of each method that is not to be compared like for like.

    Unequal is one that is not exempt and spent another training budget than most of the rest: a
    run's gradient steps and forward-backward passes, the same for every seed. Of two equally
    common budgets the one met first, in the order of the methods, is the standard.
    """
    spent = {
        method: sorted(set(fronts[fronts["method"] == method][_REQUIRED_EQUAL].itertuples(False)))
        for method in methods
        if method not in exempt
    }
    common = Counter(budget for budgets in spent.values() for budget in budgets).most_common(1)
    return {
        method: UNEQUAL if method in spent else EXEMPT
        for method in methods
        if method not in spent or spent[method] != [common[0][0]]
    }


def budget_table(fronts: pd.DataFrame, methods: Sequence[str]) -> dict[str, list[str]]:
    """Each method's budget, in the order of BUDGET_TYPES: `least to most` where seeds differ."""
    budgets = fronts.groupby("method")[list(BUDGET_TYPES)].agg(["min", "max"])
    return {
        method: [
            f"{least:,}" if least == most else f"{least:,} to {most:,}"
            for least, most in budgets.loc[method].unstack().itertuples(index=False)
        ]
        for method in methods
    }


def check_equal_budgets(fronts: pd.DataFrame, exempt: Collection[str]) -> None:
    """Raise UnequalBudgets, with every method's numbers, where `budget_marks` finds one."""
    methods = sorted(set(fronts["method"]).difference(exempt))
    if unequal := budget_marks(fronts, exempt, methods):
        numbers = "; ".join(
            f"{method}: {steps} gradient steps, {passes} passes"
            for method, (steps, passes, *_) in budget_table(fronts, methods).items()
        )
        raise UnequalBudgets(
            f"unequal training budgets ({numbers}): run {', '.join(unequal)} again with the budget"
            " of the others, or compare all the same with --allow-unequal-budgets"
        )


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The methods of an experiment, in the order to show, by the experiment's own cost."""

    labels: Mapping[str, str]
    """The name of each method with its mark, if it has one."""
    compared: list[str]
    """The methods without a mark."""
    statistics: pd.DataFrame
    """The `seed_statistics` of the `run_measures`."""
    differences: pd.DataFrame
    """The `paired_differences` of these to the first method."""


def comparison(records: Records, focus: str) -> Comparison:
    """The comparison of all methods of some records, `focus` first where it is among them."""
    experiment, fronts = records.experiment, records.fronts
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods)
    measures = run_measures(fronts, experiment.cost, experiment.full_cost)
    return Comparison(
        labels={method: f"{method} {marks.get(method, '')}".strip() for method in methods},
        compared=[method for method in methods if method not in marks],
        statistics=seed_statistics(measures),
        differences=paired_differences(measures, methods[0]),
    )
