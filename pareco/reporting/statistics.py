"""Error at fixed costs, area under the front, hypervolume: per run, over seeds, between methods.

A cost is a column of a front, such as `macs`; it is reported in whole percent of the full
network's. Errors are percent. Of both, less is better; of hypervolume, more.
"""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, comb

import numpy as np
import pandas as pd
from scipy.stats import t

from pareco.config import COSTS
from pareco.reporting.records import Records
from pareco.schema import BUDGET_TYPES, PASSES

ERROR, LOSS = "test_top1_error", "test_loss"
AREA = "area"
HYPERVOLUME = "hypervolume"
CONFIDENCE = 0.95
FEWEST_SEEDS = 3
"""With fewer, no band is drawn, no method is bold, and no claim is settled."""
_NO_SPREAD = 1e-9
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


def errors_at(
    front: pd.DataFrame, cost: str, budgets: Sequence[float] | np.ndarray, of: str = ERROR
) -> np.ndarray:
    """Test top-1 errors (n, percent) of the networks that n budgets of `cost` select.

    Or what else they have, such as their LOSS. NaN where no network fits.
    """
    steps = staircase(front, cost)
    errors = np.concatenate(([np.nan], steps[of].to_numpy(dtype=np.float64)))
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


def area_under_front(
    front: pd.DataFrame, cost: str, full_cost: float, first: int, of: str = ERROR
) -> float:
    """The mean over budgets, from `first` to 100% of the full cost, of the error each selects.

    Or `of` their LOSS. The exact integral of that step function over its length, so in percent of
    error; less is better. NaN unless a network fits at `first`, as nothing says what to integrate
    before one does.
    """
    left, right = first * full_cost / 100, float(full_cost)
    steps = staircase(front, cost)
    if steps.empty or steps[cost].iloc[0] * 100 > first * full_cost:
        return float("nan")
    edges = np.clip(np.append(steps[cost].to_numpy(dtype=np.float64), right), left, right)
    return float(np.diff(edges) @ steps[of].to_numpy() / (right - left))


def hypervolume(front: pd.DataFrame, cost: str, full_cost: float) -> float:
    """The part (percent) of the square of errors and costs up to 100% that one run dominates.

    Of the networks that budgets select, with the reference point (100% error, 100% of the full
    cost); more is better. A network that costs as much as the full one adds nothing.
    """
    steps = staircase(front, cost)
    edges = np.clip(np.append(steps[cost].to_numpy(dtype=np.float64), full_cost), 0, full_cost)
    least = np.minimum.accumulate(steps[ERROR].to_numpy(dtype=np.float64))
    return float(np.diff(edges) @ (100 - least) / full_cost)


def run_measures(
    fronts: pd.DataFrame, cost: str, full_cost: float, percents: Sequence[int] = ()
) -> pd.DataFrame:
    """One row per run, indexed by `method` and `seed`; its columns are the measures.

    They are the error at each of the `percents`, if none are given the `cost_percents` of all
    fronts, named such as `20%`, the AREA from the first of these, and the HYPERVOLUME; NaN where
    one is not defined.
    """
    percents = percents or cost_percents(fronts, cost, full_cost)
    measures = means_at(fronts, cost, full_cost, percents, ERROR)
    measures[HYPERVOLUME] = [
        hypervolume(front, cost, full_cost)
        for _, front in fronts.groupby(["method", "seed"], sort=True)
    ]
    return measures


def means_at(
    fronts: pd.DataFrame, cost: str, full_cost: float, percents: Sequence[int], of: str
) -> pd.DataFrame:
    """The `run_measures` but for the HYPERVOLUME, of the ERROR or the LOSS; of no front no row."""
    budgets = [percent * full_cost / 100 for percent in percents]
    rows = {
        run: [
            *errors_at(front, cost, budgets, of),
            area_under_front(front, cost, full_cost, percents[0], of),
        ]
        for run, front in fronts.groupby(["method", "seed"], sort=True)
    }
    columns = [*(f"{percent}%" for percent in percents), AREA]
    index = pd.MultiIndex.from_arrays(
        [*zip(*rows, strict=True)] or [[], []], names=["method", "seed"]
    )
    return pd.DataFrame(rows.values(), index=index, columns=columns)


def loss_measures(
    fronts: pd.DataFrame, cost: str, full_cost: float, percents: Sequence[int] = ()
) -> pd.DataFrame:
    """The `run_measures` but for the HYPERVOLUME, of the LOSS (nats).

    Of the runs that have it of every network of their front, so that the same ones are selected.
    """
    percents = percents or cost_percents(fronts, cost, full_cost)
    unknown = fronts[LOSS].isna().groupby([fronts["method"], fronts["seed"]]).transform("any")
    return means_at(fronts[~unknown], cost, full_cost, percents, LOSS)


