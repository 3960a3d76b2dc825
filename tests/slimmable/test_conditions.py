"""Control flow, and sizes: on shapes it is as for the example, on batches and values refused."""

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pareco.slimmable import TracingError, make_slimmable
from tests.slimmable.test_rules import Net, assert_right


def padded_if_odd(model: Any, x: Tensor) -> Tensor:
    """Return scores of features that are padded to even sizes, as blocks of windows want them."""
    _, c, h, w = x.shape
    if x.dim() != 4 or c == 1:
        raise ValueError
    if h % 2 or x.size(-1) // 2 * 2 < w:
        x = F.pad(x, (0, w % 2, 0, h % 2))
    return model.fc(F.avg_pool2d(x, 2).mean((2, 3)))


@pytest.mark.parametrize("size", [8, 9])
def test_conditions_on_shapes_are_as_for_the_example(size: int) -> None:
    padded = assert_right(Net(padded_if_odd, norm=nn.BatchNorm2d(8)), size)
    assert ("pad" in padded._program.graph.python_code("self").src) == (size == 9)
    plain = padded.extract(padded.space.smallest)
    for net in (padded, plain, pickle.loads(pickle.dumps(plain))):
        net(torch.zeros(2, 3, size + 2, size + 2, dtype=torch.double))
        with pytest.raises(AssertionError, match=f"another size.*'mod' is no longer {size == 9}"):
            net(torch.zeros(2, 3, size + 1, size + 1, dtype=torch.double))


@pytest.mark.parametrize(
    "sized",
    [
        lambda x: F.interpolate(x, size=x.shape[1:3]),
        lambda x: F.interpolate(x, size=x.shape[2:3] + x.shape[1:2]),
        lambda x: F.adaptive_avg_pool2d(x, x.size(1)),
        lambda x: F.adaptive_avg_pool2d(x, x.shape[0]),
        lambda x: F.pad(x, (0, x.shape[1])),
        lambda x: torch.split(x, x.shape[1] // 2, 2)[0],
    ],
)
def test_positions_by_the_batch_or_the_channels_are_refused(sized: Callable[[Any], Any]) -> None:
    """They would be fewer in a narrower network, and its multiply-accumulates others."""
    model = Net(lambda m, x: m.fc(m.last(sized(x)).mean((2, 3))), last=nn.Conv2d(8, 8, 1))
    with pytest.raises(TracingError, match="positions depend on the batch or on the channels"):
        make_slimmable(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda x: x.transpose(2, x.dim() - 1), "dimensions that are no numbers"),
        (lambda x: x.flatten(x.dim() - 3)[:, :8, None, None], "flatten from sub to -1"),
        (lambda x: F.pad(x, x.shape[2:]), "padding is not written out"),
        (lambda x: F.pad(x, (0, 0, 0, 0, 1, -1, 0, 0)), "channel padding"),
    ],
)
def test_arguments_that_are_no_numbers_are_refused(
    body: Callable[[Any], Any], message: str
) -> None:
    model = Net(lambda m, x: m.fc(body(x).mean((2, 3))))
    with pytest.raises(TracingError, match=message):
        make_slimmable(model, torch.zeros(1, 3, 8, 8))


@pytest.mark.parametrize(
    "body",
    [
        lambda x: torch.narrow(x, 2, -2, 2),
        lambda x: torch.cat([torch.narrow(x, 1, -4, 4), x[:, :4]], 1),
        lambda x: torch.swapaxes(x, axis0=2, axis1=3),
        lambda x: torch.concatenate([x[:, 3:], x[:, :3]], axis=1),  # type: ignore[call-arg]
    ],
)
def test_negative_places_and_names_of_dimensions(body: Callable[[Any], Any]) -> None:
    assert_right(Net(lambda m, x: m.fc(body(x).mean((2, 3)))))


@pytest.mark.parametrize(
    "condition",
    [
        lambda x: x.shape[0] > 1,
        lambda x: x.size()[0] > 1,
        lambda x: x.size(0) > 1,
        lambda x: x.shape[2] > x.mean(),
        lambda x: x.numel() > 1,
        lambda x: x.mean() > 0,
    ],
)
def test_conditions_on_batches_or_values_are_refused(condition: Callable[[Any], Any]) -> None:
    model = Net(lambda m, x: m.fc((x if condition(x) else 2 * x).mean((2, 3))))
    with pytest.raises(TracingError, match=r"used as inputs to control flow.*values or on the bat"):
        make_slimmable(model, torch.zeros(1, 3, 8, 8))
