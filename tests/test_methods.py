"""Every method through the protocol alone: a network that is never trained, made-up losses."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pareco.cost import Cost
from pareco.methods import (
    Method,
    Task,
    Visit,
    checked_widths,
    code_digest,
    method_in,
    own_method,
)
from pareco.slimmable import SlimmableNet
from pareco.width_search import WidthSearch
from pareco.widths import Widths
from replications.catalogue import method_named, method_names
from tests.conftest import tiny_net
from tests.experiments import TINY, quick

TRAINING = TINY.training


@pytest.fixture(scope="module")
def net() -> SlimmableNet:
    return tiny_net(base_width=8)


class Losses:
    """Made-up losses: the wider the better, the last group most; remembers what was asked."""

    def __init__(self) -> None:
        self.asked: list[Widths] = []

    def __call__(self, widths: Sequence[Widths]) -> Tensor:
        self.asked += widths
        rows = [sum(100.0 / count for count in each) - each[-1] for each in widths]
        return torch.tensor(rows, dtype=torch.double)


def task_of(
    net: SlimmableNet,
    losses: Losses,
    seed: int = 0,
    budget: int = 12,
    objective: Cost = "macs",
) -> Task:
    return Task(
        space=net.space,
        cost=net.cost,
        objective=objective,
        generator=torch.Generator().manual_seed(seed),
        evaluate=losses,
        steps=18,
        sampled_per_step=2,
        ask_every_steps=3,
        widths_budget=budget,
        search=TINY.search,
    )


def steps(method: Method, count: int = 18) -> list[Sequence[Widths]]:
    return [method.widths_for_step(step) for step in range(count)]


def reported_by(method: Method) -> list[Widths]:
    """Return the candidates of a method whose training has ended, its search done first."""
    while method.search_on():
        pass
    return list(method.candidates())


def test_methods_are_found_by_their_files() -> None:
    assert method_names() == [
        *("autoslim", "independent", "pareco", "pareco_exact", "random_widths", "s_net"),
        *("two_stage", "us_net"),
    ]
    with pytest.raises(ValueError, match=r"'us_ned'\. Did you mean 'us_net'"):
        method_named("us_ned")
    with pytest.raises(ValueError, match="us_net defines no method whose name is 'other'"):
        method_in("baselines.us_net", "other")


OWN = """
from baselines.us_net import USNet
from pareco import Method

class Shared(Method):
    def widths_for_step(self, step):
        return ()

class First(Shared):
    name = "first"
    def candidates(self):
        return ()
