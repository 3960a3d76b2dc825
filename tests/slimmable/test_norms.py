"""Networks that normalize without batches, with their channels first or last."""

from typing import Any

import pytest
import torch
import torchvision
from timm.models.convnext import ConvNeXt

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
