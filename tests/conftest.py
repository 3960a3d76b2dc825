"""The networks that the proofs of slimming run on."""

import functools
import gc
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from pareco.models import CIFAR_RESNETS, create_model
from pareco.slimmable import SlimmableNet, make_slimmable
from tests.experiments import quick

NETWORKS = (
    "mobilenetv2_100",
    "mobilenetv3_large_100",
    "mobilenetv3_small_100",
    "resnet18",
    "resnet34",
    "resnet50",
    "efficientnet_b0",
    "efficientnet_lite0",
    "mnasnet_100",
    "mobilenetv4_conv_small",
    *CIFAR_RESNETS,
    "cifar_vgg16",
)
# Beside those: TensorFlow's "same" padding, squeeze-excite in a ResNet, torchvision's
# stochastic depth, batch norm of vectors.
OTHERS = ("tf_efficientnet_b0", "seresnet50", "torchvision/efficientnet_b0", "repvit_m1")
# Others like them are proven without them.
SELDOM = {
    *("resnet34", "efficientnet_b0", "efficientnet_lite0", "mnasnet_100"),
    *("seresnet50", "torchvision/efficientnet_b0"),
    *(name for name in CIFAR_RESNETS if name != "cifar_resnet20"),
}


def pytest_sessionfinish() -> None:
    """Let go of what was put aside: extensions count what is left at the end."""
    gc.unfreeze()


@pytest.fixture(autouse=True, scope="module")
def _few_objects_to_look_through() -> Iterator[None]:
    """What a module's tests leave behind for good is not looked through again for garbage.

    Graphs and modules of thousands of tests made each full collection take seconds.
    """
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Test processes run side by side: threads that wait for each other make them far slower."""
    torch.set_num_threads(1)


@dataclass(frozen=True)
class Network:
    """An untouched model, its slimmable form, and two small images for both."""

    name: str
    model: nn.Module
    net: SlimmableNet
    images: Tensor


@pytest.fixture(
    scope="module",
    params=quick((*NETWORKS, *OTHERS), *{*NETWORKS, *OTHERS} - SELDOM),
)
def network(request: pytest.FixtureRequest) -> Network:
    """Return each network in turn, with batch-norm weights and statistics that are not trivial."""
    name = request.param
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = named_model(name, num_classes=10)
        for module in model.modules():
            if isinstance(module, (nn.Dropout, StochasticDepth)):
                module.p = 0.0  # two networks would draw different numbers
            if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, 0, 0.1)
                nn.init.normal_(module.running_mean, 0, 0.1)  # type: ignore[arg-type]
                nn.init.uniform_(module.running_var, 0.5, 1.5)  # type: ignore[arg-type]
        size = 32 if name.startswith("cifar") else 64
        images = torch.randn(2, 3, size, size)
    return Network(name, model, make_slimmable(model, images[:1]), images)


def named_model(name: str, num_classes: int) -> nn.Module:
    """Return a network of this project or of timm or, as "torchvision/NAME", of torchvision."""
    library, _, model = name.rpartition("/")
    build = torchvision.models.get_model if library else create_model
    return build(model, num_classes=num_classes)


@functools.cache
def shapes_only(
    name: str, image_size: int, num_classes: int = 1000, images: int = 1, **options
) -> SlimmableNet:
    """Return a slimmable network without memory for its weights, the same one to every test."""
    with torch.device("meta"):
        model = named_model(name, num_classes)
    image = torch.zeros(images, 3, image_size, image_size, device="meta")
    return make_slimmable(model, image, **options)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def tiny_net(base_width: int = 4, in_chans: int = 1, size: int = 8, **options) -> SlimmableNet:
    """Return a slimmable ResNet8 with the same weights whatever was drawn before."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(
            "cifar_resnet8", num_classes=10, in_chans=in_chans, base_width=base_width
        )
    return make_slimmable(model, torch.zeros(1, in_chans, size, size), **options)
