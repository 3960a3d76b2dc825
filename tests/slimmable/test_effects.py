"""What a module does beside computing is kept, by keeping the module whole, or refused by name."""

from collections.abc import Callable
from typing import Any

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
    with pytest.raises(TracingError, match="other things in training"):
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
