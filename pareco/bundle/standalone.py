"""A narrowed network from the file that `pareco export --to safetensors` wrote.

To be copied: it needs torch, timm and safetensors, and nothing else of PareCO.
"""

import json
from pathlib import Path

import timm
from safetensors import safe_open
from torch import nn


def load_narrowed(path: str | Path, model: nn.Module | None = None) -> nn.Module:
    """Return the network in evaluation mode: timm's, or `model`, with the layers of the file.

    `model` is the network at full width, which is changed; its weights do not matter. Raises
    `ValueError` if the file is of another network, or of one that timm does not have.
    """
    with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
        about = json.loads(file.metadata()["pareco.json"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if model is None:
        known = about["architecture"]
        if known is None or not timm.is_model(known["name"]) or known["undone_strides"]:
            raise ValueError(f"{path}: timm does not have its network: give it at full width")
        options = {name: known[name] for name in ("num_classes", "in_chans")}
        model = timm.create_model(known["name"], **options)
    if other := sorted(model.state_dict().keys() ^ tensors.keys()):
        raise ValueError(f"{path} is of another network: {other[0]}")
    for name, tensor in tensors.items():
        layer, _, kind = name.rpartition(".")
        held = model.get_submodule(layer)
        setattr(held, kind, nn.Parameter(tensor) if kind in held._parameters else tensor)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d):
            if layer.groups > 1:  # whole groups are gone
                layer.groups = len(layer.weight) * layer.groups // layer.out_channels
            layer.out_channels, layer.in_channels = len(layer.weight), layer.weight.shape[1]
            layer.in_channels *= layer.groups
        elif isinstance(layer, nn.Linear):
            layer.out_features, layer.in_features = layer.weight.shape
        elif isinstance(layer, nn.modules.batchnorm._BatchNorm) and layer.affine:
            layer.num_features = len(layer.weight)
        elif isinstance(layer, nn.LayerNorm) and layer.elementwise_affine:
            layer.normalized_shape = tuple(layer.weight.shape)
        elif isinstance(layer, nn.GroupNorm) and layer.affine:
            layer.num_groups = max(len(layer.weight) * layer.num_groups // layer.num_channels, 1)
            layer.num_channels = len(layer.weight)
        elif isinstance(layer, nn.PReLU):
            layer.num_parameters = len(layer.weight)
    return model.eval()
