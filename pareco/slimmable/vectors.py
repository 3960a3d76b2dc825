"""Parameters and buffers that a network uses as they are: scales, shifts, statistics."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from pareco.slimmable.channels import Segment, Tag, Variable, unify
from pareco.slimmable.nodes import refuse, shape_of, source_of
from pareco.slimmable.operations import ELEMENTWISE_FUNCTIONS, in_place

READ = "a parameter or buffer is used outside convolution, linear or norm layers"
READ_ADVICE = (
    "Register it with register_buffer or as a parameter in the shape in which it is used: one "
    "number for all channels, or one for each channel of the features, such as c x 1 x 1"
)
_RESHAPES = (
    *(torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze, operator.getitem),
    *("reshape", "view", "flatten", "squeeze", "unsqueeze"),
)


@dataclass(eq=False)
class Vector:
    """A tensor that is read: as many entries of its dimension `axis` as there are `channels`.

    Which dimension that is shows where it meets features, unless only one has several entries.
    """

    tensor: Tensor
    channels: Variable
    axis: int | None

    @property
    def per_channel(self) -> int:
        """How many numbers it has for each channel."""
        return self.tensor.numel() // self.tensor.shape[self.axis or 0]

    @property
    def tag(self) -> Tag:
        """Its channels."""
        return Tag((Segment(self.channels),))


class Vectors:
    """Follows what is computed of parameters and buffers alone, to where it meets features.

    A tensor with one dimension of more than one entry may be reshaped and combined with others,
    element by element; any other one only meets features as it is. `read_at` has the vectors at the
    nodes that read them.
    """

    def __init__(self, held: nn.Module) -> None:
        self._tensors: dict[str, Tensor] = dict(held.named_parameters(remove_duplicate=False))
        self._tensors |= dict(held.named_buffers(remove_duplicate=False))
        self._read: dict[int, Vector] = {}
        self.read_at: dict[fx.Node, Vector] = {}
        self._variables: dict[fx.Node, Variable] = {}

    def among(self, nodes: Iterable[fx.Node]) -> bool:
        """Return whether one of the nodes is computed of tensors alone."""
        return any(node in self._variables for node in nodes)

    def read(self, node: fx.Node) -> None:
        """Take up a tensor that the graph reads.

        Refuses one that is not registered: it may have been computed from buffers, of other values
        then.
        """
        tensor = self._tensors.get(str(node.target))
        if tensor is None:
            refuse(node, "a tensor that is no parameter or buffer is used", READ_ADVICE)
        if not all(user.target in (*ELEMENTWISE_FUNCTIONS, *_RESHAPES) for user in node.users):
            refuse(node, READ)
        long = _long(tensor.shape)
        size = tensor.shape[long[0]] if len(long) == 1 else 1
        channels = Variable(size, fixed=not long)
        new = Vector(tensor, channels, long[0] if len(long) == 1 else None)
        self.read_at[node] = vector = self._read.setdefault(id(tensor), new)
        self._variables[node] = vector.channels

    def compute(self, node: fx.Node) -> None:
        """Take up what is computed of tensors alone; refuse what may depend on the width."""
        known = [source for source in node.all_input_nodes if source in self._variables]
        long = _long(shape_of(node))
        elementwise = node.target in ELEMENTWISE_FUNCTIONS
        blocks = any(len(_long(shape_of(each))) > 1 for each in known)
        if len(known) < len(node.all_input_nodes) or len(long) > 1 or blocks:
            refuse(node, READ, READ_ADVICE)
        if in_place(node) or not (elementwise or (node.target in _RESHAPES and _whole(node))):
            refuse(node, READ, READ_ADVICE)
        if not elementwise:
            sizes = tuple(-1 if at in long else 1 for at in range(len(shape_of(node))))
            node.op, node.target = "call_method", "reshape"
            node.args, node.kwargs = (known[0], sizes), {}
        variable = Variable(shape_of(node)[long[0]] if long else 1)
        for each in known:
            if _long(shape_of(each)):
                unify([Segment(variable)], [Segment(self._variables[each])])
        self._variables[node] = variable

    def meet(self, node: fx.Node, operand: fx.Node, features: fx.Node, tag: Tag) -> None:
        """Tie what is computed of tensors to the channels of features that it is combined with."""
        shape, rank = shape_of(operand), len(shape_of(features))
        axis = tag.axis - rank + len(shape)
        alters = in_place(node) and source_of(node) is operand
        if alters or len(shape) > rank or (len(shape) == rank and shape[0] != 1):
            refuse(node, READ, READ_ADVICE)
        channels = Tag((Segment(self._variables[operand]),))
        if axis < 0 or shape[axis] == 1:
            channels.fix()  # it is one number for all channels: other dimensions are long
            return
        if shape[axis] != tag.features:
            refuse(node, READ, READ_ADVICE)
        vector = self.read_at.get(operand)
        if vector is not None and vector.axis is None:
            vector.axis, vector.channels.size = axis, shape[axis]
        if vector is not None and vector.axis != axis:
            refuse(node, "a tensor has its channels at two dimensions", READ_ADVICE)
        unify(channels.segments, tag.segments)

    def sliced(self) -> Iterator[tuple[fx.Node, Vector]]:
        """Yield the nodes that read a part, once the channel groups are numbered."""
        for node, vector in self.read_at.items():
            if vector.tag.variables:
                yield node, vector

    def whole(self) -> dict[int, nn.Parameter]:
        """Return the parameters that are read whole, by their ids."""
        part = {id(vector.tensor) for _, vector in self.sliced()}
        tensors = (each.tensor for each in self._read.values())
        return {id(x): x for x in tensors if isinstance(x, nn.Parameter) and id(x) not in part}


def _long(shape: tuple[int, ...]) -> list[int]:
    """Return the dimensions that have more than one entry."""
    return [at for at, size in enumerate(shape) if size > 1]


def _whole(node: fx.Node) -> bool:
    """Return whether a reshape of one tensor keeps all its entries, in their order."""
    source, *others = node.all_input_nodes
    arguments = (*node.args[1:], *node.kwargs.values())
    several = tuple if node.target is operator.getitem else (tuple, list)  # a list picks entries
    listed = [each for x in arguments for each in (x if isinstance(x, several) else (x,))]
    plain = all(each in (None, Ellipsis) or isinstance(each, (int, slice)) for each in listed)
    return plain and not others and math.prod(shape_of(node)) == math.prod(shape_of(source))
