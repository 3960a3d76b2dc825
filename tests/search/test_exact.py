"""The exact solver against closed forms and SLSQP; its targets, gaps and asks for several."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from scipy.optimize import minimize
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search import Mobo, front
from pareco.search.descent import FirstWhereSecondIsNotPositive, descended
from pareco.search.exact import ExactSolver
from pareco.search.surrogate import Surrogate
from tests.search.problems import ALPHA_MIN, cost, loss, uniform

CONFIG = SearchConfig(solver="exact", initial_widths=10, raw_samples=128)


def searcher(seed: int = 0, config: SearchConfig = CONFIG, **options: object) -> Mobo:
    generator = torch.Generator().manual_seed(seed)
    given = {"cost": cost, **options}
    return Mobo([ALPHA_MIN] * 4, [1.0] * 4, config, generator, **given)  # type: ignore[arg-type]


def told(mobo: Mobo, count: int = 40, seed: int = 20) -> Mobo:
    alphas = torch.cat([torch.ones(1, 4, dtype=torch.double), uniform(count, seed=seed)])
    mobo.tell(alphas, loss(alphas))
    return mobo


def test_descent_under_a_limit_finds_the_minimum_known_in_closed_form() -> None:
    # min sum c (1 - x)^2 where sum a x <= F: 2 c (1 - x) = p a. With x* = 1 - p a / 2 c inside the
    # cube and F = sum a x* that is the minimizer; where F >= sum a it is (1, ..., 1).
    curvature = torch.logspace(-0.5, 0.7, 6, dtype=torch.double)
    slope = 0.3 * torch.linspace(1, 2, 6, dtype=torch.double) * curvature
    best = 1 - slope / (2 * curvature)
    limits = torch.tensor([float((slope * best).sum()), 100.0]).repeat_interleave(5).double()

    def evaluate(points: Tensor) -> tuple[Tensor, Tensor]:
        first = (curvature * (1 - points).square()).sum(dim=1)
        slopes = torch.stack([-2 * curvature * (1 - points), slope.expand_as(points)], dim=1)
        return torch.stack([first, points @ slope - limits], dim=1), slopes

    def inside(points: Tensor) -> Tensor:
        return points * (limits / (points @ slope)).clamp_max(1).unsqueeze(1) * (1 - 1e-12)

    starts = inside((uniform(10, seed=1, dimensions=6) - 0.4) / 0.6)
    goal = FirstWhereSecondIsNotPositive()
    found = descended(goal, evaluate, starts, iterations=100, precision=1e-8, moved=inside)
    values = evaluate(found)[0][:, 0]
    least = (curvature * (1 - best).square()).sum()
    # Ends where less than 1e-8 is promised, by a model that is a bound only near the minimum.
    torch.testing.assert_close(values[:5], least.expand(5), rtol=0, atol=1e-5)
    torch.testing.assert_close(values[5:], torch.zeros(5).double(), rtol=0, atol=1e-6)


def test_minimizers_are_those_of_slsqp_from_many_starts() -> None:
    mobo = told(searcher())
    mobo.ask(1)
    surrogate, targets = mobo._surrogate, [0.35, 0.6, 0.85]
    posterior, width = surrogate.posteriors[0], surrogate.width
    solver = ExactSolver(mobo._problem(), surrogate)

    def bound(point: np.ndarray) -> tuple[float, np.ndarray]:
        value, slope = posterior.bounds_with_slopes(torch.from_numpy(point)[None], width)
        return float(value), slope[0].numpy()

    def true_cost(point: np.ndarray) -> float:
        return float(cost(torch.lerp(mobo.lower, mobo.upper, torch.from_numpy(point))))

    starts = ((uniform(12, seed=5) - ALPHA_MIN) / (1 - ALPHA_MIN)).numpy()
    for target, found in zip(targets, solver._minimizers(targets), strict=True):
        limit = {"type": "ineq", "fun": lambda point, limit=target: limit - true_cost(point)}
        results = [
            minimize(bound, s, jac=True, bounds=[(0, 1)] * 4, constraints=limit, method="SLSQP")
            for s in starts
        ]
        least = min(each.fun for each in results if true_cost(each.x) <= target + 1e-6)
        assert (found.costs <= target).any()
        ours = posterior.bounds(found.points, width)[found.costs <= target].min()
        # The search ends where 1e-4 of a standard deviation is promised.
        assert float(ours) <= least + 2e-3


def test_proposals_cost_what_was_aimed_at_and_are_new() -> None:
    for seed in range(2):
        mobo = told(searcher(seed), seed=20 + seed)
        for _ in range(3):
            proposals = mobo.ask(3)
            assert {each.origin for each in proposals} == {"model"}
            alphas = torch.stack([each.alpha for each in proposals])
            targets = torch.tensor([each.target or 0 for each in proposals]).double()
            assert (cost(alphas) <= targets + 1e-9).all()
            assert (cost(alphas) >= targets - CONFIG.tolerance).all()
            assert len(torch.cat([mobo.alphas, alphas]).unique(dim=0)) == len(mobo.alphas) + 3
            mobo.tell(alphas, loss(alphas))


def test_a_gap_of_the_front_is_counted_and_other_targets_are_drawn(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The loss is least at 0.7 everywhere, which costs 0.53: nothing dearer is on the front."""
    caplog.set_level(logging.INFO, "pareco.search")
    targets = iter([0.9, 0.4, 0.8, 0.7, 0.95])
    monkeypatch.setattr("pareco.search.problem.target_cost", lambda *_: next(targets))
    mobo = searcher()
    alphas = torch.cat([torch.ones(1, 4, dtype=torch.double), uniform(60, seed=2)])
    mobo.tell(alphas, (alphas - 0.7).square().sum(dim=1))
    first, *none = mobo.ask(1)
    assert (first.target, first.gaps, none) == (0.4, 1, [])
    (missed,) = caplog.messages
    assert missed.startswith("the best for 0.9 costs 0.3")
    assert missed.endswith("of the largest less: a gap of the front")
    (second,) = mobo.ask(1)  # all three targets are in the gap: the cheaper minimizer itself
    assert second.gaps == 3
    assert float(cost(second.alpha)) == pytest.approx(0.53, abs=0.05)


