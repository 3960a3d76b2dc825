"""Families of networks have the same channel groups at every image size, gates or none."""

import pytest
import torch
from timm.models.vgg import VGG

from pareco.slimmable import make_slimmable
from tests.conftest import shapes_only
from tests.experiments import quick
from tests.slimmable.test_rules import assert_right

# name -> how many channel groups it has, and channels in all of them
FAMILIES = {
    "efficientnet_b0": (23, 9744),
    "hardcorenas_a": (18, 5584),
    "lcnet_035": (14, 1048),
    "legacy_seresnet18": (12, 2880),
    "mnasnet_small": (20, 3544),
    "mobilenetv3_rw": (22, 6408),
    "mobilenetv3_small_050": (16, 1712),
    "repghostnet_050": (23, 2432),
    "repvit_m1": (31, 10248),
    "resnet10t": (10, 1976),
    "sedarknet21": (13, 3776),
    "semnasnet_050": (23, 3952),
    "tinynet_e": (17, 3024),
    "vgg11_bn": (9, 6848),
    "torchvision/efficientnet_b0": (23, 9744),  # timm's efficientnet_b0 in other words
    "torchvision/mobilenet_v3_small": (17, 3256),
    "torchvision/shufflenet_v2_x1_0": (30, 2510),
    "torchvision/squeezenet1_1": (25, 2944),
    "torchvision/vgg11_bn": (9, 6848),  # as timm's, with linear layers
}


FEW = ("semnasnet_050", "vgg11_bn", "torchvision/mobilenet_v3_small")


@pytest.mark.parametrize("name", quick(FAMILIES, *FEW))
def test_groups_do_not_depend_on_the_image_size(name: str) -> None:
    """Not where features end at 1 x 1 either, nor on the number of images."""
    spaces = [shapes_only(name, size, images=images).space for size, images in SIZES]
    assert (len(spaces[0].groups), sum(spaces[0].maxima)) == FAMILIES[name]
    assert spaces[1:] == spaces[:-1]


SIZES = ((32, 1), (64, 2), (224, 1))


def test_alexnet_has_the_groups_of_its_layers() -> None:
    """Its two hidden linear layers: the last one feeds the classifier alone and stays."""
    for size in (64, 224):
        names = shapes_only("torchvision/alexnet", size).space.names
        assert names == (*(f"features.{i}" for i in (0, 3, 6, 8, 10)), "classifier.1")


@pytest.mark.parametrize("size", [4, 28, 30])
def test_the_head_of_a_vgg_made_of_convolutions(size: int) -> None:
    """timm's, whose features are pooled up to 7 x 7 where the image is small."""
    model = VGG([8, "M", 16, "M"], num_classes=4, mlp_ratio=0.01, norm_layer=torch.nn.BatchNorm2d)
    net = assert_right(model, size)
    assert net.space.names == ("features.0", "features.4", "pre_logits.fc1")
    images = torch.randn(2, 3, 40, 24, dtype=torch.double)  # sizes that it was not traced at
    assert torch.equal(net(images), model(images))


def test_a_vgg_is_the_same_for_one_image_and_for_several() -> None:
    model = VGG([4, "M"], num_classes=4, mlp_ratio=0.01)
    spaces = [make_slimmable(model, torch.zeros(n, 3, 8, 8)).space for n in (1, 2, 5)]
    assert spaces[0] == spaces[1] == spaces[2]
