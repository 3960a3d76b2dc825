"""What an ask of the search takes beside one fit of its model, and how near to targets it comes."""

from __future__ import annotations

import math
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    from torch import Tensor

    from pareco.config import SearchConfig
    from pareco.search import Mobo, Proposal
    from pareco.training.plan import Planner

Solver = Literal["tchebyshev", "exact"]
T = TypeVar("T")

CASES = ("cifar10_resnet20", "imagenet_mbv2", "imagenet_mbv3")
"""The experiments whose spaces and costs are searched: 12, 24 and 37 dimensions."""
ENTRIES = (50, 200, 500, 1000)
ASKS: dict[Solver, int] = {"tchebyshev": 5, "exact": 10}
"""Asks for two that are timed after one that is not: with one fit each, with two."""
GOALS: dict[tuple[Solver, str, int], float] = {
    ("tchebyshev", "imagenet_mbv2", 1000): 5.0,
    ("exact", "imagenet_mbv2", 1000): 1.0,
}
"""The most seconds of an ask."""
LEAST_MET = 95.0  # percent of the proposals
MOST_SHARE = 10.0  # percent of the training's MACs
SHARES = (("digits", "paper"), ("cifar10_resnet20", "cpu"))
"""Experiments, and scales, whose plans say what part of training the search is."""
_NOISE = 0.01  # of the losses' range


@dataclass(frozen=True, kw_only=True)
class SearchRow:
    """The median of some values with their quartiles; `entries` is None where all sizes count."""

    what: str
    experiment: str
    solver: str
    dimensions: int
    entries: int | None
    median: float
    lower: float
    upper: float
    values: int
    goal: float | None = None
    more_is_better: bool = False

    @property
    def met(self) -> bool:
        """Whether the median reaches its goal, where there is one."""
        if self.goal is None:
            return True
        return self.median >= self.goal if self.more_is_better else self.median <= self.goal


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What one ask took, whether it fitted hyperparameters, and what it proposed."""

    seconds: float
    fitted: bool
    proposals: Sequence[Proposal]


def measured_search() -> list[SearchRow]:
    """Return all rows, by one thread's time on the processor."""
    import torch

    threads = torch.get_num_threads()
    try:
        rows = [row for experiment in CASES for row in _rows_of_asks(experiment)]
        return [*rows, *(_share_row(*each) for each in SHARES)]
    finally:
        torch.set_num_threads(threads)


def _rows_of_asks(experiment: str) -> Iterator[SearchRow]:
    """Yield what asks in the space of this experiment take, and the share of targets met."""
    import torch

    from pareco.training.preparation import planner_before
    from replications.catalogue import experiment_named

    planner = planner_before(experiment_named(experiment))
    torch.set_num_threads(1)
    common = {"experiment": experiment, "dimensions": planner.space.dimensions}
    proposals: dict[Solver, list[Proposal]] = {solver: [] for solver in ASKS}
    seconds_of_a_fit(*history(planner, min(ENTRIES)))  # the first one also imports
    for entries in ENTRIES:
        alphas, losses = history(planner, entries)
        fit = seconds_of_a_fit(alphas, losses)
        yield _row("fit (s)", [fit], solver="", entries=entries, **common)
        for solver, count in ASKS.items():
            mobo = searcher(planner, replace(planner.experiment.search, solver=solver))
            mobo.tell(alphas, losses)
            found = asks(mobo, count)
            proposals[solver] += [each for ask in found for each in ask.proposals]
            goal = GOALS.get((solver, experiment, entries))
            where = {"solver": solver, "entries": entries, **common}
            for what, fitted in (("ask that fits", True), ("ask", False)):
                times = [each.seconds for each in found if each.fitted is fitted]
                if times:
                    yield _row(f"{what} (s)", times, goal=goal, **where)
                    yield _row(f"{what} / fit", [each / fit for each in times], **where)
    for solver, proposed in proposals.items():
        met, gaps = targets_met(planner, proposed)
        where = {"solver": solver, "entries": None, **common}
        aim = {"goal": LEAST_MET, "more_is_better": True}
        yield _row("targets met (%)", [met], count=len(proposed), **aim, **where)
        yield _row("targets in gaps (%)", [gaps], count=len(proposed), **where)


