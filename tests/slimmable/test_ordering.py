"""Channels in the order of importance: an exact permutation, by filters, bound by padding."""

import copy

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerNorm2d
from timm.layers.grn import GlobalResponseNorm
from torch import Tensor, nn

from pareco.slimmable import SlimmableNet, TracingError, make_slimmable
from tests.conftest import Network, named_model

# Double precision: sums of another order differ by some 1e-15 of the largest score; a channel in a
# wrong place shows in the first digit. (Bit for bit they could only be the same without sums.)
TOLERANCE = 1e-10


class Joined(nn.Module):
    """Layers that are used twice, a tied weight, PReLUs, padding on both sides, several positions.

    The linear layer reads four features of each channel, which batch norm has scaled one by one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.twice = nn.Conv2d(6, 6, 3, padding=1, bias=False)
        self.tied = nn.Conv2d(6, 6, 3, padding=1)
        self.tied.weight = self.twice.weight
        self.slopes, self.slope = nn.PReLU(6), nn.PReLU()
        self.wide, self.depthwise = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 12, 3, 2, 1, groups=12)
        self.features, self.hidden = nn.BatchNorm1d(48), nn.Linear(48, 7)
        self.deep, self.classes = nn.Linear(7, 9), nn.Linear(9, 5)

    def forward(self, images: Tensor) -> Tensor:
        first = self.slopes(self.norm(self.stem(images)))
        second = self.slope(self.tied(self.twice(self.twice(first))) + first)
        wide = self.wide(second) + F.pad(first, (0, 0, 0, 0, 2, 4))
        flat = self.features(self.depthwise(wide).flatten(1))
        return self.classes(F.relu(self.deep(F.relu(self.hidden(flat)))))


class Padded(nn.Module):
    """Scores that are channels, padded: those of the last convolution have a fixed place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 4, 3)

    def forward(self, images: Tensor) -> Tensor:
        features = self.last(F.relu(self.first(images)))
        return F.pad(features, (0, 0, 0, 0, 1, 2)).mean((2, 3))


