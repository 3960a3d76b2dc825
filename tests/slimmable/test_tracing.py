"""What can be made slimmable, and how the rest is refused."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d
from torch import Tensor, nn

from pareco.models import create_model
from pareco.randomness import seed_global_streams
from pareco.slimmable import SlimmableNet, TracingError, make_slimmable
from pareco.slimmable.layers import ChannelPad
from tests.conftest import shapes_only

IMAGE = torch.zeros(1, 3, 16, 16)


class Net(nn.Module):
    """A stem, a body given as a function of the module and its features, and a classifier."""

    def __init__(
        self, body: Callable[..., Tensor], features: int = 8, *, flat: bool = False, **modules
    ) -> None:
        super().__init__()
        self.flat = flat
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        for name, module in modules.items():
            self.add_module(name, module)
        self.body = body
        self.fc = nn.Linear(features, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.body(self, self.stem(images))
        return self.fc(features if self.flat else features.mean((2, 3)))


class Attention(Net):
    """Control flow on the values of the features."""

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        return self.fc((features if features.sum() > 0 else -features).mean((2, 3)))


class TwoOutputs(Net):
    """Scores and features."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        features = self.stem(images)
        return self.fc(features.mean((2, 3))), features


class PadsTheImage(Net):
    """A shortcut from the image, whose channels cannot change, to the stem's."""

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(F.pad(images, (0, 0, 0, 0, 0, 5)).add(self.stem(images)).mean((2, 3)))


def identity(model: nn.Module, features: Tensor) -> Tensor:
    return features


def assert_same_gradients(model: nn.Module, net: nn.Module, images: Tensor) -> None:
    """Check the gradients at full width, where both have a parameter, and who has one at all."""
    found = []
    for each in (model, net):
        seed_global_streams(0)
        named = dict(each.named_parameters())
        trained = [name for name, parameter in named.items() if parameter.requires_grad]
        grads = torch.autograd.grad(
            each(images).square().sum(), [named[name] for name in trained], allow_unused=True
        )
        found.append({name: g for name, g in zip(trained, grads, strict=True) if g is not None})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


def assert_slims(model: nn.Module, image: Tensor = IMAGE) -> SlimmableNet:
    """Check random sub-networks against their extracted networks, and return the slimmable one."""
    torch.manual_seed(0)
    net = make_slimmable(model.double(), image.double(), alpha_min=0.2).eval()
    images = torch.randn(2, *image.shape[1:], dtype=torch.double)
    assert torch.equal(net(images), model.eval()(images))
    assert_same_gradients(model, net, images)
    generator = torch.Generator().manual_seed(0)
    for widths in (net.space.smallest, net.space.sample(generator), net.space.sample(generator)):
        with net.at(widths):
            torch.testing.assert_close(net(images), net.extract(widths)(images))
    return net


@pytest.mark.parametrize(
    ("body", "options", "message"),
    [
        (lambda m, x: x[:1], {}, "'getitem'.*part of the batch.*Index spatial"),
        (lambda m, x: x * m.scale.expand(8, 16, 16), {}, "'scale'.*parameter or buffer.*Rewrite"),
        (lambda m, x: x * m.scale[:1], {}, "'getitem'.*parameter or buffer.*one number for all"),
        (lambda m, x: F.linear(x, m.scale), {}, "'scale'.*parameter or buffer|not run"),
        (lambda m, x: torch.mul(x, other=x.shape[0]), {}, "'mul'.*not a traced tensor.*Rewrite"),
        (lambda m, x: F.softmax(x, 1), {}, "'softmax'.*not the classes.*Rewrite"),
        (lambda m, x: x + m.part(x), {"part": nn.Conv2d(8, 4, 1)}, "'add'.*do|'add'.*8 and 4"),
        (lambda m, x: x.mean(1)[:, None], {"features": 1}, "'mean'.*keep the batch.*keepdim=True"),
        (lambda m, x: x * x.mean(), {}, "'mean'.*keep the batch and channel.*Rewrite"),
        (lambda m, x: x.view(1, 8, -1).mean(2), {"flat": True}, "'view'.*keep the batch.*flatten"),
        (lambda m, x: F.pad(x, (0,) * 5 + (x.shape[1],)), {}, "'pad'.*channel padd.*by constants"),
        (lambda m, x: F.pad(x, (0, 0, 0, 0, -2, 0)), {}, "'pad'.*channel padd.*by constants"),
        (
            lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 4), value=x.shape[2]),
            {"features": 12},
            "'pad'.*no number.*Pad with a number",
        ),
        (lambda m, x: F.linear(x, x), {}, "'linear'.*does not run on the example.*size"),
    ],
)
def test_refused_functions(body: Callable, options: dict[str, Any], message: str) -> None:
    """Each message names the node, the reason and what would help."""
    model = Net(body, **options)
    model.scale = nn.Parameter(torch.ones(8, 1, 1))
    with pytest.raises(TracingError, match=message):
        make_slimmable(model, IMAGE)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        (nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), "reflect padding.*Rewrite"),
        (nn.LayerNorm(16), "LayerNorm acts on dimension 3, and the channels are dimension 1.*Perm"),
        (nn.LayerNorm([16, 16]), "LayerNorm acts on dimension 3.*Permute"),
        (nn.InstanceNorm2d(8, track_running_stats=True), "InstanceNorm2d with running.*Rewrite"),
        (nn.LocalResponseNorm(2), "no rule for the module LocalResponseNorm.*Rewrite"),
        (nn.SyncBatchNorm(8), "SyncBatchNorm.*Rewrite"),
        (nn.Conv2d(3, 8, 1), "does not run on the example.*size"),
    ],
)
def test_refused_modules(part: nn.Module, message: str) -> None:
    with pytest.raises(TracingError, match=f"'part'.*{message}") as error:
        make_slimmable(Net(lambda m, x: m.part(x), part=part), IMAGE)
    assert error.value.node == "part"


