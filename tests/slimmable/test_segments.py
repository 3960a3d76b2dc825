"""Channels that are joined, split and shuffled: one network of the literature for each way."""

from collections.abc import Callable

import pytest
from timm.layers import SelectiveKernel
from timm.models.densenet import DenseNet
from timm.models.fasternet import FasterNet
from timm.models.ghostnet import GhostNet
from timm.models.mambaout import MambaOut
from timm.models.res2net import Bottle2neck
from timm.models.resnet import ResNet
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import ShuffleNetV2

from tests.slimmable.proofs import assert_proven


class Selective(nn.Module):
    """Two kernels of which gates choose (SKNet, arXiv 1903.06586): stacked, and one part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.chosen = SelectiveKernel(8, 8, rd_channels=4)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.chosen(self.stem(images)).mean((2, 3)))


def shuffled() -> nn.Module:
    """Return ShuffleNetV2 (arXiv 1807.11164); what is shuffled often cannot be cut in halves."""
    return ShuffleNetV2([4, 1, 1], [8, 16, 12, 16, 12], num_classes=4)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "concatenation": lambda: DenseNet(4, (1, 2), num_classes=4, bn_size=2),
    "parts of a layer": lambda: GhostNet(
        [[[3, 9, 7, 0, 1]], [[3, 16, 12, 0.25, 2]]], num_classes=4, width=0.5, drop_rate=0.0
    ),
    "split": lambda: ResNet(
        *(Bottle2neck, (1, 1, 1, 1)),  # type: ignore[arg-type]
        num_classes=4,
        base_width=32,
        cardinality=1,
        block_args={"scale": 4},
        channels=(8, 16, 24, 32),
        stem_width=8,
    ),
    "split and joined": lambda: FasterNet(
        embed_dim=8, depths=(1, 1), num_classes=4, feature_dim=12, drop_path_rate=0.0
    ),
    "channels last": lambda: MambaOut(depths=(1, 1), dims=(6, 8), num_classes=4),
    "shuffled": shuffled,
    "stacked": Selective,
}
FREE = {"concatenation": 11, "parts of a layer": 8, "split": 29, "split and joined": 7}
"""How many channel groups there are, counted by hand in the networks' definitions."""


@pytest.mark.parametrize("way", NETWORKS)
def test_each_way(way: str) -> None:
    net = assert_proven(NETWORKS[way](), 32)
    print(way, [(g.name, g.maximum, g.step) for g in net.space.groups])
