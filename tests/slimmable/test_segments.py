"""Channels that are joined, split and shuffled: one network of the literature for each way."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import SelectiveKernel
from timm.models.densenet import DenseNet
from timm.models.fasternet import FasterNet
from timm.models.ghostnet import GhostNet
from timm.models.mambaout import MambaOut
from torch import Tensor, nn
from torchvision.models.shufflenetv2 import ShuffleNetV2

from pareco.slimmable import TracingError, calibrated_statistics, make_slimmable
from pareco.slimmable.channels import Segment, Tag, Variable, cut, keep_blocks, unify
from tests.slimmable.proofs import assert_proven


class Selective(nn.Module):
    """Two kernels of which gates choose (SKNet, arXiv 1903.06586): split, stacked, one of each."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.chosen = SelectiveKernel(8, 8, rd_channels=4)
        self.last = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.last(self.chosen(self.stem(images)).mean((2, 3)))


class Repeated(nn.Module):
    """Res2Net's way (arXiv 1904.01169): pieces that are added to the next one, then joined."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 12, 3, padding=1), nn.Linear(12, 4)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(2))
        self.joined, self.norm = nn.Conv2d(12, 12, 1), nn.BatchNorm2d(12)

    def forward(self, images: Tensor) -> Tensor:
        pieces = torch.split(self.stem(images), 4, 1)
        first = self.convs[0](pieces[0])
        second = self.convs[1](first + pieces[1])
        joined = torch.cat([first, second, pieces[2]], 1)
        return self.last((self.norm(joined) + self.joined(joined)).mean((2, 3)))


NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "joined": (
        lambda: DenseNet(4, (1, 2), num_classes=4, bn_size=2),
        (8, 8, 4, 6, 8, 4, 8, 4),
    ),
    "parts of a layer": (
        lambda: GhostNet([[[3, 9, 7, 0, 1]]], num_classes=4, width=0.5, drop_rate=0.0),
        (8, 4, 2, 8),
    ),
    "split and added": (Repeated, (4, 4, 4, 4)),
    "split and joined": (
        lambda: FasterNet(
            embed_dim=8, depths=(1,), num_classes=4, feature_dim=12, drop_path_rate=0.0
        ),
        (2, 6, 2, 16),
    ),
    "channels last": (lambda: MambaOut(depths=(1,), dims=(6,), num_classes=4), (3, 6, 10, 6)),
    "stacked": (Selective, (4, 4, 8)),
}
"""Networks, and how many channels each of their groups has: those that no others must equal."""


@pytest.mark.parametrize("way", NETWORKS)
def test_each_way(way: str) -> None:
    build, maxima = NETWORKS[way]
    net = assert_proven(build(), 32)
    assert net.space.maxima == maxima, net.space.names


def test_channels_that_are_shuffled() -> None:
    """ShuffleNetV2 (arXiv 1807.11164): each half of eight channels goes on as it is, in turns.

    So of eight channels four go on, then two, then one, which has no choice.
    """
    net = assert_proven(ShuffleNetV2([4, 1, 1], [8, 16, 12, 16, 12], num_classes=4), 32)
    shuffled = [name for name in net.space.names if name.startswith("stage2.0.branch1")]
    assert shuffled == [f"stage2.0.branch1.2[{part}]" for part in ("2:4", "4:8")]


def test_statistics_and_private_norms_of_joined_channels() -> None:
    """A sub-network's own batch norm has the channels in use, wherever they lie."""
    net = make_slimmable(DenseNet(4, (1, 1), num_classes=4, bn_size=2), torch.zeros(1, 3, 32, 32))
    widths, images = net.space.smallest, torch.randn(8, 3, 32, 32)
    net.privatize_norm([widths])
    statistics = calibrated_statistics(net, widths, [images])
    plain = net.extract(widths, statistics).eval()
    with net.eval().at(widths, statistics), torch.no_grad():
        torch.testing.assert_close(net(images), plain(images))
    own = net.private_weights(widths)["features.norm5.weight"]
    assert len(own) == len(statistics.means["features.norm5"]) < 10


def test_the_order_of_joined_and_shuffled_channels() -> None:
    """Put in order, a full network computes what it did, but for the order of sums of doubles."""
    torch.manual_seed(0)
    for model in (Repeated(), ShuffleNetV2([2, 1, 1], [8, 16, 12, 16, 12], num_classes=4)):
        images = torch.randn(2, 3, 32, 32, dtype=torch.double)
        model = model.double().eval()
        net = make_slimmable(model, images, order_channels=True).eval()
        assert not all(map(torch.equal, net.state_dict().values(), model.state_dict().values()))
        torch.testing.assert_close(net(images), model(images), rtol=1e-10, atol=1e-12)


def free(size: int) -> tuple[Segment, ...]:
    return (Segment(Variable(size)),)


def counts(segments: tuple[Segment, ...]) -> list[tuple[int, int, bool]]:
    """Return size, factor and fixedness of each segment."""
    tag = Tag(segments)
    return [(x.variable.size, x.factor, x.variable.fixed) for x in tag.leaves]


