"""Layers that use some of their channels: convolution, linear, batch norm, PReLU, padding."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame, pad_same
from torch import Tensor, fx, nn

from pareco.cost import FeatureCount, Features
from pareco.slimmable.corners import Size, corner
from pareco.widths import Widths

BatchParts = Callable[[Tensor], Tensor]
"""Given a tensor of one of the equal parts of a batch, returns those of all parts, stacked.

Differentiable: gradients flow to every part, in the process that holds it.
"""


HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
"""The attributes in which a module keeps hooks; others, that begin alike, say how they are called.
"""


@dataclass
class NormStatistics:
    """Batch-norm statistics of one sub-network: layer name -> (mean, variance), each `channels`.

    `batches` counts what went into the cumulative average, `calls` the calls of each layer.
    `widths` are those of the sub-network, None where nobody has said.
    """

    means: dict[str, Tensor] = field(default_factory=dict)
    variances: dict[str, Tensor] = field(default_factory=dict)
    batches: int = 0
    calls: dict[str, int] = field(default_factory=dict)
    widths: Widths | None = None

    def check_of(self, widths: Widths) -> None:
        """Raise `ValueError` if they are known to be of other widths than these."""
        if self.widths is not None and self.widths != widths:
            raise ValueError(
                f"these batch-norm statistics are of the widths {self.widths}, not {widths}: "
                "calibrate them for these"
            )

    @property
    def by_name(self) -> dict[str, Tensor]:
        """The tensors by the names that they have in the plain network's state dict."""
        means = {f"{layer}.running_mean": mean for layer, mean in self.means.items()}
        return means | {f"{layer}.running_var": each for layer, each in self.variances.items()}


@dataclass(kw_only=True, eq=False)
class Setting:
    """What a network runs at: one object that all its layers read, so that to switch is to set it.

    `widths` are the channel counts of its groups, and `full` tells whether they are all channels.
    `switch` names the sub-network whose private affine parameters are in use, if any (S-Net).
    `statistics` replace the running statistics of batch norm. With `by_batch` it normalizes by the
    batch in every mode, and averages the statistics of what passes in `collecting`, if given. With
    `parts` set, those of a batch are those of its parts in all processes (torch's SyncBatchNorm
    works on GPUs alone). `corners` has what is in use of parameters, by their ids, during a pass
    that will be differentiated. `kept` has what is in use of frozen parameters, by their ids and
    with them, until the widths change.
    """

    widths: Widths = field(default_factory=lambda: Widths(()))
    full: bool = True
    switch: str | None = None
    statistics: NormStatistics | None = None
    by_batch: bool = False
    collecting: NormStatistics | None = None
    parts: BatchParts | None = None
    corners: dict[int, Tensor] = field(default_factory=dict)
    kept: dict[int, tuple[nn.Parameter, Tensor]] = field(default_factory=dict)


def _lies_at(view: Tensor, parameter: nn.Parameter) -> bool:
    """Return whether they begin at one place; a compiled network has no other weights."""
    return torch.compiler.is_compiling() or view.data_ptr() == parameter.data_ptr()


