"""Error at fixed costs and the area under the front: per run, and over seeds.

Costs are MACs in whole percent of the full network's; errors are percent, less is better.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

COST_PERCENTS = (20, 40, 60, 80, 100)
AREA = "area"
MEASURES = (*(f"{percent}%" for percent in COST_PERCENTS), AREA)


def method_order(methods: Iterable[str], focus: str) -> list[str]:
    """The distinct methods: `focus` first where it is among them, then alphabetically."""
    return sorted(set(methods), key=lambda method: (method != focus, method))


def staircase(front: pd.DataFrame) -> pd.DataFrame:
    """The networks of one run that some cost budget selects, by ascending MACs.

    A budget selects the network of the lowest search loss among those it can pay, the cheaper of
    two that tie: an honest choice, as the test error plays no part in it. Hence search losses
    descend along the result; test errors need not.
    """
    ordered = front.sort_values(["macs", "search_loss", "params", "widths"], ignore_index=True)
    losses = ordered["search_loss"].to_numpy(dtype=np.float64)
    best_before = np.minimum.accumulate(np.concatenate(([np.inf], losses[:-1])))
    return ordered[losses < best_before].reset_index(drop=True)


def errors_at(front: pd.DataFrame, budgets: Sequence[int] | np.ndarray) -> np.ndarray:
    """Test top-1 errors (n, percent) of the networks that n budgets (MACs) select.

    NaN where no network fits.
    """
    steps = staircase(front)
    errors = np.concatenate(([np.nan], steps["test_top1_error"].to_numpy(dtype=np.float64)))
    return errors[np.searchsorted(steps["macs"].to_numpy(), np.asarray(budgets), side="right")]


def area_under_front(front: pd.DataFrame, full_macs: int) -> float:
    """The mean over budgets, from 20% to 100% of the full cost, of the error that each selects.

    The exact integral of that step function over its length, so in percent of error; less is
    better. NaN unless a network fits at 20%, as nothing says what to integrate before the first.
    """
    left, right = COST_PERCENTS[0] * full_macs / 100, float(full_macs)
    steps = staircase(front)
    if steps.empty or steps["macs"].iloc[0] * 100 > COST_PERCENTS[0] * full_macs:
        return float("nan")
    edges = np.clip(np.append(steps["macs"].to_numpy(dtype=np.float64), right), left, right)
    return float(np.diff(edges) @ steps["test_top1_error"].to_numpy() / (right - left))


def run_measures(fronts: pd.DataFrame, full_macs: int) -> pd.DataFrame:
    """One row per run: `method`, `seed` and the MEASURES, NaN where they are not defined."""
    budgets = [percent * full_macs // 100 for percent in COST_PERCENTS]
    rows = [
        (method, seed, *errors_at(front, budgets), area_under_front(front, full_macs))
        for (method, seed), front in fronts.groupby(["method", "seed"], sort=True)
    ]
    return pd.DataFrame(rows, columns=["method", "seed", *MEASURES])


def seed_statistics(measures: pd.DataFrame) -> pd.DataFrame:
    """One row per method and measure: `mean`, `deviation` (sample, n - 1) and `n` seeds.

    A mean is NaN as soon as one seed's value is, so that all means are over the same seeds; a
    deviation is NaN for a single seed.
    """
    rows = []
    for method, runs in measures.groupby("method", sort=True):
        for measure in MEASURES:
            values = runs[measure].to_numpy(dtype=np.float64)
            deviation = float(np.std(values, ddof=1)) if len(values) > 1 else float("nan")
            rows.append((method, measure, float(np.mean(values)), deviation, len(values)))
    return pd.DataFrame(rows, columns=["method", "measure", "mean", "deviation", "n"])
