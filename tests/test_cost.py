"""Costs against counts by other means: published tables and hand (torch's: slimmable/)."""

import csv
import functools
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pareco.config import COSTS, Cost, Granularity
from pareco.slimmable import make_slimmable
from pareco.widths import ChannelGroup, Widths
from tests.conftest import shapes_only

REFERENCE = Path(__file__).parents[2] / "shared/reference/imagenet_slimmable_networks.csv"


@pytest.mark.parametrize(
    ("name", "groups", "macs"),
    [
        ("mobilenetv2_100", 24, 300_774_272),
        ("mobilenetv3_large_100", 21, 216_589_760),
        ("mobilenetv3_small_100", 17, 56_510_400),
        ("resnet18", 12, 1_814_073_344),
        ("resnet50", 37, 4_089_184_256),
    ],
)
def test_groups_and_full_macs_of_known_networks(name: str, groups: int, macs: int) -> None:
    net = shapes_only(name, 224)
    assert len(net.space.groups) == groups
    assert int(net.cost.macs(net.space.largest)) == macs


def test_groups_of_cifar_resnet20() -> None:
    """3 residual streams and 9 widths inside blocks; 40.6M MACs, 0.27M parameters (He et al.)."""
    net = shapes_only("cifar_resnet20", 32, num_classes=10)
    assert len(net.space.groups) == 12
    assert round(int(net.cost.macs(net.space.largest)) / 1e6, 1) == 40.6
    assert round(int(net.cost.params(net.space.largest)) / 1e6, 2) == 0.27


def us_net_divisible(channels: float) -> int:
    """Return US-Net's `make_divisible(channels, 8)`."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * channels else rounded


def us_net_width(group: ChannelGroup, multiplier: float) -> int:
    """Return US-Net's width of a group of MobileNetV2: expansion by 6 follows the rounding."""
    expanded = group.name.endswith("conv_pw") and not group.name.startswith("blocks.0")
    if expanded:
        return 6 * us_net_divisible(group.maximum / 6 * multiplier)
    return us_net_divisible(group.maximum * multiplier)


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"published numbers not found at {REFERENCE}")
def test_published_flops_of_us_mobilenetv2() -> None:
    """The published millions are rounded down, and count the global pooling of 1280 x 7 x 7.

    US-Net's profiler (utils/model_profiling.py) counts one MAC per element that is averaged;
    without these, two of the 27 would be a million lower.
    """
    net = shapes_only("mobilenetv2_100", 224)
    with REFERENCE.open() as file:
        rows = [
            row
            for row in csv.DictReader(file)
            if row["network"] == "MobileNet v2" and row["method"].startswith("US-Net")
        ]
    published = {float(row["config"].removeprefix("width ")): float(row["mflops"]) for row in rows}
    assert len(published) == 27
    multipliers = list(published)
    widths = [Widths(us_net_width(g, m) for g in net.space.groups) for m in multipliers]
    found = (net.cost.macs(widths) + 1280 * 7 * 7) // 1_000_000
    assert dict(zip(multipliers, found.tolist(), strict=True)) == published


class Residual(nn.Module):
    """Two 3x3 convolutions around which a shortcut leads, a strided 1x1 one, and a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1, bias=False)
        self.conv3 = nn.Conv2d(8, 14, 3, stride=2, padding=1, bias=False)
        self.fc = nn.Linear(14, 5)

    def forward(self, images: Tensor) -> Tensor:
        first = F.relu(self.bn1(self.conv1(images)))
        both = first + self.conv2(first)
        return self.fc(self.conv3(both).mean((2, 3)))


class PreActivation(Residual):
    """The same, with the activation inside the branch, so that its input is needed later."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.conv1(images)
        both = self.conv2(F.relu(self.bn1(first))) + first
        return self.fc(self.conv3(both).mean((2, 3)))


class Gated(Residual):
    """Squeeze-excite written gate first."""

    def forward(self, images: Tensor) -> Tensor:
        first = self.conv1(images)
        gated = torch.sigmoid(self.conv2(first.mean((2, 3), keepdim=True))) * first
        return self.fc(self.conv3(gated).mean((2, 3)))


class Shuffled(Residual):
    """Channels take turns, of two halves: a reshape that must copy."""

    def forward(self, images: Tensor) -> Tensor:
        halves = self.conv1(images).view(-1, 2, 4, 8, 8)
        return self.fc(self.conv3(halves.transpose(1, 2).reshape(-1, 8, 8, 8)).mean((2, 3)))


def test_costs_by_hand() -> None:
    net = make_slimmable(Residual(), torch.zeros(1, 3, 8, 8), alpha_min=0.1)
    a, b = 5, 7
    widths = Widths([a, b])
    assert net.space.names == ("conv1", "conv3")
    assert int(net.cost.macs(widths)) == 9 * (64 * 3 * a + 64 * a * a + 16 * a * b) + b * 5
    assert int(net.cost.params(widths)) == 9 * (3 * a + a * a + a * b) + a + 2 * a + b * 5 + 5
    assert int(net.cost.activations(widths)) == 64 * a + 64 * a + 16 * b + 5


def test_a_reshape_that_copies_holds_both() -> None:
    net = make_slimmable(Shuffled(), torch.zeros(1, 3, 8, 8))
    assert net.cost.full_costs["peak_activations"] == 2 * 64 * 8


