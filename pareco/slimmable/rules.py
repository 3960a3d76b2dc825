"""How channel counts pass through each operation of a traced network."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from timm.layers import AvgPool2dSame, BatchNormAct2d, Conv2dSame, DropBlock2d, DropPath
from timm.layers import Linear as TimmLinear
from timm.layers.pool2d_same import MaxPool2dSame
from torch import fx, nn

from pareco.cost import Kind
from pareco.slimmable.layers import ChannelPad


class Variable:
    """An unknown channel count, unified with others that must agree (union-find).

    `size` is the count at full width, `producers` how many calls of convolutions and linear layers
    put it out, `pooled_only` whether all of these see globally pooled features.
    """

    def __init__(self, size: int, positions: int = 1, *, fixed: bool = False) -> None:
        """Start a variable of its own."""
        self.size = size
        self.positions = positions
        self.fixed = fixed
        self.producers = 0
        self.pooled_only = True
        self._parent: Variable | None = None

    @property
    def root(self) -> Variable:
        """The variable that stands for all those unified with this one."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def unify(self, other: Variable) -> None:
        """Make the two variables one. Raises `ValueError` if their sizes differ."""
        first, second = self.root, other.root
        if first is second:
            return
        if first.size != second.size:
            raise ValueError(f"{first.size} and {second.size} channels cannot be tied")
        second._parent = first
        first.fixed |= second.fixed
        first.producers += second.producers
        first.pooled_only &= second.pooled_only
        first.positions = max(first.positions, second.positions)


class TracingError(ValueError):
    """A network that cannot be made slimmable: names the node, the reason and what would help."""

    def __init__(self, node: str, reason: str, advice: str) -> None:
        """Compose the message."""
        super().__init__(f"cannot make the network slimmable at node '{node}': {reason}. {advice}")
        self.node = node


@dataclass(frozen=True)
class Tag:
    """The channels of a tensor: their variable, the features per channel, and whether pooled.

    `pooled` tells that the tensor has passed a global pooling and has one position since.
    `vector` tells that the features are the last dimension (after a flatten).
    """

    variable: Variable
    factor: int = 1
    pooled: bool = False
    vector: bool = False


@dataclass(frozen=True, kw_only=True)
class Call:
    """A layer call before the groups are known: `Site` with tags in place of references."""

    name: str
    kind: Kind
    inputs: Tag
    outputs: Tag
    positions: int = 1
    kernel: int = 1
    vectors: int = 0
    repeated: bool = False


CONVOLUTIONS = (nn.Conv2d, Conv2dSame)
LINEARS = (nn.Linear, TimmLinear)
NORMS = (nn.BatchNorm2d, BatchNormAct2d)
NOTHING_IN_INFERENCE = (nn.Identity, nn.modules.dropout._DropoutNd, DropPath, DropBlock2d)
_SPATIAL = (
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    nn.Upsample,
    MaxPool2dSame,
    AvgPool2dSame,
    nn.ZeroPad2d,
    nn.ConstantPad2d,
    nn.ReflectionPad2d,
    nn.ReplicationPad2d,
)
_SPATIAL_FUNCTIONS = (
    F.max_pool2d,
    F.avg_pool2d,
    F.adaptive_avg_pool2d,
    F.adaptive_max_pool2d,
    F.interpolate,
    F.pad,
    torch.max_pool2d,
    torch.mean,
    "mean",
    "amax",
)
_NOT_ELEMENTWISE = (nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.PReLU)
_ELEMENTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.gelu, F.leaky_relu),
    *(F.elu, F.mish, F.hardtanh, F.softplus, torch.relu, torch.sigmoid, torch.tanh),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous", "clone", "float", "clamp"),
)
_BINARY = (
    *(operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.truediv),
    *(torch.add, torch.mul, torch.sub, "add", "add_", "mul", "mul_", "sub", "div", "div_"),
)
_ABOUT_TENSORS = ("size", "dim", "getattr")
_ADVICE = {
    "cat": "Concatenation mixes channel groups: make the parts residual sums, or choose a network "
    "without it (ResNet, MobileNet, EfficientNet, MNASNet)",
    "grouped": "Use ordinary (groups=1) or depthwise (groups=channels) convolutions",
}
_GENERAL_ADVICE = (
    "Rewrite this part with convolutions, batch norm, linear layers, sums, products, pooling, "
    "activations and flatten, as torch modules"
)


def refuse(node: fx.Node, reason: str, advice: str = _GENERAL_ADVICE) -> NoReturn:
    """Raise the `TracingError` of this node."""
    modules = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    where = (
        str(node.target) if node.op == "call_module" else " in ".join([node.name, *modules[-1:]])
    )
    raise TracingError(where, reason, advice)


