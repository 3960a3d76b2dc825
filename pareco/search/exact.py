"""The exact solver: the least optimistic bound of the loss at a cost that is known, per target."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from pareco.search.descent import FirstWhereSecondIsNotPositive, descended
from pareco.search.problem import Found, Key, Problem, SolverError, key
from pareco.search.surrogate import NUMERICAL_ERRORS, Posterior, Surrogate

logger = logging.getLogger(__name__)

DIFFERENCE = 0.05  # of the cube, over which the slope of rounded costs is measured
BISECTIONS = 12  # of the cube's width


@dataclass(frozen=True)
class Candidates:
    """Minimizers for one target: canonical alphas `m x d`, their points and costs `m`."""

    alphas: Tensor
    points: Tensor
    costs: Tensor


class ExactSolver:
    """Minimizes the loss's optimistic bound subject to cost <= F, for several F in one batch.

    With b below every bound, every pair of bound and cost that no other one dominates minimizes
    T_lambda for some lambda: so this is what the paper's binary search for lambda looks for, the
    cost being known. A pool (Sobol points, the front and its mutations) is moved onto the
    constraint, where costs are monotone; the best are refined in one batch.
    """

    outputs = ("loss",)

    def __init__(self, problem: Problem, surrogate: Surrogate) -> None:
        posterior, self._width = surrogate.posteriors[0], surrogate.width
        self._problem, self._posterior = problem, posterior
        config, front = problem.config, problem.front
        half = -(-(config.raw_samples or 1) // 2)
        self._pool = torch.cat([problem.sobol(half), front, self._mutations(front, half)])
        self._costs = problem.costs(self._pool)
        self._values = posterior.bounds(self._pool, self._width)
        if not self._values.isfinite().all():
            raise FloatingPointError("non-finite bounds at the starting points")

    def proposals(self, count: int, known: set[Key]) -> Iterator[Found]:
        """Yield up to `count` unknown minimizers, each for a newly drawn target cost.

        For each up to `targets` are drawn, where a minimizer costs less than its target by more
        than the tolerance (a gap of the front) or is known. A later one takes the earlier ones
        as observed at their mean. Raises SolverError. `known` grows.
        """
        posterior, left, gaps = self._posterior, count, 0
        cheaper: list[tuple[float, Found]] = []
        for _ in range(self._problem.config.targets):
            targets = [self._problem.target() for _ in range(left)]
            for target, candidates in zip(targets, self._minimizers(targets), strict=True):
                found, below = self._chosen(candidates, posterior, target, known)
                if found is None:
                    continue
                if below > self._problem.tolerance:
                    gap = bool((candidates.costs >= target - self._problem.tolerance).any())
                    text = "the best for %.4g costs %.2g of the largest less: %s"
                    share = below / self._problem.scale
                    logger.info(text, target, share, "a gap of the front" if gap else "none nearer")
                    gaps += gap
                    cheaper.append((below, found))
                    continue
                posterior = self._accepted(found, posterior, known)
                yield Found(alpha=found.alpha, target=target, gaps=gaps)
                left, gaps = left - 1, 0
            if not left:
                return
        for _, found in sorted(cheaper, key=lambda each: each[0]):
            if left and key(found.alpha) not in known:
                known.add(key(found.alpha))
                yield Found(alpha=found.alpha, target=found.target, gaps=gaps)
                left, gaps = left - 1, 0

    def _accepted(self, found: Found, posterior: Posterior, known: set[Key]) -> Posterior:
        known.add(key(found.alpha))
        return posterior.given_mean_at(self._problem.points(found.alpha))

    def _chosen(
        self, candidates: Candidates, posterior: Posterior, target: float, known: set[Key]
    ) -> tuple[Found | None, float]:
        """Return the best unknown candidate, if any, and how far below the target it costs."""
        values = posterior.bounds(candidates.points, self._width)
        allowed = candidates.costs <= max(target * (1 + 1e-12), target * (1 - 1e-12))
        for index in values.where(allowed, torch.inf).argsort().tolist():
            if allowed[index] and key(candidates.alphas[index]) not in known:
                found = Found(alpha=candidates.alphas[index], target=target, gaps=0)
                return found, target - float(candidates.costs[index])
        return None, 0.0

    def _minimizers(self, targets: list[float]) -> list[Candidates]:
        """Return for each target refined minimizers, and what they were refined from."""
        problem, config = self._problem, self._problem.config
        starts = [self._starts(target) for target in targets]
        limits = torch.cat([torch.full((len(s),), t) for s, t in zip(starts, targets, strict=True)])
        limits = limits.double()
        points = torch.cat(starts)
        spread = (problem.cost_range[1] - problem.cost_range[0]) or 1.0

        def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
            """Return the bound of the loss and the excess cost, and their gradients."""
            bound, slope = self._posterior.bounds_with_slopes(points, self._width)
            excess = (problem.costs(points) - limits) / spread
            if not (bound.isfinite().all() and slope.isfinite().all()):
                raise FloatingPointError("non-finite bounds or gradients")
            slopes = torch.stack([slope, self._cost_slopes(points) / spread], dim=1)
            return torch.stack([bound, excess], dim=1), slopes

        goal = FirstWhereSecondIsNotPositive()
        try:
            refined = descended(
                goal,
                evaluate,
                points,
                config.iterations,
                config.precision,
                moved=lambda points: self._allowed(points, limits),
            )
        except NUMERICAL_ERRORS as error:
            raise SolverError(f"{type(error).__name__}: {error}") from error
        sizes = [len(each) for each in starts]
        parts = zip(refined.split(sizes), starts, strict=True)
        return [self._canonical(torch.cat(each)) for each in parts]

    def _canonical(self, points: Tensor) -> Candidates:
        alphas = self._problem.canonical(points)
        points = self._problem.points(alphas)
        return Candidates(alphas, points, self._problem.costs(points))

    def _starts(self, target: float) -> Tensor:
        """Return the best of the pool moved onto the target, and the best that costs less."""
        problem, config = self._problem, self._problem.config
        within = self._values.where(self._costs <= target, torch.inf)
        inside = self._pool[self._least(within, config.starts)]
        if not problem.monotone:
            return inside
        moved = self._moved(self._pool, torch.full_like(self._costs, target))
        values = self._posterior.bounds(moved, self._width)
        return torch.cat([moved[self._least(values, config.starts)], inside[:1]])

    def _least(self, values: Tensor, count: int) -> Tensor:
        least = values.topk(min(count, len(values)), largest=False)
        return least.indices[least.values.isfinite()]

    def _allowed(self, points: Tensor, limits: Tensor) -> Tensor:
        """Return points moved onto the limit where they cost more, if costs are monotone."""
        if not self._problem.monotone:
            return points
        dear = self._problem.costs(points) > limits
        moved = points.clone()
        moved[dear] = self._moved(points[dear], limits[dear])
        return moved

    def _moved(self, points: Tensor, limits: Tensor) -> Tensor:
        """Return points `m x d` moved along the diagonal to the limits `m` of the cost.

        By bisection: the dearest found that costs no more, the cube's lowest corner at worst.
        """
        low, high = -torch.ones_like(limits), torch.ones_like(limits)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            dear = self._problem.costs((points + middle[:, None]).clamp(0.0, 1.0)) > limits
            low, high = torch.where(dear, low, middle), torch.where(dear, middle, high)
        return (points + low[:, None]).clamp(0.0, 1.0)

    def _cost_slopes(self, points: Tensor) -> Tensor:
        """Return the slopes `m x d` of the cost, over differences that bridge its steps."""
        count, dimensions = points.shape
        shifts = DIFFERENCE * torch.eye(dimensions, dtype=points.dtype)
        up = (points.unsqueeze(1) + shifts).clamp_max(1.0)
        down = (points.unsqueeze(1) - shifts).clamp_min(0.0)
        both = torch.cat([up, down]).reshape(-1, dimensions)
        above, below = self._problem.costs(both).reshape(2, count, dimensions)
        distances = (up - down).diagonal(dim1=1, dim2=2)
        return (above - below) / distances

    def _mutations(self, parents: Tensor, count: int) -> Tensor:
        """Return `count` points, each a parent with some coordinates moved at random."""
        generator, dimensions = self._problem.generator, parents.shape[1]
        if not len(parents):
            return parents
        chosen = parents[torch.randint(len(parents), (count,), generator=generator)]
        shape = (count, dimensions)
        noise = 0.2 * torch.randn(shape, dtype=torch.double, generator=generator)
        changed = torch.rand(shape, generator=generator) < max(0.2, 1 / dimensions)
        return (chosen + noise * changed).clamp(0.0, 1.0)
