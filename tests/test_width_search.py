"""What feeds a search: which losses are measured, how the others follow, and what trains."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from pareco.config import SearchConfig
from pareco.methods import Task
from pareco.search import Mobo
from pareco.search.mobo import Proposal
from pareco.slimmable import SlimmableNet
from pareco.width_search import PareCO, WidthSearch
from pareco.widths import Widths
from tests.conftest import tiny_net
from tests.experiments import TINY, quick


@pytest.fixture(scope="module")
def net() -> SlimmableNet:
    return tiny_net(base_width=8)


class Losses:
    """Made-up losses, a line of what the widths come to; remembers what was asked at a time."""

    def __init__(self, slope: float = 1.0, offset: float = 0.0) -> None:
        self.slope, self.offset = slope, offset
        self.asked: list[list[Widths]] = []

    def of(self, widths: Widths) -> float:
        return self.offset + self.slope * (sum(100.0 / count for count in widths) - widths[-1])

    def __call__(self, widths: Sequence[Widths]) -> Tensor:
        self.asked.append(list(widths))
        return torch.tensor([self.of(each) for each in widths], dtype=torch.double)


def task_of(net: SlimmableNet, losses: Losses, *, left: float = math.inf, **search: Any) -> Task:
    """Return a task that lets so many networks be measured at a time."""
    return Task(
        space=net.space,
        cost=net.cost,
        objective="macs",
        generator=torch.Generator().manual_seed(0),
        evaluate=losses,
        steps=30,
        sampled_per_step=2,
        ask_every_steps=3,
        widths_budget=12,
        search=replace(TINY.search, **search),
        price=len,
        left=lambda: left,
    )


def searched(task: Task, visits: int) -> WidthSearch:
    """Return a search with so many visits, random ones, none of them measured."""
    search = WidthSearch(replace(task, search=task.search.resolved()))
    while len(search.visits) < visits:
        drawn = task.space.sample(task.generator)
        if drawn not in search.visited:
            search.visit(drawn)
    return search


def test_a_budget_measures_the_front_the_new_ones_the_layer_behind_and_the_longest_left_out(
    net: SlimmableNet,
) -> None:
    losses = Losses()
    search = searched(task_of(net, losses), 24)
    search.refresh()
    front = search.front()
    behind = search.front(set(search.visited) - set(front))
    search.visit(net.space.uniform(0.7))
    search.task = replace(search.task, left=lambda: len(front) + 1 + len(behind))
    measured = search.refresh()
    assert measured == {*front, net.space.uniform(0.7), *behind}
    front = search.front()
    behind = search.front(set(search.visited) - set(front))
    search.task = replace(search.task, left=lambda: len(front) + len(behind) + 2)
    left_out = {each.widths for each in search.visits if each.left_out}
    others = search.refresh() - {*front, *behind}
    assert len(left_out - {*front, *behind}) > 2
    assert len(others) == len(others & left_out) == 2


def test_what_is_left_out_moves_along_with_what_is_measured(net: SlimmableNet) -> None:
    """All losses change by one line: then so do those that nobody has measured, exactly."""
    losses = Losses()
    search = searched(task_of(net, losses), 12)
    search.refresh()
    losses.slope, losses.offset = 0.5, -1.0
    search.task = replace(search.task, left=lambda: 7)
    measured = search.refresh()
    assert len(measured) == 7
    for visit in search.visits:
        assert visit.known_loss == pytest.approx(losses.of(visit.widths), rel=1e-9)
    assert search.front() == searched_front(search, losses)


def searched_front(search: WidthSearch, losses: Losses) -> list[Widths]:
    """Return the front by the losses as they are now, by comparing all with all."""
    costs = search.task.costs(search.visited).tolist()
    points = [
        (cost, losses.of(each), each) for cost, each in zip(costs, search.visited, strict=True)
    ]
    best = [
        (cost, each)
        for cost, loss, each in points
        if not any(
            c <= cost and other <= loss and (c, other) != (cost, loss) for c, other, _ in points
        )
    ]
    return [each for _, each in sorted(best, key=lambda pair: pair[0])]


def test_few_measurements_make_no_line_and_a_falling_one_is_flat(net: SlimmableNet) -> None:
    losses = Losses()
    search = searched(task_of(net, losses), 8)
    search.refresh()
    before = {each.widths: each.known_loss for each in search.visits}
    losses.slope, losses.offset = -1.0, 50.0
    search.task = replace(search.task, left=lambda: 2)
    measured = search.refresh()
    for visit in search.visits:
        if visit.widths not in measured:
            assert visit.known_loss == before[visit.widths]

    losses = Losses()
    search = searched(task_of(net, losses), 8)
    search.refresh()
    losses.slope, losses.offset = -1.0, 50.0
    search.task = replace(search.task, left=lambda: 6)
    measured = search.refresh()
    rest = {each.known_loss for each in search.visits if each.widths not in measured}
    new = sorted(losses.of(each) for each in measured)
    assert list(rest) == pytest.approx([(new[2] + new[3]) / 2])


@pytest.mark.parametrize(
    ("half_life", "kept"), [(None, 0.0), (0.0, 0.0), (0.1, 0.5), (0.2, 0.5**0.5)]
)
def test_what_was_known_counts_less_from_ask_to_ask(
    net: SlimmableNet, half_life: float | None, kept: float
) -> None:
    """By hand, as one of 30 steps in three asks: weights 1, then w = kept + 1; each mean is of the
    old, moved along, and the new."""
    losses = Losses()
    search = searched(task_of(net, losses, half_life=half_life), 6)
    search.refresh()
    first = [each.known_loss or 0.0 for each in search.visits]
    odd = search.visits[3].widths
    plain = Losses.of

    class Odd(Losses):
        def of(self, widths: Widths) -> float:
            return plain(self, widths) + (1.0 if widths == odd else 0.0)

    search.task = replace(search.task, evaluate=Odd())
    search.refresh()
    # Theil-Sen's line through six points of which one is off is the other five's: y = x.
    for visit, known in zip(search.visits, first, strict=True):
        new = known + (1.0 if visit.widths == odd else 0.0)
        assert visit.known_loss == pytest.approx((kept * known + new) / (kept + 1), rel=1e-12)
        assert visit.final_loss == pytest.approx(new, rel=1e-12)
    search.refresh(final=True)
    for visit in search.visits:
        assert visit.known_loss == visit.final_loss


def test_what_the_last_ask_went_by_outlasts_the_final_losses(net: SlimmableNet) -> None:
    losses = Losses()
    search = searched(task_of(net, losses), 6)
    assert {each.asked_loss for each in search.visits} == {None}
    search.refresh()
    known = {each.widths: each.known_loss for each in search.visits}
    new = search.ask(2, 10)
    losses.slope = 3.0
    search.refresh(final=True)
    for visit in search.visits:
        assert visit.asked_loss == known.get(visit.widths)
        assert visit.known_loss == pytest.approx(losses.of(visit.widths))
        assert visit.asked_loss != visit.known_loss
    assert len(new) == 2


def test_a_visit_tells_of_the_targets_in_gaps_before_it(net: SlimmableNet) -> None:
    class Gaps(Mobo):
        def ask(self, n: int) -> list[Proposal]:
            return [replace(each, gaps=gaps) for gaps, each in enumerate(super().ask(n))]

    search = WidthSearch(replace(task_of(net, Losses()), optimizer=Gaps))
    search.ask(3)
    assert [each.gaps for each in search.visits] == [0, 1, 2]
    again = WidthSearch(task_of(net, Losses()))
    again.load_state(search.state())
    assert again.visits == search.visits


def test_what_a_small_budget_measures_is_spread_over_the_front(net: SlimmableNet) -> None:
    """A third of it, and the rest in the next two refreshes; of final losses from end to end."""
    losses = Losses()
    search = searched(task_of(net, losses), 40)
    search.refresh()
    front = search.front()
    third = -(-len(front) // 3)
    assert third > 2
    search.task = replace(search.task, left=lambda: third)
    places = []
    for _ in range(3):
        measured = search.refresh()
        places.append(sorted(front.index(each) for each in measured))
        assert measured <= set(front)
    assert places[0][0] == 0
    assert max(after - before for before, after in pairwise([*places[0], len(front)])) <= 5
    assert len({each for some in places for each in some}) == len(front)
    final = sorted(front.index(each) for each in search.refresh(final=True))
    assert final == places[0]


def trained(method: PareCO, steps: Iterable[int]) -> list[Sequence[Widths]]:
    return [method.widths_for_step(step) for step in steps]


def test_half_of_what_trains_is_the_front_and_the_rest_the_newest(net: SlimmableNet) -> None:
    method = PareCO(task_of(net, Losses(), trains="front", visits_per_ask=4))
    trained(method, range(3 * 9))
    newest, front = set(method.current), set(method.search.front())
    ends = {net.space.largest, net.space.smallest}
    assert len(newest) == 4
    first: Counter[Widths] = Counter()
    second: Counter[Widths] = Counter()
    for step in (1, 2) * 200:
        one, other = method.widths_for_step(step)
        first[one] += 1
        second[other] += 1
    assert set(first) == front - ends
    assert set(second) >= newest - ends - front
    assert set(second) <= newest | front
    # Each as often as the others: 400 draws, six standard deviations.
    expected = 400 / len(first)
    assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in first.values())


def test_training_measures_how_far_each_network_lies_from_the_ends(net: SlimmableNet) -> None:
    """By hand: the largest at 2 and 1, the smallest 1.0 and 0.5 above it, one in between."""
    task = task_of(net, Losses(), losses_from="training", half_life=0.2)
    method = PareCO(task)
    middle = net.space.uniform(0.7)
    for each in (net.space.largest, net.space.smallest, middle):
        method.search.visit(each)
    widths = [net.space.largest, middle, net.space.smallest]
    method.hear(0, widths, [2.0, 2.5, 3.0])
    method.hear(1, widths, [1.0, 1.2, 1.5])
    method.search.recall()
    # Gaps 1, then on average 0.75: 0.5 of 1, and 0.2, weighted by these: 0.7 / 1.75.
    known = {visit.widths: visit.known_loss for visit in method.visits()}
    assert known[net.space.largest] == pytest.approx(1.5)
    assert known[net.space.smallest] == pytest.approx(1.5 + 0.75 * 1.5 / 1.75)
    assert known[middle] == pytest.approx(1.5 + 0.75 * 0.7 / 1.75)
    # Two asks' half-life: what was heard counts 0.5 ** 0.5.
    kept = 0.5**0.5
    method.hear(2, widths, [1.0, 1.9, 2.0])
    gap = 0.75 + 0.25 / (2 * kept + 1)
    expected = (kept * 0.7 + 0.9) / (kept * 1.75 + gap)
    assert method.visits()[2].relative_loss == pytest.approx(expected)
    assert method.task.evaluate.asked == []  # type: ignore[attr-defined]


def test_a_step_that_says_nothing_of_the_order_is_left_out(net: SlimmableNet) -> None:
    """A loss that is not finite; the smallest ahead of the largest, as in the first steps."""
    method = PareCO(task_of(net, Losses(), losses_from="training"))
    method.search.visit(net.space.smallest)
    ends = [net.space.largest, net.space.smallest]
    method.hear(0, ends, [math.nan, 1.0])
    method.hear(1, ends, [2.0, 1.0])
    assert method.visits()[0].relative_loss is None
    deaf = PareCO(task_of(net, Losses()))
    deaf.search.visit(net.space.smallest)
    deaf.hear(0, ends, [1.0, 2.0])
    assert deaf.visits()[0].relative_loss is None


def test_losses_stay_where_the_ends_are_not_told_apart(net: SlimmableNet) -> None:
    """A good step, then four in which the smallest is ahead: no order is turned round."""
    method = PareCO(task_of(net, Losses(), losses_from="training", half_life=0.9))
    middle = net.space.uniform(0.7)
    for each in (net.space.largest, middle, net.space.smallest):
        method.search.visit(each)
    widths = [net.space.largest, middle, net.space.smallest]
    method.hear(0, widths, [2.0, 2.5, 3.0])
    method.search.recall()
    before = [each.known_loss for each in method.visits()]
    assert before == [2.0, 2.5, 3.0]
    for step in range(1, 5):
        method.hear(step, widths, [2.0, 1.5, 1.0])
    method.search.recall()
    assert [each.known_loss for each in method.visits()] == before


def test_more_visits_than_networks_of_a_step_take_turns(net: SlimmableNet) -> None:
    method = PareCO(task_of(net, Losses(), visits_per_ask=8))
    trained(method, range(3))
    newest = set(method.current) - {net.space.largest, net.space.smallest}
    assert len(newest) >= 7  # of eight, one may be the largest
    drawn = {each for step in (1, 2) * 50 for each in method.widths_for_step(step)}
    assert drawn == newest


@pytest.mark.parametrize("sampled", quick([1, 3], 3))
def test_of_an_odd_number_the_front_has_half_on_average(net: SlimmableNet, sampled: int) -> None:
    task = replace(
        task_of(net, Losses(), trains="front", visits_per_ask=4), sampled_per_step=sampled
    )
    method = PareCO(task)
    trained(method, range(3 * 9))
    front = set(method.front) - {net.space.largest, net.space.smallest}
    new = set(method.current) - front
    drawn = [each for step in (1, 2) * 200 for each in method.widths_for_step(step)]
    share = sum(each in front for each in drawn) / len(drawn)
    assert len(new) == 4
    assert len(drawn) == 400 * sampled
    assert share == pytest.approx(0.5, abs=0.15)  # six standard deviations of 400 coins


def test_a_history_of_an_earlier_version_keeps_its_losses(net: SlimmableNet) -> None:
    """Its visits have no loss but the last one; a refresh that pays for few goes by these."""
    losses = Losses()
    search = searched(task_of(net, losses), 10)
    search.refresh()
    state = json.loads(json.dumps(search.state()))
    for visit in state["visits"]:
        for name in ("known_loss", "relative_loss", "weight", "left_out"):
            del visit[name]
    del state["heard"]
    other = WidthSearch(replace(search.task, left=lambda: 4))
    other.load_state(state)
    assert other.refresh() <= set(search.visited)
    for visit in other.visits:
        assert visit.known_loss == pytest.approx(losses.of(visit.widths))


def heard(method: PareCO, step: int, losses: Losses) -> Sequence[Widths]:
    """Do a step: the losses of its networks are heard, as in training."""
    between = method.widths_for_step(step)
    space = method.task.space
    widths = [space.largest, *between, space.smallest]
    method.hear(step, widths, [losses.of(each) for each in widths])
    return between


FED = (
    {"visits_per_ask": 4, "trains": "front", "half_life": 0.1},
    {"visits_per_ask": 1, "target_costs": "uniform", "solver": "exact"},
    {"losses_from": "training", "trains": "front", "visits_per_ask": 3, "half_life": 0.4},
)


@pytest.mark.parametrize("search", quick(FED, *FED[1:]))
def test_a_fed_search_goes_on_from_its_state(net: SlimmableNet, search: dict[str, Any]) -> None:
    losses = Losses()
    whole, first, second = (PareCO(task_of(net, losses, left=9, **search)) for _ in range(3))
    trained = [heard(whole, step, losses) for step in range(30)]
    begun = [heard(first, step, losses) for step in range(16)]
    second.load_state(json.loads(json.dumps(first.state())))
    second.task.generator.set_state(first.task.generator.get_state())
    assert begun + [heard(second, step, losses) for step in range(16, 30)] == trained
    assert list(second.candidates()) == list(whole.candidates())
    assert list(second.visits()) == list(whole.visits())
    wanted = search["visits_per_ask"]
    asks = Counter(visit.step for visit in whole.visits())
    assert asks == dict.fromkeys(range(0, 30, 3), wanted)


def test_training_finds_the_front_without_an_evaluation(net: SlimmableNet) -> None:
    """Losses without noise: what is heard is exact, and the front is that of the true ones."""
    losses = Losses()
    search = {"losses_from": "training", "trains": "front", "half_life": 0.9, "solver": "exact"}
    method = PareCO(task_of(net, losses, **search))
    for step in range(60):
        heard(method, step, losses)
    assert losses.asked == []
    known = [each for each in method.visits() if each.known_loss is not None]
    assert len(known) > 30
    for visit in known:
        assert visit.known_loss == pytest.approx(losses.of(visit.widths), rel=1e-9)


def test_uniform_targets_reach_from_the_smallest_network_to_the_largest(net: SlimmableNet) -> None:
    """Although few uniform networks are distinct, and none is near the largest."""
    task = task_of(net, Losses(), visits_per_ask=8, solver="exact", target_costs="uniform")
    method = PareCO(task)
    trained(method, range(3 * 15))
    drawn = sorted(each.target_cost for each in method.visits() if each.target_cost is not None)
    ends = task.costs([net.space.smallest, net.space.largest]).tolist()
    assert ends[0] <= drawn[0] < ends[0] + 0.1 * (ends[1] - ends[0])
    assert ends[1] >= drawn[-1] > ends[1] - 0.1 * (ends[1] - ends[0])
    assert len(set(drawn)) == len(drawn) > 50


def test_settings_that_are_left_unset_are_the_methods_then_the_papers() -> None:
    papers = SearchConfig().resolved()
    assert (papers.solver, papers.losses_from, papers.trains) == ("tchebyshev", "refresh", "newest")
    assert (papers.target_costs, papers.half_life, papers.raw_samples) == ("area", 0.0, 1024)
    assert (papers.refresh_images, papers.visits_per_ask, papers.budget) == (None, None, None)
    own = SearchConfig(trains="newest").resolved({"solver": "exact", "trains": "front"})
    assert (own.solver, own.trains, own.raw_samples, own.fit_every) == ("exact", "newest", 512, 5)
    assert own.resolved() == own
