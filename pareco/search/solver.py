"""Minimizing the scalarization over the box of multipliers, and the search for its weight."""

import warnings
from collections.abc import Callable
from typing import cast

import torch
from botorch.acquisition import AcquisitionFunction
from botorch.generation.gen import gen_candidates_scipy
from torch import Tensor
from torch.quasirandom import SobolEngine

from pareco.search.scalarization import tchebyshev

LINE_SEARCH_STEPS = 8


class ScalarizationSolver:
    """Minimizes T_lambda of the optimistic bounds over [alpha_min, 1]^d, for any weight.

    The pool of starting points (Sobol points and the front's alphas) and its bounds are computed
    once; every weight refines the best few of them and the previous weight's minimizer.
    """

    def __init__(
        self,
        optimistic_bounds: Callable[[Tensor], Tensor],
        front: Tensor,
        alpha_min: float,
        generator: torch.Generator,
        *,
        raw_samples: int,
        starts: int,
        iterations: int,
        reference: float,
        augmentation: float,
    ) -> None:
        seed = int(torch.randint(2**31, (), generator=generator))
        sobol = SobolEngine(front.shape[1], scramble=True, seed=seed)
        samples = alpha_min + (1.0 - alpha_min) * sobol.draw(raw_samples, dtype=torch.double)
        self._bounds = optimistic_bounds
        self._pool = torch.cat([samples, front.clamp(alpha_min, 1.0)])
        with torch.no_grad():
            self._pool_bounds = optimistic_bounds(self._pool)
        self._previous = front[:0]
        self._alpha_min, self._starts, self._iterations = alpha_min, starts, iterations
        self._reference, self._augmentation = reference, augmentation

    def minimize(self, cost_weight: float) -> Tensor:
        """Return the multipliers `d` with the least T_lambda found for lambda_F = `cost_weight`."""
        values = self._scalarized(self._pool_bounds, cost_weight)
        best = values.topk(min(self._starts, len(values)), largest=False).indices
        starts = torch.cat([self._pool[best], self._previous])

        def acquisition(alphas: Tensor) -> Tensor:
            return -self._scalarized(self._bounds(alphas.squeeze(1)), cost_weight)

        # T_lambda has a kink where both terms are equal: a line search that ends there warns.
        with warnings.catch_warnings(record=True, action="ignore"):
            candidates, negated = gen_candidates_scipy(
                starts.unsqueeze(1),
                cast(AcquisitionFunction, acquisition),  # any function to maximize will do
                lower_bounds=self._pool.new_full(starts.shape[1:], self._alpha_min),
                upper_bounds=self._pool.new_ones(starts.shape[1:]),
                options={"maxiter": self._iterations, "maxls": LINE_SEARCH_STEPS},
            )
        self._previous = candidates[negated.argmax()]
        return self._previous.squeeze(0)

    def _scalarized(self, objectives: Tensor, cost_weight: float) -> Tensor:
        return tchebyshev(objectives, cost_weight, self._reference, self._augmentation)


def search_cost_weight(
    propose: Callable[[float], tuple[Tensor, float]],
    target: float,
    tolerance: float,
    trials: int = 10,
) -> Tensor:
    """Return the multipliers `d` whose cost comes closest to `target` in a binary search.

    `propose` maps lambda_F in [0, 1] to (multipliers, true cost); more weight on the cost must
    give a lower cost. Stops after `trials` trials or once the cost is within `tolerance` of the
    target, both in the cost's units. DESIGN section 4, item 6.
    """
    low, high = 0.0, 1.0
    best, best_gap = torch.empty(0), float("inf")
    for _ in range(trials):
        weight = (low + high) / 2
        alpha, cost = propose(weight)
        if abs(cost - target) < best_gap:
            best, best_gap = alpha, abs(cost - target)
        if best_gap <= tolerance:
            break
        low, high = (weight, high) if cost > target else (low, weight)
    return best
