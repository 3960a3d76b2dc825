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
from torchvision.ops import StochasticDepth

from pareco.cost import FeatureCount, Kind, Site
from pareco.slimmable.layers import ChannelPad


class Variable:
    """An unknown channel count, unified with others that must agree (union-find).

    `size` is the count at full width, `producers` how many calls of convolutions and linear layers
    put it out, `pooled_only` whether all of these see globally pooled features, `group` the index
    of its channel group once these are numbered (None: its channels are fixed).
    """

    def __init__(self, size: int, positions: int = 1, *, fixed: bool = False) -> None:
        self.size = size
        self.positions = positions
        self.fixed = fixed
        self.producers = 0
        self.pooled_only = True
        self.group: int | None = None
        self._parent: Variable | None = None

    @property
    def root(self) -> Variable:
        """The variable that stands for all those unified with this one."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    def unify(self, other: Variable) -> None:
        """Make the two variables, which must have one size, one."""
        first, second = self.root, other.root
        if first is second:
            return
        second._parent = first
        first.fixed |= second.fixed
        first.producers += second.producers
        first.pooled_only &= second.pooled_only
        first.positions = max(first.positions, second.positions)


class TracingError(ValueError):
    """A network that cannot be made slimmable: names the node, the reason and what would help."""

    def __init__(self, node: str, reason: str, advice: str) -> None:
        super().__init__(f"cannot make the network slimmable at node '{node}': {reason}. {advice}")
        self.node, self.reason = node, reason


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

    def count(self, positions: int = 1) -> FeatureCount:
        """Return the features at so many positions, once the channel groups are numbered."""
        variable = self.variable.root
        channels = variable.size if variable.group is None else 1
        return FeatureCount(variable.group, positions * self.factor * channels)


_NOTHING_IN_INFERENCE = (
    *(nn.Identity, nn.modules.dropout._DropoutNd, DropPath, DropBlock2d, StochasticDepth),
)
_SPATIAL = (
    *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d, nn.Upsample),
    *(MaxPool2dSame, AvgPool2dSame, nn.ZeroPad2d, nn.ConstantPad2d),
    *(nn.ReflectionPad2d, nn.ReplicationPad2d),
)
_SPATIAL_FUNCTIONS = (
    *(F.max_pool2d, F.avg_pool2d, F.adaptive_avg_pool2d, F.adaptive_max_pool2d, F.interpolate),
    *(F.pad, torch.max_pool2d, torch.mean, "mean", "amax"),
)
_NOT_ELEMENTWISE = (
    *(nn.Softmax, nn.Softmax2d, nn.LogSoftmax, nn.Softmin, nn.GLU, nn.PReLU),
    nn.MultiheadAttention,
)
_ELEMENTWISE_FUNCTIONS = (
    *(F.relu, F.relu6, F.silu, F.hardswish, F.hardsigmoid, F.sigmoid, F.gelu, F.leaky_relu),
    *(F.elu, F.mish, F.hardtanh, F.softplus, torch.relu, torch.sigmoid, torch.tanh),
    *("relu", "relu_", "sigmoid", "sigmoid_", "tanh", "contiguous", "clone", "float", "clamp"),
    *(operator.add, operator.iadd, operator.mul, operator.imul, operator.sub, operator.truediv),
    *(torch.add, torch.mul, torch.sub, "add", "add_", "mul", "mul_", "sub", "div", "div_"),
)
_CONCATENATION_ADVICE = (
    "Concatenation mixes channel groups: make the parts residual sums, or choose a network "
    "without it (ResNet, MobileNet, EfficientNet, MNASNet)"
)
_GROUPED_ADVICE = "Use ordinary (groups=1) or depthwise (groups=channels) convolutions"
_GENERAL_ADVICE = (
    "Rewrite this part with convolutions, batch norm, linear layers, sums, products, pooling, "
    "activations and flatten, as torch modules"
)


def refuse(node: fx.Node, reason: str, advice: str = _GENERAL_ADVICE) -> NoReturn:
    """Raise the `TracingError` of this node."""
    names = [str(node.target)] if node.op == "call_module" else [node.name, owner(node)]
    raise TracingError(" in ".join(filter(None, names)), reason, advice)


def owner(node: fx.Node) -> str:
    """Return the path of the module whose own step this is; "" is the network."""
    paths = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return paths[-1] if paths else ""


def elementwise_module(module: nn.Module) -> bool:
    """Return whether the module acts on each element alone (and so keeps the channels)."""
    source = type(module).__module__
    active = source == "torch.nn.modules.activation" or source.startswith("timm.layers.activations")
    return active and not isinstance(module, _NOT_ELEMENTWISE)


def _one_for_all(module: nn.Module) -> bool:
    """Return whether the module's parameter is one number for all channels."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def _parameters(module: nn.Module) -> tuple[list[int], list[int]]:
    """Return the ids of the weight of inputs and outputs, and of parameters of outputs alone."""
    both = (module._parameters.get(kind) for kind in ("weight", "bias"))
    held = [parameter for parameter in both if parameter is not None]
    weights = [id(parameter) for parameter in held if parameter.dim() > 1]
    vectors = [id(parameter) for parameter in held if parameter.dim() == 1]
    return weights, list(dict.fromkeys(vectors))


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of the node's call, whether it is given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the node's output (batch first); empty if it is not one tensor."""
    return node.meta.get("shape", ())


def positions_of(node: fx.Node) -> int:
    """Return height times width of the node's output; 1 for a feature vector."""
    return math.prod(shape_of(node)[2:])


