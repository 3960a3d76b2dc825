"""How channel counts pass through each operation of a traced network."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import fx, nn

from pareco.cost import FeatureCount, Kind, Site
from pareco.slimmable.channels import Tag, Variable
from pareco.slimmable.layers import ChannelPad
from pareco.slimmable.nodes import (
    argument,
    check_index,
    expanded_sizes,
    measured_by,
    positions_of,
    refuse,
    reshaped_sizes,
    rewrite,
    shape_of,
    source_of,
    spatial_dimensions,
    written_sizes,
)
from pareco.slimmable.operations import (
    ADAPTIVE_POOLS,
    ELEMENTWISE_FUNCTIONS,
    NOT_ELEMENTWISE,
    NOTHING_IN_INFERENCE,
    POOLS,
    REDUCTIONS,
    SOFTMAX,
    SPATIAL,
)

_READ = "a parameter or buffer is used outside convolution, linear or batch norm"
_CONCATENATION_ADVICE = (
    "Concatenation mixes channel groups: make the parts residual sums, or choose a network "
    "without it (ResNet, MobileNet, EfficientNet, MNASNet)"
)
_READ_ADVICE = (
    "Register it with register_buffer or as a parameter in the shape in which it is used: one "
    "number for all channels, or one for each channel of the images, such as 1 x 3 x 1 x 1"
)
_ACT_ADVICE = "Give the norm no activation, and call the activation after it"
_GROUPED_ADVICE = "Use ordinary (groups=1) or depthwise (groups=channels) convolutions"


def elementwise_module(module: nn.Module) -> bool:
    """Return whether the module acts on each element alone (and so keeps the channels)."""
    source = type(module).__module__
    active = source == "torch.nn.modules.activation" or source.startswith("timm.layers.activations")
    return active and not isinstance(module, NOT_ELEMENTWISE)


def _is_one(output_size: Any) -> bool:
    """Return whether an adaptive pooling puts out one position, whatever the image's size."""
    return output_size == 1 or output_size in ((1, 1), [1, 1])


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


def _tie(node: fx.Node, first: Tag, second: Tag, why: str = "") -> None:
    if first.factor != second.factor:
        refuse(node, f"features that must agree are laid out differently{why}")
    sizes = first.variable.size, second.variable.size
    if sizes[0] != sizes[1]:
        refuse(node, f"{sizes[0]} and {sizes[1]} channels cannot be tied{why}")
    first.variable.unify(second.variable)