def named(name: str) -> nn.Module:
    return create_model(name, num_classes=10)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (lambda: named("vit_tiny_patch16_224"), (3, 64, 64), "_assert.*match model.*example input"),
        (
            lambda: Attention(identity),
            (3, 16, 16),
            "'Attention'.*control flow.*module of its own",
        ),
        (lambda: Net(identity), (1, 16, 16), r"stem.*3 channels.*example input"),
        (lambda: nn.Sequential(nn.Linear(3, 8), nn.Linear(8, 4)), (3,), "must be one image batch"),
        (lambda: Net(identity), (3, 16), r"'example_input': .* n x c x h x w, got \(1, 3, 16\)"),
        (lambda: Net(identity), (3, 0, 16), r"'example_input'.*got \(1, 3, 0, 16\)"),
        (lambda: TwoOutputs(identity), (3, 16, 16), "one tensor of class scores"),
        (lambda: nn.Sequential(nn.Flatten(), nn.Linear(27, 4)), (3, 3, 3), "no free channel group"),
        (lambda: PadsTheImage(identity), (3, 16, 16), "no free channel group"),
    ],
)
def test_refused_networks(
    model: Callable[[], nn.Module], shape: tuple[int, ...], message: str
) -> None:
    with pytest.raises(TracingError, match=message):
        make_slimmable(model(), torch.zeros(1, *shape))


def test_refused_examples() -> None:
    for example, kind in ((None, "NoneType"), (np.zeros((1, 3, 16, 16)), "ndarray")):
        with pytest.raises(TypeError, match=f"example_input: expected a torch.Tensor, got {kind}"):
            make_slimmable(Net(identity), example)  # type: ignore[arg-type]
    with pytest.raises(TracingError, match=r"'example_input': .*got \(0, 3, 16, 16\)"):
        make_slimmable(Net(identity), torch.zeros(0, 3, 16, 16))


def test_the_advice_on_networks_of_one_layer_helps() -> None:
    pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))
    model = nn.Sequential(nn.Conv2d(3, 8, 1), *pool)
    with pytest.raises(TracingError, match=r"'Sequential': no free .*slim_head=True"):
        make_slimmable(model, IMAGE)
    assert make_slimmable(model, IMAGE, slim_head=True).space.names == ("0",)


def test_functional_dropout_follows_the_mode() -> None:
    net = assert_slims(Net(lambda m, x: F.dropout(x, 0.5, m.training))).float()
    torch.manual_seed(0)
    trained = net.train()(torch.ones(2, 3, 16, 16))
    plain = net.extract(net.space.largest)
    torch.manual_seed(0)
    torch.testing.assert_close(plain(torch.ones(2, 3, 16, 16)), trained)
    assert not torch.equal(net.eval()(torch.ones(2, 3, 16, 16)), trained)


def test_drop_block_is_kept_for_training() -> None:
    net = assert_slims(Net(lambda m, x: m.drop(x), drop=DropBlock2d(0.5, 3))).float()
    images = torch.ones(2, 3, 16, 16)
    assert not torch.equal(net.train()(images), net.eval()(images))


class OptionA(nn.Module):
    """A residual block whose shortcut pads zeros on both sides (the usual CIFAR code)."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 3, 2, 1)
        self.added = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        padding = (0, 0, 0, 0, self.added // 2, self.added // 2)
        return F.relu(F.pad(x[:, :, ::2, ::2], padding, "constant", 0) + self.conv(x))


def test_channel_padding_on_both_sides() -> None:
    """The middle channels carry the input, at every width."""
    blocks = nn.Sequential(OptionA(8, 16), OptionA(16, 32))
    net = assert_slims(Net(lambda m, x: m.blocks(x), 32, blocks=blocks))
    bounds = [(group.maximum, group.at_least) for group in net.space.groups]
    assert bounds == [(8, ()), (16, (0,)), (32, (1, 0))]
    with net.at(net.space.decode([1.0, 0.75, 0.6])):
        pads = [module for module in net.modules() if isinstance(module, ChannelPad)]
        assert [pad.padding() for pad in pads] == [(0, 0, 0, 0, 2, 2), (0, 0, 0, 0, 3, 4)]


class PadsEarly(nn.Module):
    """Groups in the order wide, middle, narrow: each is at least as wide as those after it."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.middle = nn.Conv2d(3, 16, 3), nn.Conv2d(3, 12, 3)
        self.narrow, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(16, 4)

    def forward(self, images: Tensor) -> Tensor:
        wide, middle = self.wide(images), self.middle(images)
        middle = middle + F.pad(self.narrow(images), (0, 0, 0, 0, 0, 4))
        return self.fc((wide + F.pad(middle, (0, 0, 0, 0, 4, 0))).mean((2, 3)))