"""


def test_a_method_of_ones_own_is_the_one_that_its_file_defines(tmp_path: Path) -> None:
    """Whatever it imports; its code runs once. A class may be named, in a file or a module."""
    file = tmp_path / "random.py"
    file.write_text(OWN)
    kind = own_method(f"{file}")
    assert (kind.__name__, kind.name) == ("First", "first")
    assert own_method(f"{tmp_path}/../{tmp_path.name}/random.py:First") is kind
    assert own_method("baselines.us_net:USNet") is method_named("us_net")
    assert "random" not in vars(kind)["__module__"].split("_")[1:]
    assert __import__("random").Random
    assert code_digest(kind) == hashlib.sha256(OWN.encode()).hexdigest()
    file.unlink()
    assert code_digest(kind) is None
    with pytest.raises(ValueError, match=r"random.py: no such file"):
        own_method(f"{file}")


@pytest.mark.parametrize(
    ("code", "place", "message"),
    [
        (None, "own.py", "own.py: no such file"),
        ("", "own.py", "own.py has no method, which is a subclass .* with a `name`; it defines no"),
        ("def f(): pass", "own.py", "; it defines f$"),
        (OWN.replace("name =", "title ="), "own.py", "; it defines Shared, First$"),
        (
            f"{OWN}class B(First):\n    name = 'b'",
            "own.py",
            "methods, First, B: name one, own.py:C",
        ),
        (OWN, "own.py:Second", "own.py: Second is no subclass of pareco.Method; it defines Shared"),
        (OWN, "own.py:Shared", "own.py: Shared needs a `name` of letters, .*, got None"),
        (
            OWN.replace('"first"', '"a/b"'),
            "own.py",
            "First needs a `name` of letters, .*, got 'a/b",
        ),
        (OWN.replace("candidates", "networks"), "own.py", "First has no `candidates`"),
        (f"{OWN}\n1 / 0", "own.py", r"own.py, line 14: ZeroDivisionError: division by zero"),
        ("raise SystemExit(3)", "own.py", "own.py, line 1: SystemExit: 3"),
        ("open('gone.txt')", "own.py", r"own.py, line 1: FileNotFoundError: .*'gone.txt'$"),
        ("def f(:", "own.py", "own.py: SyntaxError: "),
        ("import nowhere.at_all", "own.py", "own.py, line 1: ModuleNotFoundError: No module named"),
        ("", "nowhere.at_all:Own", "nowhere.at_all: ModuleNotFoundError: No module named 'nowhe"),
        ("", "baselines.us_net:Own", "baselines.us_net: Own is no subclass of pareco.Method; it d"),
        ("", "baselines.us_net:Method.name", "is FILE.py, FILE.py:CLASS or MODULE:CLASS"),
        ("", "folder/own", "is FILE.py, FILE.py:CLASS or MODULE:CLASS"),
    ],
)
def test_what_is_no_method_is_refused_with_what_is_there(
    code: str | None,
    place: str,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    if code is not None:
        Path("own.py").write_text(code)
    with pytest.raises(ValueError, match=message) as caught:
        own_method(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (None, "'NoneType' object is not iterable"),
        ([0.5], "widths are channel counts, one for each group, got 0.5"),
        ([[0.5] * 6], "'float' object cannot be interpreted as an integer"),
        ([[1]], "expected 6 widths, got 1"),
        ([[999] * 6], "conv1 has 8 channels, asked for 999"),
        ([[0] * 6], "at least 1 channel each"),
    ],
)
def test_what_are_no_widths_is_refused_with_who_gave_them(
    net: SlimmableNet, given: object, message: str
) -> None:
    method = method_named("us_net")(task_of(net, Losses()))
    plain = [[*net.space.smallest], [*net.space.largest]]
    assert checked_widths(method, plain, "any") == [net.space.smallest, net.space.largest]
    with pytest.raises(ValueError, match=f"method us_net: any must return widths .*{message}"):
        checked_widths(method, given, "any")


@pytest.mark.parametrize("name", method_names())
def test_every_method_trains_equally_many_networks_and_goes_on_from_its_state(
    net: SlimmableNet, name: str
) -> None:
    """Its widths depend on its own generator and on the losses alone."""
    method_class, before = method_named(name), torch.random.get_rng_state()
    whole = method_class(task_of(net, Losses()))
    trained, reported = steps(whole), reported_by(whole)
    wanted = 0 if method_class.spaces_to_train(net.space, TRAINING)[0].only else 2
    for widths in trained:
        assert len(set(widths)) == len(widths) == wanted
        assert not {net.space.largest, net.space.smallest} & set(widths)
        for each in widths:
            net.space.check(each)
    first, second = (method_class(task_of(net, Losses())) for _ in range(2))
    begun = steps(first, 10)
    second.load_state(json.loads(json.dumps(first.state())))
    second.task.generator.set_state(first.task.generator.get_state())
    rest = [second.widths_for_step(step) for step in range(10, 18)]
    assert (begun + rest, reported_by(second)) == (trained, reported)
    assert list(second.visits()) == list(whole.visits())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pareco_refreshes_all_it_visited_every_tau_steps(net: SlimmableNet) -> None:
    losses = Losses()
    method = method_named("pareco")(task_of(net, losses))
    sizes = []
    current: Sequence[Widths] = ()
    for step in range(9):
        before = len(losses.asked)
        widths = method.widths_for_step(step)
        if step % 3 == 0:
            sizes.append(len(losses.asked) - before)
            current = widths
        else:
            assert len(losses.asked) == before
            assert widths == current
    assert sizes == [0, 2, 4]
    assert set(losses.asked[-4:]) == set(losses.asked[:2]) | set(losses.asked[4:6])


@pytest.mark.parametrize("objective", quick(["macs", "peak_activations"], "peak_activations"))
def test_pareco_reports_the_front_of_its_history(net: SlimmableNet, objective: Cost) -> None:
    losses = Losses()
    method = method_named("pareco")(task_of(net, losses, objective=objective))
    steps(method, 30)
    reported = method.candidates()
    visited = list(dict.fromkeys(losses.asked))
    for each in reported:
        loss, cost = float(losses([each])), float(method.task.costs([each]))
        beaten = [
            other
            for other in visited
            if float(losses([other])) < loss and float(method.task.costs([other])) < cost
        ]
        assert not beaten
    assert len(reported) >= 3


def test_us_net_and_s_net_are_uniform(net: SlimmableNet) -> None:
    uniform = {net.space.uniform(0.42 + 0.58 * index / 5000) for index in range(5001)}
    for name in ("us_net", "s_net", "autoslim"):
        method = method_named(name)(task_of(net, Losses()))
        assert all(each in uniform for widths in steps(method) for each in widths)
    assert set(method_named("us_net")(task_of(net, Losses())).candidates()) <= uniform


def test_s_net_has_four_switches_from_largest_to_smallest(net: SlimmableNet) -> None:
    method = method_named("s_net")(task_of(net, Losses()))
    switches = list(method.switches())
    assert len(switches) == 4
    assert (switches[0], switches[-1]) == (net.space.largest, net.space.smallest)
    assert list(method.widths_for_step(0)) == switches[1:3]
    assert list(method.candidates()) == switches


def test_searches_visit_the_same_number_of_widths(net: SlimmableNet) -> None:
    losses = Losses()
    two_stage = method_named("two_stage")(task_of(net, losses, budget=12))
    assert list(two_stage.visits()) == []
    reported_by(two_stage)
    assert len(set(losses.asked)) == len(two_stage.visits()) == 12
    assert {visit.step for visit in two_stage.visits()} == {None}  # training has ended
    random_widths = method_named("random_widths")(task_of(net, losses, budget=12))
    assert len(random_widths.candidates()) == 12


def test_the_exact_search_starts_with_the_smallest_and_meets_its_targets(
    net: SlimmableNet,
) -> None:
    task = task_of(net, Losses())
    fed = {"losses_from": "refresh", "trains": "newest", "visits_per_ask": 2, "half_life": 0.0}
    task = replace(task, search=replace(task.search, **fed, target_costs="area"))
    method = method_named("pareco_exact")(task)
    for step in range(3 * 14):
        method.widths_for_step(step)
    first, *visits = method.visits()
    assert (first.widths, first.step, first.target_cost) == (net.space.smallest, None, None)
    assert first.final_loss == float(Losses()([net.space.smallest]))
    initial = TINY.search.initial_widths
    assert [each.origin for each in visits[:initial]] == ["uniform"] * (initial - 1) + ["largest"]
    aimed = [each for each in visits if each.origin == "model"]
    costs = method.task.costs([each.widths for each in aimed])
    targets = torch.tensor([each.target_cost or 0.0 for each in aimed]).double()
    assert len(aimed) > 10
    assert (costs <= targets * (1 + 1e-9)).all()
    full = float(method.task.costs([net.space.largest]))
    # 24 of 24 measured, at most 0.015 below.
    assert (targets - costs <= TINY.search.tolerance * full).double().mean() > 0.95


def test_a_search_after_training_goes_on_between_its_parts(net: SlimmableNet) -> None:
    """From its state and its generator's, to the same visits; no earlier width is asked for new."""
    whole, first, second = (
        method_named("two_stage")(task_of(net, Losses(), budget=12)) for _ in range(3)
    )
    expected = reported_by(whole)
    for _ in range(4):
        assert first.search_on()
    second.load_state(json.loads(json.dumps(first.state())))
    second.task.generator.set_state(first.task.generator.get_state())
    assert len(second.visits()) == 8
    assert reported_by(second) == expected
    assert list(second.visits()) == list(whole.visits())


