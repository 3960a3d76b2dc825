"""Ask and tell: the initial entries, duplicates, state, failures, and the fronts it finds."""

import json
import logging
import math
import re
from collections.abc import Callable
from dataclasses import replace
from statistics import mean
from typing import Any

import numpy as np
import pytest
import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search import Mobo
from pareco.search import problem as problem_module
from pareco.search import solver as solver_module
from pareco.search.problem import Problem, bin_masses
from pareco.search.solver import ScalarizationSolver, Trial
from pareco.search.surrogate import Surrogate, SurrogateError
from tests.search.problems import ALPHA_MIN, cost, loss, uniform

# Small enough for the suite; the proposals need not be the best.
QUICK = SearchConfig(initial_widths=4, raw_samples=32, starts=1, iterations=8, trials=3)


def searcher(
    seed: int = 0,
    config: SearchConfig = QUICK,
    canonical: Callable[[Tensor], Tensor] = torch.Tensor.clone,
) -> Mobo:
    generator = torch.Generator().manual_seed(seed)
    return Mobo([ALPHA_MIN] * 4, [1.0] * 4, config, generator, cost=cost, canonical=canonical)


def ask(mobo: Mobo, count: int) -> Tensor:
    return torch.stack([proposal.alpha for proposal in mobo.ask(count)])


def run(mobo: Mobo, evaluations: int, batch: int = 1) -> None:
    while len(mobo.alphas) < evaluations:
        alphas = ask(mobo, batch)
        mobo.tell(alphas, loss(alphas))


@pytest.fixture(scope="module")
def seven() -> str:
    mobo = searcher()
    run(mobo, 7)
    return json.dumps(mobo.state())


@pytest.fixture
def ready(seven: str) -> Mobo:
    """Return a searcher with seven entries: 4 uniform ones, the largest, 2 of the GPs."""
    mobo = searcher()
    mobo.load_state(json.loads(seven))
    return mobo


def told_costs(dimensions: int) -> Mobo:
    """Return a searcher that computes no costs."""
    return Mobo([ALPHA_MIN] * dimensions, [1.0] * dimensions, QUICK, torch.Generator())


def assert_inside(alphas: Tensor) -> None:
    assert ((alphas >= ALPHA_MIN) & (alphas <= 1)).all()


def thirds(alphas: Tensor) -> Tensor:
    """Round to 0.4, 0.6, 0.8, 1: 4^4 networks, 4 of them uniform."""
    return (torch.round((alphas - 0.4) / 0.2) * 2 + 4) / 10


def test_first_uniform_then_the_largest_then_free() -> None:
    mobo = searcher()
    run(mobo, 9, batch=3)
    first = mobo.alphas[:4]
    assert torch.equal(first, first[:, :1].expand(4, 4))
    assert ((first >= ALPHA_MIN) & (first < 1)).all()
    assert len(first.unique(dim=0)) == 4
    assert torch.equal(mobo.alphas[4], torch.ones(4, dtype=torch.double))
    free = mobo.alphas[5:]
    assert_inside(free)
    assert not torch.equal(free, free[:, :1].expand(-1, 4))


def test_one_ask_may_pass_through_all_stages_and_changes_no_history() -> None:
    mobo = searcher()
    origins = [proposal.origin for proposal in mobo.ask(6)]
    assert origins == ["uniform"] * 4 + ["largest", "random"]
    assert len(mobo.alphas) == 0
    assert mobo.ask(0) == []


@pytest.mark.parametrize(("rounded", "entries"), [(False, 7), (True, 2), (True, 7)])
def test_state_through_json_continues_with_the_same_proposals(rounded: bool, entries: int) -> None:
    # Rounded: only 3 uniform networks beside the largest, of 4 wanted.
    canonical = thirds if rounded else torch.Tensor.clone
    mobo = searcher(canonical=canonical)
    run(mobo, entries)
    mobo.tell(uniform(1, seed=9)[0], math.nan)
    state = json.loads(json.dumps(mobo.state(), allow_nan=False))
    assert list(state["fits"]) == (["loss", "cost"] if entries == 7 else [])
    again = searcher(seed=5, canonical=canonical)
    again.load_state(state)
    again._generator.set_state(mobo._generator.get_state())
    for _ in range(2):
        proposals = ask(mobo, 2)
        assert torch.equal(proposals, ask(again, 2))
        for continued in (mobo, again):
            continued.tell(proposals, loss(proposals))
    with pytest.raises(ValueError, match="dimensions 4 are not our 3"):
        told_costs(3).load_state(state)