def elementwise_module(module: nn.Module) -> bool:
    """Return whether the module acts on each element alone (and so keeps the channels)."""
    if isinstance(module, nn.PReLU):
        return module.num_parameters == 1
    source = type(module).__module__
    active = source == "torch.nn.modules.activation" or source.startswith("timm.layers.activations")
    excluded = (*_NOT_ELEMENTWISE, nn.MultiheadAttention)
    return active and not isinstance(module, excluded)


def shape_of(node: fx.Node) -> tuple[int, ...] | None:
    """Return the shape of the node's output (batch first); None if it is not one tensor."""
    return node.meta.get("shape")


def positions_of(node: fx.Node) -> int:
    """Return height times width of the node's output; 1 for a feature vector."""
    return math.prod((shape_of(node) or ())[2:])


def _tie(node: fx.Node, first: Tag, second: Tag) -> None:
    if (first.factor, first.vector) != (second.factor, second.vector):
        refuse(node, "features that must agree are laid out differently")
    try:
        first.variable.unify(second.variable)
    except ValueError as error:
        refuse(node, str(error))


class Propagation:
    """Assigns a `Tag` to every tensor of a shaped graph and collects the layer calls.

    Raises `TracingError` at the first node that no rule covers.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        """Prepare for a graph over these modules."""
        self.modules = modules
        self.tags: dict[fx.Node, Tag] = {}
        self.calls: list[Call] = []
        self.views: set[fx.Node] = set()
        self.in_place: set[fx.Node] = set()
        self.wider: list[tuple[Variable, Variable]] = []
        self._seen: dict[str, Call] = {}

    def visit(self, node: fx.Node) -> None:
        """Tag one node; its inputs must have been visited."""
        if node.op == "placeholder":
            shape = shape_of(node)
            if self.tags:
                refuse(node, "it is a second input", "The network must take the images alone")
            if shape is None or len(shape) != 4:
                refuse(node, f"the input must be one image batch n x c x h x w, got {shape}")
            self.tags[node] = Tag(Variable(shape[1], positions_of(node), fixed=True))
        elif node.op == "output":
            self._output(node)
        elif node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        elif node.op == "get_attr":
            refuse(node, "a parameter or buffer is used outside convolution, linear or batch norm")
        elif any(source in self.tags for source in node.all_input_nodes):
            self._function(node)

    def _output(self, node: fx.Node) -> None:
        result = node.args[0]
        if not isinstance(result, fx.Node) or result not in self.tags:
            refuse(node, "the network must return one tensor of class scores")
        self.tags[result].variable.root.fixed = True

    def _input(self, node: fx.Node) -> Tag:
        source = node.args[0] if node.args else node.kwargs.get("input")
        if not isinstance(source, fx.Node) or source not in self.tags:
            refuse(node, "its first argument is not a traced tensor")
        return self.tags[source]

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            self._convolution(node, module)
        elif isinstance(module, nn.Linear):
            self._linear(node, module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            self._norm(node, module)
        elif isinstance(module, nn.Flatten):
            self._flatten(node, module.start_dim, module.end_dim)
        elif isinstance(module, ChannelPad):
            self._channel_pad(node)
        elif isinstance(module, _SPATIAL):
            self._spatial(node)
        elif isinstance(module, NOTHING_IN_INFERENCE):
            self.views.add(node)
            self.tags[node] = self._input(node)
        elif elementwise_module(module):
            self._keep(node)
        else:
            refuse(node, f"no rule for the module {type(module).__name__}")

    def _function(self, node: fx.Node) -> None:
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        rules: tuple[tuple[tuple[Any, ...], Callable[[fx.Node], None]], ...] = (
            (_ELEMENTWISE_FUNCTIONS, self._keep),
            (_BINARY, self._binary),
            (_SPATIAL_FUNCTIONS, self._spatial),
            ((torch.flatten, "flatten"), self._flatten_call),
            ((torch.reshape, "view", "reshape"), self._reshape),
            ((operator.getitem,), self._getitem),
        )
        if name in _ABOUT_TENSORS:
            return None
        for targets, rule in rules:
            if target in targets:
                return rule(node)
        kind = "cat" if name in ("cat", "concat", "stack") else ""
        return refuse(node, f"no rule for '{name}'", _ADVICE.get(kind, _GENERAL_ADVICE))

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        if type(module) not in CONVOLUTIONS or module.padding_mode != "zeros":
            kind = f"{type(module).__name__} with {module.padding_mode} padding"
            refuse(node, f"no rule for the convolution {kind}")
        tag = self._input(node)
        depthwise = module.groups > 1
        if depthwise and not module.groups == module.in_channels == module.out_channels:
            sizes = f"{module.groups} groups, {module.in_channels} to {module.out_channels}"
            refuse(node, f"grouped convolution ({sizes} channels)", _ADVICE["grouped"])
        variable = tag.variable if depthwise else Variable(module.out_channels, positions_of(node))
        kernel = math.prod(module.kernel_size)
        kind = "depthwise" if depthwise else "convolution"
        self._record(node, module, kind, Tag(variable, pooled=tag.pooled), kernel)

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        tag = self._input(node)
        if type(module) not in LINEARS or not tag.vector:
            refuse(node, "a linear layer must act on flattened features (n x features)")
        variable = Variable(module.out_features)
        self._record(node, module, "linear", Tag(variable, pooled=tag.pooled, vector=True))

    def _norm(self, node: fx.Node, module: nn.modules.batchnorm._BatchNorm) -> None:
        if type(module) not in NORMS:
            refuse(node, f"no rule for the norm {type(module).__name__}")
        tag = self._input(node)
        if tag.vector:
            refuse(node, "batch norm of flattened features")
        self.in_place.add(node)
        self._record(node, module, "norm", tag)

    def _record(
        self, node: fx.Node, module: nn.Module, kind: Kind, outputs: Tag, kernel: int = 1
    ) -> None:
        name = str(node.target)
        inputs = self._input(node)
        if kind in ("convolution", "linear"):
            outputs.variable.producers += 1
            outputs.variable.pooled_only = inputs.pooled
        earlier = self._seen.get(name)
        if earlier is not None:
            _tie(node, earlier.inputs, inputs)
            _tie(node, earlier.outputs, outputs)
        self.tags[node] = outputs
        self.calls.append(
            Call(
                name=name,
                kind=kind,
                inputs=inputs,
                outputs=outputs,
                positions=positions_of(node),
                kernel=kernel,
                vectors=sum(parameter.dim() == 1 for parameter in module.parameters(False)),
                repeated=earlier is not None,
            )
        )
        self._seen.setdefault(name, self.calls[-1])

    def _keep(self, node: fx.Node) -> None:
        self.in_place.add(node)
        self.tags[node] = self._input(node)

    def _binary(self, node: fx.Node) -> None:
        if any(operand not in self.tags for operand in node.all_input_nodes):
            refuse(node, "an operand is not a traced tensor or a number")
        tags = [self.tags[operand] for operand in node.all_input_nodes]
        first = tags[0]
        for tag in tags[1:]:
            _tie(node, first, tag)
        self.in_place.add(node)
        self.tags[node] = replace(first, pooled=all(tag.pooled for tag in tags))

    def _spatial(self, node: fx.Node) -> None:
        tag, before, after = self._input(node), shape_of(node.args[0]), shape_of(node)  # type: ignore[arg-type]
        if tag.vector or before is None or after is None or before[:2] != after[:2]:
            refuse(node, "it must keep the batch and channel dimensions")
        pooled = tag.pooled or math.prod(after[2:]) == 1
        self.tags[node] = replace(tag, pooled=pooled, vector=len(after) == 2)

    def _flatten_call(self, node: fx.Node) -> None:
        start = node.args[1] if len(node.args) > 1 else node.kwargs.get("start_dim", 0)
        end = node.args[2] if len(node.args) > 2 else node.kwargs.get("end_dim", -1)
        self._flatten(node, start, end)

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> None:
        tag = self._input(node)
        if tag.vector and start == 1:
            return self._keep(node)
        if start != 1 or end not in (-1, 3):
            refuse(node, f"flatten from {start} to {end}", "Flatten from dimension 1 to the last")
        factor = tag.factor * positions_of(node.args[0])  # type: ignore[arg-type]
        self.views.add(node)
        self.tags[node] = replace(tag, factor=factor, vector=True)
        return None

    def _reshape(self, node: fx.Node) -> None:
        shape = shape_of(node) or ()
        sizes = node.args[1:]
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if len(shape) != 2 or len(sizes) != 2 or sizes[1] != -1:
            refuse(node, "a reshape other than (n, -1)", "Use torch.flatten(x, 1) or nn.Flatten")
        self._flatten(node, 1, -1)

    def _getitem(self, node: fx.Node) -> None:
        index = node.args[1] if isinstance(node.args[1], tuple) else (node.args[1],)
        whole = slice(None)
        if len(index) < 2 or any(not isinstance(part, slice) for part in index):
            refuse(node, f"indexing with {index}", "Index spatial dimensions only, by slices")
        if index[0] != whole or index[1] != whole:
            refuse(node, "indexing takes part of the batch or of the channels")
        self.views.add(node)
        self.tags[node] = self._input(node)

    def _channel_pad(self, node: fx.Node) -> None:
        shape = node.meta["shape"]
        inputs = self._input(node)
        outputs = Tag(Variable(shape[1], positions_of(node)), pooled=inputs.pooled)
        outputs.variable.pooled_only = inputs.pooled
        self.wider.append((inputs.variable, outputs.variable))
        self.tags[node] = outputs
        name, positions = str(node.target), positions_of(node)
        self.calls.append(
            Call(name=name, kind="pad", inputs=inputs, outputs=outputs, positions=positions)
        )
