"""The scalarization of loss and cost: its targets, its minimizers, the search for its weight."""

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize
from torch import Tensor
from torch.quasirandom import SobolEngine

from pareco.config import SearchConfig
from pareco.search.surrogate import NUMERICAL_ERRORS

POOL_CHUNK = 256
PRECISION = 1e-6

Array = NDArray[np.float64]


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


def bin_masses(costs: Tensor, losses: Tensor, cost_range: tuple[float, float], bins: int) -> Tensor:
    """Return the area which a front leaves open, in each of `bins` equal bins of the cost range.

    `costs` and `losses` are the front's, `k` each, sorted by cost. The gap between neighbours
    has the mass (F_{k+1} - F_k)(L_k - L_{k+1}), spread evenly over [F_k, F_{k+1}], so its
    density is the drop in loss. The masses are not normalized; they are all zero for fewer than
    two points, and what lies outside the cost range is dropped. PareCO, section 3.3.
    """
    edges = torch.linspace(*cost_range, bins + 1, dtype=costs.dtype)
    upper = torch.minimum(costs[1:, None], edges[None, 1:])
    lower = torch.maximum(costs[:-1, None], edges[None, :-1])
    drops = losses[:-1] - losses[1:]
    return (drops[:, None] * (upper - lower).clamp_min(0.0)).sum(dim=0)


def target_cost(
    costs: Tensor,
    losses: Tensor,
    cost_range: tuple[float, float],
    generator: torch.Generator,
    bins: int,
) -> float:
    """Return a cost drawn where the front leaves much area: a bin by mass, then evenly in it.

    Arguments as in `bin_masses`; units are the cost's. Without any mass (fewer than two points
    on the front) the draw is uniform over the cost range.
    """
    masses = bin_masses(costs, losses, cost_range, bins)
    if not masses.sum() > 0:
        masses = torch.ones_like(masses)
    drawn = int(torch.multinomial(masses, 1, generator=generator))
    within = float(torch.rand((), dtype=torch.double, generator=generator))
    low, high = cost_range
    return low + (high - low) * (drawn + within) / bins


class SolverError(RuntimeError):
    """The scalarization could not be minimized."""


