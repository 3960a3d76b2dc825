"""The searches that are compared, each a coroutine: it yields points and is sent their losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pareco.config import SearchConfig
from pareco.randomness import derived_generator, derived_seed, seeded_globally
from pareco.search import Mobo, front
from pareco.search.problem import Key, key
from replications.searches.comparison import Reached
from replications.searches.landscapes import SearchProblem, hypervolume, noise_generator

Search = Generator[Tensor, Tensor, None]
Searcher = Callable[[SearchProblem, int], Search]
"""Begins a search of a problem with a seed."""

AT_ONCE = 2
INITIAL = 20
"""Random points before the first model of qLogNEHVI, and the individuals of NSGA-II."""
IDLE = 100
"""Rounds, or draws, that bring nothing new after which a search has ended."""


def visited(
    problem: SearchProblem, searcher: Searcher, evaluations: int, seed: int
) -> tuple[Tensor, Tensor]:
    """Return so many distinct points `n x d` in the order in which they were met, and their losses.

    A point that is met again has the loss that it had, and is not counted; fewer are returned where
    a search finds no more.
    """
    generator = noise_generator(seed, problem)
    losses: dict[Key, float] = {}
    alphas: list[Tensor] = []
    search, idle = searcher(problem, seed), 0
    asked = problem.canonical(next(search))
    while len(alphas) < evaluations and idle < IDLE:
        known = len(losses)
        fresh = {key(each): each for each in asked if key(each) not in losses}
        new = list(fresh.values())[: evaluations - known]
        if new:
            seen = problem.observed(torch.stack(new), generator)
            losses |= {key(each): float(loss) for each, loss in zip(new, seen, strict=True)}
            alphas += new
        idle = 0 if new else idle + 1
        if len(alphas) < evaluations:
            told = torch.tensor([losses[key(each)] for each in asked], dtype=torch.double)
            asked = problem.canonical(search.send(told))
    search.close()
    found = [losses[key(each)] for each in alphas]
    return torch.stack(alphas), torch.tensor(found, dtype=torch.double)


def reached(
    problem: SearchProblem, name: str, searcher: Searcher, evaluations: Sequence[int], seed: int
) -> list[Reached]:
    """Return the hypervolumes after each of so many evaluations of one search.

    Of the front by the losses that it saw, with the noiseless losses.
    """
    alphas, losses = visited(problem, searcher, max(evaluations), seed)
    costs = problem.cost(alphas)
    found = []
    for count in evaluations:
        chosen = front(losses[:count], costs[:count])
        true = problem.noiseless(alphas[chosen])
        value = hypervolume(true, costs[chosen], problem.reference)
        best = math.nan if problem.best is None else problem.best
        found.append(Reached(problem.name, name, seed, count, value, best))
    return found


def mobo(solver: Literal["exact", "tchebyshev"], problem: SearchProblem, seed: int) -> Search:
    """Search as PareCO does in training, two widths at a time.

    The exact search knows the smallest network from the start, as the method `pareco_exact` does.
    """
    search = Mobo(
        problem.lower,
        problem.upper,
        SearchConfig(solver=solver),
        derived_generator(seed, solver),
        cost=problem.cost,
        canonical=problem.canonical,
    )
    if solver == "exact":
        smallest = problem.canonical(problem.lower.unsqueeze(0))
        search.tell(smallest, (yield smallest))
    while True:
        alphas = torch.stack([each.alpha for each in search.ask(AT_ONCE)])
        search.tell(alphas, (yield alphas))


def at_random(problem: SearchProblem, seed: int) -> Search:
    """Draw every multiplier by itself."""
    generator = derived_generator(seed, "random")
    while True:
        yield _drawn(problem, AT_ONCE, generator)


def uniform(problem: SearchProblem, seed: int) -> Search:
    """Take one multiplier for all dimensions, from a scrambled Sobol sequence."""
    engine = SobolEngine(1, scramble=True, seed=derived_seed(seed, "uniform") % 2**31)
    while True:
        shares = engine.draw(AT_ONCE, dtype=torch.double)
        yield torch.lerp(problem.lower, problem.upper, shares.expand(-1, problem.dimensions))


def noisy_expected_improvement(problem: SearchProblem, seed: int) -> Search:
    """Search by BoTorch's qLogNEHVI: a GP of the loss, the cost known and deterministic.

    Daulton et al. (arXiv 2105.08195), Ament et al. (arXiv 2310.20708); two points at a time, one
    after the other. One that is known already gives way to a random one, as long as draws bring
    anything new.
    """
    generator = derived_generator(seed, "qlognehvi")
    alphas = problem.canonical(_drawn(problem, INITIAL, generator))
    losses = yield alphas
    while True:
        with seeded_globally(seed, "qlognehvi", len(alphas), device=torch.device("cpu")):
            asked = problem.canonical(_improving(problem, alphas, losses))
        known = set(map(key, alphas))
        for place in range(len(asked)):
            for _ in range(IDLE):
                if key(asked[place]) not in known:
                    break
                asked[place] = problem.canonical(_drawn(problem, 1, generator)).squeeze(0)
            known.add(key(asked[place]))
        told = yield asked
        alphas, losses = torch.cat([alphas, asked]), torch.cat([losses, told])


def _improving(problem: SearchProblem, alphas: Tensor, losses: Tensor) -> Tensor:
    """Return the points `2 x d` of the most expected improvement of the noisy hypervolume."""
    from botorch.acquisition.multi_objective.logei import (
        qLogNoisyExpectedHypervolumeImprovement,
    )
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from botorch.models.deterministic import GenericDeterministicModel
    from botorch.models.model import ModelList
    from botorch.optim import optimize_acqf
    from gpytorch.mlls import ExactMarginalLogLikelihood

    points = (alphas - problem.lower) / (problem.upper - problem.lower)

    def negative_cost(cube: Tensor) -> Tensor:
        return -problem.relaxed_cost(torch.lerp(problem.lower, problem.upper, cube)).unsqueeze(-1)

    model = SingleTaskGP(points, -losses.unsqueeze(-1))
    with warnings.catch_warnings(action="ignore"):  # a fit or a descent that ends early will do
        fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
        acquisition = qLogNoisyExpectedHypervolumeImprovement(
            model=ModelList(model, GenericDeterministicModel(negative_cost, num_outputs=1)),
            ref_point=[-problem.reference, -1.0],
            X_baseline=points,
            prune_baseline=True,
            cache_root=False,
        )
        box = torch.stack([torch.zeros_like(problem.lower), torch.ones_like(problem.upper)])
        found, _ = optimize_acqf(
            acquisition,
            bounds=box,
            q=AT_ONCE,
            num_restarts=4,
            raw_samples=128,
            sequential=True,
            options={"maxiter": 50, "batch_limit": 4},
        )
    return torch.lerp(problem.lower, problem.upper, found.detach())


def genetic(problem: SearchProblem, seed: int) -> Search:
    """Search by pymoo's NSGA-II (Deb et al. 2002), 20 individuals and its defaults.

    Raises `ValueError` where pymoo is not installed.
    """
    try:
        from pymoo.algorithms.moo.nsga2 import NSGA2
        from pymoo.core.evaluator import Evaluator as Told
        from pymoo.core.problem import Problem as Box
        from pymoo.problems.static import StaticProblem
    except ImportError:
        raise ValueError("nsga2 needs pymoo: pip install 'pareco[bench]'") from None
    box = Box(
        n_var=problem.dimensions,
        n_obj=2,
        xl=problem.lower.numpy(),
        xu=problem.upper.numpy(),
    )
    algorithm = NSGA2(pop_size=INITIAL)
    algorithm.setup(box, seed=derived_seed(seed, "nsga2") % 2**31, verbose=False)
    while True:
        generation = algorithm.ask()
        assert generation is not None
        alphas = torch.as_tensor(generation.get("X")).double()
        losses = yield alphas
        costs = problem.cost(problem.canonical(alphas))
        known = StaticProblem(box, F=torch.stack([losses, costs], dim=1).numpy())
        Told().eval(known, generation)
        algorithm.tell(infills=generation)


def _drawn(problem: SearchProblem, count: int, generator: torch.Generator) -> Tensor:
    shape = (count, problem.dimensions)
    shares = torch.rand(shape, dtype=torch.double, generator=generator)
    return torch.lerp(problem.lower, problem.upper, shares)


SEARCHERS: dict[str, Searcher] = {
    "exact": partial(mobo, "exact"),
    "paper": partial(mobo, "tchebyshev"),
    "random": at_random,
    "uniform": uniform,
    "qlognehvi": noisy_expected_improvement,
    "nsga2": genetic,
}
SLOW = frozenset({"paper", "qlognehvi"})
"""Those of which few seeds are searched, and not for long."""
