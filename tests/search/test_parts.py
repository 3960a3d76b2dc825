"""Scalarization, target costs, binary search and front against hand-worked values."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search import front
from pareco.search.problem import Problem, bin_masses, target_cost
from pareco.search.solver import search_cost_weight, tchebyshev


def double(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.double)


def test_tchebyshev_is_the_hand_worked_value() -> None:
    objectives = torch.stack([double(-1.0, 2.0), double(0.5, -2.5)])
    # Distances to b = -3: (2, 5) and (3.5, 0.5); with lambda = (0.75, 0.25): (1.5, 1.25) and
    # (2.625, 0.125), hence 1.5 + 0.01 * 2.75 and 2.625 + 0.01 * 2.75.
    expected = double(1.5275, 2.6525)
    values = tchebyshev(objectives, cost_weight=0.25, reference=-3.0, augmentation=0.01)
    # A handful of double operations on numbers of order 1: 1e-14 is some 50 roundings.
    torch.testing.assert_close(values, expected, rtol=0, atol=1e-14)


def test_bin_masses_are_the_hand_worked_areas() -> None:
    # Gaps: [1, 2] with a drop of 3 and [2, 4] with a drop of 1, so densities 3 and 1; bins of
    # width 0.8 over [0, 4]: [0.8, 1.6] holds 0.6 * 3, [1.6, 2.4] 0.4 * 3 + 0.4 * 1, then 0.8.
    masses = bin_masses(double(1, 2, 4), double(5, 2, 1), (0.0, 4.0), bins=5)
    # Bin edges such as 1.6 are rounded; order-1 sums stay well within 1e-14.
    torch.testing.assert_close(masses, double(0, 1.8, 1.6, 0.8, 0.8), rtol=0, atol=1e-14)


def test_target_costs_fall_into_the_bins_by_mass() -> None:
    generator = torch.Generator().manual_seed(0)
    draws = double(
        *(target_cost(double(1, 2, 4), double(5, 2, 1), (0, 4), generator, 5) for _ in range(2000))
    )
    shares = torch.histc(draws, bins=5, min=0, max=4) / 2000
    # Binomial standard deviation at most sqrt(0.36 * 0.64 / 2000) = 0.011: 0.045 is four of it.
    torch.testing.assert_close(shares, double(0, 0.36, 0.32, 0.16, 0.16), rtol=0, atol=0.045)
    assert shares[0] == 0


def targets(costs: Callable[[Tensor], Tensor]) -> Tensor:
    """Return 4,000 uniform target costs in two dimensions, where points have these costs."""
    problem = Problem(
        config=SearchConfig(target_costs="uniform"),
        generator=torch.Generator().manual_seed(0),
        canonical=lambda points: points,
        points=lambda alphas: alphas,
        costs=costs,
        monotone=True,
        cost_range=(0.0, 1.0),
        front=torch.zeros(0, 2, dtype=torch.double),
        front_costs=double(),
        front_losses=double(),
    )
    return double(*(problem.target() for _ in range(4000)))


def test_uniform_targets_are_spread_as_the_costs_of_uniform_points() -> None:
    drawn = targets(lambda points: points.prod(dim=1))
    # The cost of a level u is u^2, so P(cost <= c) = sqrt(c); 1.63 / sqrt(n) is Kolmogorov's 1%.
    shares = drawn.sort().values.sqrt()
    ranks = (torch.arange(4000) + 0.5) / 4000
    assert float((shares - ranks).abs().max()) < 1.63 / math.sqrt(4000)


def test_uniform_targets_lie_between_the_costs_of_rounded_points() -> None:
    drawn = targets(lambda points: (4 * points[:, 0]).floor() / 4)
    # Without rounding the cost is the multiplier itself; 1.63 / sqrt(n) is Kolmogorov's 1%.
    ranks = (torch.arange(4000) + 0.5) / 4000
    assert float((drawn.sort().values - ranks).abs().max()) < 1.63 / math.sqrt(4000)
    assert len(drawn.unique()) == 4000


def test_uniform_targets_of_equal_costs_are_that_cost() -> None:
    drawn = targets(lambda points: torch.full((len(points),), 0.5, dtype=torch.double))
    assert set(drawn.tolist()) == {0.5}


@pytest.mark.parametrize("points", [[], [(2.0, 1.0)], [(1.0, 1.0), (2.0, 1.0)]])
def test_without_mass_the_target_is_uniform_over_the_cost_range(
    points: list[tuple[float, float]],
) -> None:
    costs, losses = torch.tensor(points, dtype=torch.double).reshape(-1, 2).unbind(1)
    generator = torch.Generator().manual_seed(0)
    draws = double(*(target_cost(costs, losses, (1, 3), generator, 4) for _ in range(1000)))
    shares = torch.histc(draws, bins=4, min=1, max=3) / 1000
    # Binomial standard deviation 0.0137; 0.055 is four of it.
    torch.testing.assert_close(shares, double(0.25, 0.25, 0.25, 0.25), rtol=0, atol=0.055)


def test_binary_search_halves_towards_the_target() -> None:
    weights: list[float] = []

    def propose(weight: float) -> tuple[torch.Tensor, float]:
        weights.append(weight)
        return double(weight), 100 * (1 - weight)

    trials = search_cost_weight(propose, target=20.0, tolerance=2.0, trials=10)
    # Costs 50, 25, 12.5, 18.75: the fourth is the first within 2 of 20.
    assert weights == [0.5, 0.75, 0.875, 0.8125]
    assert [distance for distance, _ in trials] == [1.25, 5, 7.5, 30]
    assert torch.cat([alpha for _, alpha in trials]).tolist() == [0.8125, 0.75, 0.875, 0.5]


def test_binary_search_lists_the_closest_trial_first_when_trials_run_out() -> None:
    costs = {0.5: 60.0, 0.75: 10.0, 0.625: 11.0}  # a jump from 60 to 11: 25 is never reached
    trials = search_cost_weight(
        lambda w: (double(w), costs[w]), target=25.0, tolerance=2.0, trials=3
    )
    assert torch.cat([alpha for _, alpha in trials]).tolist() == [0.625, 0.75, 0.5]


def test_front_by_hand() -> None:
    losses = [3.0, 2.0, 2.5, 1.0, 1.0, math.nan, 1.0, 3.0]
    costs = [1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 4.0, 1.0]
    assert front(losses, costs) == [0, 1, 3]
    assert front([4.0, 5.0, 1.0], [0.9, 0.2, 0.95]) == [1, 0, 2]
    assert front([], []) == []
    assert front([math.nan], [1.0]) == []
