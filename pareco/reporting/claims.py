"""Gains of one method over another, what keeps runs from settling a claim, and verdicts on claims.

Gains are percentage points of top-1 error by which one method is below another; more is better.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd
from scipy.stats import sem, t

from pareco.reporting.collection import commit_name
from pareco.reporting.records import FOLDER, Records
from pareco.reporting.statistics import (
    AREA,
    FEWEST_SEEDS,
    budget_marks,
    combined_intervals,
    errors_at,
    intervals,
    run_measures,
)

Settled = Literal["reproduced", "contradicted", "inconclusive"]
Outcome = Literal[Settled, "not run at that scale"]
About = Literal["the paper", "ours", "costs"]
MOST_SEEDS = 1_000


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What was found about a claim; all but the last outcome need runs at the published scale."""

    id: str
    statement: str
    """The claim, quoted."""
    source: str
    experiments: tuple[str, ...]
    """The replications that test it."""
    about: About
    """A claim of the paper, one of this project, or a published count that our cost model is held
    to."""
    why: str
    """How it is judged, and why so."""
    outcome: Outcome
    ours: str
    """Our number with its interval, or what there is at a smaller scale, called that."""
    evidence: str
    """The records, or the computation, behind it."""


@dataclass(frozen=True, kw_only=True)
class Gains:
    """By how many points one method is below another at k places that were fixed beforehand.

    A gain is the sum over experiments of a weight times the mean over seeds, so that the mean of
    several experiments and the difference of two are gains as well.
    """

    of: str
    """What is a number of points, such as `error, a minus b`."""
    places: tuple[str, ...]
    """Where, such as `at 40%`."""
    samples: tuple[np.ndarray, ...]
    """Of each experiment n x k: a row for each seed, NaN where it has no network."""
    weights: tuple[float, ...] = (1.0,)
    family: int = 1
    """How many gains like this one are to hold together."""

    @property
    def seeds(self) -> int:
        """The number of seeds of the experiment that has the fewest."""
        return min(map(len, self.samples))

    @property
    def means(self) -> np.ndarray:
        """The k gains, NaN where a seed has no network."""
        parts = zip(self.weights, self.samples, strict=True)
        return np.sum([weight * sample.mean(axis=0) for weight, sample in parts], axis=0)

    def agree(self) -> np.ndarray:
        """At which places the seeds of each of the m experiments agree (m x k).

        So that a gain that is a number has no interval there.
        """
        low = [intervals(sample)[0] for sample in self.samples]
        return np.isnan(low) & ~np.isnan(self.means)

    def intervals(self, seeds: int = 0) -> np.ndarray:
        """Intervals (2 x k: low, high) that hold at all places together with 95%.

        See `combined_intervals`; where more `seeds` are given, as if each experiment had as many
        of the same means and spreads.
        """
        rows = [max(len(sample), seeds) for sample in self.samples]
        comparisons = len(self.places) * self.family
        return combined_intervals(self.samples, self.weights, comparisons, rows)

    def p_value(self) -> float:
        """The two-sided p-value of Student's t test that the one gain of one experiment is zero.

        1 where there is no interval, as nothing is known of the spread.
        """
        (sample,) = self.samples
        if np.isnan(self.intervals()).any():
            return 1.0
        statistic = sample[:, 0].mean() / sem(sample[:, 0])
        return float(2 * t.sf(abs(statistic), len(sample) - 1))

    def outcome(self, above: float, reaching: float, seeds: int = 0) -> Settled:
        """Whether some gain lies above a number and is as large as another one that is not lower.

        Reproduced where the interval of one place lies wholly above the first and reaches the
        second; contradicted where the intervals of all places lie wholly below the second;
        otherwise, and with fewer than FEWEST_SEEDS, inconclusive. `seeds` as of `intervals`.
        """
        if max(self.seeds, seeds) < FEWEST_SEEDS:
            return "inconclusive"
        low, high = self.intervals(seeds)
        if ((low > above) & (high >= reaching)).any():
            return "reproduced"
        return "contradicted" if (high < reaching).all() else "inconclusive"

    def deciding_seeds(self, above: float, reaching: float) -> int | None:
        """How many seeds of the same means and spreads would settle it: the least such number.

        More than there are; None where MOST_SEEDS would not, or there is no spread to go by. Still
        more may settle it otherwise: an interval that reaches a number need not hold it for long.
        """
        if self.seeds < 2:
            return None
        numbers = range(max(FEWEST_SEEDS, self.seeds + 1), MOST_SEEDS + 1)
        decided = (n for n in numbers if self.outcome(above, reaching, n) != "inconclusive")
        return next(decided, None)

    def __str__(self) -> str:
        """The numbers with their intervals, or with the remark that there are none."""
        low, high = self.intervals()
        numbers = [
            f"{mean:+.2f}{'' if np.isnan(least) else f' [{least:+.2f}, {most:+.2f}]'}"
            for mean, least, most in zip(self.means, low, high, strict=True)
        ]
        shown = (
            f"{'no network in some seed' if 'nan' in number else number}{place and f' {place}'}"
            for number, place in zip(numbers, self.places, strict=True)
        )
        counts = sorted({len(sample) for sample in self.samples})
        seeds = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
        spread = "one seed, no interval"
        if counts != [1]:
            adjusted = f", adjusted for {len(self.places)}" if len(self.places) > 1 else ""
            kind = "no interval" if np.isnan(low).all() else f"95% t intervals{adjusted}"
            spread = f"{seeds} seeds, {kind}"
        return f"points of {self.of}: {', '.join(shown)} ({spread})"


