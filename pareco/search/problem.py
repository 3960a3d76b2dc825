"""What a solver gets from ask and tell: a box as unit cube, its costs, its front, its targets."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.quasirandom import SobolEngine

from pareco.config import SearchConfig

Key = tuple[float, ...]

_LEVELS = 1_000


class SolverError(RuntimeError):
    """No minimizer could be had."""


class CostError(Exception):
    """The caller's function of costs failed by this error: no trouble of our own numerics."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


@dataclass(frozen=True, kw_only=True)
class Found:
    """A minimizer: canonical coordinates `d` of the box, and the target cost it was sought for.

    `gaps` is how many targets, its own included, no minimizer came near.
    """

    alpha: Tensor
    target: float
    gaps: int


@dataclass(frozen=True, kw_only=True)
class Problem:
    """A search's state for one ask. Points are in the unit cube, alphas in the box.

    `canonical` maps points `m x d` to canonical alphas, `points` those to points; `costs` returns
    the costs `m` of points. `front` are the points `k x d` of the front, cheapest first.
    """

    config: SearchConfig
    generator: torch.Generator
    canonical: Callable[[Tensor], Tensor]
    points: Callable[[Tensor], Tensor]
    costs: Callable[[Tensor], Tensor]
    monotone: bool
    cost_range: tuple[float, float]
    front: Tensor
    front_costs: Tensor
    front_losses: Tensor

    @property
    def scale(self) -> float:
        """What parts of the cost are of: the largest, or the range where not all are positive."""
        low, high = self.cost_range
        return high if low > 0 else (high - low) or 1.0

    @property
    def tolerance(self) -> float:
        """The accepted distance from a target, in the cost's units."""
        return self.config.tolerance * self.scale

    def target(self) -> float:
        """Return a target cost: drawn where the front leaves much area, or at a uniform point."""
        if self.config.target_costs == "uniform":
            level = float(torch.rand((), dtype=torch.double, generator=self.generator))
            return float(np.interp(level, *self._uniform_costs))
        bins = self.config.target_bins
        return target_cost(
            self.front_costs, self.front_losses, self.cost_range, self.generator, bins
        )

    @cached_property
    def _uniform_costs(self) -> tuple[np.ndarray, np.ndarray]:
        """Levels of the cube's diagonal at which the cost changes, and the costs from there on.

        Multipliers are rounded down to whole channels, so that these levels are the ones whose
        costs are exact; between them lies what can be reached off the diagonal.
        """
        levels = torch.linspace(0, 1, _LEVELS + 1, dtype=torch.double)
        costs = self.costs(levels[:, None].expand(-1, self.front.shape[1]))
        changes = costs.diff(prepend=costs[:1] - 1) != 0
        return levels[changes].numpy(), costs[changes].numpy()

    def sobol(self, count: int) -> Tensor:
        """Return `count` scrambled Sobol points."""
        seed = int(torch.randint(2**31, (), generator=self.generator))
        engine = SobolEngine(self.front.shape[1], scramble=True, seed=seed)
        return engine.draw(count, dtype=torch.double)


def key(alpha: Tensor) -> Key:
    """Return coordinates `d` as a hashable."""
    return tuple(alpha.tolist())


def first_unknown(alphas: Tensor, known: Collection[Key]) -> int | None:
    """Return the index of the first of `m x d` alphas that is not known, or None."""
    rows = (index for index, alpha in enumerate(alphas) if key(alpha) not in known)
    return next(rows, None)


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
