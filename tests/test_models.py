"""Networks by name; the CIFAR ResNets against their paper, the VGGs against torchvision's."""

import pytest
import torch
import torchvision
from torch import nn

from pareco.models import BasicBlock, CifarResNet, create_model
from pareco.slimmable import make_slimmable


@pytest.mark.parametrize(("depth", "parameters"), [(20, 0.27), (32, 0.46), (44, 0.66), (56, 0.85)])
def test_cifar_resnets_have_the_published_size(depth: int, parameters: float) -> None:
    """He et al. 2015, table 6, in millions; every convolution and the classifier is a layer."""
    model = create_model(f"cifar_resnet{depth}", num_classes=10)
    layers = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    assert len(layers) == depth
    assert round(sum(p.numel() for p in model.parameters()) / 1e6, 2) == parameters


def test_cifar_resnet_halves_the_resolution_twice() -> None:
    model = CifarResNet(8, num_classes=7, in_chans=1, base_width=4)
    shapes = []
    for name in ("layer1", "layer2", "layer3"):
        module = model.get_submodule(name)
        module.register_forward_hook(lambda _, __, output: shapes.append(tuple(output.shape)))
    assert model(torch.zeros(2, 1, 15, 15)).shape == (2, 7)
    assert shapes == [(2, 4, 15, 15), (2, 8, 8, 8), (2, 16, 4, 4)]


def test_option_a_shortcut_keeps_the_first_channels() -> None:
    block = BasicBlock(16, 32)
    images = torch.randn(1, 16, 4, 4)
    padded = block.shortcut(images)
    assert torch.equal(padded[:, :16], images[:, :, ::2, ::2])
    assert padded.shape == (1, 32, 2, 2)
    assert not padded[:, 16:].any()
    assert BasicBlock(16, 16).shortcut(images) is images


def weights(network: nn.Module) -> list[tuple[int, ...]]:
    """Return the shapes of the weights of convolutions and batch norms, in their order."""
    kinds = (nn.Conv2d, nn.BatchNorm2d)
    return [tuple(each.weight.shape) for each in network.modules() if isinstance(each, kinds)]


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_cifar_vggs_have_the_convolutions_of_torchvisions(depth: int) -> None:
    with torch.device("meta"):
        ours = create_model(f"cifar_vgg{depth}", num_classes=10)
        theirs = torchvision.models.get_model(f"vgg{depth}_bn")
    assert weights(ours) == weights(theirs)
    size = sum(p.numel() for p in ours.parameters())
    features = sum(p.numel() for p in theirs.get_submodule("features").parameters())
    biases = sum(shape[0] for shape in weights(theirs) if len(shape) == 4)  # ours have none
    assert size == features - biases + 10 * 512 + 10


def test_cifar_vgg_pools_three_times_whatever_the_images_size() -> None:
    """6.3 M MACs with 16 channels at 16 x 16, by hand: 9 x inputs x outputs x positions."""
    channels = [3, 16, 16, 32, 32, 64, 64, 64, *[128] * 6]
    positions = [*[256] * 2, *[64] * 2, *[16] * 3, *[4] * 6]
    pairs = zip(channels[:-1], channels[1:], positions, strict=True)
    macs = sum(9 * inputs * outputs * where for inputs, outputs, where in pairs) + 128 * 10
    with torch.device("meta"):
        model = create_model("cifar_vgg16", num_classes=10, base_width=16)
    net = make_slimmable(model, torch.zeros(1, 3, 16, 16, device="meta"))
    assert int(net.cost.macs(net.space.largest)) == macs == 6_305_024
    assert list(net.space.maxima) == channels[1:]
    assert [group.stage for group in net.space.groups] == [0] * 2 + [1] * 2 + [2] * 3 + [3] * 6