@pytest.mark.parametrize(
    ("model", "a", "b", "expected"),
    [
        (Residual(), 8, 12, 2 * 64 * 8),  # conv2: its input stays for the shortcut
        (Residual(), 1, 14, 64 + 16 * 14),  # conv3
        (Residual(), 1, 4, 64 * 3 + 64),  # conv1: the image and its output
        (PreActivation(), 8, 12, 3 * 64 * 8),  # conv2: its input, its output and the shortcut
        (Gated(), 4, 1, 64 * 3 + 64 * 4),  # conv1; scaling takes over the features, not the gate
        (Gated(), 8, 14, 64 * 8 + 16 * 14),  # conv3
    ],
)
def test_peak_activations_by_hand(model: nn.Module, a: int, b: int, expected: int) -> None:
    net = make_slimmable(model, torch.zeros(1, 3, 8, 8), alpha_min=0.1)
    assert int(net.cost.peak_activations(Widths([a, b]))) == expected


@pytest.mark.parametrize("cost", COSTS)
def test_many_widths_at_once(cost: Cost, generator: torch.Generator) -> None:
    net = shapes_only("cifar_resnet8", 32)
    widths = [net.space.sample(generator) for _ in range(5)]
    function = functools.partial(net.cost.of, cost)
    together = function(widths)
    assert together.dtype == torch.int64
    assert together.tolist() == [int(function(each)) for each in widths]
    assert torch.equal(function(torch.tensor(widths)), together)
    assert function(widths[0]).shape == ()


@pytest.mark.parametrize("granularity", ["network", "stage", "layer"])
@pytest.mark.parametrize("cost", COSTS)
def test_relaxed_costs_have_the_right_gradients(cost: Cost, granularity: Granularity) -> None:
    """Away from ties of zero-padding and of the peak, where the cost has a kink."""
    net = shapes_only("cifar_resnet8", 32, num_classes=10, granularity=granularity)
    function = functools.partial(net.cost.of, cost)
    dimensions = net.space.dimensions
    alpha = torch.linspace(0.51, 0.93, 2 * dimensions, dtype=torch.double).view(2, dimensions)
    alpha.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: function(x) / 1e5, alpha)


@pytest.mark.parametrize("cost", COSTS)
@pytest.mark.parametrize("name", ["cifar_resnet20", "mobilenetv3_large_100"])
def test_relaxed_costs_are_exact_at_channel_counts(
    name: str, cost: Cost, generator: torch.Generator
) -> None:
    net = shapes_only(name, 64, alpha_min=0.01)
    function = functools.partial(net.cost.of, cost)
    widths = [net.space.sample(generator) for _ in range(4)]
    alpha = torch.stack([net.space.encode(each) for each in widths])
    relaxed = function(alpha)
    assert relaxed.dtype == torch.double
    torch.testing.assert_close(relaxed, function(widths).double(), rtol=1e-12, atol=0)


def test_what_the_network_has_not_is_refused() -> None:
    net = shapes_only("cifar_resnet8", 32)
    cost, full = net.cost, net.space.largest
    wrong: list[tuple[Any, str]] = [
        (Widths([3, 4]), "expected 6 widths, got 2"),
        (torch.ones(2, 5, dtype=torch.int64), "expected 6 widths, got 5"),
        (torch.ones(7), "expected 6 multipliers, got 7"),
        ((full[0] + 1, *full[1:]), "conv1 has 1 to 16 channels, asked for the cost of 17"),
        (torch.tensor([full, (*full[:-1], 0)]), "1 to 64 channels, asked for the cost of 0"),
        ((-1, *full[1:]), "conv1 has 1 to 16 channels, asked for the cost of -1"),
        (torch.tensor([0.5] * 5 + [1.1]), "a multiplier must be above 0 and at most 1, got 1.1"),
        (torch.tensor([0.0] + [0.5] * 5), "a multiplier must be above 0 and at most 1, got 0"),
        (torch.full((6,), torch.nan), "a multiplier must be above 0 and at most 1, got nan"),
    ]
    for widths, message in wrong:
        with pytest.raises(ValueError, match=message):
            cost.macs(widths)


def test_what_is_no_cost_or_no_widths_is_refused() -> None:
    net = shapes_only("cifar_resnet20", 32, num_classes=10)
    with pytest.raises(ValueError, match="no cost is called 'flops'; known: macs, params"):
        net.cost.of("flops", net.space.largest)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no cost is called 'macs_at'"):
        net.cost.of("macs_at", net.space.largest)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected 12 multipliers, got one number"):
        net.cost.macs(torch.tensor(0.5))
    with pytest.raises(ValueError, match="expected 12 widths, got 2"):
        net.cost.macs_at(Widths((16, 16)))
    for none in ((0,) * 12, (-4,) * 12):
        with pytest.raises(ValueError, match="widths must be at least 1 channel each"):
            net.cost.macs_at(none)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has 1 to 16 channels, asked for the cost of 1600"):
        net.cost.macs_at(Widths((1600, *net.space.largest[1:])))
    with pytest.raises(TypeError, match=r"got 0.5: those of one multiplier are net.space.uniform"):
        net.set_widths(0.5)  # type: ignore[arg-type]