def budget_gains(
    records: Records, *, cost: str, method: str, baseline: str, percents: Sequence[float]
) -> Gains | None:
    """How far the method's error falls below the baseline's at budgets of so many percent.

    Of the full cost; each method has the network that the budget selects, see `staircase`. Errors
    are subtracted seed by seed. None without a common seed, or where no budget has networks of
    every seed of both.
    """
    pairs = _paired(records, method, baseline)
    budgets = np.asarray(percents) * records.experiment.full_costs[cost] / 100
    gains = [
        errors_at(theirs, cost, budgets) - errors_at(own, cost, budgets) for own, theirs in pairs
    ]
    if not gains or np.isnan(gains).any(axis=0).all():
        return None
    return Gains(
        of=f"error, {baseline} minus {method}",
        places=tuple(f"at {percent:g}%" for percent in percents),
        samples=(np.array(gains),),
    )


def area_gains(
    records: Records, others: Records | None = None, *, cost: str, method: str, baseline: str
) -> Gains | None:
    """By how much the area under the method's front is below the baseline's, seed by seed.

    The area is the mean error over budgets, see `area_under_front`, from the least budget of these
    two methods' tables on. Where there are others, theirs is subtracted. None without a common
    seed, or where an area is not defined.
    """
    samples = [
        _area_gains(each, cost, method, baseline) for each in (records, others) if each is not None
    ]
    if not all(map(len, samples)):
        return None
    of = f"area under the front, {baseline} minus {method}"
    return Gains(
        of=of if others is None else f"{of}, the first less the second",
        places=("",),
        samples=tuple(sample[:, None] for sample in samples),
        weights=(1.0, -1.0)[: len(samples)],
    )


def gains_at_costs(records: Records, *, cost: str, method: str, baseline: str) -> Gains | None:
    """How far the method's error falls below the baseline's at the baseline's own costs.

    In the mean over all distinct costs of its fronts; each method has the network that such a
    budget selects, subtracted seed by seed. For a baseline of few networks, whose area is large by
    construction. None without a common seed, or where one has no network at some cost.
    """
    pairs = _paired(records, method, baseline)
    if not pairs:
        return None
    budgets = np.unique(np.concatenate([theirs[cost].to_numpy() for _, theirs in pairs]))
    gains = [
        (errors_at(theirs, cost, budgets) - errors_at(own, cost, budgets)).mean()
        for own, theirs in pairs
    ]
    if np.isnan(gains).any():
        return None
    full = records.experiment.full_costs[cost]
    percents = ", ".join(f"{100 * budget / full:.0f}" for budget in budgets)
    return Gains(
        of=f"error at {baseline}'s {len(budgets)} costs ({percents}%), {baseline} minus {method}",
        places=("",),
        samples=(np.array(gains)[:, None],),
    )


def mean_gains(gains: Sequence[Gains]) -> Gains:
    """The mean over experiments of gains at the same places; each weighs the same.

    Runs of different experiments are independent, though their seeds have the same numbers, so
    their spreads add up, see `combined_intervals`.
    """
    return Gains(
        of=gains[0].of,
        places=gains[0].places,
        samples=tuple(sample for each in gains for sample in each.samples),
        weights=tuple(weight / len(gains) for each in gains for weight in each.weights),
    )


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
    yield from not_run(records, methods, seeds)
    fronts = records.fronts[records.fronts["method"].isin(methods)]
    if other := sorted(set(fronts["gradient_steps"].tolist()) - {gradient_steps}):
        numbers = ", ".join(f"{steps:,}" for steps in other)
        yield f"{numbers} gradient steps, not {gradient_steps:,}"
    ran = [each for each in methods if each in dict(records.runs)]
    if unequal := budget_marks(fronts, experiment.budget_exempt, ran, experiment.equal):
        yield f"unequal training budgets: {', '.join(unequal)}"


def not_run(records: Records, methods: Sequence[str], seeds: Collection[int]) -> Iterator[str]:
    """Which of the runs with these methods and seeds there are not, in a text; nothing if all."""
    missing = [
        f"{method} seed {seed}"
        for method in methods
        for seed in seeds
        if (method, seed) not in records.runs
    ]
    if missing:
        yield f"not run: {', '.join(missing)}"


def evidence(records: Records, methods: Sequence[str]) -> str:
    """The folder under results/, the commits and the seeds of the runs of these methods."""
    runs = [records.environment["runs"].get(method, {}) for method in methods]
    used = {index for seeds in runs for run in seeds.values() for index in run["sessions"]}
    environments = [records.environment["environments"][index] for index in sorted(used)]
    commits = dict.fromkeys(commit_name(each, 7) for each in environments)
    seeds = sorted({seed for method, seed in records.runs if method in methods})
    numbers = f"seed{'' if len(seeds) == 1 else 's'} {', '.join(map(str, seeds))}"
    return f"{records.experiment.experiment}/{FOLDER}: commit {', '.join(commits)}; {numbers}"


def common_seeds(records: Records, method: str, baseline: str) -> list[int]:
    """The seeds that both methods have, in ascending order."""
    ran = set(records.runs)
    return sorted(seed for name, seed in ran if name == method and (baseline, seed) in ran)


def _paired(
    records: Records, method: str, baseline: str
) -> list[tuple[pd.DataFrame, pd.DataFrame]]:
    """The fronts of both methods, for each seed that both have, in ascending order."""
    fronts = records.fronts.groupby(["method", "seed"])
    return [
        (fronts.get_group((method, seed)), fronts.get_group((baseline, seed)))
        for seed in common_seeds(records, method, baseline)
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
