"""How channel counts pass through each operation of a traced network."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d, Conv2dSame
from timm.layers import Linear as TimmLinear
from torch import fx, nn

from pareco.cost import ONE, Kind, Site
from pareco.slimmable.channels import Tag, Variable, keep_blocks
from pareco.slimmable.forms import Form, form_of, norm_groups
from pareco.slimmable.layers import ChannelPad
from pareco.slimmable.nodes import (
    argument,
    measured_by,
    positions_in,
    positions_of,
    refuse,
    shape_of,
    source_of,
)
from pareco.slimmable.operations import (
    ADAPTIVE_POOLS,
    ELEMENTWISE_FUNCTIONS,
    JOINS,
    NARROWS,
    NOTHING_IN_INFERENCE,
    PERMUTATIONS,
    PIXEL_SHUFFLES,
    POOLS,
    PRODUCTS,
    REDUCTIONS,
    SOFTMAX,
    SPATIAL,
    SPLITS,
    TRANSPOSITIONS,
    UNBINDS,
    elementwise_module,
    is_one,
)
from pareco.slimmable.shapes import MEASURED, MEASURED_ADVICE, Shapes, tie
from pareco.slimmable.vectors import READ, READ_ADVICE, Vectors
from pareco.slimmable.whole import parameters_of

_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
_ACT_ADVICE = "Give the norm no activation, and call the activation after it"


def _one_for_all(module: nn.Module) -> bool:
    """Return whether the module's parameter is one number for all channels."""
    return isinstance(module, nn.PReLU) and module.num_parameters == 1


def _parameters(module: nn.Module) -> tuple[list[int], list[int]]:
    """Return the ids of the weight of inputs and outputs, and of parameters of outputs alone."""
    held = {kind: each for kind, each in module._parameters.items() if each is not None}
    weights = [id(held.pop("weight"))] if "weight" in held and held["weight"].dim() > 1 else []
    return weights, list(dict.fromkeys(map(id, held.values())))


