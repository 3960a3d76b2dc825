"""Layers that run as they are written, on what is in use of their tensors.

Each is told the sizes that follow its width, such as a group norm the number of its groups.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import timm.layers as timm
from timm.layers.norm import LayerNormExp2d, SimpleNorm2dFp32, SimpleNormFp32
from timm.layers.norm_act import (
    GroupNorm1Act,
    LayerNormAct2dFp32,
    LayerNormActFp32,
    RmsNormAct,
    RmsNormAct2d,
    RmsNormAct2dFp32,
    RmsNormActFp32,
)
from timm.layers.std_conv import ScaledStdConv2dSame, StdConv2dSame
from torch import Tensor, fx, nn
from torchvision.models.convnext import LayerNorm2d as TorchvisionLayerNorm2d
from torchvision.ops import FrozenBatchNorm2d

from pareco.cost import Kind
from pareco.slimmable.corners import Size, corner
from pareco.slimmable.layers import (
    SlicedBatchNorm,
    SlicedConv2d,
    SlicedLayer,
    SlicedLinear,
    SlicedPReLU,
    filled,
)


def _none(layer: Any) -> Any:
    return {}


def _no_problem(layer: Any) -> str:
    return ""


def _no_kernel(layer: Any) -> int:
    return 1


@dataclass(frozen=True)
class Form:
    """How a type of layer follows its width.

    `sizes` returns what attributes of its `FormedLayer` are at the channels in use. `axis` is the
    dimension that it takes the channels at. `kernel` is how many weights each output has, beside
    those of its inputs. `problem` says why a layer of this type has no rule; "" if it has one.
    `inputs_first` tells that the weight has its inputs before its outputs.
    """

    sizes: Callable[[Any], dict[str, Any]] = _none
    axis: int = 1
    kind: Kind = "norm"
    kernel: Callable[[Any], int] = _no_kernel
    problem: Callable[[Any], str] = _no_problem
    inputs_first: bool = False


def _of_one_dimension(layer: Any) -> str:
    return "" if len(layer.normalized_shape) == 1 else f"over {tuple(layer.normalized_shape)}"


def _of_its_image(layer: Any) -> str:
    return "with running statistics" if layer.track_running_stats else ""


def _normalized(layer: Any) -> dict[str, Any]:
    return {"normalized_shape": (layer.used_outputs,)}


def _normalized_alone(layer: Any) -> dict[str, Any]:
    return {"num_features": layer.used_outputs}


def _norm_groups(layer: Any) -> dict[str, Any]:
    groups = max(layer.num_groups * layer.used_outputs // layer.num_channels, 1)
    return {"num_channels": layer.used_outputs, "num_groups": groups}


def _evolved(layer: Any) -> dict[str, Any]:
    """Return the groups of an EvoNorm: of as many channels each as in the full network."""
    return {"groups": max(layer.groups * layer.used_outputs // layer.outputs.full, 1)}


def _standardized(layer: Any) -> dict[str, Any]:
    """Return the sizes of a weight-standardized convolution.

    A scale of 1 / sqrt(fan-in) is that of the inputs in use, as in a layer made for them.
    """
    inputs, outputs = layer.used_inputs, layer.used_outputs
    in_group = layer.weight.shape[1]
    groups = inputs // in_group if layer.groups > 1 else 1
    sizes = {"in_channels": inputs, "out_channels": outputs, "groups": groups}
    if hasattr(layer, "scale"):
        sizes["scale"] = layer.scale * math.sqrt(in_group / min(in_group, inputs))
    return sizes


def _transposed(layer: Any) -> dict[str, Any]:
    inputs, outputs = layer.used_inputs, layer.used_outputs
    groups = inputs // (layer.in_channels // layer.groups) if layer.groups > 1 else 1
    return {"in_channels": inputs, "out_channels": outputs, "groups": groups}


def _blurred(layer: Any) -> dict[str, Any]:
    return {"channels": layer.channels and layer.used_outputs}


def _blurring(layer: Any) -> int:
    return layer.filt[0].numel()


def _along(layer: Any) -> int:
    return layer.weight.numel()


def _over_channels(layer: Any) -> str:
    """Return why a convolution has no rule that runs along the channels, themselves one feature."""
    one = layer.in_channels == layer.out_channels == 1 and layer.padding_mode == "zeros"
    return "" if one else "but from one feature to one, padded with zeros"


_LAST = Form(_normalized, axis=-1, problem=_of_one_dimension)
_FIRST = Form(_normalized, problem=_of_one_dimension)
FORMS: dict[type[nn.Module], Form] = {
    **dict.fromkeys((nn.LayerNorm, nn.RMSNorm), _LAST),
    **dict.fromkeys((timm.LayerNorm, timm.LayerNormFp32, timm.LayerNormAct), _LAST),
    **dict.fromkeys((LayerNormActFp32, timm.RmsNorm, timm.RmsNormFp32), _LAST),
    **dict.fromkeys((RmsNormAct, RmsNormActFp32, timm.SimpleNorm, SimpleNormFp32), _LAST),
    **dict.fromkeys((timm.LayerNorm2d, timm.LayerNorm2dFp32, LayerNormExp2d), _FIRST),
    **dict.fromkeys((timm.LayerNormAct2d, LayerNormAct2dFp32, TorchvisionLayerNorm2d), _FIRST),
    **dict.fromkeys((timm.RmsNorm2d, timm.RmsNorm2dFp32, RmsNormAct2d, RmsNormAct2dFp32), _FIRST),
    **dict.fromkeys((timm.SimpleNorm2d, SimpleNorm2dFp32), _FIRST),
    **dict.fromkeys((nn.GroupNorm, timm.GroupNorm, timm.GroupNorm1), Form(_norm_groups)),
    **dict.fromkeys((timm.GroupNormAct, GroupNorm1Act), Form(_norm_groups)),
    **dict.fromkeys((timm.EvoNorm2dS0, timm.EvoNorm2dS0a), Form(_evolved)),
    **dict.fromkeys((timm.FilterResponseNormTlu2d, timm.FilterResponseNormAct2d), Form()),
    **dict.fromkeys(
        (nn.InstanceNorm1d, nn.InstanceNorm2d),
        Form(_normalized_alone, problem=_of_its_image),
    ),
    **dict.fromkeys((FrozenBatchNorm2d, timm.FrozenBatchNormAct2d), Form()),
    **dict.fromkeys((timm.StdConv2d, StdConv2dSame), Form(_standardized, kind="convolution")),
    **dict.fromkeys(
        (timm.ScaledStdConv2d, ScaledStdConv2dSame), Form(_standardized, kind="convolution")
    ),
    nn.ConvTranspose2d: Form(_transposed, kind="convolution", inputs_first=True),
    timm.BlurPool2d: Form(_blurred, kind="grouped", kernel=_blurring),
    nn.Conv1d: Form(axis=2, kind="filter", kernel=_along, problem=_over_channels),
}
"""Types of layers -> how they follow their width."""


def norm_groups(layer: nn.Module) -> int:
    """Return into how many groups a norm takes its channels; 1: all are one, or each is by itself.

    Groups stay whole.
    """
    return int(getattr(layer, "num_groups", getattr(layer, "groups", 1)))


def form_of(layer: nn.Module) -> Form | None:
    """Return the form of the layer's type, or of the one that it has its forward pass from."""
    kind = next((each for each in type(layer).__mro__ if each in FORMS), None)
    same = kind is not None and type(layer).forward is kind.forward
    return FORMS[kind] if kind is not None and same else None