def seed_statistics(measures: pd.DataFrame, comparisons: int = 1) -> pd.DataFrame:
    """One row per method and measure: `mean`, `deviation`, `low`, `high` and `n` seeds.

    Takes what `run_measures` returns. The deviation is the sample's (n - 1), low and high are the
    `intervals` of so many comparisons. A mean is NaN as soon as one seed's value is, so that all
    means are over the same seeds; for a single seed only the mean is there.
    """
    columns = ["method", "measure", "mean", "deviation", "low", "high", "n"]
    rows = []
    for method, runs in measures.groupby(level="method", sort=True):
        values = runs.to_numpy(dtype=np.float64)
        low, high = intervals(values, comparisons)
        deviations = values.std(axis=0, ddof=1) if len(values) > 1 else np.full_like(low, np.nan)
        numbers = np.stack([values.mean(axis=0), deviations, low, high], axis=1).tolist()
        names = zip(measures.columns, numbers, strict=True)
        rows += [(method, measure, *own, len(values)) for measure, own in names]
    return pd.DataFrame(rows, columns=columns)


def paired_differences(
    measures: pd.DataFrame, reference: str, comparisons: int = 1
) -> pd.DataFrame:
    """How much more each other method has than the method `reference`, seed by seed.

    Rows, columns and comparisons as of `seed_statistics`; only seeds that both methods have count,
    and a method without any is left out. Of errors, a positive difference means that `reference`
    is better. Raises KeyError where `reference` has no runs.
    """
    own = measures.xs(reference, level="method")
    others = measures.drop(index=reference, level="method")
    paired = others.subtract(own.reindex(others.index, level="seed"))
    common = others.index.get_level_values("seed").isin(own.index)
    return seed_statistics(paired[common], comparisons)


def best_methods(measures: pd.DataFrame, methods: Collection[str]) -> dict[str, set[str]]:
    """By measure the method of the best mean, and those that the seeds do not tell apart from it.

    Of these methods; told apart is one whose paired difference to the best has an interval that
    leaves out zero, adjusted for the number of pairs of methods, as which of them is the best is
    chosen by the same seeds. So equal methods are told apart in at most 5% of cases. Nobody where
    no mean is defined, or where a method has fewer than FEWEST_SEEDS seeds.
    """
    own = measures[measures.index.get_level_values("method").isin(methods)]
    best: dict[str, set[str]] = {str(name): set() for name in measures.columns}
    if own.empty or own.groupby(level="method").size().min() < FEWEST_SEEDS:
        return best
    means = own.groupby(level="method").agg(lambda errors: errors.mean(skipna=False))
    for name in best:
        known = means[name].dropna()
        if known.empty:
            continue
        first = str(known.idxmax() if name == HYPERVOLUME else known.idxmin())
        columns = own.loc[own.index.get_level_values("method").isin(known.index), [name]]
        others = paired_differences(columns, first, max(comb(len(known), 2), 1))
        apart = others[(others["low"] > 0) | (others["high"] < 0)]["method"]
        best[name] = set(map(str, known.index)) - set(apart)
    return best


def intervals(values: np.ndarray, comparisons: int = 1) -> np.ndarray:
    """Student's 95% intervals (2 x m: low, high) of the means of `n x m` values.

    The mean, give or take its standard error times the quantile of Student's t for n - 1 degrees
    of freedom; exact for any n of at least two where the values are normal. Of as many
    `comparisons` (Bonferroni) all hold together with 95%. NaN for fewer than two rows, for a
    column with a NaN, and where all rows agree, as such a column says nothing of its spread.
    """
    return combined_intervals([values], [1.0], comparisons)


def combined_intervals(
    samples: Sequence[np.ndarray],
    weights: Sequence[float],
    comparisons: int = 1,
    rows: Sequence[int] | None = None,
) -> np.ndarray:
    """The `intervals` of the sums over samples (`n_i x m` each) of a weight times the mean.

    The samples are independent of each other and may differ in spread and number: the degrees of
    freedom are those of Welch and Satterthwaite. NaN where any sample alone has no interval: one
    whose rows agree is not known exactly. `rows` are used in place of the n_i to foretell what as
    many values of the same means and spreads would give.
    """
    counts = [len(each) for each in samples] if rows is None else rows
    if min(map(len, samples)) < 2:
        return np.full((2, samples[0].shape[1]), np.nan)
    value = sum(w * each.mean(axis=0) for each, w in zip(samples, weights, strict=True))
    variances = np.array([each.var(axis=0, ddof=1) for each in samples])
    variances[:, ~(variances > _NO_SPREAD**2).all(axis=0)] = np.nan
    errors = [
        weight**2 * each / count
        for weight, each, count in zip(weights, variances, counts, strict=True)
    ]
    total = np.sum(errors, axis=0)
    freedom = total**2 / sum(e**2 / (count - 1) for e, count in zip(errors, counts, strict=True))
    reach = t.ppf(1 - (1 - CONFIDENCE) / (2 * comparisons), freedom)
    return np.stack([value - reach * np.sqrt(total), value + reach * np.sqrt(total)])