def lively(model: nn.Module) -> nn.Module:
    """Return the model, in evaluation and doubles, with batch norm and slopes that differ."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (module.weight, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5, generator=generator)  # type: ignore[arg-type]
            for tensor in (module.bias, module.running_mean):
                nn.init.normal_(tensor, 0, 0.1, generator=generator)  # type: ignore[arg-type]
        elif isinstance(module, nn.PReLU):
            nn.init.uniform_(module.weight, 0.1, 0.4, generator=generator)
        elif isinstance(module, (nn.LayerNorm, GlobalResponseNorm)):
            for vector in module.parameters():
                nn.init.normal_(vector, 0, 1, generator=generator)
    return model.double().eval()


def made(name: str) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return lively(Joined() if name == "joined" else named_model(name, 5))


def ordered(model: nn.Module, side: int) -> SlimmableNet:
    images = torch.zeros(1, 3, side, side, dtype=torch.double)
    return make_slimmable(model, images, slim_head=True, order_channels=True)


def changed(before: nn.Module, after: nn.Module) -> set[str]:
    states = before.state_dict(), after.state_dict()
    assert list(states[0]) == list(states[1])
    return {name for name, each in states[0].items() if not torch.equal(each, states[1][name])}


def check_full_width(model: nn.Module, net: SlimmableNet, images: Tensor) -> None:
    with torch.no_grad():
        expected, found = model(images), net(images)
    assert float((found - expected).abs().max()) < TOLERANCE * float(expected.abs().max())


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("joined", 4),
        ("cifar_resnet20", 16),
        ("cifar_vgg11", 16),
        ("resnet18", 32),
        ("mobilenetv2_100", 32),
        ("mobilenetv3_small_100", 32),
        ("efficientnet_b0", 32),
        ("convnextv2_atto", 32),
    ],
)
def test_the_full_network_computes_what_it_did(name: str, side: int) -> None:
    """Of residual sums, depthwise and squeeze-excite layers, zero padding, ties, flattening."""
    model = made(name)
    before = copy.deepcopy(model)
    net = ordered(model, side)
    check_full_width(model, net, torch.randn(2, 3, side, side, dtype=torch.double))
    assert not changed(before, model)
    layers = (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d, nn.LayerNorm)
    names = {f"{path}.weight" for path, each in model.named_modules() if isinstance(each, layers)}
    assert names <= changed(model, net)


def test_channels_that_padding_puts_at_a_fixed_place_stay_there() -> None:
    model = lively(Padded())
    net = ordered(model, 8)
    check_full_width(model, net, torch.randn(2, 3, 8, 8, dtype=torch.double))
    assert changed(model, net) == {"first.weight", "first.bias", "last.weight"}
    assert torch.equal(net.get_parameter("last.bias"), model.get_parameter("last.bias"))
    assert falling(norms(net, "first"))


@pytest.mark.slow
def test_every_network_of_the_proofs_computes_what_it_did(network: Network) -> None:
    model = copy.deepcopy(network.model).double().eval()
    net = make_slimmable(model, network.images[:1].double(), order_channels=True)
    check_full_width(model, net, network.images.double())
    assert changed(model, net)


def test_a_small_network_is_ordered_by_hand() -> None:
    first, norm, second = nn.Conv2d(1, 3, 1), nn.BatchNorm2d(3), nn.Conv2d(3, 2, 1)
    assert first.bias is not None
    assert norm.running_mean is not None
    with torch.no_grad():
        first.weight.copy_(torch.tensor([2.0, -5.0, 2.0]).view(3, 1, 1, 1))
        first.bias.copy_(torch.tensor([90.0, 0.0, 80.0]))  # of no importance
        norm.weight.copy_(torch.tensor([10.0, 20.0, 30.0]))
        norm.running_mean.copy_(torch.tensor([1.0, 2.0, 3.0]))
        second.weight.copy_(torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]).view(2, 3, 1, 1))
    parts = (first, norm, nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    state = ordered_state(nn.Sequential(*parts))
    assert state["0.weight"].flatten().tolist() == [-5.0, 2.0, 2.0]
    assert state["0.bias"].tolist() == [0.0, 90.0, 80.0]  # equal ones keep their order
    assert state["1.weight"].tolist() == [20.0, 10.0, 30.0]
    assert state["1.running_mean"].tolist() == [2.0, 1.0, 3.0]
    assert state["3.weight"].flatten(1).tolist() == [[2.0, 1.0, 3.0], [5.0, 4.0, 6.0]]


def ordered_state(model: nn.Module) -> dict[str, Tensor]:
    images = torch.zeros(1, 1, 2, 2)
    return make_slimmable(model, images, slim_head=True, order_channels=True).state_dict()


def norms(net: SlimmableNet, *layers: str) -> Tensor:
    """Return the sum, over layers, of the L1 norm of each filter."""
    filters = [net.get_parameter(f"{layer}.weight").flatten(1) for layer in layers]
    return sum((each.norm(p=1, dim=1) for each in filters), torch.tensor(0.0))


def falling(values: Tensor) -> bool:
    return bool((values[:-1] >= values[1:] - 1e-9).all())


def test_the_filters_of_all_layers_of_a_group_count() -> None:
    net = ordered(made("resnet18"), 32)
    assert falling(norms(net, "conv1", "layer1.0.conv2", "layer1.1.conv2"))
    assert not falling(norms(net, "conv1"))
    assert falling(norms(net, "layer2.0.conv1"))
    assert falling(norms(net, "layer2.0.downsample.0", "layer2.0.conv2", "layer2.1.conv2"))
    net = ordered(made("mobilenetv2_100"), 32)
    assert falling(norms(net, "blocks.1.0.conv_pw", "blocks.1.0.conv_dw"))


def test_what_zero_padding_passes_on_stays_first_and_is_ordered_by_the_sum() -> None:
    net = ordered(made("cifar_resnet8"), 16)
    stages = [("conv1", "layer1.0.conv2"), ("layer2.0.conv2",), ("layer3.0.conv2",)]
    one, two, three = (norms(net, *stage) for stage in stages)
    assert falling(one + two[:16] + three[:16])
    assert falling(two[16:] + three[16:32])
    assert falling(three[32:])
    assert falling(norms(net, "layer3.0.conv1"))


def test_a_narrow_network_is_that_of_the_channels_with_the_largest_filters() -> None:
    """Against layers that are cut by hand."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 8, 3), nn.Conv2d(8, 6, 3), nn.Linear(6 * 4, 5)]
    first, second, last = layers
    relu, flat = nn.ReLU(), nn.Flatten()
    model = nn.Sequential(first, relu, second, nn.ReLU(), flat, last).double()
    images = torch.randn(2, 3, 6, 6, dtype=torch.double)
    net = make_slimmable(model, images, alpha_min=0.5, order_channels=True)
    kept = [each.weight.abs().sum((1, 2, 3)).topk(each.out_channels // 2).indices
            for each in (first, second)]  # fmt: skip
    hidden = F.conv2d(images, first.weight[kept[0]], first.bias[kept[0]]).relu()
    hidden = F.conv2d(hidden, second.weight[kept[1]][:, kept[0]], second.bias[kept[1]]).relu()
    read = last.weight.view(5, 6, 4)[:, kept[1]].flatten(1)
    with net.at(net.space.smallest):
        found = net(images)
    torch.testing.assert_close(found, F.linear(hidden.flatten(1), read, last.bias))


def test_weights_that_are_not_there_have_no_order() -> None:
    with torch.device("meta"):
        model = named_model("cifar_resnet8", 5)
        images = torch.zeros(1, 3, 16, 16)
    with pytest.raises(TracingError, match=r"'conv1'.* cannot be ordered without weights"):
        make_slimmable(model, images, order_channels=True)


class InGroups(nn.Module):
    """A group norm of four groups, and a layer scale behind a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.grouped = nn.Conv2d(3, 8, 3), nn.GroupNorm(4, 8)
        self.second, self.norm = nn.Conv2d(8, 6, 3), LayerNorm2d(6)
        self.scale, self.last = nn.Parameter(torch.ones(6, 1, 1)), nn.Linear(6, 5)

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.grouped(self.first(images)))
        return self.last((self.norm(self.second(features)) * self.scale).mean((2, 3)))


def test_channels_in_groups_stay_and_a_layer_scale_goes_along() -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        model = InGroups().double().eval()
        for vector in (model.grouped.weight, model.norm.weight, model.norm.bias, model.scale):
            nn.init.normal_(vector)
    net = ordered(model, 12)
    check_full_width(model, net, torch.randn(2, 3, 12, 12, dtype=torch.double))
    assert changed(model, net) == {
        *("second.weight", "second.bias", "norm.weight", "norm.bias", "scale", "last.weight")
    }
    size = net.state_dict()["second.weight"].abs().flatten(1).sum(1)
    assert size.tolist() == sorted(size.tolist(), reverse=True)
    order = model.second.weight.abs().flatten(1).sum(1).argsort(descending=True)
    assert torch.equal(net.state_dict()["scale"], model.scale[order])
