"""Convolutions in groups: whole groups go, and what stays is a prefix of the channels."""

import copy

import pytest
import torch
from timm.models.regnet import RegNet, RegNetCfg
from timm.models.resnet import Bottleneck, ResNet
from torch import Tensor, nn

from pareco.slimmable import make_slimmable
from pareco.widths import Widths
from tests.slimmable.proofs import assert_proven


def test_resnext() -> None:
    """Bottlenecks of 4 groups of 2, 4, 6 and 8 channels; what they add up in is in no group."""
    options = {"cardinality": 4, "base_width": 16, "stem_width": 8, "channels": (8, 16, 24, 32)}
    model = ResNet(Bottleneck, (1, 1, 1, 1), num_classes=4, **options)  # type: ignore[arg-type]
    net = assert_proven(model)
    steps = {group.name: group.step for group in net.space.groups}
    assert steps.pop("conv1") == 1
    for stage, width in enumerate((2, 4, 6, 8), start=1):
        assert steps.pop(f"layer{stage}.0.conv1") == width
        assert steps.pop(f"layer{stage}.0.conv3") == 1
    assert not steps


@pytest.mark.parametrize("se", [0.0, 0.25], ids=["x", "y"])
def test_regnet(se: float) -> None:
    """RegNetX and RegNetY (arXiv 2003.13678): the width of a group is that of the design."""
    config = RegNetCfg(depth=4, w0=8, wa=8.0, wm=1.6, group_size=4, se_ratio=se, stem_width=8)
    net = assert_proven(RegNet(config, num_classes=4))
    grouped = [group for group in net.space.groups if group.name.endswith("conv1.conv")]
    assert [group.step for group in grouped] == [4] * 4
    for widths in (net.space.smallest, net.space.uniform(0.6)):
        plain = net.extract(widths)
        for group in grouped:
            conv = plain.get_submodule(group.name.replace("conv1", "conv2"))
            assert conv.weight.shape[1] == 4  # type: ignore[union-attr]


class Multiplies(nn.Module):
    """Convolutions in groups that put out a multiple of what they take in."""

    def __init__(self, groups: int, multiple: int) -> None:
        super().__init__()
        wide = 8 * multiple
        self.stem, self.grouped = nn.Conv2d(3, 8, 3), nn.Conv2d(8, wide, 3, groups=groups)
        self.norm, self.again = nn.BatchNorm2d(wide), nn.Conv2d(wide, wide, 1, groups=2 * groups)
        self.group_norm, self.last = nn.GroupNorm(groups, wide), nn.Conv2d(wide, 6, 1)
        self.scale = nn.Parameter(torch.ones(6, 1, 1))
        self.tail, self.fc = nn.Conv2d(6, 6, 1), nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.grouped(self.stem(images))).relu()
        features = self.last(self.group_norm(self.again(features)).relu())
        return self.fc((features + self.tail(features) * self.scale).mean((2, 3)))


@pytest.mark.parametrize(("groups", "multiple", "step"), [(8, 2, 1), (4, 3, 2), (2, 1, 4)])
def test_several_features_for_each_channel(groups: int, multiple: int, step: int) -> None:
    """Depthwise with a multiplier too: outputs of a channel lie side by side."""
    net = assert_proven(Multiplies(groups, multiple), 8)
    assert net.space.names[:2] == ("stem", "last")
    assert net.space.groups[0].step == step


class Sums(nn.Module):
    """Two features for each channel, and three, added to what has one for each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.twice = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3, padding=1, groups=8)
        self.point, self.norm = nn.Conv2d(16, 16, 1), nn.GroupNorm(4, 16)
        self.scale = nn.Parameter(torch.ones(16, 1, 1))
        self.thrice, self.other = nn.Conv2d(16, 48, 1, groups=4), nn.Conv2d(8, 48, 1)
        self.fc = nn.Linear(48, 4)

    def forward(self, images: Tensor) -> Tensor:
        first = self.stem(images)
        double = self.twice(first)
        double = self.norm(self.point(double.relu()) + double) * self.scale
        return self.fc((self.thrice(double) + self.other(first)).mean((2, 3)))


def test_sums_of_features_of_several_factors() -> None:
    """One group: four channels of 16 are two of the eight, of which there are six times 48."""
    net = assert_proven(Sums(), 8)
    assert net.space.names == ("stem",)
    assert net.space.groups[0].step == 2
    plain = net.extract(Widths([4]))
    shapes = [plain.get_parameter(f"{name}.weight").shape[0] for name in ("point", "other")]
    assert shapes == [8, 24]


def test_a_sum_of_counts_with_a_broken_ratio() -> None:
    """Twice the one is three times the other: three channels and two stay or go as one."""

    class Broken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Conv2d(3, 12, 1), nn.Conv2d(3, 8, 1)
            self.twice = nn.Conv2d(12, 24, 1, groups=12)
            self.thrice, self.fc = nn.Conv2d(8, 24, 1, groups=8), nn.Linear(24, 4)

        def forward(self, images: Tensor) -> Tensor:
            both = self.twice(self.a(images)) + self.thrice(self.b(images))
            return self.fc(both.mean((2, 3)))

    net = assert_proven(Broken(), 8)
    assert net.space.maxima == (4,)
    plain = net.extract(Widths([2]))
    assert [len(plain.get_parameter(f"{name}.weight")) for name in "ab"] == [6, 4]


def test_groups_of_the_image_stay() -> None:
    grouped = nn.Conv2d(3, 6, 1, groups=3)
    head = (nn.Conv2d(6, 8, 1), nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    net = assert_proven(nn.Sequential(grouped, *head, nn.Linear(8, 4)), 8)
    assert net.space.names == ("1", "2")


def test_widths_between_groups_are_refused() -> None:
    """Of a convolution whose groups put out more than they take in, too: 4 of 2 channels make 3."""
    convs = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 12, 3, groups=4), nn.Conv2d(12, 8, 3))
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    net = assert_proven(nn.Sequential(*convs, *copy.deepcopy(head)), 8)
    assert net.space.maxima == (4, 8)
    assert net.extract(Widths([3, 8])).get_parameter("1.weight").shape == (9, 2, 3, 3)
    convs = (nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 3))
    net = make_slimmable(nn.Sequential(*convs, *head), torch.zeros(1, 3, 8, 8))
    assert net.space.names == ("0", "2")
    for use in (net.set_widths, net.extract):
        with pytest.raises(ValueError, match=r"0 keeps groups of 2 channels whole.*asked for 5"):
            use(Widths([5, 8]))