def history(planner: Planner, entries: int) -> tuple[Tensor, Tensor]:
    """Return `n x d` canonical multipliers, the largest first, and made-up losses `n`.

    The multipliers of one network scatter around a common one; losses are convex, with layers that
    differ in importance, and a little noise.
    """
    import torch

    space = planner.space
    generator = torch.Generator().manual_seed(entries)
    shape = (entries, space.dimensions)
    common = torch.rand(entries, 1, generator=generator, dtype=torch.double)
    points = common + 0.15 * torch.randn(shape, generator=generator, dtype=torch.double)
    points[0] = 1.0
    least = space.alpha_min
    alphas = space.canonical(least + (1 - least) * points.clamp(0, 1))
    importance = torch.randn(space.dimensions, generator=generator, dtype=torch.double).exp()
    losses = ((1 - alphas).square() * importance).sum(dim=1)
    noise = torch.randn(entries, generator=generator, dtype=torch.double)
    return alphas, losses + _NOISE * (losses.max() - losses.min()) * noise


def searcher(planner: Planner, config: SearchConfig) -> Mobo:
    """Return a search in the planner's space, with its exact costs."""
    import torch

    from pareco.search import Mobo

    space, objective = planner.space, planner.experiment.cost
    return Mobo(
        [space.alpha_min] * space.dimensions,
        [1.0] * space.dimensions,
        config,
        torch.Generator().manual_seed(0),
        cost=lambda alphas: planner.cost.of(objective, space.counts(alphas)).double(),
        canonical=space.canonical,
    )


def asks(mobo: Mobo, count: int) -> list[Ask]:
    """Return what so many asks for two take, after one that is not timed."""
    mobo.ask(2)
    found = []
    for _ in range(count):
        before = _fits(mobo)
        proposals, seconds = _timed(lambda: mobo.ask(2))
        found.append(Ask(seconds=seconds, fitted=_fits(mobo) > before, proposals=proposals))
    return found


def _fits(mobo: Mobo) -> int:
    return mobo.state()["fits"]["loss"]["fits"]


def seconds_of_a_fit(alphas: Tensor, losses: Tensor) -> float:
    """Return what BoTorch's fit of the loss's model takes, from its defaults until it converges."""
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    from pareco.search.surrogate import KERNELS

    outputs = ((losses - losses.mean()) / losses.std()).unsqueeze(-1)
    inputs = (alphas - alphas.min()) / (alphas.max() - alphas.min())
    kernel = KERNELS["loss"](alphas.shape[1])
    model = SingleTaskGP(inputs, outputs, covar_module=kernel, outcome_transform=None)
    likelihood = ExactMarginalLogLikelihood(model.likelihood, model)
    with warnings.catch_warnings(action="ignore"):  # it says where it had to begin again
        _, seconds = _timed(lambda: fit_gpytorch_mll(likelihood))
    return seconds


def targets_met(planner: Planner, proposals: Sequence[Proposal]) -> tuple[float, float]:
    """Return two shares in percent: of proposals near their targets, and of targets in gaps.

    Near is within the search's tolerance of the full cost. A proposal that is not, because its
    target is in a gap of the front, is left out of the first; a target that was drawn in vain
    counts in the second. NaN where no proposal is left.
    """
    space, objective = planner.space, planner.experiment.cost
    full = float(planner.cost.of(objective, [space.largest]))
    near = missed = targets = gaps = 0
    for each in proposals:
        if each.target is None:
            continue
        cost = float(planner.cost.of(objective, [space.decode(each.alpha)]))
        off = abs(cost - each.target) > planner.experiment.search.tolerance * full
        near, missed = near + (not off), missed + (off and not each.gaps)
        gaps += each.gaps
        targets += each.gaps + (not off or not each.gaps)
    met = 100 * near / (near + missed) if near + missed else math.nan
    return met, 100 * gaps / targets if targets else math.nan


def _share_row(experiment: str, scale: str) -> SearchRow:
    """Return what part of the training's MACs the search of `pareco_exact` is planned to take.

    A value for each seed: what training takes depends on the widths that are drawn.
    """
    from pareco.training.preparation import planner_before
    from replications.catalogue import experiment_named, method_named

    planned = experiment_named(experiment, scale)
    planner = planner_before(planned)
    plans = [planner.plan(method_named("pareco_exact"), seed) for seed in planned.seeds]
    shares = [100 * plan.of("search", "choice") / plan.of("training") for plan in plans]
    return _row(
        "search / training (%)",
        shares,
        experiment=planned.name,
        solver="exact",
        dimensions=planner.space.dimensions,
        entries=None,
        goal=MOST_SHARE,
    )


def _timed(work: Callable[[], T]) -> tuple[T, float]:
    """Return what it returns, and the processor time that it takes."""
    begun = time.process_time()
    result = work()
    return result, time.process_time() - begun


def _row(what: str, values: Sequence[float], count: int | None = None, **where: Any) -> SearchRow:
    several = len(values) > 1
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if several else 3 * [*values]
    lower, median, upper = quartiles
    found = len(values) if count is None else count
    return SearchRow(what=what, median=median, lower=lower, upper=upper, values=found, **where)
