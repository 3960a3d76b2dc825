"""What a module does beside computing is kept, by keeping the module whole, or refused by name."""

import random
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pareco.slimmable import TracingError, make_slimmable
from tests.slimmable.test_modes import Inside, assert_same_in_both_modes
from tests.slimmable.test_tracing import IMAGE, Net, assert_slims


class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(-0.5, 0.5)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0]


class Reversed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return -gradients[0]


class Calls(nn.Module):
    """Runs a function of this file."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


class CallsConvolution(Calls):
    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__(body)
        self.conv = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1))


class Decorated(Inside):
    forward = torch.no_grad()(Inside.forward)


def without_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        x = m.conv(x)
    return x.relu()


def in_inference(m: Any, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return m.conv(x)


def with_gradient(m: Any, x: Tensor) -> Tensor:
    with torch.enable_grad():
        return m.conv(x)


def in_bfloat16(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return m.conv(x).float()


def never_in_bfloat16(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cpu", enabled=False):
        return m.conv(x)


def never_in_half(m: Any, x: Tensor) -> Tensor:
    with torch.autocast("cuda", enabled=False):
        return m.conv(x)


OPENS = [without_gradient, in_inference, with_gradient, in_bfloat16, never_in_bfloat16]
OPENS += [never_in_half, lambda m, x: m.conv(StraightThrough.apply(x))]
OPENS += [lambda m, x: Reversed.apply(m.conv(x))]


@pytest.mark.parametrize("body", OPENS)
def test_contexts_around_parameters_are_refused_by_name(body: Callable[..., Tensor]) -> None:
    model = nn.Sequential(Net(lambda m, x: m.part(x), part=CallsConvolution(body)))
    for grad in (True, False):
        with (
            torch.set_grad_enabled(grad),
            pytest.raises(TracingError, match="it changes gradients or number types"),
        ):
            make_slimmable(model, IMAGE)
    with pytest.raises(TracingError) as refusal:
        make_slimmable(model, IMAGE)
    assert refusal.value.node == "0.part"
    assert torch.is_grad_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_a_decorated_forward_is_refused_by_name() -> None:
    model = Net(lambda m, x: m.part(x), part=Decorated(nn.ReLU()))
    with pytest.raises(TracingError, match="'part': it changes gradients"):
        make_slimmable(model, IMAGE)


def test_a_branch_on_gradients_is_refused() -> None:
    model = Net(lambda m, x: x * 2 if torch.is_grad_enabled() else x)
    with pytest.raises(TracingError, match=r"other things.* with gradients than without"):
        make_slimmable(model, IMAGE)


@pytest.mark.parametrize("function", [StraightThrough, Reversed])
def test_functions_with_gradients_of_their_own_are_kept(function: Any) -> None:
    part = Calls(lambda m, x: function.apply(x))
    model = Net(lambda m, x: m.part(m.conv(x)), part=part, conv=nn.Conv2d(8, 8, 3, padding=1))
    assert_same_in_both_modes(model, noisy=False)
    assert_slims(model)


def test_it_works_in_any_surroundings() -> None:
    model = Net(lambda m, x: m.part(x), part=Inside(nn.ReLU()))
    for surroundings in (torch.no_grad(), torch.autocast("cpu")):
        with surroundings:
            net = make_slimmable(model, IMAGE)
            assert torch.equal(net(IMAGE), model(IMAGE))


class Remembers(Calls):
    """Runs a function of this file, and has something to remember."""

    def __init__(self, body: Callable[..., Tensor], state: Any) -> None:
        super().__init__(body)
        self.state = state


class RemembersAndConvolves(Remembers):
    def __init__(self, body: Callable[..., Tensor], state: Any) -> None:
        super().__init__(body, state)
        self.conv = nn.Conv2d(8, 8, 3, padding=1)
        self.register_buffer("step", torch.zeros(()))


GENERATORS = [
    (lambda m: m.state.random(), lambda: random.Random(1)),
    (lambda m: m.state.random(), lambda: np.random.default_rng(1)),
    (lambda m: m.state.rand(), lambda: np.random.RandomState(1)),
    (lambda m: torch.rand((), generator=m.state).item(), lambda: torch.Generator().manual_seed(1)),
    (lambda m: m.state["a"][0].random(), lambda: {"a": [random.Random(1)]}),
    (lambda m: m.state.source.random(), lambda: SimpleNamespace(source=random.Random(1))),
]


@pytest.mark.parametrize(("draw", "state"), GENERATORS)
def test_a_generator_of_the_module_itself(draw: Any, state: Any) -> None:
    def skips(m: Any, x: Tensor) -> Tensor:
        return x * 0 if m.training and draw(m) < 0.5 else x

    model = Net(lambda m, x: m.part(x), part=RemembersAndConvolves(skips, state()))
    with pytest.raises(TracingError, match="'part': it changes its attribute 'state'"):
        make_slimmable(model, IMAGE)
    model = Net(lambda m, x: m.part(x), part=Remembers(skips, state())).train()
    net, narrow = make_slimmable(model, IMAGE), make_slimmable(model, IMAGE)
    narrow.set_widths(narrow.space.smallest)
    plain, images = narrow.extract(narrow.widths), torch.rand(2, 3, 16, 16)
    skipped = []
    for _ in range(20):
        scores = model(images)
        assert torch.equal(net(images), scores)
        torch.testing.assert_close(plain(images), narrow(images))
        skipped.append(torch.equal(scores[0], scores[1]))
    assert 0 < sum(skipped) < 20


def counts(m: Any, x: Tensor) -> Tensor:
    m.state += 1
    return x if m.state < 3 else 2 * x


def keeps(m: Any, x: Tensor) -> Tensor:
    m.state.append(x)
    return x


def shows(m: Any, x: Tensor) -> Tensor:
    m.shown = x
    return x


def steps(m: Any, x: Tensor) -> Tensor:
    m.step += 1
    return x


def steps_in_training(m: Any, x: Tensor) -> Tensor:
    if m.training:
        m.step.add_(1)
    return x


def replaces(m: Any, x: Tensor) -> Tensor:
    m.step = m.step + 1
    return x


def clips(m: Any, x: Tensor) -> Tensor:
    with torch.no_grad():
        for weight in m.conv.parameters():
            weight.clamp_(-1, 1)
    return m.conv(x)


@pytest.mark.parametrize(
    ("body", "state", "node", "name"),
    [
        (counts, 0, "part", "state"),
        (keeps, [], "part", "state"),
        (keeps, deque(), "part", "state"),
        (shows, None, "part", "shown"),
        (steps, None, "part", "step"),
        (steps_in_training, None, "part", "step"),
        (replaces, None, "part", "step"),
        (clips, None, "part.conv", "weight"),
    ],
)
def test_what_changes_the_module_is_refused_by_name(
    body: Callable[..., Tensor], state: Any, node: str, name: str
) -> None:
    model = Net(lambda m, x: m.part(x), part=RemembersAndConvolves(body, state))
    with pytest.raises(TracingError, match=f"changes its attribute '{name}'") as refusal:
        make_slimmable(model, IMAGE)
    assert refusal.value.node == node
    assert not model.get_buffer("part.step")


def test_attributes_set_to_what_they_were_are_no_change() -> None:
    def body(m: Any, x: Tensor) -> Tensor:
        m.state = {"sizes": (1, 2), "rate": 0.5 * 3}
        return x * m.state["rate"]

    part = RemembersAndConvolves(body, {"sizes": (1, 2), "rate": 1.5})
    assert_slims(Net(lambda m, x: m.part(x), part=part))


def test_a_counter_without_parameters_goes_on_counting() -> None:
    model = Net(lambda m, x: m.part(x), part=Remembers(counts, 0))
    net, images = make_slimmable(model, IMAGE), torch.rand(2, 3, 16, 16)
    state = net.get_submodule("part").state
    assert state == model.get_submodule("part").state == 0
    for _ in range(4):
        assert torch.equal(net(images), model(images))