def holm(p_values: Sequence[float]) -> list[float]:
    """p-values (m, each at most 1) adjusted for each other, in their order.

    One is rejected at a level where its adjusted value lies below: the chance of rejecting any
    true hypothesis is then at most that level, however they depend on each other. Holm's step-down
    (Scandinavian Journal of Statistics 6, 1979): the i-th least is multiplied by m + 1 - i, and no
    value is less than one of a smaller p. A test still to come may be counted with 1, and what is
    rejected without it stays rejected.
    """
    values = np.asarray(p_values, dtype=np.float64)
    order = np.argsort(values, kind="stable")
    adjusted = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1))
    result = np.empty_like(values)
    result[order] = np.minimum(adjusted, 1)
    return result.tolist()


EXEMPT, UNEQUAL = "†", "‡"


class UnequalBudgets(ValueError):
    """Methods that are to be compared spent different training budgets."""


def budget_marks(
    fronts: pd.DataFrame,
    exempt: Collection[str],
    methods: Sequence[str],
    equal: Sequence[str] = PASSES,
) -> dict[str, str]:
    """The mark, EXEMPT or UNEQUAL, of each method that is not to be compared like for like.

    Unequal is one that is not exempt and spent another training budget than most of the rest: the
    `equal` columns of BUDGET_TYPES, the same for every seed. Of two equally
    common budgets the one met first, in the order of the methods, is the standard.
    """
    spent = {
        method: sorted(set(fronts[fronts["method"] == method][[*equal]].itertuples(False)))
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


def check_equal_budgets(
    fronts: pd.DataFrame, exempt: Collection[str], equal: Sequence[str] = PASSES
) -> None:
    """Raise UnequalBudgets, with every method's numbers, where `budget_marks` finds one."""
    methods = sorted(set(fronts["method"]).difference(exempt))
    if unequal := budget_marks(fronts, exempt, methods, equal):
        numbers = "; ".join(
            f"{method}: {steps} gradient steps, {passes} passes"
            for method, (steps, passes, *_) in budget_table(fronts, methods).items()
        )
        raise UnequalBudgets(
            f"unequal training budgets ({numbers}): run {', '.join(unequal)} again with the budget"
            " of the others, or compare all the same with --allow-unequal-budgets"
        )


@dataclass(frozen=True, kw_only=True)
class Quantity:
    """What the methods come to in one quantity, and how they differ."""

    values: pd.DataFrame
    """A row for each run that has it, as `run_measures` or `loss_measures` give; maybe none."""
    statistics: pd.DataFrame
    """The `seed_statistics` of these."""
    first: str
    """The first of the methods that has any; empty where none has."""
    differences: pd.DataFrame
    """The `paired_differences` to that one."""

    @classmethod
    def of(cls, values: pd.DataFrame, methods: Sequence[str]) -> "Quantity":
        """Return what these values come to, with the methods in the order to show."""
        there = set(values.index.get_level_values("method"))
        first = next((method for method in methods if method in there), "")
        return cls(
            values=values,
            statistics=seed_statistics(values),
            first=first,
            differences=paired_differences(values, first) if first else seed_statistics(values),
        )

    def seeds(self, methods: Collection[str]) -> dict[str, frozenset[int]]:
        """Return the seeds of those of the methods that have any."""
        runs = self.values.index.to_frame(index=False)
        own = runs[runs["method"].isin(methods)].groupby("method")["seed"]
        return {str(method): frozenset(seeds) for method, seeds in own}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The methods of an experiment, in the order to show, by the experiment's own cost."""

    labels: Mapping[str, str]
    """The name of each method with its mark, if it has one."""
    compared: list[str]
    """The methods that are judged: without a mark, and not planned with fewer seeds."""
    errors: Quantity
    losses: Quantity


def comparison(records: Records, focus: str) -> Comparison:
    """The comparison of all methods of some records, `focus` first where it is among them."""
    experiment, fronts = records.experiment, records.fronts
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods, experiment.equal)
    errors, losses = (
        Quantity.of(of(fronts, experiment.cost, experiment.full_cost), methods)
        for of in (run_measures, loss_measures)
    )
    return Comparison(
        labels={method: f"{method} {marks.get(method, '')}".strip() for method in methods},
        compared=[each for each in methods if each not in {*marks, *experiment.planned_fewer}],
        errors=errors,
        losses=losses,
    )