class FormedLayer(SlicedLayer):
    """A layer of a type in `FORMS`, whose own forward pass runs on the tensors in use."""

    def __init__(self, layer: nn.Module) -> None:
        self.take_over(layer, 0, 0)
        form = form_of(layer)
        assert form is not None
        self.plain_type, self.form, self._held = type(layer), form, tuple(layer.__dict__)

    def size_in_use(self, parameter: Tensor) -> Size:
        """Return what is in use of a tensor's first dimensions."""
        if not (self.form.inputs_first and parameter.dim() > 1):
            return super().size_in_use(parameter)
        parts = zip((self.inputs, self.outputs), parameter.shape, strict=False)
        widths = self.setting.widths
        return [each.in_use(widths) if each.full == size else size for each, size in parts]

    def forward(self, input: Tensor) -> Tensor:
        """Return what the layer makes of its channels in use."""
        return self.plain_type.forward(self._like(self._tensors()), input)

    def _tensors(self) -> dict[str, Tensor | None]:
        """Return what is in use of parameters and buffers, by name."""
        parameters = {kind: self.in_use(kind) for kind in self.kinds}
        buffers = {
            name: buffer if buffer is None else corner(buffer, self.size_in_use(buffer))
            for name, buffer in self._buffers.items()
        }
        return parameters | buffers

    def plain(self) -> nn.Module:
        """Return a layer of its type with a copy of the tensors in use."""
        layer = self._like({})
        for name, value in layer.__dict__.items():
            if isinstance(value, dict | set):
                layer.__dict__[name] = copy.copy(value)
        layer.__dict__ |= {"_parameters": {}, "_modules": copy.deepcopy(layer._modules)}
        return filled(layer, self.training, **self._tensors())

    def _like(self, attributes: dict[str, Any]) -> Any:
        """Return a layer of the original type with the sizes in use, and these attributes."""
        layer = object.__new__(self.plain_type)
        held = {name: self.__dict__[name] for name in self._held}
        layer.__dict__ |= held | self.form.sizes(self) | attributes
        return layer


