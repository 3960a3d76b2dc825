"""Networks by name: the CIFAR ResNets of this package, and everything that timm has."""

from __future__ import annotations

import difflib
import re

import timm
from torch import nn

from pareco.models.cifar_resnet import CifarResNet

CIFAR_RESNETS = tuple(f"cifar_resnet{depth}" for depth in (8, 20, 32, 44, 56))


def create_model(
    name: str, *, num_classes: int, in_chans: int = 3, base_width: int | None = None
) -> nn.Module:
    """Return a freshly initialized network.

    `name` is `cifar_resnet<depth>` (depth 6k + 2, `base_width` 16 unless given) or a model of
    timm. Raises `ValueError` naming the nearest known names for an unknown one.
    """
    match = re.fullmatch(r"cifar_resnet(\d+)", name)
    if match:
        depth, width = int(match[1]), 16 if base_width is None else base_width
        return CifarResNet(depth, num_classes=num_classes, in_chans=in_chans, base_width=width)
    if not timm.is_model(name):
        known = [*CIFAR_RESNETS, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"unknown network {name!r}; nearest: {', '.join(near) or 'none'}")
    if base_width is not None:
        raise ValueError(f"base_width is for cifar_resnet<depth>; {name} comes from timm as it is")
    return timm.create_model(name, pretrained=False, num_classes=num_classes, in_chans=in_chans)