class SlicedLayer(nn.Module):
    """A layer that uses as many of its input and output channels as its network's setting says.

    `name` is the layer's in the network, `kinds` are the names of its parameters.
    """

    name = ""
    kinds: tuple[str, ...] = ()
    inputs: Features
    outputs: Features
    setting: Setting

    def take_over(self, layer: nn.Module, inputs: int, outputs: int) -> None:
        """Share the parameters and buffers of `layer`, whose full width has these channels."""
        nn.Module.__init__(self)
        for key, value in layer.__dict__.items():
            held = key in ("_parameters", "_buffers", "_modules")
            self.__dict__[key] = dict(value) if held else value
        self.kinds = tuple(layer._parameters)
        self.follow(Setting(), _constant(inputs), _constant(outputs))

    def follow(self, setting: Setting, inputs: Features, outputs: Features) -> None:
        """Use as many of the input and output channels as these are in this setting."""
        self.setting, self.inputs, self.outputs = setting, inputs, outputs

    @property
    def used_inputs(self) -> int:
        """The number of input channels in use."""
        return self.inputs.at(self.setting.widths)

    @property
    def used_outputs(self) -> int:
        """The number of output channels in use."""
        return self.outputs.at(self.setting.widths)

    def plain(self) -> nn.Module:
        """Return an ordinary layer with a copy of the weights in use."""
        raise NotImplementedError

    def parameter_in_use(self, kind: str) -> nn.Parameter | None:
        """Return the parameter that "weight" or another of its `kinds` is a part of.

        Raises `RuntimeError` where it is none any more.
        """
        return self._own(kind)

    def _own(self, kind: str) -> nn.Parameter | None:
        try:
            return self._parameters[kind]
        except KeyError:
            raise RuntimeError(
                f"{self.name}.{kind} is no parameter any more (pruned or parametrized after "
                "make_slimmable?): do that to what extract returns, or bake it in before"
            ) from None

    def size_in_use(self, parameter: Tensor) -> Size:
        """Return what is in use of a tensor's first dimensions, those of outputs and of inputs.

        One that has not all channels, such as the inputs of a grouped convolution, is used whole.
        """
        widths = self.setting.widths
        return [
            each.in_use(widths) if each.full == size else size
            for size, each in zip(parameter.shape, (self.outputs, self.inputs), strict=False)
        ]

    def in_use(self, kind: str) -> Tensor | None:
        """Return what is in use of "weight" or another of its `kinds`."""
        parameter = self.parameter_in_use(kind)
        if parameter is None:
            return None
        held = self.setting.corners.get(id(parameter))
        if held is not None:
            return held
        kept = self.setting.kept.get(id(parameter))
        if kept is not None and kept[0] is parameter and _lies_at(kept[1], parameter):
            return kept[1]
        return corner(parameter, self.size_in_use(parameter))

    def extracted(self, copies: dict[int, Tensor]) -> nn.Module:
        """Return the plain layer, as trainable and with the hooks that this one has.

        `copies` has the parameters of layers extracted before, by the id of what they are copies
        of: what is tied here is tied there.
        """
        layer = self.plain()
        for kind, own in layer._parameters.items():
            source = self.parameter_in_use(kind)
            if own is not None and source is not None:
                layer._parameters[kind] = copies.setdefault(id(source), own)  # type: ignore[assignment]
                own.requires_grad_(source.requires_grad)
        for kind, held in self.__dict__.items():
            if kind.startswith(HOOKS) or kind == "_is_full_backward_hook":
                layer.__dict__[kind] = copy.copy(held)
        return layer


class SlicedConv2d(SlicedLayer, nn.Conv2d):
    """A convolution over a prefix of its channels; one in groups keeps these whole."""

    def __init__(self, layer: nn.Conv2d) -> None:
        self.take_over(layer, layer.in_channels, layer.out_channels)
        self.group_width = layer.in_channels // layer.groups if layer.groups > 1 else 0
        self.same_padding = isinstance(layer, Conv2dSame)

    def forward(self, input: Tensor) -> Tensor:
        """Return the convolution of `n x used_inputs x h x w` images."""
        weight, bias = self.in_use("weight"), self.in_use("bias")
        padding = self.padding
        if self.same_padding:
            kernel, stride, dilation = self.weight.shape[-2:], self.stride, self.dilation
            input, padding = pad_same(input, list(kernel), list(stride), list(dilation)), 0
        assert weight is not None
        groups = self.used_groups
        return F.conv2d(input, weight, bias, self.stride, padding, self.dilation, groups)

    @property
    def used_groups(self) -> int:
        """The number of groups in use."""
        return self.used_inputs // self.group_width if self.group_width else 1

    def plain(self) -> nn.Module:
        """Return a convolution with a copy of the weights in use."""
        layer = (Conv2dSame if self.same_padding else nn.Conv2d)(
            self.used_inputs,
            self.used_outputs,
            self.kernel_size,  # type: ignore[arg-type]
            stride=self.stride,  # type: ignore[arg-type]
            padding=self.padding,  # type: ignore[arg-type]
            dilation=self.dilation,  # type: ignore[arg-type]
            groups=self.used_groups,
            bias=self.bias is not None,
        )
        weight, bias = self.in_use("weight"), self.in_use("bias")
        return filled(layer, self.training, weight=weight, bias=bias)


