"""The paper's solver: the scalarization of loss and cost, and the search for its weight."""

import logging
from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from pareco.search.descent import Larger, descended
from pareco.search.problem import Found, Key, Problem, SolverError, first_unknown, key
from pareco.search.surrogate import NUMERICAL_ERRORS

logger = logging.getLogger(__name__)

Trial = tuple[float, Tensor]


def tchebyshev(
    objectives: Tensor, cost_weight: float, reference: float, augmentation: float
) -> Tensor:
    """Return T_lambda of `m x 2` objectives (loss, cost) as `m` values; less is better.

    Objectives and `reference` (the paper's b) are in standard deviations of the history. With
    lambda = (1 - `cost_weight`, `cost_weight`), T_lambda = max_i lambda_i (f_i - b) +
    `augmentation` * sum_i lambda_i (f_i - b). NaN objectives give NaN. PareCO, section 3.2.
    """
    weighted = (objectives - reference) * objectives.new_tensor([1.0 - cost_weight, cost_weight])
    return torch.amax(weighted, dim=-1) + augmentation * weighted.sum(dim=-1)


class Bounds(Protocol):
    """The bounds of loss and cost, such as a `Surrogate`'s."""

    def optimistic_bounds(self, points: Tensor) -> Tensor:
        """Return the bounds `m x 2` of loss and cost at `m x d` points."""
        ...

    def bounds_with_slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the bounds and their gradients `m x 2 x d`."""
        ...


class ScalarizationSolver:
    """Minimizes T_lambda of the optimistic bounds over the unit cube, for any weight.

    The pool of starting points (Sobol points and the front) and its bounds are computed once;
    every weight refines the best few of them, and the best minimizer of all weights before, in
    one batch. Raises FloatingPointError where the bounds of the pool are not finite.
    """

    outputs = ("loss", "cost")

    def __init__(self, problem: Problem, surrogate: Bounds) -> None:
        self._problem, self._surrogate = problem, surrogate
        self._pool = torch.cat([problem.sobol(problem.config.raw_samples or 1), problem.front])
        self._pool_bounds = surrogate.optimistic_bounds(self._pool)
        if not self._pool_bounds.isfinite().all():
            raise FloatingPointError("non-finite bounds at the starting points")
        self._found, self._found_bounds = self._pool[:0], self._pool_bounds[:0]

    def proposals(self, count: int, known: set[Key]) -> Iterator[Found]:
        """Yield up to `count` unknown minimizers, each near a newly drawn target cost.

        Fewer where those for `targets` targets are known; raises SolverError. `known` grows.
        """
        for _ in range(count):
            found = self._targeted(known)
            if found is None:
                return
            known.add(key(found.alpha))
            yield found

    def minimize(self, cost_weight: float) -> Tensor:
        """Return the point `d` with the least T_lambda found for lambda_F = `cost_weight`.

        Raises SolverError where bounds or gradients are not finite.
        """
        config = self._problem.config
        weights = torch.tensor([1.0 - cost_weight, cost_weight], dtype=torch.double)
        mix = torch.eye(2, dtype=torch.double) + config.augmentation

        def terms(points: Tensor) -> tuple[Tensor, Tensor]:
            """Return lambda_i (f_i - b), the augmentation added to both, whose maximum is T."""
            bounds, gradients = self._surrogate.bounds_with_slopes(points)
            if not (bounds.isfinite().all() and gradients.isfinite().all()):
                raise FloatingPointError("non-finite bounds or gradients")
            values = (bounds - config.reference) * weights @ mix
            return values, mix @ (gradients * weights.unsqueeze(-1))

        starts = torch.cat(
            [
                self._best(self._pool, self._pool_bounds, cost_weight, config.starts),
                self._best(self._found, self._found_bounds, cost_weight, 1),
            ]
        )
        try:
            refined = descended(Larger(), terms, starts, config.iterations, config.precision)
            bounds = self._surrogate.optimistic_bounds(refined)
        except NUMERICAL_ERRORS as error:
            raise SolverError(f"{type(error).__name__}: {error}") from error
        self._found = torch.cat([self._found, refined])
        self._found_bounds = torch.cat([self._found_bounds, bounds])
        return self._best(self._found, self._found_bounds, cost_weight, 1).squeeze(0)

    def _best(self, points: Tensor, bounds: Tensor, cost_weight: float, count: int) -> Tensor:
        config = self._problem.config
        values = tchebyshev(bounds, cost_weight, config.reference, config.augmentation)
        return points[values.topk(min(count, len(values)), largest=False).indices]

    def _targeted(self, known: set[Key]) -> Found | None:
        """Return an unknown minimizer within the tolerance of a target, else the nearest.

        Where one was found but is known, another target is drawn.
        """
        problem, gaps = self._problem, 0
        others: list[tuple[float, Found]] = []

        def propose(cost_weight: float) -> tuple[Tensor, float]:
            point = self.minimize(cost_weight).unsqueeze(0)
            alpha = problem.canonical(point)
            return alpha.squeeze(0), float(problem.costs(problem.points(alpha)))

        for _ in range(problem.config.targets):
            target = problem.target()
            trials = search_cost_weight(propose, target, problem.tolerance, problem.config.trials)
            reached = trials[0][0] <= problem.tolerance
            if not reached:
                gaps += 1
                text = (
                    "no minimizer of %d weights costs %.4g: the nearest is %.2g of the largest off"
                )
                logger.info(text, len(trials), target, trials[0][0] / problem.scale)
            index = first_unknown(torch.stack([alpha for _, alpha in trials]), known)
            if index is not None:
                distance, alpha = trials[index]
                found = Found(alpha=alpha, target=target, gaps=gaps)
                if index == 0 or distance <= problem.tolerance:
                    return found
                others.append((distance, found))
        return min(others, key=lambda each: each[0])[1] if others else None


def search_cost_weight(
    propose: Callable[[float], tuple[Tensor, float]],
    target: float,
    tolerance: float,
    trials: int,
) -> list[Trial]:
    """Return all trials of a binary search: distance from `target` and alpha `d`, nearest first.

    `propose` maps lambda_F in [0, 1] to (alpha, true cost); more weight on the cost must give a
    lower cost. Stops after `trials` trials or once the cost is within `tolerance` of the target,
    both in the cost's units.
    """
    low, high = 0.0, 1.0
    tried: list[Trial] = []
    for _ in range(trials):
        weight = (low + high) / 2
        alpha, cost = propose(weight)
        tried.append((abs(cost - target), alpha))
        if abs(cost - target) <= tolerance:
            break
        low, high = (weight, high) if cost > target else (low, weight)
    return sorted(tried, key=lambda trial: trial[0])