@pytest.mark.parametrize(
    ("name", "width", "message"),
    [("cifar_vgg12", None, "one of 11, 13, 16, 19, got 12"), ("cifar_vgg16", 0, "at least 1")],
)
def test_impossible_vggs_are_refused(name: str, width: int | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=10, base_width=width)


@pytest.mark.parametrize("depth", [2, 18, 21])
def test_impossible_depths_are_refused(depth: int) -> None:
    with pytest.raises(ValueError, match="6k \\+ 2"):
        create_model(f"cifar_resnet{depth}", num_classes=10)


def test_names_of_timm() -> None:
    model = create_model("resnet18", num_classes=3, in_chans=1)
    assert model.eval()(torch.zeros(1, 1, 32, 32)).shape == (1, 3)


@pytest.mark.parametrize(
    ("name", "near"), [("mobilenet_v2_100", "mobilenetv2_100"), ("cifar_resnet", "cifar_resnet8")]
)
def test_unknown_names_are_refused_with_the_nearest(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"unknown network '{name}'; nearest: .*{near}"):
        create_model(name, num_classes=10)


def test_base_width_of_a_convnext_keeps_the_ratios_of_its_stages() -> None:
    model = create_model("test_convnext", num_classes=3, in_chans=1, base_width=12)
    assert model.get_parameter("stem.0.weight").shape == (12, 1, 4, 4)
    rows = [model.get_parameter(f"stages.{stage}.blocks.0.norm.weight") for stage in range(4)]
    assert [len(row) for row in rows] == [12, 16, 24, 32]  # timm's: 24, 32, 48, 64
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 3)
    with pytest.raises(ValueError, match="weights of convnext_atto are of its own base_width"):
        create_model("convnext_atto", num_classes=10, base_width=20, pretrained=True)


def test_base_width_belongs_to_networks_that_have_stages_in_proportion() -> None:
    assert create_model("cifar_resnet8", num_classes=10, base_width=8).get_parameter(
        "conv1.weight"
    ).shape == (8, 3, 3, 3)
    with pytest.raises(ValueError, match="base_width"):
        create_model("resnet18", num_classes=10, base_width=8)
    with pytest.raises(ValueError, match="base_width"):
        create_model("cifar_resnet8", num_classes=10, base_width=0)


@pytest.mark.parametrize(
    ("name", "count", "undone"),
    [
        ("mobilenetv2_050", 2, ["conv_stem", "blocks.1.0.conv_dw"]),
        ("resnet18", 2, ["conv1", "maxpool"]),
        ("resnet18", 3, ["conv1", "maxpool", "layer2.0.conv1", "layer2.0.downsample.0"]),
    ],
)
def test_the_first_reductions_are_undone(name: str, count: int, undone: list[str]) -> None:
    """And the weights stay what they are: a stride has none."""
    plain, changed = (create_model(name, num_classes=10, undone_strides=n) for n in (0, count))
    differing = [
        layer
        for layer, module in plain.named_modules()
        if getattr(module, "stride", 1) != getattr(changed.get_submodule(layer), "stride", 1)
    ]
    assert differing == undone
    assert {changed.get_submodule(layer).stride for layer in undone} == {(1, 1)}
    assert plain.state_dict().keys() == changed.state_dict().keys()
    assert changed.training


@pytest.mark.parametrize(
    ("name", "count", "message"),
    [
        ("mobilenetv2_050", 6, "by strides 5 times: undone_strides must be at most 5, got 6"),
        ("cifar_resnet8", 1, "its parts do not fit"),
        ("cifar_vgg11", 1, "stage2.0 makes 255 x 255 of 256 x 256"),
    ],
)
def test_strides_that_cannot_be_undone_are_refused(name: str, count: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        create_model(name, num_classes=10, undone_strides=count)


def test_a_tag_that_timm_has_not_is_an_unknown_network() -> None:
    with pytest.raises(ValueError, match=r"^unknown network 'resnet18.nope': Invalid pretrained"):
        create_model("resnet18.nope", num_classes=2)