def _tie(node: fx.Node, first: Tag, second: Tag, why: str = "") -> None:
    if (first.factor, first.vector) != (second.factor, second.vector):
        refuse(node, f"features that must agree are laid out differently{why}")
    sizes = first.variable.size, second.variable.size
    if sizes[0] != sizes[1]:
        refuse(node, f"{sizes[0]} and {sizes[1]} channels cannot be tied{why}")
    first.variable.unify(second.variable)


class Propagation:
    """Assigns a `Tag` to every tensor of a shaped graph and finds the layers to slice.

    `kinds` has the calls of these layers in order, `views` and `in_place` the nodes that need no
    memory of their own, `wider` the pairs (narrow, wide) that zero-padding ties. Raises
    `TracingError` at the first node that no rule covers.
    """

    def __init__(self, modules: dict[str, nn.Module]) -> None:
        self.modules = modules
        self.tags: dict[fx.Node, Tag] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.views: set[fx.Node] = set()
        self.in_place: set[fx.Node] = set()
        self.wider: list[tuple[Variable, Variable]] = []
        self._first_users: dict[str | int, fx.Node] = {}

    def visit(self, node: fx.Node) -> None:
        """Tag one node; its inputs must have been visited."""
        if node.op == "placeholder":
            shape = shape_of(node)
            if self.tags:
                refuse(node, "it is a second input", "The network must take the images alone")
            if len(shape) != 4:
                refuse(node, f"the input must be one image batch n x c x h x w, got {shape}")
            self.tags[node] = Tag(Variable(shape[1], positions_of(node), fixed=True))
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or result not in self.tags:
                refuse(node, "the network must return one tensor of class scores")
            self.tags[result].variable.root.fixed = True
        elif node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        elif node.op == "get_attr":
            refuse(node, "a parameter or buffer is used outside convolution, linear or batch norm")
        elif any(source in self.tags for source in node.all_input_nodes):
            self._function(node)

    def pass_through(self, node: fx.Node, *, view: bool) -> None:
        """Tag the node of a module that keeps channels and positions of its input as they are."""
        (source,) = node.all_input_nodes
        if source not in self.tags:
            refuse(node, "its argument is not a traced tensor")
        self.tags[node] = self.tags[source]
        if view:
            self.views.add(node)

    def input_of(self, node: fx.Node) -> Tag:
        """Return the tag of the node's first argument."""
        source = argument(node, 0, "input")
        if not isinstance(source, fx.Node) or source not in self.tags:
            refuse(node, "its first argument is not a traced tensor")
        return self.tags[source]

    def kernel_of(self, node: fx.Node) -> int:
        """Return how many weights the node's layer has per input and output channel."""
        module = self.modules[str(node.target)]
        return math.prod(module.kernel_size) if isinstance(module, nn.Conv2d) else 1

    def site(self, node: fx.Node) -> Site:
        """Return what a call of a sliced layer costs, once the channel groups are numbered."""
        name = str(node.target)
        one_for_all = _one_for_all(self.modules[name])
        weights, vectors = _parameters(self.modules[name])
        own = [vector for vector in vectors if self._first_users[vector] is node]
        return Site(
            name=name,
            kind=self.kinds[node],
            inputs=FeatureCount(None) if one_for_all else self.input_of(node).count(),
            outputs=FeatureCount(None) if one_for_all else self.tags[node].count(),
            positions=positions_of(node),
            kernel=self.kernel_of(node),
            vectors=len(own),
            repeated=any(self._first_users[weight] is not node for weight in weights),
        )

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
        elif isinstance(module, _NOTHING_IN_INFERENCE):
            self.views.add(node)
            self.tags[node] = self.input_of(node)
        elif isinstance(module, nn.PReLU):
            self._elementwise(node)
            self._record(node, "activation", self.tags[node])
        elif elementwise_module(module):
            self._elementwise(node)
        else:
            refuse(node, f"no rule for the module {type(module).__name__}")

    def _function(self, node: fx.Node) -> None:
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        rules: tuple[tuple[tuple[Any, ...], Callable[[fx.Node], None]], ...] = (
            (_ELEMENTWISE_FUNCTIONS, self._elementwise),
            (_SPATIAL_FUNCTIONS, self._spatial),
            ((torch.flatten, "flatten"), self._flatten_call),
            ((torch.reshape, "view", "reshape"), self._reshape),
            ((operator.getitem,), self._getitem),
        )
        if target in (getattr, "size", "dim"):
            return None
        for targets, rule in rules:
            if target in targets:
                return rule(node)
        mixes = name in ("cat", "concat", "stack")
        advice = _CONCATENATION_ADVICE if mixes else _GENERAL_ADVICE
        return refuse(node, f"no rule for '{name}'", advice)

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        if type(module) not in (nn.Conv2d, Conv2dSame) or module.padding_mode != "zeros":
            kind = f"{type(module).__name__} with {module.padding_mode} padding"
            refuse(node, f"no rule for the convolution {kind}")
        tag = self.input_of(node)
        depthwise = module.groups > 1
        if depthwise and not module.groups == module.in_channels == module.out_channels:
            sizes = f"{module.groups} groups, {module.in_channels} to {module.out_channels}"
            refuse(node, f"grouped convolution ({sizes} channels)", _GROUPED_ADVICE)
        variable = tag.variable if depthwise else Variable(module.out_channels, positions_of(node))
        kind = "depthwise" if depthwise else "convolution"
        self._record(node, kind, Tag(variable, pooled=tag.pooled))

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        tag = self.input_of(node)
        if type(module) not in (nn.Linear, TimmLinear) or not tag.vector:
            refuse(node, "a linear layer must act on flattened features (n x features)")
        variable = Variable(module.out_features)
        self._record(node, "linear", Tag(variable, pooled=tag.pooled, vector=True))

    def _norm(self, node: fx.Node, module: nn.modules.batchnorm._BatchNorm) -> None:
        if type(module) not in (nn.BatchNorm2d, BatchNormAct2d):
            refuse(node, f"no rule for the norm {type(module).__name__}")
        tag = self.input_of(node)
        if tag.vector:
            refuse(node, "batch norm of flattened features")
        self.in_place.add(node)
        self._record(node, "norm", tag)

    def _record(self, node: fx.Node, kind: Kind, outputs: Tag) -> None:
        inputs = self.input_of(node)
        if kind in ("convolution", "linear"):
            outputs.variable.producers += 1
            outputs.variable.pooled_only = inputs.pooled
        self.tags[node] = outputs
        self.kinds[node] = kind
        self._tie_users(node)

    def _tie_users(self, node: fx.Node) -> None:
        """Tie the channels of all calls that use the same parameters: they use them alike."""
        name = str(node.target)
        module = self.modules[name]
        weights, vectors = _parameters(module)
        for shared in (name, *weights, *vectors):
            first = self._first_users.setdefault(shared, node)
            if first is node or _one_for_all(module):
                continue
            why = "" if shared == name else f": a parameter of '{first.target}' is also its own"
            if shared not in vectors:
                if self.kinds[first] != self.kinds[node]:
                    refuse(node, f"{self.kinds[first]} and {self.kinds[node]} cannot be tied{why}")
                _tie(node, self.input_of(first), self.input_of(node), why)
            _tie(node, self.tags[first], self.tags[node], why)

    def _elementwise(self, node: fx.Node) -> None:
        if any(operand not in self.tags for operand in node.all_input_nodes):
            refuse(node, "an operand is not a traced tensor or a number")
        tags = [self.tags[operand] for operand in node.all_input_nodes]
        first = tags[0]
        for tag in tags[1:]:
            _tie(node, first, tag)
        self.in_place.add(node)
        self.tags[node] = replace(first, pooled=all(tag.pooled for tag in tags))

    def _spatial(self, node: fx.Node) -> None:
        tag, before, after = self.input_of(node), shape_of(node.all_input_nodes[0]), shape_of(node)
        if tag.vector or before[:2] != after[:2]:
            refuse(node, "it must keep the batch and channel dimensions")
        pooled = tag.pooled or math.prod(after[2:]) == 1
        self.tags[node] = replace(tag, pooled=pooled, vector=len(after) == 2)

    def _flatten_call(self, node: fx.Node) -> None:
        self._flatten(node, argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> None:
        tag = self.input_of(node)
        if tag.vector and start == 1:
            return self._elementwise(node)
        if start != 1 or end not in (-1, 3):
            refuse(node, f"flatten from {start} to {end}", "Flatten from dimension 1 to the last")
        factor = tag.factor * positions_of(node.all_input_nodes[0])
        self.views.add(node)
        self.tags[node] = replace(tag, factor=factor, vector=True)
        return None

    def _reshape(self, node: fx.Node) -> None:
        sizes = node.args[1:]
        sizes = sizes[0] if len(sizes) == 1 and isinstance(sizes[0], (tuple, list)) else sizes
        if len(shape_of(node)) != 2 or len(sizes) != 2 or sizes[1] != -1:
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
        self.tags[node] = self.input_of(node)

    def _channel_pad(self, node: fx.Node) -> None:
        inputs = self.input_of(node)
        outputs = Tag(Variable(shape_of(node)[1], positions_of(node)), pooled=inputs.pooled)
        outputs.variable.pooled_only = inputs.pooled
        self.wider.append((inputs.variable, outputs.variable))
        self._record(node, "pad", outputs)
