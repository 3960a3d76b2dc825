"""Error at fixed costs and the area under the front: per run, and over seeds.

A cost is a column of a front, such as `macs`; it is reported in whole percent of the full
network's. Errors are percent. Of both, less is better.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from pareco.cost import COSTS, Cost

AREA = "area"
_GRID = (20, 40, 60, 80, 100)
_STEP = 5


def method_order(methods: Iterable[str], focus: str) -> list[str]:
    """The distinct methods: `focus` first where it is among them, then alphabetically."""
    return sorted(set(methods), key=lambda method: (method != focus, method))


def staircase(front: pd.DataFrame, cost: Cost) -> pd.DataFrame:
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


def errors_at(front: pd.DataFrame, cost: Cost, budgets: Sequence[int] | np.ndarray) -> np.ndarray:
    """Test top-1 errors (n, percent) of the networks that n budgets of `cost` select.

    NaN where no network fits.
    """
    steps = staircase(front, cost)
    errors = np.concatenate(([np.nan], steps["test_top1_error"].to_numpy(dtype=np.float64)))
    return errors[np.searchsorted(steps[cost].to_numpy(), np.asarray(budgets), side="right")]


def cost_percents(fronts: pd.DataFrame, cost: Cost, full_cost: int) -> tuple[int, ...]:
    """The budgets of the tables, in ascending percent of the full cost: the last is 100.

    They are 20, 40, 60, 80 and 100 where some network of `fronts` fits into 20%. Otherwise, as
    with activations (which fall in proportion to the widths, MACs with their square), the first
    is the least multiple of 5 into which one fits, at most 80, and the smaller ones are left out.
    """
    least = -(-100 * int(fronts[cost].min()) // full_cost)
    first = min(max(_GRID[0], -(-least // _STEP) * _STEP), _GRID[-2])
    return (first, *(percent for percent in _GRID if percent > first))


def area_under_front(front: pd.DataFrame, cost: Cost, full_cost: int, first: int) -> float:
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


def run_measures(fronts: pd.DataFrame, cost: Cost, full_cost: int) -> pd.DataFrame:
    """One row per run, indexed by `method` and `seed`; its columns are the measures.

    They are the error at each of the `cost_percents`, named such as `20%`, and last the AREA from
    the first of these; NaN where one is not defined.
    """
    percents = cost_percents(fronts, cost, full_cost)
    budgets = [percent * full_cost // 100 for percent in percents]
    rows = {
        run: [
            *errors_at(front, cost, budgets),
            area_under_front(front, cost, full_cost, percents[0]),
        ]
        for run, front in fronts.groupby(["method", "seed"], sort=True)
    }
    columns = [*(f"{percent}%" for percent in percents), AREA]
    index = pd.MultiIndex.from_tuples(rows, names=["method", "seed"])
    return pd.DataFrame(rows.values(), index=index, columns=columns)


def seed_statistics(measures: pd.DataFrame) -> pd.DataFrame:
    """One row per method and measure: `mean`, `deviation` (sample, n - 1) and `n` seeds.

    Takes what `run_measures` returns. A mean is NaN as soon as one seed's value is, so that all
    means are over the same seeds; a deviation is NaN for a single seed.
    """
    rows = []
    for method, runs in measures.groupby(level="method", sort=True):
        for measure in measures.columns:
            values = runs[measure].to_numpy(dtype=np.float64)
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            rows.append((method, measure, float(np.mean(values)), deviation, len(values)))
    return pd.DataFrame(rows, columns=["method", "measure", "mean", "deviation", "n"])