def test_no_network_is_proposed_twice_and_all_are_canonical_where_uniform_ones_run_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "pareco.search")
    mobo = searcher(config=replace(QUICK, initial_widths=20), canonical=thirds)
    run(mobo, 8)
    assert caplog.messages[0] == "no new uniform network in 100 draws: 3 entries precede"
    assert not [message for message in caplog.messages if "random proposal" in message]
    assert len(mobo._surrogate.posteriors) == 2
    run(mobo, 16, batch=4)
    alphas = mobo.alphas
    assert sorted(alphas[:3, 0].tolist()) == [0.4, 0.6, 0.8]
    assert torch.equal(alphas[:4], alphas[:4, :1].expand(4, 4))
    assert alphas[3].tolist() == [1.0] * 4
    assert len(alphas.unique(dim=0)) == 16
    assert torch.equal(alphas, thirds(alphas))


def with_trials(monkeypatch: pytest.MonkeyPatch, trials: list[list[Trial]]) -> list[Any]:
    """Let the binary searches give `trials`; return the list which fills with their targets."""
    targets = []

    def search(_: object, target: float, *__: object) -> list[Trial]:
        targets.append(target)
        return trials[len(targets) - 1]

    monkeypatch.setattr(solver_module, "search_cost_weight", search)
    return targets