class SlicedTensor(SlicedLayer):
    """What is in use, along one dimension, of a parameter or buffer that is used as it is.

    The tensor is `owner`'s, of the name `tensor`; the network's graph hands it over.
    """

    kinds = ("tensor",)

    def __init__(self, tensor: str, dimension: int) -> None:
        super().__init__()
        self.tensor, self.dimension = tensor, dimension
        self.owner: tuple[nn.Module, ...] = ()

    def belong_to(self, owner: nn.Module) -> None:
        """Take the tensor from this module, which is no part of this one."""
        self.owner = (owner,)

    def parameter_in_use(self, kind: str) -> nn.Parameter | None:
        """Return the parameter; none if the tensor is a buffer."""
        return self.owner[0]._parameters.get(self.tensor)

    def size_in_use(self, parameter: Tensor) -> Size:
        """Return what is in use of its first dimensions."""
        return *parameter.shape[: self.dimension], self.outputs.in_use(self.setting.widths)

    def forward(self, tensor: Tensor) -> Tensor:
        """Return what is in use of the tensor."""
        if isinstance(tensor, nn.Parameter):
            used = self.in_use("tensor")
            assert used is not None
            return used
        return corner(tensor, self.size_in_use(tensor))

    def extracted(self, copies: dict[int, Tensor]) -> nn.Module:
        """Return what passes its input on; `copies` gets what is in use of the tensor."""
        source = getattr(self.owner[0], self.tensor)
        if id(source) not in copies:
            own = self.forward(source).detach().clone()
            trained = isinstance(source, nn.Parameter)
            copies[id(source)] = nn.Parameter(own, source.requires_grad) if trained else own
        return nn.Identity()

    def inlined(self, node: fx.Node) -> fx.Node:
        """Return what is to be read in place of a node that calls this layer."""
        (tensor,) = node.all_input_nodes
        return tensor


def sliced(layer: nn.Module, name: str) -> SlicedLayer:
    """Return the sliced form, of this name, of a layer that has one, sharing its parameters."""
    if form_of(layer) is not None:
        form: SlicedLayer = FormedLayer(layer)
    elif isinstance(layer, nn.Conv2d):
        form = SlicedConv2d(layer)
    elif isinstance(layer, nn.Linear):
        form = SlicedLinear(layer)
    elif isinstance(layer, nn.modules.batchnorm._BatchNorm):
        form = SlicedBatchNorm(layer)
    elif isinstance(layer, nn.PReLU):
        form = SlicedPReLU(layer)
    else:
        assert isinstance(layer, SlicedLayer)
        form = layer
    form.name = name
    return form
