"""Control flow: on shapes it is as for the example, on batches and values it is refused."""

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