class ScalarizationSolver:
    """Minimizes T_lambda of the optimistic bounds over [alpha_min, 1]^d, for any weight.

    The pool of starting points (Sobol points and the front's alphas) and its bounds are computed
    once; every weight refines the best few of them and the previous weight's minimizer. T_lambda
    has a kink where both terms are equal, which is where its minimum mostly lies: each start is
    refined in epigraph form, the least t above both terms, which is smooth. `front` is `k x d`;
    `generator` draws the Sobol points' seed. Raises FloatingPointError where the bounds of the
    pool are not finite.
    """

    def __init__(
        self,
        optimistic_bounds: Callable[[Tensor], Tensor],
        front: Tensor,
        alpha_min: float,
        config: SearchConfig,
        generator: torch.Generator,
    ) -> None:
        self._alpha_min, self._config, self._bounds = alpha_min, config, optimistic_bounds
        seed = int(torch.randint(2**31, (), generator=generator))
        sobol = SobolEngine(front.shape[1], scramble=True, seed=seed)
        samples = alpha_min + (1.0 - alpha_min) * sobol.draw(config.raw_samples, dtype=torch.double)
        self._pool = torch.cat([samples, front.clamp(alpha_min, 1.0)])
        with torch.no_grad():
            parts = [optimistic_bounds(part) for part in self._pool.split(POOL_CHUNK)]
        self._pool_bounds = torch.cat(parts)
        if not self._pool_bounds.isfinite().all():
            raise FloatingPointError("non-finite bounds at the starting points")
        self._previous = front[:0]

    def minimize(self, cost_weight: float) -> Tensor:
        """Return the multipliers `d` with the least T_lambda found for lambda_F = `cost_weight`.

        Raises SolverError where bounds or gradients are not finite, or the optimizer fails.
        """
        values = self._scalarized(self._pool_bounds, cost_weight)
        best = values.topk(min(self._config.starts, len(values)), largest=False).indices
        starts = torch.cat([self._pool[best], self._previous])
        try:
            refined = torch.stack([self._refined(start, cost_weight) for start in starts])
            candidates = torch.cat([starts, refined])
            with torch.no_grad():
                values = self._scalarized(self._bounds(candidates), cost_weight)
        except NUMERICAL_ERRORS as error:
            raise SolverError(f"{type(error).__name__}: {error}") from error
        self._previous = candidates[values.argmin()].unsqueeze(0)
        return self._previous.squeeze(0)

    def _refined(self, start: Tensor, cost_weight: float) -> Tensor:
        """Return a local minimizer `d` of T_lambda near `start`, by SLSQP over (alpha, t)."""
        weights = np.array([1.0 - cost_weight, cost_weight])
        augmentation = self._config.augmentation

        @lru_cache(maxsize=1)
        def terms(alpha: bytes) -> tuple[Array, Array]:
            """Return lambda_i (f_i - b), `2`, and their gradients, `2 x d`."""
            # One row for each objective, so that one backward pass gives both gradients.
            rows = torch.tensor(np.frombuffer(alpha)).repeat(2, 1).requires_grad_()
            bounds = self._bounds(rows)
            (gradients,) = torch.autograd.grad(bounds.diagonal().sum(), rows)
            if not (bounds.isfinite().all() and gradients.isfinite().all()):
                raise FloatingPointError("non-finite bounds or gradients")
            distances = bounds[0].detach().numpy() - self._config.reference
            return weights * distances, weights[:, None] * gradients.numpy()

        def objective(point: Array) -> tuple[float, Array]:
            values, gradients = terms(point[:-1].tobytes())
            gradient = np.append(augmentation * gradients.sum(axis=0), 1.0)
            return point[-1] + augmentation * values.sum(), gradient

        def slack(point: Array) -> Array:
            return point[-1] - terms(point[:-1].tobytes())[0]

        def slack_gradients(point: Array) -> Array:
            return np.column_stack([-terms(point[:-1].tobytes())[1], np.ones(2)])

        alpha = start.numpy()
        result = minimize(
            objective,
            np.append(alpha, terms(alpha.tobytes())[0].max()),
            method="SLSQP",
            jac=True,
            bounds=[(self._alpha_min, 1.0)] * len(alpha) + [(None, None)],
            constraints={"type": "ineq", "fun": slack, "jac": slack_gradients},
            options={"maxiter": self._config.iterations, "ftol": PRECISION},
        )
        return torch.tensor(result.x[:-1]).clamp(self._alpha_min, 1.0)

    def _scalarized(self, objectives: Tensor, cost_weight: float) -> Tensor:
        config = self._config
        return tchebyshev(objectives, cost_weight, config.reference, config.augmentation)


def search_cost_weight(
    propose: Callable[[float], tuple[Tensor, float]],
    target: float,
    tolerance: float,
    trials: int,
) -> list[Tensor]:
    """Return the multipliers `d` of all trials of a binary search, nearest to `target` first.

    `propose` maps lambda_F in [0, 1] to (multipliers, true cost); more weight on the cost must
    give a lower cost. Stops after `trials` trials or once the cost is within `tolerance` of the
    target, both in the cost's units.
    """
    low, high = 0.0, 1.0
    tried: list[tuple[float, Tensor]] = []
    for _ in range(trials):
        weight = (low + high) / 2
        alpha, cost = propose(weight)
        tried.append((abs(cost - target), alpha))
        if abs(cost - target) <= tolerance:
            break
        low, high = (weight, high) if cost > target else (low, weight)
    return [alpha for _, alpha in sorted(tried, key=lambda trial: trial[0])]
