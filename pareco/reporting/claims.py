"""Gains of one method over another, what keeps runs from settling a claim, and verdicts on claims.

Gains are percentage points of top-1 error by which one method is below another; more is better.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from math import isnan, nan
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t, ttest_ind

from pareco.reporting.collection import commit_name
from pareco.reporting.records import FOLDER, Records
from pareco.reporting.statistics import AREA, budget_marks, errors_at, run_measures, staircase

Outcome = Literal["reproduced", "not reproduced", "not run at that scale"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found about a claim; `not reproduced` too needs runs at the published scale."""

    id: str
    statement: str
    """The claim, quoted."""
    source: str
    experiments: tuple[str, ...]
    """The replications that test it."""
    about: Literal["the paper", "costs"]
    """Whether it is a claim of the paper, or a published count that our cost model is held to."""
    why: str
    """The reason for the tolerance."""
    outcome: Outcome
    ours: str
    """Our number with its interval, or what there is at a smaller scale, called that."""
    evidence: str
    """The records, or the computation, behind it."""


@dataclass(frozen=True, kw_only=True)
class Gain:
    """A number in percentage points, and how sure it is."""

    value: float
    low: float = nan
    """The ends of a 95% interval; NaN where there are too few seeds for one."""
    high: float = nan
    of: str = ""
    """What is a number of points, such as ` of error, a minus b`."""
    note: str = ""

    @property
    def has_interval(self) -> bool:
        """Whether there are seeds enough for an interval."""
        return not isnan(self.low)

    def __str__(self) -> str:
        """The number with interval, or with the remark that there is none, and the note."""
        interval = f"95% t interval {self.low:+.2f} to {self.high:+.2f}"
        spread = interval if self.has_interval else "one seed, no interval"
        return f"{self.value:+.2f} points{self.of} ({spread}){self.note}"

    def exceeds(self, number: float) -> bool:
        """Whether the number, and where there is one its whole interval, lies above another."""
        return self.value > number and (not self.has_interval or self.low > number)


def largest_gain(records: Records, *, cost: str, method: str, baseline: str) -> Gain | None:
    """How far the method's mean error falls below the baseline's, at the budget most in its favour.

    Budgets are the costs of the networks that the baseline selects with any seed: it is never
    charged for a budget that it has no network for, and the method gets no more than it spends.
    Those count at which every seed of both has a network. Errors are subtracted seed by seed; as
    the greatest of many noisy means it leans upward. None without a common seed or budget.
    """
    pairs = _paired(records, method, baseline)
    if not pairs:
        return None
    budgets = np.unique(np.concatenate([staircase(theirs, cost)[cost] for _, theirs in pairs]))
    gains = np.array(
        [errors_at(theirs, cost, budgets) - errors_at(own, cost, budgets) for own, theirs in pairs]
    )
    defined = ~np.isnan(gains).any(axis=0)
    if not defined.any():
        return None
    budgets, gains = budgets[defined], gains[:, defined]
    best = int(gains.mean(axis=0).argmax())
    share = budgets[best] / records.experiment.full_costs[cost]
    note = f" at {share:.0%} of the full cost, the greatest of {len(budgets)} budgets, "
    return _mean(gains[:, best], f" of error, {baseline} minus {method}", f"{note}so it leans high")


def area_gain(
    records: Records, others: Records | None = None, *, cost: str, method: str, baseline: str
) -> Gain | None:
    """By how much the area under the method's front is below the baseline's: the mean over seeds.

    The area is the mean error over budgets, see `area_under_front`, from the least budget of these
    two methods' tables on. Where there are others, theirs is subtracted, with Welch's interval, as
    the seeds of two networks have nothing in common. None without a common seed, or where an area
    is not defined.
    """
    here = _area_gains(records, cost, method, baseline)
    if others is None:
        return _mean(here, f" of area under the front, {baseline} minus {method}")
    there = _area_gains(others, cost, method, baseline)
    if not len(here) or not len(there):
        return None
    value = float(here.mean() - there.mean())
    if min(len(here), len(there)) < 2:
        return Gain(value=value)
    if np.ptp(here) == np.ptp(there) == 0:
        return Gain(value=value, low=value, high=value)
    interval = ttest_ind(here, there, equal_var=False).confidence_interval(0.95)
    return Gain(value=value, low=float(interval.low), high=float(interval.high))


def shortcomings(
    records: Records, methods: Sequence[str], seeds: Collection[int], gradient_steps: int
) -> Iterator[str]:
    """Why the records cannot settle a claim about these methods; nothing if they can.

    They must be at the published scale, with each method and seed, all trained for the published
    number of steps and with equal budgets. Of another scale only that is said.
    """
    experiment = records.experiment
    if not experiment.published:
        yield f"scale {experiment.scale}"
        return
    missing = [
        (each, seed) for each in methods for seed in seeds if (each, seed) not in records.runs
    ]
    if missing:
        yield "not run: " + ", ".join(f"{each} seed {seed}" for each, seed in missing)
    fronts = records.fronts[records.fronts["method"].isin(methods)]
    if other := sorted(set(fronts["gradient_steps"].tolist()) - {gradient_steps}):
        numbers = ", ".join(f"{steps:,}" for steps in other)
        yield f"{numbers} gradient steps, not {gradient_steps:,}"
    ran = [each for each in methods if each in dict(records.runs)]
    if unequal := budget_marks(fronts, experiment.budget_exempt, ran):
        yield f"unequal training budgets: {', '.join(unequal)}"


def evidence(records: Records, methods: Sequence[str]) -> str:
    """The folder under results/, the commits and the seeds of the runs of these methods."""
    runs = [records.environment["runs"].get(method, {}) for method in methods]
    used = {index for seeds in runs for run in seeds.values() for index in run["sessions"]}
    environments = [records.environment["environments"][index] for index in sorted(used)]
    commits = dict.fromkeys(commit_name(each, 7) for each in environments)
    seeds = sorted({seed for method, seed in records.runs if method in methods})
    numbers = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    return f"{records.experiment.experiment}/{FOLDER}: commit {', '.join(commits)}; {numbers}"


def _paired(
    records: Records, method: str, baseline: str
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The fronts of both methods, for each seed that both have, in ascending order."""
    ran = set(records.runs)
    common = sorted(seed for name, seed in ran if name == method and (baseline, seed) in ran)
    fronts = records.fronts.groupby(["method", "seed"])
    return [
        (fronts.get_group((method, seed)), fronts.get_group((baseline, seed))) for seed in common
    ]


def _area_gains(records: Records, cost: str, method: str, baseline: str) -> np.ndarray:
    """One gain of each seed that both have, in ascending order; none where one is not defined."""
    pairs = _paired(records, method, baseline)
    if not pairs:
        return np.empty(0)
    fronts = pd.concat([front for pair in pairs for front in pair])
    areas = run_measures(fronts, cost, records.experiment.full_costs[cost])[AREA].unstack("method")
    gains = (areas[baseline] - areas[method]).to_numpy()
    return np.empty(0) if np.isnan(gains).any() else gains


def _mean(gains: np.ndarray, of: str, note: str = "") -> Gain | None:
    """The mean over seeds with Student's interval, which holds for few seeds as well."""
    if not len(gains):
        return None
    value, reach = float(gains.mean()), nan
    if len(gains) > 1:
        reach = float(t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5)
    return Gain(value=value, low=value - reach, high=value + reach, of=of, note=note)
