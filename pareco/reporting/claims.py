"""What a claim is measured by, what keeps runs from settling it, and what was found.

Gains are percentage points of top-1 error by which one method is below another; more is better.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import t, ttest_ind

from pareco.reporting.collection import commit_name
from pareco.reporting.records import FOLDER, PUBLISHED_SCALE, Records
from pareco.reporting.statistics import (
    AREA,
    errors_at,
    run_measures,
    staircase,
    unequal_methods,
)

Outcome = Literal["reproduced", "not reproduced", "not run at that scale"]


@dataclass(frozen=True, kw_only=True)
class ClaimOutcome:
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
    low: float
    """The ends of a 95% interval; NaN where there are too few seeds for one."""
    high: float
    note: str = ""
    of: str = ""
    """What is a number of points, such as ` of error, a minus b`."""

    @property
    def has_interval(self) -> bool:
        """Whether there are seeds enough for an interval."""
        return not np.isnan(self.low)

    def __str__(self) -> str:
        """The number with interval, or with the remark that there is none, and the note."""
        spread = "one seed, no interval"
        if self.has_interval:
            spread = f"95% t interval {self.low:+.2f} to {self.high:+.2f}"
        return f"{self.value:+.2f} points{self.of} ({spread}){self.note}"

    def exceeds(self, number: float) -> bool:
        """Whether the number, and where there is one its whole interval, lies above another."""
        return self.value > number and (not self.has_interval or self.low > number)


def largest_gain(records: Records, cost: str, method: str, baseline: str) -> Gain | None:
    """How far the method's mean error falls below the baseline's, at the budget most in its favour.

    The budgets are the costs of the networks that the baseline selects with any seed, so that it
    is never charged for a budget that it has no network for, and the method gets no more than the
    baseline spends; those count at which every seed of both has a network. At each, errors are
    subtracted seed by seed and averaged; the interval is Student's of that mean, at the budget
    found. As the greatest of many noisy means it leans upward. None without a common
    seed or budget.
    """
    runs = _paired(records, method, baseline)
    steps = [staircase(theirs, cost)[cost].to_numpy() for _, theirs in runs]
    if not runs:
        return None
    budgets = np.unique(np.concatenate(steps))
    gains = np.array(
        [errors_at(theirs, cost, budgets) - errors_at(own, cost, budgets) for own, theirs in runs]
    )
    defined = ~np.isnan(gains).any(axis=0)
    if not defined.any():
        return None
    budgets, gains = budgets[defined], gains[:, defined]
    best = int(gains.mean(axis=0).argmax())
    share = budgets[best] / records.experiment.full_costs[cost]
    note = f" at {share:.0%} of the full cost, the greatest of {len(budgets)} budgets, "
    note += "so it leans high"
    return _measured(gains[:, best], note, of=f" of error, {baseline} minus {method}")


def area_gains(records: Records, cost: str, method: str, baseline: str) -> np.ndarray:
    """By how much the area under the front of the method is below the baseline's: one per seed.

    The area is the mean error over budgets, see `area_under_front`, from the least budget of these
    two methods' tables on. Only seeds that both have, in ascending order; possibly none.
    """
    pairs = _paired(records, method, baseline)
    if not pairs:
        return np.empty(0)
    fronts = pd.concat([front for pair in pairs for front in pair])
    areas = run_measures(fronts, cost, records.experiment.full_costs[cost])[AREA].unstack("method")
    return (areas[baseline] - areas[method]).to_numpy()


def area_gain(records: Records, cost: str, method: str, baseline: str) -> Gain | None:
    """The mean over seeds of the `area_gains`; None where one is not defined, or no seed common."""
    gains = area_gains(records, cost, method, baseline)
    if not len(gains) or np.isnan(gains).any():
        return None
    return _measured(gains, of=f" of area under the front, {baseline} minus {method}")


def difference_of_area_gains(
    records: Records, others: Records, cost: str, method: str, baseline: str
) -> Gain | None:
    """How much more the method gains over the baseline here than with the other network.

    The mean of the `area_gains` minus that of the others, with Welch's interval, as the seeds of
    two networks have nothing in common. None as of `area_gain`.
    """
    here = area_gains(records, cost, method, baseline)
    there = area_gains(others, cost, method, baseline)
    if not len(here) or not len(there) or np.isnan(np.concatenate([here, there])).any():
        return None
    value = float(here.mean() - there.mean())
    if min(len(here), len(there)) < 2:
        return Gain(value=value, low=float("nan"), high=float("nan"))
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
    if experiment.scale != PUBLISHED_SCALE:
        yield f"scale {experiment.scale}"
        return
    ran = set(records.runs)
    missing = [(each, seed) for each in methods for seed in seeds if (each, seed) not in ran]
    if missing:
        yield "not run: " + ", ".join(f"{each} seed {seed}" for each, seed in missing)
    fronts = records.fronts[records.fronts["method"].isin(methods)]
    other = sorted(set(fronts["gradient_steps"].tolist()) - {gradient_steps})
    if other:
        numbers = ", ".join(f"{steps:,}" for steps in other)
        yield f"{numbers} gradient steps, not {gradient_steps:,}"
    present = [each for each in methods if (fronts["method"] == each).any()]
    exempt = [each for each in present if each in experiment.budget_exempt]
    unequal = unequal_methods(fronts, (), present) if present else []
    if names := list(dict.fromkeys([*exempt, *unequal])):
        yield f"unequal training budgets: {', '.join(names)}"


def provenance(records: Records, methods: Sequence[str]) -> str:
    """The folder under results/, the commits and the seeds of the runs of these methods."""
    runs = records.environment["runs"]
    environments = records.environment["environments"]
    used = sorted(
        {
            index
            for method in methods
            for run in runs.get(method, {}).values()
            for index in run["sessions"]
        }
    )
    commits = dict.fromkeys(commit_name(environments[index], 7) for index in used)
    seeds = sorted({seed for method, seed in records.runs if method in methods})
    numbers = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    return f"{records.experiment.experiment}/{FOLDER}: commit {', '.join(commits)}; {numbers}"


def _paired(
    records: Records, method: str, baseline: str
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The fronts of both methods, for each seed that both have, in ascending order."""
    fronts = records.fronts
    own, theirs = (fronts[fronts["method"] == name] for name in (method, baseline))
    common = sorted(set(own["seed"].tolist()) & set(theirs["seed"].tolist()))
    return [(own[own["seed"] == seed], theirs[theirs["seed"] == seed]) for seed in common]


def _measured(gains: np.ndarray, note: str = "", of: str = "") -> Gain:
    """The mean over seeds with Student's interval, which holds for few seeds as well."""
    value, low, high = float(gains.mean()), float("nan"), float("nan")
    if len(gains) > 1:
        reach = t.ppf(0.975, len(gains) - 1) * gains.std(ddof=1) / len(gains) ** 0.5
        low, high = value - reach, value + reach
    return Gain(value=value, low=float(low), high=float(high), note=note, of=of)
