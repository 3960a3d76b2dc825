"""Networks that normalize without batches, with their channels first or last."""

from collections.abc import Callable
from typing import Any

import pytest
import timm.layers
import torch
import torchvision
from timm.layers import norm_act
from timm.models.convnext import ConvNeXt
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from pareco.slimmable import make_slimmable
from tests.slimmable.proofs import assert_proven

TINY: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (8, 10, 12, 14), "num_classes": 4}


@pytest.mark.parametrize("grn", [False, True], ids=["scale", "grn"])
@pytest.mark.parametrize("convolutions", [False, True], ids=["linear", "conv"])
def test_convnext(grn: bool, convolutions: bool) -> None:
    """Either version, its pointwise layers as linear ones on the last dimension or not.

    Its groups are the stem, the downsampling layer and the hidden features of every block.
    """
    scale = None if grn else 1e-6
    model = ConvNeXt(**TINY, ls_init_value=scale, use_grn=grn, conv_mlp=convolutions)
    net = assert_proven(model)
    stages = [f"stages.{stage}" for stage in range(4)]
    first = [(f"{each}.downsample.1", f"{each}.blocks.0.mlp.fc1") for each in stages]
    second = ("stages.2.blocks.1.mlp.fc1",)
    expected = ("stem.0", first[0][1], *first[1], *first[2], *second, *first[3])
    assert net.space.names == expected
    assert net.space.maxima == (8, 32, 10, 40, 12, 48, 48, 14, 56)
    assert [group.stage for group in net.space.groups] == [0, 0, 1, 1, 2, 2, 2, 3, 3]
    assert not net.norms()


def test_convnext_with_other_stems_heads_and_norms() -> None:
    assert_proven(ConvNeXt(**TINY, stem_type="overlap_tiered", head_hidden_size=10))
    for norm in ("simplenorm", "rmsnorm"):
        for convolutions in (False, True):
            model = ConvNeXt(**TINY, norm_layer=norm, conv_mlp=convolutions, head_norm_first=True)
            assert_proven(model)


def test_torchvisions_convnext() -> None:
    """Its layer scales are parameters c x 1 x 1, its permutations modules."""
    settings = [
        torchvision.models.convnext.CNBlockConfig(8, 12, 1),
        torchvision.models.convnext.CNBlockConfig(12, None, 1),
    ]
    assert_proven(torchvision.models.ConvNeXt(settings, num_classes=4))


def test_stochastic_depth_of_convnext_draws_as_the_model_does() -> None:
    model = ConvNeXt(**TINY, drop_path_rate=0.5).train()
    net, images = make_slimmable(model, torch.zeros(1, 3, 32, 32)), torch.ones(4, 3, 32, 32)
    torch.manual_seed(1)
    expected = model(images)
    torch.manual_seed(1)
    assert torch.equal(net(images), expected)


class Normalized(nn.Module):
    """Two convolutions, of 12 and 16 channels, with a norm after each and a residual sum."""

    def __init__(self, norm: Callable[[int], nn.Module]) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 12, 3, stride=2), norm(12)
        self.conv, self.second = nn.Conv2d(12, 16, 3), norm(16)
        self.again, self.third = nn.Conv2d(16, 16, 3, padding=1), norm(16)
        self.fc = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.second(self.conv(self.first(self.stem(images)).relu()))
        features = features + self.third(self.again(features.relu()))
        return self.fc(features.mean((2, 3)))