class Propagation:
    """Assigns a `Tag` to every tensor of a shaped graph and finds the layers to slice.

    `kinds` has the calls of these layers in order, `views` and `in_place` the nodes that need no
    memory of their own, `wider` the pairs (narrow, wide) that zero-padding ties, `gating` the nodes
    between a pooling and the features that its result is combined with again (squeeze-excitation).
    `read` has the parameters that are used as they are. Sizes that hold for the example input
    alone are rewritten in the graph. Raises `TracingError` at the first node that no rule covers.
    """

    def __init__(self, held: nn.Module) -> None:
        self.modules = dict(held.named_modules())
        self.tensors = dict(held.named_parameters(remove_duplicate=False))
        self.tensors |= dict(held.named_buffers(remove_duplicate=False))
        self.read: dict[int, nn.Parameter] = {}
        self.tags: dict[fx.Node, Tag] = {}
        self.kinds: dict[fx.Node, Kind] = {}
        self.views: set[fx.Node] = set()
        self.in_place: set[fx.Node] = set()
        self.wider: list[tuple[Variable, Variable]] = []
        self.gating: set[fx.Node] = set()
        self._normalized: list[fx.Node] = []
        self._averaged: dict[fx.Node, set[int]] = {}
        self._first_users: dict[str | int, fx.Node] = {}

    def visit(self, node: fx.Node) -> None:
        """Tag one node; its inputs must have been visited."""
        if node.op == "placeholder":
            shape = shape_of(node)
            if self.tags:
                refuse(node, "it is a second input", "The network must take the images alone")
            self.tags[node] = Tag(Variable(shape[1], positions_of(node), fixed=True))
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or result not in self.tags:
                refuse(node, "the network must return one tensor of class scores")
            self.tags[result].variable.root.fixed = True
            for softmax in self._normalized:
                if not self.tags[softmax].variable.root.fixed:
                    refuse(softmax, "a softmax over channels that are not the classes")
        elif node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        elif node.op == "get_attr":
            self._tensor(node)
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
        source = source_of(node)
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

    def width_independent_parameters(self) -> int:
        """Return how many parameters there are in no layer that is sliced."""
        own = [each for key, each in self.read.items() if key not in self._first_users]
        return sum(each.numel() for each in own)

    def _tensor(self, node: fx.Node) -> None:
        """Refuse a tensor unless it is registered, and combined with features element by element.

        Others may have been computed from buffers, of other values then.
        """
        tensor = self.tensors.get(str(node.target))
        if tensor is None:
            refuse(node, "a tensor that is no parameter or buffer is used", _READ_ADVICE)
        for user in node.users:
            alone = all(source.op == "get_attr" for source in user.all_input_nodes)
            if alone or user.target not in ELEMENTWISE_FUNCTIONS:
                refuse(node, _READ)
        if isinstance(tensor, nn.Parameter):
            self.read[id(tensor)] = tensor

    def _check_broadcast(self, node: fx.Node, features: fx.Node) -> None:
        """Refuse a tensor that does not go with features of any batch and width."""
        shape, tag = self.tensors[str(node.target)].shape, self.tags[features]
        shape = (1,) * (len(shape_of(features)) - len(shape)) + tuple(shape)
        fixed = tag.variable.root.fixed and shape[1] == tag.variable.size * tag.factor
        if len(shape) != len(shape_of(features)) or shape[0] != 1 or not (shape[1] == 1 or fixed):
            refuse(node, _READ, _READ_ADVICE)

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
        elif isinstance(module, SPATIAL):
            self._spatial(node, everywhere=_is_one(getattr(module, "output_size", None)))
        elif isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin)):
            self._softmax(node, module.dim)
        elif isinstance(module, NOTHING_IN_INFERENCE):
            self._view(node, self.input_of(node))
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
            (ELEMENTWISE_FUNCTIONS, self._elementwise),
            ((F.pad, F.interpolate), self._spatial),
            (POOLS, self._pool),
            (ADAPTIVE_POOLS, self._adaptive_pool),
            (REDUCTIONS, self._reduction),
            (SOFTMAX, self._softmax_call),
            ((torch.flatten, "flatten"), self._flatten_call),
            ((torch.reshape, "view", "reshape"), self._reshape),
            (("expand",), self._expand),
            (("expand_as",), self._expand_as),
            ((torch.squeeze, "squeeze"), self._squeeze),
            ((torch.unsqueeze, "unsqueeze"), self._unsqueeze),
            ((operator.getitem,), self._getitem),
        )
        if target in (getattr, "size", "dim"):
            return None
        for targets, rule in rules:
            if target in targets:
                return rule(node)
        if name in ("cat", "concat", "stack"):
            refuse(node, f"no rule for '{name}'", _CONCATENATION_ADVICE)
        return refuse(node, f"no rule for '{name}'")

    def _convolution(self, node: fx.Node, module: nn.Conv2d) -> None:
        if type(module) not in (nn.Conv2d, Conv2dSame) or module.padding_mode != "zeros":
            kind = f"{type(module).__name__} with {module.padding_mode} padding"
            refuse(node, f"no rule for the convolution {kind}")
        tag = self.input_of(node)
        if len(shape_of(source_of(node))) != 4 or tag.factor != 1:
            refuse(node, "a convolution must act on n x channels x height x width")
        depthwise = module.groups > 1
        if depthwise and not module.groups == module.in_channels == module.out_channels:
            sizes = f"{module.groups} groups, {module.in_channels} to {module.out_channels}"
            refuse(node, f"grouped convolution ({sizes} channels)", _GROUPED_ADVICE)
        positions = 0 if tag.pooled else positions_of(node)
        variable = tag.variable if depthwise else Variable(module.out_channels, positions)
        kind = "depthwise" if depthwise else "convolution"
        self._record(node, kind, Tag(variable, pooled=tag.pooled))

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        tag = self.input_of(node)
        if type(module) not in (nn.Linear, TimmLinear) or len(shape_of(node)) != 2:
            refuse(node, "a linear layer must act on flattened features (n x features)")
        variable = Variable(module.out_features)
        self._record(node, "linear", Tag(variable, pooled=tag.pooled))

    def _norm(self, node: fx.Node, module: nn.modules.batchnorm._BatchNorm) -> None:
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d):
            refuse(node, f"no rule for the norm {type(module).__name__}")
        for part in module.children():  # timm's: dropout and activation
            if not (elementwise_module(part) or isinstance(part, NOTHING_IN_INFERENCE)):
                refuse(node, f"no rule for {type(part).__name__} inside a norm", _ACT_ADVICE)
        self.in_place.add(node)
        self._record(node, "norm", self.input_of(node))

    def _record(self, node: fx.Node, kind: Kind, outputs: Tag) -> None:
        if kind in ("convolution", "linear"):
            outputs.variable.producers += 1
        node.args, node.kwargs = (source_of(node),), {}  # whatever its layer calls its input
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
        operands = [operand for operand in node.all_input_nodes if operand in self.tags]
        first = next((each for each in operands if not self.tags[each].single), operands[0])
        for operand in node.all_input_nodes:
            if operand.op == "get_attr":
                self._check_broadcast(operand, first)
            elif operand not in self.tags and measured_by(operand) & {0, 1}:
                refuse(node, "an operand is not a traced tensor or a number")
        for operand in operands:
            if len(shape_of(operand)) != len(shape_of(first)):
                refuse(node, "features that must agree are laid out differently")
            if self.tags[operand].single and not self.tags[first].single:
                self.tags[operand].variable.root.fixed = True  # one channel goes with any number
            elif operand is not first:
                _tie(node, self.tags[first], self.tags[operand])
        self.in_place.add(node)
        pooled = all(self.tags[operand].pooled for operand in operands)
        self.tags[node] = replace(self.tags[first], pooled=pooled)
        if len(shape_of(node)) > 2 and not pooled:
            self._note_gates(operands, lambda source: self.tags[source].pooled)
        if max(map(positions_of, operands)) > 1:  # over a pooling of the example's whole size
            self._note_gates(operands, lambda source: positions_of(source) == 1)

    def _note_gates(self, nodes: Iterable[fx.Node], squeezed: Callable[[fx.Node], bool]) -> None:
        """Note those of the nodes that are squeezed, and what squeezed nodes they come from."""
        waiting, found = list(nodes), set()
        while waiting:
            node = waiting.pop()
            if node in self.tags and node not in found and squeezed(node):
                found.add(node)
                waiting += node.all_input_nodes
        self.gating |= found

    def _spatial(self, node: fx.Node, *, everywhere: bool = False) -> None:
        """Tag what changes height and width alone; `everywhere` to 1 x 1 at every image size."""
        tag, before, after = self.input_of(node), shape_of(source_of(node)), shape_of(node)
        if len(before) != 4 or before[:2] != after[:2] or len(after) != 4:
            refuse(node, "it must keep the batch and channel dimensions of n x c x h x w")
        self.tags[node] = replace(tag, pooled=tag.pooled or everywhere)

    def _pool(self, node: fx.Node) -> None:
        window = argument(node, 1, "kernel_size")
        sizes = window if isinstance(window, (tuple, list)) else (window,)
        measured = any(isinstance(size, fx.Node) for size in sizes)
        self._spatial(node, everywhere=measured and positions_of(node) == 1)

    def _adaptive_pool(self, node: fx.Node) -> None:
        self._spatial(node, everywhere=_is_one(argument(node, 1, "output_size")))

    def _reduction(self, node: fx.Node) -> None:
        tag, source = self.input_of(node), source_of(node)
        rank = len(shape_of(source))
        dimensions = argument(node, 1, "dim", node.kwargs.get("axis"))
        averaged = set(spatial_dimensions(node, dimensions, rank))
        if len(shape_of(node)) == rank:  # as in x.mean(2, keepdim=True).mean(3, keepdim=True)
            averaged |= self._averaged.get(source, set())
            self._averaged[node] = averaged
        pooled = tag.pooled or averaged == set(range(2, rank))
        self.tags[node] = replace(tag, pooled=pooled)

    def _softmax_call(self, node: fx.Node) -> None:
        self._softmax(node, argument(node, 1, "dim"))

    def _softmax(self, node: fx.Node, dimension: Any) -> None:
        rank = len(shape_of(node))
        if not isinstance(dimension, int) or dimension % rank == 0:
            refuse(node, "a softmax over the batch, or of no named dimension")
        if dimension % rank == 1:
            self._normalized.append(node)
        self._elementwise(node)

    def _flatten_call(self, node: fx.Node) -> None:
        self._flatten(node, argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> None:
        tag, before = self.input_of(node), shape_of(source_of(node))
        first, last = (dimension % len(before) for dimension in (start, end))
        if first == 0 or (first == 1 and last != len(before) - 1):
            refuse(node, f"flatten from {start} to {end}", "Flatten from dimension 1 to the last")
        factor = tag.factor * (positions_of(source_of(node)) if first == 1 else 1)
        self._view(node, replace(tag, factor=factor))

    def _view(self, node: fx.Node, tag: Tag) -> None:
        self.views.add(node)
        self.tags[node] = tag

    def _reshape(self, node: fx.Node) -> None:
        tag, channels = self.input_of(node), self.input_of(node).variable.size
        sizes = written_sizes(node, "size" if node.target == "view" else "shape")
        source = source_of(node)
        rewrite(node, source, reshaped_sizes(node, source, sizes, channels))
        self._view(node, replace(tag, factor=shape_of(node)[1] // channels))

    def _expand(self, node: fx.Node) -> None:
        tag, source = self.input_of(node), source_of(node)
        rewrite(node, source, expanded_sizes(node, source, written_sizes(node, "size")))
        self._view(node, tag)

    def _expand_as(self, node: fx.Node) -> None:
        tag, other = self.input_of(node), argument(node, 1, "other")
        if other not in self.tags or len(shape_of(other)) != len(shape_of(source_of(node))):
            refuse(node, "features that must agree are laid out differently")
        _tie(node, tag, self.tags[other])
        self._view(node, tag)

    def _squeeze(self, node: fx.Node) -> None:
        tag, source = self.input_of(node), source_of(node)
        before = shape_of(source)
        asked = argument(node, 1, "dim")
        if asked is None:  # else a batch, or a width, of one would vanish too
            asked = tuple(d for d in range(2, len(before)) if before[d] == 1)
            if len(shape_of(node)) != len(before) - len(asked):
                refuse(node, "it takes away the batch or channel dimension")
        dimensions = spatial_dimensions(node, asked, len(before)) if asked != () else ()
        rewrite(node, source, dimensions)
        self._view(node, tag)

    def _unsqueeze(self, node: fx.Node) -> None:
        spatial_dimensions(node, argument(node, 1, "dim"), len(shape_of(node)))
        self._view(node, self.input_of(node))

    def _getitem(self, node: fx.Node) -> None:
        tag = self.input_of(node)
        check_index(node, node.args[1], len(shape_of(source_of(node))))
        self._view(node, tag)

    def _channel_pad(self, node: fx.Node) -> None:
        inputs = self.input_of(node)
        if len(shape_of(node)) != 4:
            refuse(node, "it must pad the channels of n x c x h x w")
        outputs = Tag(Variable(shape_of(node)[1], positions_of(node)), pooled=inputs.pooled)
        self.wider.append((inputs.variable, outputs.variable))
        self._record(node, "pad", outputs)