def test_an_ask_can_be_ended_between_its_trials(net: SlimmableNet) -> None:
    """By what a pause raises; the history is then as it was before the ask."""
    calls: list[int] = []

    def pause() -> None:
        calls.append(len(calls))
        if len(calls) > 12:
            raise KeyboardInterrupt

    task = replace(task_of(net, Losses()), pause=pause)
    search = WidthSearch(task)

    def visit_on() -> None:
        while True:
            search.ask(2)
            search.refresh()

    with pytest.raises(KeyboardInterrupt):
        visit_on()
    assert len(calls) == 13
    assert all(visit.final_loss is not None for visit in search.visits)


def test_autoslim_narrows_one_group_at_a_time_where_it_hurts_least(net: SlimmableNet) -> None:
    losses = Losses()
    method = method_named("autoslim")(task_of(net, losses))
    path = reported_by(method)
    assert (path[0], path[-1]) == (net.space.largest, net.space.smallest)
    for wide, narrow in pairwise(path):
        lowered = [index for index in range(len(wide)) if narrow[index] != wide[index]]
        assert narrow[lowered[0]] < wide[lowered[0]]
        narrower, wider = method.task.costs([narrow, wide]).tolist()
        assert narrower < wider
    first_step = losses.asked[: net.space.dimensions]
    assert path[1] == min(first_step, key=lambda each: float(Losses()([each])))