class SlicedLinear(SlicedLayer, nn.Linear):
    """A linear layer over a prefix of its features."""

    def __init__(self, layer: nn.Linear) -> None:
        self.take_over(layer, layer.in_features, layer.out_features)

    def forward(self, input: Tensor) -> Tensor:
        """Return the linear map of `n x used_inputs` features."""
        weight = self.in_use("weight")
        assert weight is not None
        return F.linear(input, weight, self.in_use("bias"))

    def plain(self) -> nn.Module:
        """Return a linear layer with a copy of the weights in use."""
        layer = nn.Linear(self.used_inputs, self.used_outputs, bias=self.bias is not None)
        weight, bias = self.in_use("weight"), self.in_use("bias")
        return filled(layer, self.training, weight=weight, bias=bias)


class SlicedBatchNorm(SlicedLayer, nn.modules.batchnorm._BatchNorm):
    """Batch norm (plain, or timm's with dropout and activation) over a prefix of its channels.

    It normalizes what has its channels at dimension 1: images, sequences or vectors.
    The running statistics are those of the full network: training a sub-network normalizes by the
    batch and leaves them alone, in its full-width layers too. Other sub-networks get theirs by
    calibration.
    """

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        self.take_over(layer, layer.num_features, layer.num_features)
        self.plain_type = type(layer)

    def add_private(self, switch: str, copies: dict[int, nn.Parameter]) -> None:
        """Give the sub-network `switch` affine parameters of its own, starting from the shared.

        `copies` has those of other layers, by the id of the shared: tied ones stay tied.
        """
        for kind, shared in (("weight", self.weight), ("bias", self.bias)):
            private = None
            if shared is not None:
                used = corner(shared.detach(), self.size_in_use(shared))
                own = nn.Parameter(used.clone(), shared.requires_grad)
                private = copies.setdefault(id(shared), own)
            self.register_parameter(f"{kind}_{switch}", private)

    def parameter_in_use(self, kind: str) -> nn.Parameter | None:
        """Return the shared or private parameter that "weight" or "bias" is a part of."""
        switch = self.setting.switch
        return self._own(kind if switch is None else f"{kind}_{switch}")

    def forward(self, input: Tensor) -> Tensor:
        """Return the normalized `n x used_outputs (x h x w)` activations."""
        output = self._normalized(input)
        if issubclass(self.plain_type, BatchNormAct2d):
            output = self.act(self.drop(output))  # type: ignore[operator]
        return output

    def _normalized(self, input: Tensor) -> Tensor:
        setting, momentum = self.setting, 0.0
        mean = variance = None
        in_use = setting.statistics is not None or self.running_mean is not None
        by_batch = setting.by_batch or self.training or not in_use
        if setting.collecting is not None:
            mean, variance, momentum = self._collected(setting.collecting, input)
        elif not by_batch:
            mean, variance = self._statistics()
        elif setting.full and setting.statistics is None and not setting.by_batch:
            mean, variance, momentum = self._tracked()
        if by_batch and setting.parts is not None:
            return self._normalized_by_parts(setting.parts, input, mean, variance, momentum)
        weight, bias = self.in_use("weight"), self.in_use("bias")
        other = input if weight is None else weight
        if mean is not None and other.dtype != mean.dtype:
            exact = torch.promote_types(other.dtype, mean.dtype)  # torch has them of one type
            weight, bias, mean, variance = (
                _of_type(x, exact) for x in (weight, bias, mean, variance)
            )
        return F.batch_norm(input, mean, variance, weight, bias, by_batch, momentum, self.eps)

    def _tracked(self) -> tuple[Tensor | None, Tensor | None, float]:
        """Return the running statistics, to be updated, and with what momentum."""
        momentum = 0.0
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = self.momentum
            if momentum is None:  # the cumulative average
                momentum = 1.0 / float(self.num_batches_tracked)
        return self.running_mean, self.running_var, momentum

    def _normalized_by_parts(
        self,
        parts: BatchParts,
        input: Tensor,
        running_mean: Tensor | None,
        running_variance: Tensor | None,
        momentum: float,
    ) -> Tensor:
        """Return the activations normalized by the batch of all parts; track it as torch does.

        Each part's mean and variance are sent together, and merged as in Chan, Golub and LeVeque
        (1983): means of squares, which could be sent as well, would cancel.
        """
        values = input.float()
        others = [dimension for dimension in range(values.dim()) if dimension != 1]
        along_channels = [-1, *[1] * (values.dim() - 2)]
        own_mean = values.mean(others)
        centred = values - own_mean.view(along_channels)
        own_variance = centred.square().mean(others)
        means, variances = parts(torch.stack([own_mean, own_variance])).unbind(1)
        mean = means.mean(0)
        variance = (variances + (means - mean).square()).mean(0)
        if running_mean is not None and running_variance is not None:
            count = len(means) * values.numel() // values.shape[1]
            running_mean.lerp_(mean.detach(), momentum)
            running_variance.lerp_(variance.detach() * count / (count - 1), momentum)
        weight, bias = self.in_use("weight"), self.in_use("bias")
        scale = (variance + self.eps).rsqrt()
        scale = scale if weight is None else scale * weight
        shift = (own_mean - mean) * scale
        shift = shift if bias is None else shift + bias
        normalized = centred * scale.view(along_channels) + shift.view(along_channels)
        return normalized.to(input.dtype)

    def _statistics(self) -> tuple[Tensor | None, Tensor | None]:
        supplied = self.setting.statistics
        if supplied is not None:
            return supplied.means[self.name], supplied.variances[self.name]
        return self._in_use(self.running_mean), self._in_use(self.running_var)

    def _in_use(self, tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else corner(tensor, self.size_in_use(tensor))

    def _collected(self, into: NormStatistics, input: Tensor) -> tuple[Tensor, Tensor, float]:
        """Return the averages so far, to be updated, and with what momentum."""
        calls = into.calls[self.name] = into.calls.get(self.name, 0) + 1
        if calls == 1:
            like = input if self.running_mean is None else self.running_mean
            exact = torch.promote_types(like.dtype, torch.float32)  # as in mixed precision
            for kind in (into.means, into.variances):
                kind[self.name] = like.new_zeros(self.used_outputs, dtype=exact)
        return into.means[self.name], into.variances[self.name], 1.0 / calls

    def plain(self) -> nn.Module:
        """Return a batch norm of the original type with the weights and statistics in use."""
        mean, variance = self._statistics()
        weight, bias = self.in_use("weight"), self.in_use("bias")
        if (like := self.running_mean if weight is None else weight) is not None:
            mean, variance = (_of_type(x, like.dtype) for x in (mean, variance))
        layer = self.plain_type(
            self.used_outputs, self.eps, self.momentum, weight is not None, mean is not None
        )
        if isinstance(layer, BatchNormAct2d):
            layer.drop, layer.act = copy.deepcopy(self.drop), copy.deepcopy(self.act)
        batches = self.num_batches_tracked
        buffers = {"running_mean": mean, "running_var": variance, "num_batches_tracked": batches}
        return filled(layer, self.training, weight=weight, bias=bias, **buffers)


def _of_type(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype)


class SlicedPReLU(SlicedLayer, nn.PReLU):
    """A PReLU with one slope for each of a prefix of its channels, or one for all of them."""

    def __init__(self, layer: nn.PReLU) -> None:
        self.take_over(layer, layer.num_parameters, layer.num_parameters)

    def forward(self, input: Tensor) -> Tensor:
        """Return the activations `n x used_outputs x h x w` or `n x used_outputs`."""
        weight = self.in_use("weight")
        assert weight is not None
        return F.prelu(input, weight)

    def plain(self) -> nn.Module:
        """Return a PReLU with a copy of the slopes in use."""
        layer = nn.PReLU(self.used_outputs)
        return filled(layer, self.training, weight=self.in_use("weight"))


class ChannelPad(SlicedLayer):
    """Constant padding that widens the channels (He et al.'s option A shortcut).

    Fills up from the input's channels to the output's, in the proportion before : after of the
    full network; `spatial` pads (left, right, top, bottom).
    """

    def __init__(self, spatial: tuple[int, ...], before: int, after: int, value: float) -> None:
        super().__init__()
        self.spatial, self.before, self.after, self.value = spatial, before, after, value
        self.follow(Setting(), _constant(0), _constant(before + after))

    def padding(self) -> tuple[int, ...]:
        """Return the padding of `torch.nn.functional.pad` for the channels in use."""
        extra = self.used_outputs - self.used_inputs
        before = extra * self.before // (self.before + self.after)
        return (*self.spatial, before, extra - before)

    def forward(self, input: Tensor) -> Tensor:
        """Return the padded images, `n x used_outputs x h x w`."""
        return F.pad(input, self.padding(), value=self.value)

    def plain(self) -> nn.Module:
        """Return torch's constant padding with the widths in use."""
        layer = nn.ConstantPad3d(0, self.value)
        layer.padding = self.padding()  # type: ignore[assignment]
        return layer.train(self.training)


class ChannelSplit(SlicedLayer):
    """Pieces of the channels, which are so many at full width, or one: of each what is in use."""

    def __init__(self, sizes: Sequence[int], axis: int, piece: int | None) -> None:
        super().__init__()
        self.bounds, self.axis = list(itertools.accumulate(sizes, initial=0)), axis
        self.piece = piece

    def call(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        """Return the function that does it at these widths, and its arguments but for the first.

        One piece is a view of its own, which may be changed in place.
        """
        runs = self.inputs.runs(self.setting.widths)
        sizes = [
            sum(max(0, min(stop, last) - max(start, first)) for start, stop in runs)
            for first, last in itertools.pairwise(self.bounds)
        ]
        if self.piece is None:
            return torch.split, (sizes, self.axis)
        return torch.narrow, (self.axis, sum(sizes[: self.piece]), sizes[self.piece])

    def forward(self, input: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Return the pieces of the input, in their order; or the one."""
        function, arguments = self.call()
        return function(input, *arguments)

    def extracted(self, copies: dict[int, Tensor]) -> nn.Module:
        """Return nothing that does the same: that is a function."""
        return nn.Identity()

    def inlined(self, node: fx.Node) -> fx.Node:
        """Return a node that does what this one, which calls this layer, does at its widths."""
        function, arguments = self.call()
        with node.graph.inserting_before(node):
            return node.graph.call_function(function, (node.args[0], *arguments))


def _constant(features: int) -> Features:
    return Features((FeatureCount(None, features),))


def filled(layer: nn.Module, training: bool, **tensors: Tensor | None) -> nn.Module:
    """Return the layer with copies of these tensors as its parameters and buffers."""
    for name, tensor in tensors.items():
        copied = None if tensor is None else tensor.detach().clone()
        if name in layer._buffers:
            kept = name not in layer._non_persistent_buffers_set
            layer.register_buffer(name, copied, persistent=kept)
        else:
            layer.register_parameter(name, None if copied is None else nn.Parameter(copied))
    return layer.train(training)