def test_of_an_ask_for_several_none_is_near_another(monkeypatch: pytest.MonkeyPatch) -> None:
    """At one target the earlier proposals count as observed: where they are unsure, others go."""
    monkeypatch.setattr("pareco.search.problem.target_cost", lambda *_: 0.6)
    mobo = told(searcher(config=replace(CONFIG, beta=9.0)), count=8)
    alphas = torch.stack([each.alpha for each in mobo.ask(3)])
    assert torch.pdist(alphas).min() > 0.1


def test_costs_that_rise_and_fall_are_filtered() -> None:
    """A latency may fall as a layer widens: nothing is moved, but no limit is passed."""

    def latency(alphas: Tensor) -> Tensor:
        return cost(alphas) + 0.05 * torch.sin(20 * alphas).sum(dim=-1)

    mobo = told(searcher(cost=latency, monotone=False))
    proposals = [mobo.ask(1)[0] for _ in range(6)]
    for each in proposals:
        assert each.origin == "model"
        assert float(latency(each.alpha)) <= (each.target or 0) + 1e-9


def test_rounded_coordinates_are_what_costs() -> None:
    def tenths(alphas: Tensor) -> Tensor:
        return torch.floor(alphas * 10 + 1e-6) / 10

    def steps(alphas: Tensor) -> Tensor:
        return cost(tenths(alphas))

    mobo = told(searcher(cost=steps, canonical=tenths))
    for each in mobo.ask(4):
        torch.testing.assert_close(each.alpha, tenths(each.alpha), rtol=0, atol=0)
        assert float(steps(each.alpha)) <= (each.target or 0) + 1e-9


def test_more_hypervolume_than_uniform_widths() -> None:
    worst = -torch.cat([loss(torch.full((1, 4), ALPHA_MIN)), torch.ones(1)])
    volume = Hypervolume(ref_point=worst.double())

    def of(alphas: Tensor) -> float:
        best = front(loss(alphas), cost(alphas))
        return volume.compute(-torch.stack([loss(alphas[best]), cost(alphas[best])], dim=1))

    even = torch.linspace(ALPHA_MIN, 1, 30).double().unsqueeze(1).expand(30, 4)
    for seed in range(2):
        mobo = searcher(seed)
        while len(mobo.alphas) < 30:
            alphas = torch.stack([each.alpha for each in mobo.ask(4)])
            mobo.tell(alphas, loss(alphas))
        assert of(mobo.alphas[:30]) > of(even)


def test_the_loss_alone_is_modelled() -> None:
    mobo = told(searcher())
    mobo.ask(1)
    assert isinstance(mobo._surrogate, Surrogate)
    assert list(mobo.state()["fits"]) == ["loss"]
