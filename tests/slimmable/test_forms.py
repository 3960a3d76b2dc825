"""Convolutions of standardized weights, filters over positions and over channels."""

from functools import partial

import pytest
import torch
from timm.layers import (
    BlurPool2d,
    EcaModule,
    EffectiveSEModule,
    GlobalContext,
    GroupNormAct,
    ScaledStdConv2d,
    StdConv2d,
)
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from timm.models.nfnet import NfCfg, NormFreeNet
from timm.models.resnetv2 import ResNetV2
from torch import Tensor, nn

from pareco.slimmable import TracingError, make_slimmable
from tests.slimmable.proofs import assert_proven


@pytest.mark.parametrize("attention", [None, "eca", "se"])
def test_networks_free_of_norms(attention: str | None) -> None:
    """NFNets (arXiv 2102.06171) of groups of 4 channels; a gain for each channel is sliced."""
    config = NfCfg(
        depths=(1, 1, 1, 1),
        channels=(16, 24, 32, 48),
        stem_chs=16,
        group_size=4,
        attn_layer=attention,
        attn_kwargs={"rd_ratio": 0.5} if attention == "se" else {},
        extra_conv=True,
        gamma_in_act=True,
    )
    net = assert_proven(NormFreeNet(config, num_classes=4))
    assert {group.step for group in net.space.groups} == {1, 4}
    assert not any(".attn." in name for name in net.space.names)


def test_big_transfer() -> None:
    """BiT (arXiv 1912.11370): group norms before standardized convolutions."""
    norm = partial(GroupNormAct, num_groups=4)
    options = {"channels": (16, 24, 32, 48), "stem_chs": 8, "stem_type": "fixed", "num_classes": 4}
    model = ResNetV2((1, 1, 1, 1), conv_layer=StdConv2d, norm_layer=norm, **options)  # type: ignore[arg-type]
    net = assert_proven(model)
    assert all(group.step == group.maximum // 4 for group in net.space.groups)


class Stem(nn.Module):
    """A convolution, what is tested, and a convolution with a sum after it."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.stem, self.part, self.last = nn.Conv2d(3, 12, 3), part, nn.Conv2d(12, 16, 1)
        self.tail, self.fc = nn.Conv2d(16, 16, 1), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.last(self.part(self.stem(images)).relu()).relu()
        return self.fc((features + self.tail(features)).mean((2, 3)))


PARTS = {
    "standardized": lambda: StdConv2d(12, 12, 3),
    "standardized as TensorFlow pads": lambda: StdConv2dSame(12, 12, 3, stride=2),
    "scaled": lambda: ScaledStdConv2d(12, 12, 3, gamma=1.5),
    "scaled as TensorFlow pads": lambda: ScaledStdConv2dSame(12, 12, 3, stride=2),
    "scaled in groups": lambda: ScaledStdConv2d(12, 12, 3, groups=4),
    "blurred": lambda: BlurPool2d(12),
    "blurred with zeros around": lambda: BlurPool2d(12, filt_size=5, pad_mode="constant"),
    "blurred whatever there is": lambda: BlurPool2d(None, stride=1),
    "attention along channels": lambda: EcaModule(12),
    "with a bias": lambda: nn.Sequential(EcaModule(kernel_size=5), EcaModule(kernel_size=5)),
    "global context": lambda: GlobalContext(12, rd_ratio=0.5, fuse_add=True),
    "attention of one layer": lambda: EffectiveSEModule(12, add_maxpool=True),
}


@pytest.mark.parametrize("case", PARTS)
def test_parts(case: str) -> None:
    assert assert_proven(Stem(PARTS[case]()), 12).space.names[0] == "stem"


def test_the_scale_of_a_narrow_standardized_convolution_is_that_of_one_made_narrow() -> None:
    net = make_slimmable(Stem(ScaledStdConv2d(12, 12, 3, gamma=1.5)), torch.zeros(1, 3, 12, 12))
    assert net.space.names[:2] == ("stem", "part")
    plain = net.extract(net.space.decode([0.5, 0.75, *[1.0] * (net.space.dimensions - 2)]))
    narrow = ScaledStdConv2d(6, 9, 3, gamma=1.5)
    narrow.load_state_dict(plain.get_submodule("part").state_dict())
    features = torch.randn(2, 6, 8, 8)
    torch.testing.assert_close(plain.get_submodule("part")(features), narrow(features))
    assert repr(plain.get_submodule("part")) == repr(narrow)


def test_what_is_refused_around_them() -> None:
    """A filter over channels that are more than one feature, and one of circular padding."""
    cases = (
        (
            nn.Sequential(nn.Flatten(2), nn.Conv1d(12, 12, 1), nn.Unflatten(2, (10, 10))),
            "Conv1d acts",
        ),
        (nn.Conv2d(12, 12, 3, padding=1, padding_mode="circular"), "Conv2d with circular padding"),
    )
    for part, message in cases:
        with pytest.raises(TracingError, match=message):
            make_slimmable(Stem(part), torch.zeros(1, 3, 12, 12))