class Subpixel(nn.Module):
    """Patches as channels, and sub-pixel convolution (ESPCN, arXiv 1609.05158), joined ones too."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.stem = nn.PixelUnshuffle(2), nn.Conv2d(12, 8, 3, padding=1)
        self.apart, self.norm = nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12)
        self.larger, self.next = nn.PixelShuffle(2), nn.Conv2d(3, 6, 3, padding=1)
        self.last = nn.Linear(8 + 24 + 5, 4)

    def forward(self, images: Tensor) -> Tensor:
        small = self.stem(self.patches(images)).relu()
        large = self.next(self.larger(self.norm(self.apart(small))))
        again = torch.pixel_unshuffle(large, 2)
        joined = F.pixel_shuffle(torch.cat([small, again[:, :12]], 1), upscale_factor=2)
        return self.last(torch.cat([small, again, F.max_pool2d(joined, 2)], 1).mean((2, 3)))


def test_pixels_are_shuffled_in_blocks() -> None:
    net = assert_proven(Subpixel(), 8)
    # Of the 12 and 8 channels four become one, and four come of each of the other layer's 6.
    assert {group.name: group.maximum for group in net.space.groups} == {
        "stem": 2,
        "apart": 3,
        "next[0:3]": 3,
        "next[3:6]": 3,
    }


class Upsampled(nn.Module):
    """Transposed convolutions (arXiv 1603.07285): of all channels, in groups, depthwise."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, stride=2, padding=1), nn.BatchNorm2d(12)
        self.whole = nn.ConvTranspose2d(8, 12, 3, stride=2, padding=1, output_padding=1)
        self.groups = nn.ConvTranspose2d(12, 8, 2, stride=2, groups=4, bias=False)
        self.depthwise = nn.ConvTranspose2d(8, 8, 3, dilation=2, groups=8)
        self.last = nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.norm(self.whole(self.stem(images))).relu()
        features = self.groups(features)
        features = torch.cat([features, self.depthwise(features)[..., :-4, :-4]], 1)
        return self.last(features.mean((2, 3)))


def test_transposed_convolutions() -> None:
    net = assert_proven(Upsampled(), 8)
    steps = {group.name: (group.maximum, group.step) for group in net.space.groups}
    assert steps == {"stem": (8, 1), "whole": (4, 1)}  # groups of three, which put out two
    ordered = make_slimmable(Upsampled(), torch.zeros(1, 3, 8, 8), order_channels=True)
    assert ordered.space.maxima == net.space.maxima


def test_a_size_that_is_told_to_a_transposed_convolution_is_refused() -> None:
    class Told(Upsampled):
        def forward(self, images: Tensor) -> Tensor:
            return self.last(self.whole(self.stem(images), [8, 8]).mean((2, 3)))

    with pytest.raises(TracingError, match=r"it is told the size .* Give it output_padding"):
        make_slimmable(Told(), torch.zeros(1, 3, 8, 8))


def test_a_cut_between_channels_and_through_a_block() -> None:
    whole = free(8)
    first, second = cut(whole, [3, 5])
    assert (counts(first), counts(second)) == ([(3, 1, False)], [(5, 1, False)])
    assert counts(whole) == counts(first) + counts(second)
    blocks = Tag(free(4)).scaled(3)
    first, second = cut(blocks.segments, [7, 5])
    assert counts(first) == [(2, 3, False), (1, 1, True)]
    assert counts(second) == [(2, 1, True), (1, 3, False)]
    assert counts(blocks.segments) == [(2, 3, False), (1, 3, True), (1, 3, False)]


def test_a_cut_at_less_than_a_block() -> None:
    blocks = Tag(free(4)).scaled(3)
    first, second = cut(blocks.segments, [1, 11])
    assert counts(first) == [(1, 1, True)]
    assert counts(second) == [(2, 1, True), (3, 3, False)]


class Flat(nn.Module):
    """Slices of flattened positions, one of them changed in place."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.last = nn.Conv2d(3, 8, 3, stride=4), nn.LazyLinear(4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        part = features[:, 2:6]
        part.mul_(2)
        return self.last(torch.flatten(features, 1)[:, 3:-70])


def test_slices_of_flattened_positions_and_in_place() -> None:
    model = Flat()
    model(torch.zeros(1, 3, 32, 32))
    assert assert_proven(model).space.maxima == (4,)  # the first and the seventh are cut


def test_a_cut_through_channels_that_a_list_has_twice() -> None:
    whole = free(4)
    first, second = cut(whole + whole, [3, 5])
    assert counts(first) == [(3, 1, False)]
    assert counts(second) == [(1, 1, False), (3, 1, False), (1, 1, False)]
    assert len(Tag(first + second).variables) == 2


def test_lists_are_unified_piece_by_piece() -> None:
    """4 and 6 channels beside 2, 5 and 3: boundaries of either list are those of both."""
    left, right = free(4) + free(6), free(2) + free(5) + free(3)
    unify(left, right)
    assert counts(left) == counts(right) == [(size, 1, False) for size in (2, 2, 3, 3)]
    assert Tag(left).variables == Tag(right).variables
    double, triple = Tag(free(6)).scaled(2), Tag(free(4)).scaled(3)
    unify(double.segments, triple.segments)
    assert counts(double.segments) == counts(triple.segments) == [(2, 6, False)]


def test_a_list_that_is_unified_with_itself_in_another_order() -> None:
    one, other = free(4), free(6)
    unify(one + other, other + one)
    assert len(set(Tag(one + other).variables)) == 1
    assert counts(one + other) == [(2, 1, False)] * 5


def test_blocks_across_segments_stay() -> None:
    """Of 6, 6 and 4 channels in blocks of 4, the second lies in two of three variables."""
    segments = free(6) + free(6) + free(4)
    keep_blocks(segments, 4)
    assert counts(segments) == [
        *((1, 4, True), (2, 1, True), (2, 1, True), (1, 4, True), (1, 4, True)),
    ]
    segments = free(16)
    keep_blocks(segments, 4)
    assert counts(segments) == [(4, 4, False)]
