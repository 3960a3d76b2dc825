"""Pareto-aware target costs (DESIGN section 4, item 5)."""

import torch
from torch import Tensor


def bin_masses(
    costs: Tensor, losses: Tensor, cost_range: tuple[float, float], bins: int = 50
) -> Tensor:
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
    bins: int = 50,
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