class Propagation(Shapes):
    """Assigns a `Tag` to every tensor of a shaped graph and finds the layers to slice.

    `kinds` has the calls of these layers in order, `in_place` the nodes that, with `views`, need no
    memory of their own, `wider` the pairs (narrow, wide) that zero-padding ties, `gating` the nodes
    between a pooling and the features that its result is combined with again (squeeze-excitation).
    `scores` are the channels that the network puts out.
    `products` has the products of features by weights of their positions, with how many these are.
    `vectors` has the parameters that are used as they are. Raises `TracingError` at the first node
    that no rule covers.
    """

    def __init__(self, held: nn.Module, whole: Collection[str] = ()) -> None:
        super().__init__()
        self._whole = whole
        self.modules = dict(held.named_modules())
        self.vectors = Vectors(held)
        self.kinds: dict[fx.Node, Kind] = {}
        self.in_place: set[fx.Node] = set()
        self.wider: list[tuple[Tag, Tag]] = []
        self.gating: set[fx.Node] = set()
        self.scores: set[Variable] = set()
        self.products: dict[fx.Node, int] = {}
        self._normalized: list[fx.Node] = []
        self._first_users: dict[str | int, fx.Node] = {}

    def visit(self, node: fx.Node) -> None:
        """Tag one node; its inputs must have been visited."""
        if node.op == "placeholder":
            shape = shape_of(node)
            if self.tags:
                refuse(node, "it is a second input", "The network must take the images alone")
            self._set(node, Tag.of(Variable(shape[1], positions_of(node), fixed=True)))
        elif node.op == "output":
            result = node.args[0]
            if not isinstance(result, fx.Node) or result not in self.tags:
                refuse(node, "the network must return one tensor of class scores")
            self.scores |= {each.variable for each in self.tags[result].leaves}
            self.tags[result].fix()
            for softmax in self._normalized:
                if self.tags[softmax].variables:
                    refuse(softmax, "a softmax over channels that are not the classes")
        elif node.op == "call_module":
            self._module(node, self.modules[str(node.target)])
        elif node.op == "get_attr":
            self.vectors.read(node)
        elif any(source in self.tags for source in node.all_input_nodes):
            self._function(node)
        elif self.vectors.among(node.all_input_nodes):
            self.vectors.compute(node)

    def kernel_of(self, node: fx.Node) -> int:
        """Return how many weights the node's layer has per input and output channel.

        Of a grouped convolution, that is as many as each output is a weighted sum of.
        """
        module = self.modules[str(node.target)]
        if not isinstance(module, _CONVOLUTIONS):
            form = form_of(module)
            return 1 if form is None else form.kernel(module)
        summed = module.in_channels // module.groups if module.groups > 1 else 1
        return math.prod(module.kernel_size) * summed

    def site(self, node: fx.Node) -> Site:
        """Return what a call of a sliced layer costs, once the channel groups are numbered."""
        name = str(node.target)
        one_for_all = _one_for_all(self.modules[name])
        weights, vectors = _parameters(self.modules[name])
        own = [vector for vector in vectors if self._first_users[vector] is node]
        whole = self.kinds[node] == "filter"
        transposed = isinstance(self.modules[name], nn.ConvTranspose2d)
        repeated = not weights or any(self._first_users[each] is not node for each in weights)
        return Site(
            name=name,
            kind=self.kinds[node],
            inputs=ONE if one_for_all else self.input_of(node).count(),
            outputs=ONE if one_for_all else self.tags[node].count(),
            positions=positions_of(node),
            kernel=self.kernel_of(node),
            vectors=0 if whole else len(own),
            repeated=whole or repeated,
            applied=positions_of(source_of(node)) if transposed else None,
        )

    def steps(self) -> dict[Variable, int]:
        """Return for each variable how many of its group's channels it counts as one.

        That is the greatest number that divides all its factors: those of an expansion count as
        several for each channel, those of a block only where the whole block is put out.
        """
        found: dict[Variable, int] = {}
        for tag in self.tags.values():
            for each in tag.leaves:
                found[each.variable] = math.gcd(found.get(each.variable, 0), each.factor)
        return found

    def check_reads(self) -> None:
        """Refuse a layer's tensor that is used by itself, too, unless both use all of it."""
        layers = {
            id(tensor): node
            for node in self.kinds
            for kind in ("_parameters", "_buffers")
            for tensor in self.modules[str(node.target)].__dict__[kind].values()
        }
        for node, vector in self.vectors.read_at.items():
            layer = layers.get(id(vector.tensor))
            if layer is None:
                continue
            if any(tag.variables for tag in (vector.tag, self.tags[layer], self.input_of(layer))):
                refuse(node, "a tensor of a layer is used by itself, too", READ_ADVICE)

    def width_independent_parameters(self) -> int:
        """Return how many parameters there are in no layer that is sliced."""
        read = self.vectors.whole()
        whole = {key: each for key, each in read.items() if key not in self._first_users}
        sliced = self._first_users | {id(each.tensor): node for node, each in self.vectors.sliced()}
        whole |= parameters_of({path: self.modules[path] for path in self._whole}, sliced)
        for node, kind in self.kinds.items():
            if kind == "filter":
                whole |= {id(each): each for each in self.modules[str(node.target)].parameters()}
        return sum(each.numel() for each in whole.values())

    def _module(self, node: fx.Node, module: nn.Module) -> None:
        if isinstance(module, _CONVOLUTIONS):
            self._convolution(node, module)
        elif isinstance(module, nn.Linear):
            self._linear(node, module)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            self._norm(node, module)
        elif isinstance(module, nn.Flatten):
            self._flatten(node, module.start_dim, module.end_dim)
        elif isinstance(module, (nn.PixelShuffle, nn.PixelUnshuffle)):
            self._shuffling_module(node, module)
        elif isinstance(module, ChannelPad):
            self._channel_pad(node)
        elif isinstance(module, SPATIAL):
            self._spatial(node, everywhere=is_one(getattr(module, "output_size", None)))
        elif isinstance(module, (nn.Softmax, nn.LogSoftmax, nn.Softmin)):
            self._softmax(node, module.dim)
        elif isinstance(module, NOTHING_IN_INFERENCE):
            self._set(node, self.input_of(node), view=True)
        elif isinstance(module, nn.PReLU):
            if not _one_for_all(module):
                self._channels_first(node)
            self._elementwise(node)
            self._record(node, "activation", self.tags[node])
        elif (form := form_of(module)) is not None:
            self._formed(node, module, form)
        elif elementwise_module(module):
            self._elementwise(node)
        else:
            refuse(node, f"no rule for the module {type(module).__name__}")

    def _function(self, node: fx.Node) -> None:
        target: Any = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        rules: tuple[tuple[Iterable[Any], Callable[[fx.Node], None]], ...] = (
            (ELEMENTWISE_FUNCTIONS, self._elementwise),
            ((F.pad, F.interpolate), self._spatial),
            (POOLS, self._pool),
            (ADAPTIVE_POOLS, self._adaptive_pool),
            (REDUCTIONS, self._reduction),
            (SOFTMAX, self._softmax_call),
            (PRODUCTS, self._product),
            ((torch.flatten, "flatten"), self._flatten_call),
            ((torch.reshape, "view", "reshape"), self._reshape),
            (PERMUTATIONS, self._permute),
            (TRANSPOSITIONS, self._transpose),
            (("expand",), self._expand),
            (("expand_as",), self._expand_as),
            ((torch.squeeze, "squeeze"), self._squeeze),
            ((torch.unsqueeze, "unsqueeze"), self._unsqueeze),
            ((operator.getitem,), self._getitem),
            (NARROWS, self._narrow),
            ((*SPLITS, *UNBINDS), self._split),
            (JOINS, self._join),
            (PIXEL_SHUFFLES, self._pixel_shuffle),
        )
        if target in (getattr, "size", "dim"):
            return None
        if target not in ELEMENTWISE_FUNCTIONS and self.vectors.among(node.all_input_nodes):
            refuse(node, READ, READ_ADVICE)
        for targets, rule in rules:
            if target in targets:
                return rule(node)
        return refuse(node, f"no rule for '{name}'")

    def _convolution(self, node: fx.Node, module: nn.Conv2d | nn.ConvTranspose2d) -> None:
        if len(node.args) + len(node.kwargs) > 1:
            refuse(node, "it is told the size that it puts out", "Give it output_padding")
        known = type(module) in (nn.Conv2d, Conv2dSame) or form_of(module)
        if not known or module.padding_mode != "zeros":
            kind = f"{type(module).__name__} with {module.padding_mode} padding"
            refuse(node, f"no rule for the convolution {kind}")
        tag = self._channels_first(node)
        if len(shape_of(source_of(node))) != 4:
            refuse(node, "a convolution must act on n x channels x height x width")
        if module.groups > 1:
            return self._record(node, "grouped", self._grouped(module, tag))
        positions = 0 if tag.pooled else positions_of(node)
        outputs = Tag.of(Variable(module.out_channels, positions), pooled=tag.pooled)
        return self._record(node, "convolution", outputs)

    def _grouped(self, module: nn.Conv2d | nn.ConvTranspose2d, tag: Tag) -> Tag:
        """Return what a grouped (or depthwise) convolution puts out; whole groups go.

        So a group keeps its width, the design parameter of RegNet (arXiv 2003.13678) and ResNeXt's
        "4d", and what is in use of the weights is their first part.
        """
        inputs, outputs = (
            count // module.groups for count in (module.in_channels, module.out_channels)
        )
        keep_blocks(tag.segments, inputs)
        return tag.scaled(outputs, inputs)

    def _linear(self, node: fx.Node, module: nn.Linear) -> None:
        tag, shape = self.input_of(node), shape_of(node)
        last = len(shape) - 1
        if type(module) not in (nn.Linear, TimmLinear) or tag.axis != last:
            reason = "a linear layer must act on flattened features (n x features) or channels last"
            refuse(node, reason)
        positions = 0 if tag.pooled or last == 1 else math.prod(positions_in(shape, last))
        variable = Variable(module.out_features, positions)
        self._record(node, "linear", Tag.of(variable, pooled=tag.pooled, axis=last))

    def _norm(self, node: fx.Node, module: nn.modules.batchnorm._BatchNorm) -> None:
        if type(module) not in (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d):
            refuse(node, f"no rule for the norm {type(module).__name__}")
        self._check_parts(node, module)
        self._record(node, "norm", self._channels_first(node))

    def _check_parts(self, node: fx.Node, module: nn.Module) -> None:
        """Refuse a norm with more in it than timm's dropout and activation."""
        for part in module.children():
            if not (elementwise_module(part) or isinstance(part, NOTHING_IN_INFERENCE)):
                refuse(node, f"no rule for {type(part).__name__} inside a norm", _ACT_ADVICE)

    def _formed(self, node: fx.Node, module: nn.Module, form: Form) -> None:
        """Tag what a layer puts out that keeps its channels; groups of them stay whole."""
        tag, rank = self.input_of(node), len(shape_of(node))
        axis = form.axis % rank
        name = type(module).__name__
        if tag.axis != axis or shape_of(node)[axis] != tag.features:
            reason = f"{name} acts on dimension {axis}, and the channels are dimension {tag.axis}"
            refuse(node, reason, "Permute the features before it")
        problem = form.problem(module)
        if problem:
            refuse(node, f"no rule for {name} {problem}")
        self._check_parts(node, module)
        groups = norm_groups(module)
        if groups > 1:  # one group is all channels, however many there are
            keep_blocks(tag.segments, tag.features // groups)
        self._record(node, form.kind, tag)

    def _record(self, node: fx.Node, kind: Kind, outputs: Tag) -> None:
        if kind == "norm":
            self.in_place.add(node)
        node.args, node.kwargs = (source_of(node),), {}  # whatever its layer calls its input
        self._set(node, outputs)
        self.kinds[node] = kind
        self._tie_users(node)

    def _tie_users(self, node: fx.Node) -> None:
        """Tie the channels of all calls that use the same parameters: they use them alike.

        Where the channels lie makes no difference.
        """
        name = str(node.target)
        module = self.modules[name]
        weights, vectors = _parameters(module)
        for shared in (name, *weights, *vectors):
            first = self._first_users.setdefault(shared, node)
            if first is node or _one_for_all(module):
                continue
            why = "" if shared == name else f": a parameter of '{first.target}' is also its own"
            pairs = ((self.tags[first], self.tags[node]),)
            if shared not in vectors:
                if self.kinds[first] != self.kinds[node]:
                    refuse(node, f"{self.kinds[first]} and {self.kinds[node]} cannot be tied{why}")
                pairs = (self.input_of(first), self.input_of(node)), pairs[0]
            for one, other in pairs:
                tie(node, replace(one, axis=other.axis), other, why)

    def _elementwise(self, node: fx.Node) -> None:
        operands = [operand for operand in node.all_input_nodes if operand in self.tags]
        first = next((each for each in operands if not self.tags[each].single), operands[0])
        for operand in node.all_input_nodes:
            if self.vectors.among([operand]):
                self.vectors.meet(node, operand, first, self.tags[first])
            elif operand not in self.tags and measured_by(operand) & {0, 1}:
                refuse(node, "an operand is not a traced tensor or a number")
        for operand in operands:
            ranks = len(shape_of(operand)), len(shape_of(first))
            if ranks[0] != ranks[1] or self.tags[operand].axis != self.tags[first].axis:
                refuse(node, "features that must agree are laid out differently")
            if self.tags[operand].single and not self.tags[first].single:
                self.tags[operand].fix()  # one channel goes with any number
            elif operand is not first:
                tie(node, self.tags[first], self.tags[operand])
        self.in_place.add(node)
        pooled = all(self.tags[operand].pooled for operand in operands)
        self._set(node, replace(self.tags[first], pooled=pooled))
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
        tag, before, after = self._channels_first(node), shape_of(source_of(node)), shape_of(node)
        if len(before) != 4 or before[:2] != after[:2] or len(after) != 4:
            refuse(node, "it must keep the batch and channel dimensions of n x c x h x w")
        sizes = [each for each in node.all_input_nodes if each is not source_of(node)]
        if measured_by(sizes) & {0, 1}:
            refuse(node, MEASURED, MEASURED_ADVICE)
        self._set(node, replace(tag, pooled=tag.pooled or everywhere))

    def _pool(self, node: fx.Node) -> None:
        window = argument(node, 1, "kernel_size")
        sizes = window if isinstance(window, (tuple, list)) else (window,)
        measured = any(isinstance(size, fx.Node) for size in sizes)
        self._spatial(node, everywhere=measured and positions_of(node) == 1)

    def _adaptive_pool(self, node: fx.Node) -> None:
        self._spatial(node, everywhere=is_one(argument(node, 1, "output_size")))

    def _softmax_call(self, node: fx.Node) -> None:
        self._softmax(node, argument(node, 1, "dim"))

    def _softmax(self, node: fx.Node, dimension: Any) -> None:
        rank = len(shape_of(node))
        if not isinstance(dimension, int) or dimension % rank == 0:
            refuse(node, "a softmax over the batch, or of no named dimension")
        if dimension % rank == self.input_of(node).axis:
            self._normalized.append(node)
        self._elementwise(node)

    def _product(self, node: fx.Node) -> None:
        """Tag the sums of features over positions, weighted by another tensor of one feature.

        As in the context of GCNet (arXiv 1904.11492): channels x positions by positions x 1.
        """
        tag, (source, weights) = self.input_of(node), (node.all_input_nodes * 2)[:2]
        before, others, rank = shape_of(source), shape_of(weights), len(shape_of(node))
        alone = weights in self.tags and self.tags[weights].single
        alike = before[:-2] == others[:-2] and len(before) == rank == len(others)
        if not (alone and alike) or tag.axis != rank - 2 or self.tags[source].single:
            product = "a matrix product that is none of features by weights of their positions"
            refuse(node, f"attention over positions has no rule: {product}")
        self.products[node] = before[-1]
        self._set(node, replace(tag, pooled=shape_of(node)[-1] == 1))

    def product_site(self, node: fx.Node) -> Site:
        """Return what a product of features by weights of their positions costs."""
        features = self.tags[node].count()
        return Site(
            name="",
            kind="product",
            inputs=features,
            outputs=features,
            positions=positions_of(node),
            kernel=self.products[node],
            vectors=0,
            repeated=True,
        )

    def _channel_pad(self, node: fx.Node) -> None:
        inputs = self._channels_first(node)
        if len(shape_of(node)) != 4:
            refuse(node, "it must pad the channels of n x c x h x w")
        variable = Variable(shape_of(node)[1], positions_of(node))
        outputs = Tag.of(variable, pooled=inputs.pooled)
        self.wider.append((inputs, outputs))
        self._record(node, "pad", outputs)