def test_bounds_by_padding_hold_in_any_order() -> None:
    net = assert_slims(PadsEarly())
    assert net.space.names == ("wide", "middle", "narrow")
    assert net.space.decode([0.2, 0.2, 1.0]) == (8, 8, 8)
    relaxed = net.cost.params(torch.tensor([0.2, 0.2, 1.0], dtype=torch.double))
    assert float(relaxed) == 3 * (8 * 3 * 9 + 8) + 8 * 4 + 4


def test_a_shared_module_ties_its_inputs_and_outputs() -> None:
    conv, norm = nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8)
    net = assert_slims(Net(lambda m, x: m.norm(m.conv(m.norm(m.conv(x)))), conv=conv, norm=norm))
    assert net.space.maxima == (8,)
    once = 3 * 8 * 9 + 8 + 8 * 8 * 9 + 8 + 2 * 8 + 8 * 4 + 4
    assert int(net.cost.params(net.space.largest)) == once
    assert int(net.cost.macs(net.space.largest)) == 256 * (3 * 8 * 9 + 2 * 8 * 8 * 9) + 8 * 4


def test_vgg_like_flatten_before_linear_layers() -> None:
    """A flatten of 4 x 4 features keeps all positions of a channel together."""
    body = nn.Sequential(nn.MaxPool2d(4), nn.Flatten(), nn.Linear(8 * 16, 20), nn.ReLU())
    body.append(nn.Sequential(nn.Linear(20, 12), nn.ReLU()))
    net = assert_slims(Net(lambda m, x: m.layers(x), 12, flat=True, layers=body))
    assert net.space.maxima == (8, 20)
    plain = net.extract(net.space.decode([0.5, 0.5]))
    assert plain.get_parameter("layers.2.weight").shape == (10, 4 * 16)


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: torch.add(x, other=m.conv(x)),
        lambda m, x: 1 - m.conv(x) * x,
        lambda m, x: F.max_pool2d(F.relu6(x), 2) + F.avg_pool2d(x, 2),
        lambda m, x: F.adaptive_avg_pool2d(x, 1).reshape((x.size(0), -1)),
        lambda m, x: F.adaptive_max_pool2d(x, 1).view(x.shape[0], -1),
        lambda m, x: F.interpolate(F.pad(x, (1, 1, 1, 1)), scale_factor=2),
        lambda m, x: m.conv(x)[:, :, 1:, ::2].relu_(),
    ],
)
def test_functions_that_networks_use(body: Callable) -> None:
    flat = bool({"view", "reshape"} & set(body.__code__.co_names))
    assert_slims(Net(body, flat=flat, conv=nn.Conv2d(8, 8, 3, padding=1)))


def test_modules_that_pad_space() -> None:
    pads = nn.Sequential(nn.ZeroPad2d(1), nn.ReflectionPad2d(1), nn.ReplicationPad2d(1))
    assert_slims(Net(lambda m, x: m.pads(x), pads=pads))


def test_squeeze_bottlenecks_and_the_head_stay() -> None:
    net = make_slimmable(create_model("seresnet50", num_classes=10), torch.zeros(1, 3, 64, 64))
    assert not any(".se." in name for name in net.space.names)
    plain = net.extract(net.space.smallest)
    assert plain.get_parameter("layer1.0.se.fc1.weight").shape[:2] == (16, int(0.42 * 256))


@pytest.mark.parametrize("name", ["mobilenetv2_100", "mobilenetv4_conv_small", "efficientnet_b0"])
def test_slim_head_frees_the_head_alone(name: str) -> None:
    kept, freed = (shapes_only(name, 64, slim_head=slim).space.names for slim in (False, True))
    assert freed == (*kept, "conv_head")


def test_groups_do_not_depend_on_the_image_size() -> None:
    small, large = (shapes_only("mobilenetv3_large_100", size).space for size in (64, 224))
    assert small == large


def test_group_names_are_first_producers() -> None:
    space = shapes_only("cifar_resnet8", 32).space
    assert space.names == (
        *("conv1", "layer1.0.conv1", "layer2.0.conv1", "layer2.0.conv2"),
        *("layer3.0.conv1", "layer3.0.conv2"),
    )
    assert [group.stage for group in space.groups] == [0, 0, 1, 1, 2, 2]