def test_independent_trains_each_network_alone(net: SlimmableNet) -> None:
    spaces = method_named("independent").spaces_to_train(net.space, TRAINING)
    assert len(spaces) == 4
    assert all(space.largest == space.smallest for space in spaces)
    assert [space.largest for space in spaces] == list(net.space.spread(4))


def test_independent_trains_the_networks_that_are_named(net: SlimmableNet) -> None:
    """In their order; one that the network has not, and a method that trains none, are refused."""
    largest, smallest = str(net.space.largest), str(net.space.smallest)
    training = replace(TRAINING, alone=(smallest, largest))
    kind = method_named("independent")
    spaces = kind.spaces_to_train(net.space, training)
    assert [str(space.largest) for space in spaces] == [smallest, largest]
    assert all(space.largest == space.smallest for space in spaces)
    for counts, message in (
        (f"{largest} 1", "widths, got"),
        (largest.replace(largest.split()[0], "999", 1), "999"),
        (f"0{largest[largest.index(' ') :]}", "at least 1"),
        ("many", "'many'"),
        ("", "expected"),
    ):
        with pytest.raises(ValueError, match=f"training.alone {counts!r}: .*{message}"):
            kind.spaces_to_train(net.space, replace(TRAINING, alone=(counts,)))
    with pytest.raises(ValueError, match="to train alone, which us_net does not do"):
        method_named("us_net").spaces_to_train(net.space, training)
    spaced = f" {largest.replace(' ', '  ')}"
    with pytest.raises(ValueError, match=f"training.alone names {largest} more than once"):
        kind.spaces_to_train(net.space, replace(TRAINING, alone=(largest, spaced)))


def test_a_search_ends_where_the_space_has_no_more() -> None:
    net = tiny_net(base_width=2, alpha_min=0.9, granularity="network")
    task = task_of(net, Losses(), budget=40)
    search = WidthSearch(task)
    for _ in range(2):
        search.ask(2)
        search.refresh()
    assert search.ask(2) == []
    # 0.9 to below 1 floors every width alike
    assert sorted(search.visited) == [task.space.smallest, task.space.largest]
    assert reported_by(method_named("two_stage")(task))


def test_visits_say_when_why_and_what_was_expected(net: SlimmableNet) -> None:
    method = method_named("pareco")(task_of(net, Losses()))
    for step in range(3 * 8):  # asks at every third step, two each
        method.widths_for_step(step)
    visits = method.visits()
    assert [visit.step for visit in visits] == [3 * (index // 2) for index in range(len(visits))]
    origins = [visit.origin for visit in visits]
    initial = TINY.search.initial_widths
    assert origins[: initial + 1] == ["uniform"] * initial + ["largest"]
    assert "model" in origins
    losses = Losses()([visit.widths for visit in visits]).tolist()
    for visit, loss in zip(visits[:-2], losses, strict=False):  # the last two are not yet measured
        assert visit.refreshed_loss == visit.final_loss == loss
    assert [visit.refreshed_loss for visit in visits[-2:]] == [None, None]
    smallest, largest = method.task.costs([net.space.smallest, net.space.largest]).tolist()
    for visit in visits:
        if visit.origin == "model":
            assert smallest <= (visit.target_cost or 0) <= largest
            assert visit.predicted_loss is not None
            assert (visit.predicted_deviation or 0) > 0


def test_a_loss_that_is_not_finite_is_not_a_measurement() -> None:
    visit = Visit(widths=Widths((1,)), step=0, origin="random")
    for loss in (float("nan"), 2.0, 1.5, float("inf")):
        visit.measured(loss)
    assert (visit.refreshed_loss, visit.final_loss) == (2.0, None)