def test_a_known_trial_gives_way_to_another_targets(
    ready: Mobo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Then to the unknown trial that is nearest to its target; what was missed is counted."""
    caplog.set_level(logging.INFO, "pareco.search")
    largest, *new = torch.cat([torch.ones(1, 4, dtype=torch.double), uniform(4, seed=8)])
    known = (0.01, largest)
    trials = [
        *([known, (0.3, new[0])], [(0.02, new[1]), (0.4, new[0])]),  # within 0.02 is reached
        [(0.1, new[2]), (0.2, new[0])],  # nothing reached: the nearest all the same
        *([known, (0.2, new[0])], [known], [known, (0.1, new[3])]),
    ]
    targets = with_trials(monkeypatch, trials)
    proposals = ready.ask(3)
    found = torch.stack([each.alpha for each in proposals])
    assert torch.equal(found, torch.stack([new[1], new[2], new[3]]))
    assert [each.target for each in proposals] == [targets[1], targets[2], targets[5]]
    assert [each.gaps for each in proposals] == [0, 1, 0]
    (missed,) = caplog.messages
    assert re.fullmatch(
        r"no minimizer of 2 weights costs [\d.]+: the nearest is 0.1 of .* off", missed
    )


def test_where_all_trials_are_known_the_random_proposal_is_logged(
    ready: Mobo, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "pareco.search")
    targets = with_trials(monkeypatch, [[(0.0, torch.ones(4, dtype=torch.double))]] * 6)
    assert len(ask(ready, 2).unique(dim=0)) == 2
    assert len(set(targets)) == 3
    known = "no proposal of the GPs: those for 3 targets are known"
    assert caplog.messages == [known, "random proposal", "random proposal"]


def test_an_exhausted_space_repeats_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    def halves(alphas: Tensor) -> Tensor:
        return 1 - 0.6 * (alphas < 0.7).double()

    generator = torch.Generator().manual_seed(0)
    mobo = Mobo([ALPHA_MIN], [1.0], QUICK, generator, canonical=halves)
    proposals = ask(mobo, 3)
    assert sorted(proposals[:2, 0].tolist()) == [0.4, 1.0]
    assert proposals[2, 0].item() in (0.4, 1.0)
    assert caplog.messages == ["random proposal: nothing unknown in 100 draws, one is repeated"]


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_unmeasured_losses_are_left_out_of_the_fit(ready: Mobo, value: float) -> None:
    ready.tell(uniform(3, seed=3), torch.full((3,), value))
    ready.ask(1)
    assert len(ready._surrogate.posteriors[0].inputs) == 7
    ready.refresh(torch.linspace(0, 1, 10))
    ready.ask(1)
    assert len(ready._surrogate.posteriors[0].inputs) == 10
    with pytest.raises(ValueError, match="10 losses"):
        ready.refresh(torch.ones(9))


@pytest.mark.parametrize(
    ("alphas", "losses", "costs"),
    [
        (torch.ones(1, 3), torch.ones(1), torch.ones(1)),
        (torch.ones(1, 4), torch.ones(2), torch.ones(1)),
        (torch.ones(1, 4), torch.ones(1), torch.tensor([math.nan])),
    ],
)
def test_what_does_not_fit_is_refused(alphas: Tensor, losses: Tensor, costs: Tensor) -> None:
    mobo = told_costs(4)
    with pytest.raises(ValueError, match=r"^alphas (must be n x 4.*|and costs must be finite)$"):
        mobo.tell(alphas, losses, costs)
    assert len(mobo.alphas) == 0


def boxed(cost: Callable[[Tensor], Any], solver: Any = "exact", monotone: bool = True) -> Mobo:
    """Return a searcher in a box from 2 to 40 for each of two whole numbers."""
    config, generator = replace(QUICK, solver=solver), torch.Generator().manual_seed(0)
    return Mobo([2, 2], [40, 40], config, generator, cost=cost, monotone=monotone,
                canonical=torch.round)  # fmt: skip


def test_what_lies_outside_of_the_box_is_refused() -> None:
    mobo = boxed(lambda x: x.sum(-1))
    for alpha in ([100.0, -7.0], [0.5, 0.5], [[3.0, 4.0], [3.0, 41.0]]):
        with pytest.raises(ValueError, match=r"^alphas must lie in the box from \[2.0, 2.0\] to"):
            mobo.tell(alpha, [1.0] * (2 if isinstance(alpha[0], list) else 1))
    mobo.tell([[2.0, 3.0], [40.0, 40.0]], [1.0, 2.0])
    assert mobo.costs.tolist() == [5, 80]


def test_what_a_box_is_rounded_to_may_lie_beside_it() -> None:
    """But nothing else that comes to the same, as multipliers of more than all channels do."""
    config, generator = QUICK, torch.Generator()
    mobo = Mobo([2.4], [40], config, generator, canonical=torch.round)
    mobo.tell([2.0], 1.0, 2.0)
    with pytest.raises(ValueError, match="must lie in the box"):
        mobo.tell([2.2], 1.0, 2.0)
    capped = Mobo([2], [40], config, generator, canonical=lambda x: x.clamp(2, 40).round())
    with pytest.raises(ValueError, match="must lie in the box"):
        capped.tell([100.0], 1.0, 2.0)


def test_numbers_may_be_lists_and_arrays_and_differentiable() -> None:
    mobo = boxed(lambda x: x.sum(-1).numpy())
    mobo.tell(np.array([[3, 5], [4, 6]]), [1.0, 2.0])
    mobo.tell(torch.tensor([7.0, 7.0]), torch.tensor(0.5, requires_grad=True))
    mobo.refresh(torch.tensor([1.0, 2.0, 0.5], requires_grad=True))
    assert mobo.front() == [0, 2]
    mobo.refresh([3, 2, 1])
    assert mobo.losses.tolist() == [3, 2, 1]


@pytest.mark.parametrize("solver", ["exact", "tchebyshev"])
def test_a_cost_that_fails_is_no_trouble_of_the_search(solver: str) -> None:
    """It is passed on, where numerics of the search's own end in random proposals."""
    calls = []

    def fails(alphas: Tensor) -> Tensor:
        calls.append(alphas)
        if len(calls) > 2:  # what is told, the range, and then a solver's
            raise ValueError("no such layer")
        return alphas.sum(-1)

    mobo = boxed(fails, solver)
    mobo.tell([[3, 5], [20, 20], [40, 40]], [1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match=r"^no such layer$"):
        mobo.ask(1)
    with pytest.raises(ValueError, match=r"must return 1 costs of 1 x 2, got \(1, 1\)"):
        boxed(lambda x: x[:, :1], solver).tell([3, 5], 1.0)


def test_a_cost_is_never_asked_of_nothing() -> None:
    mobo = boxed(lambda x: torch.stack([each.sum() for each in x]))
    mobo.tell([[2, 2], [9, 20], [30, 11], [40, 40]], [1.0, 0.5, 0.4, 0.2])
    assert {each.origin for each in mobo.ask(3)} == {"model"}


def test_a_cost_that_falls_is_refused_unless_that_is_said() -> None:
    told = [[2, 2], [9, 20], [30, 11], [40, 40]], [1.0, 0.5, 0.4, 0.2]
    mobo = boxed(lambda x: -x.sum(-1))
    mobo.tell(*told)
    with pytest.raises(ValueError, match=r"falls, from -4 to -80, as all .*: give monotone=False"):
        mobo.ask(1)
    for offset in (0, 76, 80, 200):
        other = boxed(lambda x, offset=offset: offset - x.sum(-1), monotone=False)
        other.tell([[2, 2], [9, 20], [30, 11], [40, 40]], [0.2, 0.4, 0.5, 1.0])
        problem = other._problem()
        masses = bin_masses(problem.front_costs, problem.front_losses, problem.cost_range, 50)
        assert masses.sum() > 0
        assert problem.tolerance > 0
        (proposal,) = other.ask(1)
        assert proposal.origin == "model"
        assert proposal.target is not None
        assert float(other._exact_costs(proposal.alpha[None])) <= proposal.target + 1e-6


def test_a_cost_that_is_the_same_everywhere() -> None:
    mobo = boxed(lambda x: 0 * x.sum(-1))
    mobo.tell([[2, 2], [9, 20], [30, 11], [40, 40]], [1.0, 0.5, 0.4, 0.2])
    assert mobo.ask(1)[0].origin == "model"


def test_a_cost_that_is_not_finite_is_refused() -> None:
    mobo = boxed(lambda x: (x - 2).log().sum(-1))
    with pytest.raises(ValueError, match=r"the function cost is not finite at \[2.0, 9.0\]"):
        mobo.tell([2, 9], 1.0)
    mobo.tell([[3, 3], [9, 20], [40, 40]], [1.0, 0.5, 0.2])
    with pytest.raises(ValueError, match=r"is not finite at \[2.0, 2.0\]"):
        mobo.ask(1)


@pytest.mark.parametrize(
    ("costs", "tolerance"), [((2.0, 10.0), 0.2), ((0.0, 10.0), 0.2), ((-8.0, -3.0), 0.1)]
)
def test_the_tolerance_is_of_the_largest_cost_or_the_range(
    ready: Mobo, costs: tuple[float, float], tolerance: float
) -> None:
    assert replace(ready._problem(), cost_range=costs).tolerance == pytest.approx(tolerance)


def test_a_damaged_state_changes_nothing(ready: Mobo) -> None:
    state = ready.state()
    for change in ({"costs": [1.0]}, {"alphas": [[7.0] * 4] * 7}, {"dimensions": 3}):
        with pytest.raises(ValueError, match=r"alphas must|dimensions 3"):
            ready.load_state({**state, "history": {**state["history"], **change}})
    with pytest.raises(ValueError, match="the state of the fits is none of ours"):
        ready.load_state({**state, "fits": {"loss": {"nope": 1}}})
    assert ready.state() == state


def test_with_fewer_than_two_losses_proposals_are_random(caplog: pytest.LogCaptureFixture) -> None:
    mobo = searcher()
    alphas = uniform(6, seed=3)
    mobo.tell(alphas, torch.tensor([0.1, *[math.nan] * 5]))
    caplog.set_level(logging.INFO, "pareco.search")
    assert_inside(ask(mobo, 3))  # the first is the largest
    assert caplog.messages[0] == "no GPs: fewer than two losses are measured"
    assert caplog.messages[1:] == ["random proposal"] * 2
    assert mobo._surrogate.posteriors == []


@pytest.mark.parametrize(
    ("part", "reason"),
    [
        ("fit", "no GPs: SurrogateError: broken on purpose"),
        ("pool", "no GPs: FloatingPointError: non-finite bounds at the starting points"),
        ("bounds", "no proposal of the GPs: FloatingPointError: non-finite bounds or gradients"),
        ("optimizer", "no proposal of the GPs: FloatingPointError: broken on purpose"),
    ],
)
def test_where_a_part_fails_a_random_proposal_stands_in_and_is_logged(
    ready: Mobo,
    part: str,
    reason: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    optimistic, with_slopes = Surrogate.optimistic_bounds, Surrogate.bounds_with_slopes

    def broken(*_: object, **__: object) -> None:
        if part == "fit":
            raise SurrogateError("broken on purpose")
        raise FloatingPointError("broken on purpose")

    def undefined(self: Surrogate, points: Tensor) -> tuple[Tensor, Tensor]:
        values, slopes = with_slopes(self, points)
        return values, slopes * math.nan

    caplog.set_level(logging.INFO, "pareco.search")
    if part == "fit":
        monkeypatch.setattr(Surrogate, "fit", broken)
    elif part == "optimizer":
        monkeypatch.setattr(solver_module, "descended", broken)
    elif part == "bounds":
        monkeypatch.setattr(Surrogate, "bounds_with_slopes", undefined)
    else:
        lost = lambda self, points: optimistic(self, points) * math.nan  # noqa: E731
        monkeypatch.setattr(Surrogate, "optimistic_bounds", lost)
    assert_inside(ask(ready, 1))
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert caplog.messages == [reason, "random proposal"]


def test_errors_of_the_caller_are_not_taken_for_the_solvers(ready: Mobo) -> None:
    def broken(_: Tensor) -> Tensor:
        raise ValueError("the caller's")

    ready._cost = broken
    with pytest.raises(ValueError, match="the caller's"):
        ready.ask(1)


def test_targets_are_drawn_from_the_front_sorted_by_cost(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(problem_module, "target_cost", lambda *given: calls.append(given) or 0.6)
    mobo = told_costs(4)
    # By cost: 0.2 and 0.9 beyond the front's reach, 0.5 and 0.7 on it, 0.8 dominated.
    costs = torch.tensor([0.9, 0.5, 0.8, 0.7, 0.2], dtype=torch.double)
    losses = torch.tensor([0.1, 3.0, 2.5, 1.0, 4.0], dtype=torch.double)
    mobo.tell(torch.cat([torch.ones(1, 4), uniform(4, seed=1)]), losses, costs)
    (proposal,) = mobo.ask(1)
    assert (proposal.origin, proposal.target) == ("model", 0.6)
    front_costs, front_losses, cost_range, generator, bins = calls[0]
    assert front_costs.tolist() == [0.2, 0.5, 0.7, 0.9]
    assert front_losses.tolist() == [4.0, 3.0, 1.0, 0.1]
    assert cost_range == (0.2, 0.9)  # of the costs that were told
    assert generator is mobo._generator
    assert bins == QUICK.target_bins


def test_proposals_cost_what_was_aimed_at() -> None:
    config = SearchConfig(initial_widths=10, raw_samples=64, starts=1)
    gaps = []
    for seed in range(2):
        mobo = searcher(seed, config)
        told = torch.cat([torch.ones(1, 4, dtype=torch.double), uniform(30, seed=20 + seed)])
        mobo.tell(told, loss(told))
        proposals = [mobo.ask(1)[0] for _ in range(6)]
        gaps += [abs(float(cost(each.alpha)) - (each.target or 0)) for each in proposals]
    # Measured: 12 of 12, at most 0.019 off.
    assert mean(gap <= config.tolerance for gap in gaps) >= 0.9


class Given:
    """Bounds that are given; their slopes are autograd's."""

    def __init__(self, bounds: Callable[[Tensor], Tensor]) -> None:
        self._bounds = bounds

    def optimistic_bounds(self, points: Tensor) -> Tensor:
        return self._bounds(points)

    def bounds_with_slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        points = points.detach().requires_grad_()
        values = self._bounds(points)
        slopes = [
            torch.autograd.grad(values[:, i].sum(), points, retain_graph=True)[0] for i in (0, 1)
        ]
        return values.detach(), torch.stack(slopes, dim=1)


def solver(bounds: Callable[[Tensor], Tensor], dimensions: int) -> ScalarizationSolver:
    config = SearchConfig(raw_samples=64, augmentation=0.0, iterations=60, precision=1e-7)
    return ScalarizationSolver(problem(dimensions, config), Given(bounds))


def problem(dimensions: int, config: SearchConfig) -> Problem:
    nothing = torch.empty(0, dtype=torch.double)
    return Problem(
        config=config,
        generator=torch.Generator().manual_seed(0),
        canonical=torch.Tensor.clone,
        points=torch.Tensor.clone,
        costs=lambda points: points.mean(dim=-1),
        monotone=True,
        cost_range=(0.0, 1.0),
        front=nothing.reshape(0, dimensions),
        front_costs=nothing,
        front_losses=nothing,
    )


def test_solver_finds_the_minimum_known_in_closed_form() -> None:
    # Bounds (1 - x, 2 x), x the mean: with b = -3 and equal weights the two terms meet
    # where 4 - x = 3 + 2 x, at x = 1/3, inside the unit cube.
    def bounds(points: Tensor) -> Tensor:
        level = points.mean(dim=-1)
        return torch.stack([1 - level, 2 * level], dim=-1)

    made = solver(bounds, 2)
    # It ends where less than 1e-7 of T is promised, whose slopes are 1/2 and 1 to both sides.
    assert made.minimize(0.5).mean().item() == pytest.approx(1 / 3, abs=1e-6)
    assert made.minimize(0.0).tolist() == pytest.approx([1.0, 1.0], abs=1e-9)  # a corner
    assert made.minimize(1.0).tolist() == pytest.approx([0.0, 0.0], abs=1e-9)


def test_solver_does_not_stop_at_the_kink() -> None:
    # min max(f_1, f_2) for f_1 = sum c (1 - x)^2, f_2 = sum a x + constant: with the multipliers
    # (1/2, 1/2) the minimum is where 2 c (1 - x) = a. With a = 2 c (1 - x*) and the constant that
    # makes both equal there, x* is the minimizer: six dimensions, curvatures from 0.1 to 5.
    curvature = torch.logspace(-1, math.log10(5), 6, dtype=torch.double)
    best = torch.linspace(0.9, 0.4, 6, dtype=torch.double)
    slope = 2 * curvature * (1 - best)

    def bounds(points: Tensor) -> Tensor:
        first = (curvature * (1 - points).square()).sum(dim=-1)
        return torch.stack([first, ((points - best) * slope).sum(dim=-1) + least], dim=-1)

    least = (curvature * (1 - best).square()).sum()
    found = bounds(solver(bounds, 6).minimize(0.5).unsqueeze(0)).amax()
    # Measured 3e-8; L-BFGS-B on the maximum itself ends 0.05 off.
    assert float(found - least) == pytest.approx(0.0, abs=1e-5)


def test_more_hypervolume_than_random_search() -> None:
    config = SearchConfig(initial_widths=10, raw_samples=64, starts=1, iterations=10, trials=4)
    worst = -torch.cat([loss(torch.full((1, 4), ALPHA_MIN)), torch.ones(1)])
    volume = Hypervolume(ref_point=worst.double())
    ratios = []
    for seed in range(2):
        mobo = searcher(seed, config)
        run(mobo, 30, batch=4)
        volumes = []
        for alphas in (mobo.alphas, uniform(30, seed=100 + seed)):
            values = -torch.stack([loss(alphas), cost(alphas)], dim=1)
            volumes.append(volume.compute(values[is_non_dominated(values)]))
        ratios.append(volumes[0] / volumes[1])
    # Measured: 1.076, 1.239; random search has mean 1.
    assert min(ratios) > 1.0
    assert mean(ratios) > 1.06


def test_searcher_refuses_a_box_without_room() -> None:
    for lower, upper in (([1.0], [1.0]), ([], []), ([0.0, 0.0], [1.0])):
        with pytest.raises(ValueError, match="lower must lie below upper"):
            Mobo(lower, upper, QUICK, torch.Generator())


def test_costs_are_told_or_computed_not_both() -> None:
    alphas = uniform(2, seed=0)
    with pytest.raises(ValueError, match="not both"):
        searcher().tell(alphas, loss(alphas), cost(alphas))
    with pytest.raises(ValueError, match="not both"):
        told_costs(4).tell(alphas, loss(alphas))
    with pytest.raises(ValueError, match="'exact' needs the function cost"):
        Mobo([0.0], [1.0], SearchConfig(solver="exact"), torch.Generator())