class NoBias(timm.layers.LayerNorm2d):
    """As timm's MetaFormer has it: a norm whose forward pass is that of a known one."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, bias=False)


class Centred(timm.layers.LayerNorm2d):
    """A norm with a forward pass of its own, of operations that have rules."""

    def forward(self, x: Tensor) -> Tensor:
        return (x - x.mean(1, keepdim=True)) * self.weight[:, None, None] + self.bias[:, None, None]


NORMS: dict[str, tuple[Callable[..., nn.Module], tuple[int, int]]] = {
    "four groups": (lambda c: nn.GroupNorm(4, c), (3, 4)),
    "timm's four groups": (lambda c: timm.layers.GroupNorm(c, 4), (3, 4)),
    "four groups and an activation": (lambda c: timm.layers.GroupNormAct(c, 4), (3, 4)),
    "groups of two": (lambda c: timm.layers.GroupNormAct(c, group_size=2), (2, 2)),
    "one group": (lambda c: nn.GroupNorm(1, c), (1, 1)),
    "timm's one group": (timm.layers.GroupNorm1, (1, 1)),
    "one group and an activation": (norm_act.GroupNorm1Act, (1, 1)),
    "groups of one": (lambda c: nn.GroupNorm(c, c, affine=False), (1, 1)),
    "each channel of an image": (lambda c: nn.InstanceNorm2d(c, affine=True), (1, 1)),
    "an evolved norm": (lambda c: timm.layers.EvoNorm2dS0(c, groups=4), (3, 4)),
    "an evolved norm that adds": (lambda c: timm.layers.EvoNorm2dS0a(c, group_size=2), (2, 2)),
    "filter response norm": (timm.layers.FilterResponseNormTlu2d, (1, 1)),
    "filter response norm and an activation": (timm.layers.FilterResponseNormAct2d, (1, 1)),
    "layer norm": (timm.layers.LayerNorm2d, (1, 1)),
    "layer norm without a bias": (NoBias, (1, 1)),
    "a centred one of its own": (Centred, (1, 1)),
    "layer norm without weights": (lambda c: timm.layers.LayerNorm2d(c, affine=False), (1, 1)),
    "layer norm and an activation": (timm.layers.LayerNormAct2d, (1, 1)),
    "by root mean squares": (timm.layers.RmsNorm2d, (1, 1)),
    "and an activation": (norm_act.RmsNormAct2d, (1, 1)),
    "by deviations": (timm.layers.SimpleNorm2d, (1, 1)),
    "frozen": (FrozenBatchNorm2d, (1, 1)),
    "frozen with an activation": (timm.layers.FrozenBatchNormAct2d, (1, 1)),
}


@pytest.mark.parametrize("case", NORMS)
def test_norms(case: str) -> None:
    """A group norm keeps its groups whole, but one group alone is all channels there are."""
    norm, steps = NORMS[case]
    net = assert_proven(Normalized(norm), 12)
    assert net.space.names == ("stem", "conv")
    assert tuple(group.step for group in net.space.groups) == steps
    assert all(count % step == 0 for count, step in zip(net.space.uniform(0.5), steps, strict=True))
    assert not net.norms()


def test_a_group_of_a_group_norm_normalizes_the_same_channels_at_every_width() -> None:
    """Its output at full width begins with its output at a narrower one."""
    model = Normalized(lambda channels: nn.GroupNorm(4, channels))
    net = make_slimmable(model, torch.zeros(1, 3, 12, 12))
    seen: list[Tensor] = []
    net.get_submodule("first").register_forward_hook(lambda *call: seen.append(call[-1]))
    images = torch.randn(2, 3, 12, 12)
    for widths in (net.space.largest, net.space.decode([0.5, 0.5])):
        with net.at(widths):
            net(images)
    assert [each.shape[1] for each in seen] == [12, 6]
    torch.testing.assert_close(seen[1], seen[0][:, :6], rtol=1e-5, atol=1e-6)  # float32


def test_norms_of_vectors_and_of_the_last_dimension() -> None:
    def body(norm: nn.Module) -> nn.Module:
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), norm)
        return nn.Sequential(nn.Conv2d(3, 12, 3), *pool, nn.Linear(12, 8), nn.Linear(8, 4))

    for norm in (
        nn.GroupNorm(3, 12),
        nn.LayerNorm(12),
        nn.RMSNorm(12),
        nn.LayerNorm(12, bias=False),
    ):
        net = assert_proven(body(norm), 8)
        assert net.space.groups[0].step == (4 if isinstance(norm, nn.GroupNorm) else 1)


def test_groups_without_a_common_multiple_stay() -> None:
    """Of three and of two channels, of which there are six."""
    convs = nn.Sequential(nn.Conv2d(3, 6, 1), nn.GroupNorm(2, 6), nn.GroupNorm(3, 6))
    model = nn.Sequential(*convs, nn.Conv2d(6, 8, 1), nn.BatchNorm2d(8), nn.Conv2d(8, 6, 3))
    model.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4)])
    assert assert_proven(model, 8).space.names == ("3", "5")
