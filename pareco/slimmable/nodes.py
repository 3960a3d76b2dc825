"""What the nodes of a traced graph are called with, and how one is refused."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import fx

_GENERAL_ADVICE = (
    "Rewrite this part with convolutions, linear layers and norms as torch modules, and with sums, "
    "products, concatenation, splitting, pooling, activations and flatten"
)
OR_WHOLE = ". Or let what has no rule run as it is: name it, or auto, in whole"
RESHAPE_ADVICE = "Use torch.flatten(x, 1), or sizes of the input such as x.view(x.size(0), -1)"
INDEX_ADVICE = "Index spatial dimensions by slices or numbers, and channels by slices"
ARITHMETIC = (
    *(operator.add, operator.sub, operator.mul, operator.floordiv, operator.truediv),
    *(operator.mod, operator.neg, torch.sym_max, torch.sym_min, torch.sym_int),
)
COMPARISONS = (operator.eq, operator.ne, operator.lt, operator.le, operator.gt, operator.ge)
AXIS = "axis"  # in a node's meta: which dimension has the channels
PIECES = "pieces"  # in a node's meta: the shapes of several tensors
VALUE = "value"  # in a node's meta: the number that it is for the example
_WHOLE = (slice(None), slice(0, None), slice(None, None, 1), slice(0, None, 1))


class TracingError(ValueError):
    """A network that cannot be made slimmable: names the node, the reason and what would help."""

    def __init__(self, node: str, reason: str, advice: str) -> None:
        super().__init__(f"cannot make the network slimmable at node '{node}': {reason}. {advice}")
        self.node, self.reason = node, reason


def refuse(
    node: fx.Node, reason: str, advice: str = _GENERAL_ADVICE, *, more: str = OR_WHOLE
) -> NoReturn:
    """Raise the `TracingError` of this node."""
    names = [str(node.target)] if node.op == "call_module" else [node.name, owner(node)]
    raise TracingError(" in ".join(filter(None, names)), reason, f"{advice}{more}")


def owner(node: fx.Node) -> str:
    """Return the path of the module whose own step this is; "" is the network."""
    paths = [str(path) for path, _ in node.meta.get("nn_module_stack", {}).values()]
    return paths[-1] if paths else ""


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """Return an argument of the node's call, whether it is given by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def source_of(node: fx.Node) -> Any:
    """Return what the node acts on: its first argument, by position or by name."""
    if node.op == "call_module" and not node.args:
        return next(iter(node.kwargs.values()), None)
    return argument(node, 0, "input")


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """Return the shape of the node's output (batch first); empty if it is not one tensor."""
    return node.meta.get("shape", ())


def axis_of(node: fx.Node) -> int:
    """Return which dimension of the node's output has the channels."""
    return node.meta.get(AXIS, 1)


def positions_of(node: fx.Node) -> int:
    """Return height times width of the node's output; 1 for a feature vector."""
    return math.prod(positions_in(shape_of(node), axis_of(node)))


def positions_in(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Return the sizes of a shape but for those of the batch and of the channels."""
    return shape[1:axis] + shape[axis + 1 :]


def measured_by(size: Any) -> set[int]:
    """Return from which dimensions of tensors sizes are computed; none for numbers.

    The batch is 0 and the channels are 1, wherever they lie. What is not understood counts as both.
    """
    if isinstance(size, (tuple, list)):
        return set().union(*map(measured_by, size))
    if not isinstance(size, fx.Node):
        return set()
    if size.target in (*ARITHMETIC, *COMPARISONS):
        return measured_by(size.args)
    tensor, dimensions = _measured(size)
    named = _named_dimensions(tensor) if dimensions else []
    return {named[each] for each in dimensions} if named else {0, 1}


def _measured(sizes: Any) -> tuple[Any, Sequence[int]]:
    """Return of which tensor and dimensions the sizes are, if they are those of one; else none."""
    if not isinstance(sizes, fx.Node):
        return None, ()
    if sizes.target is operator.getitem:
        tensor, dimensions = _measured(sizes.args[0])
        index = sizes.args[1]
        numbers = not any(isinstance(bound, fx.Node) for bound in _bounds(index))
        if not (dimensions and numbers):
            return None, ()
        return tensor, dimensions[index] if isinstance(index, slice) else (dimensions[index],)  # type: ignore[index]
    if sizes.target != "size" and (sizes.target, sizes.args[1:]) != (getattr, ("shape",)):
        return None, ()
    tensor, dimension = source_of(sizes), argument(sizes, 1, "dim")
    dimensions = range(len(shape_of(tensor)))
    if sizes.target is getattr or dimension is None:
        return tensor, dimensions
    return (tensor, (dimensions[dimension],)) if isinstance(dimension, int) else (None, ())


def _named_dimensions(node: fx.Node) -> list[int]:
    """Return for each dimension of a node's output what it measures: 0 the batch, 1 channels.

    Others have numbers from 2 on. None are known of what has no channels, such as a parameter.
    """
    if AXIS not in node.meta:
        return []
    others = iter(range(2, len(shape_of(node)) + 2))
    known = {0: 0, node.meta[AXIS]: 1}
    return [known[d] if d in known else next(others) for d in range(len(shape_of(node)))]


def written_sizes(node: fx.Node, name: str) -> list[Any]:
    """Return the sizes that a reshape or expansion asks for: numbers, and nodes that compute them.

    They are given one by one, as a tuple, or by the shape of a tensor.
    """
    sizes = node.args[1:] or (node.kwargs.get(name),)
    return _written(node, sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes)


def _written(node: fx.Node, sizes: Any) -> list[Any]:
    if isinstance(sizes, (tuple, list)):
        return list(sizes)
    tensor, dimensions = _measured(sizes)
    if dimensions:
        with node.graph.inserting_before(node):
            return [node.graph.call_method("size", (tensor, each)) for each in dimensions]
    if isinstance(sizes, fx.Node) and sizes.target is operator.add:
        return _written(node, sizes.args[0]) + _written(node, sizes.args[1])
    return refuse(node, "its sizes are not written out", RESHAPE_ADVICE)


def _bounds(part: Any) -> tuple[Any, ...]:
    return (part.start, part.stop, part.step) if isinstance(part, slice) else (part,)


def rewrite(node: fx.Node, source: fx.Node, sizes: Sequence[Any]) -> None:
    """Let a reshape, expansion or squeeze of the source ask for other sizes or dimensions."""
    node.args, node.kwargs = (source, tuple(sizes)), {}


def block_of(node: fx.Node, axis: int) -> tuple[range, range]:
    """Return which dimensions of a reshape's input the channels are among, and which get these.

    They are as few as can be that hold as many values.
    """
    before, after = shape_of(source_of(node)), shape_of(node)
    if len(after) < 2:
        refuse(node, f"a reshape to {after}", RESHAPE_ADVICE)
    first = stop = other = end = 0
    while stop <= axis:
        first, stop, other, end = stop, stop + 1, end, end + 1
        while (held := math.prod(before[first:stop])) != (got := math.prod(after[other:end])):
            stop, end = stop + (held < got), end + (got < held)
        if first == 0 and (stop, end) != (1, 1):
            refuse(node, "a reshape that does not keep the batch as it is", RESHAPE_ADVICE)
    taken = range(other, min(end, len(after)))
    if not taken:
        refuse(node, "a reshape that takes away the channels' dimension", RESHAPE_ADVICE)
    return range(first, stop), taken


def reshaped_sizes(
    node: fx.Node, sizes: list[Any], blocks: tuple[range, range], axis: int
) -> list[Any]:
    """Return the sizes of a reshape so that they hold for any batch and any number of channels.

    Those are put, with what else `block_of` returns as `blocks`, at `axis`.
    """
    source, after, (held, taken) = source_of(node), shape_of(node), blocks
    if len(sizes) != len(after) or (sizes[0] != -1 and measured_by(sizes[0]) != {0}):
        refuse(node, "a reshape that does not keep the batch as it is", RESHAPE_ADVICE)
    own = {1} if len(held) == 1 else {*range(1, len(shape_of(source)))}
    if measured_by(sizes[axis]) - own:
        refuse(node, "a reshape that mixes channels with positions", RESHAPE_ADVICE)
    others = [at for at in range(1, len(after)) if at not in taken]
    if any(measured_by(sizes[at]) & {0, 1} for at in others):
        refuse(node, "a reshape whose positions depend on batch or channels", RESHAPE_ADVICE)
    found = [after[at] if at in taken else size for at, size in enumerate(sizes)]
    with node.graph.inserting_before(node):
        found[0], found[axis] = node.graph.call_method("size", (source, 0)), -1
        if -1 in [sizes[at] for at in others]:
            if len(held) > 1:
                refuse(node, "a reshape whose number of positions is left open", RESHAPE_ADVICE)
            found[axis] = node.graph.call_method("size", (source, held.start))
            if len(taken) > 1:
                parts = math.prod(after[at] for at in taken if at != axis)
                found[axis] = node.graph.call_function(operator.floordiv, (found[axis], parts))
    return found


def expanded_sizes(node: fx.Node, source: fx.Node, sizes: list[Any]) -> list[Any]:
    """Return the sizes of an expansion over positions so that they hold for any batch and width."""
    before, after = shape_of(source), shape_of(node)
    advice = "Expand height and width alone, as in gate.expand_as(x) or gate.expand(-1, -1, h, w)"
    if len(before) != len(after) or len(sizes) != len(after) or before[:2] != after[:2]:
        refuse(node, f"an expansion from {before} to {after}", advice)
    batch, channels, *positions = sizes
    kept = batch == -1 or measured_by(batch) == {0}
    kept &= channels in (-1, before[1]) or measured_by(channels) == {1}
    if not kept or any(measured_by(size) & {0, 1} for size in positions):
        refuse(node, "an expansion that depends on the batch or on the channels", advice)
    return [-1, -1, *positions]


def spatial_dimensions(node: fx.Node, dimensions: Any, rank: int, axis: int = 1) -> tuple[int, ...]:
    """Return dimensions as numbers from 1 on.

    Refuses others than those of `rank` that are neither the batch nor, at `axis`, the channels.
    """
    listed = dimensions if isinstance(dimensions, (tuple, list)) else (dimensions,)
    spatial = [isinstance(each, int) and each % rank not in (0, axis) for each in listed]
    if not spatial or not all(spatial):
        refuse(node, "it must keep the batch and channel dimensions")
    return tuple(dimension % rank for dimension in listed)


def index_parts(node: fx.Node, index: Any, rank: int, axis: int) -> list[Any]:
    """Return an index in parts: None for a new dimension, one part for each of the others.

    Refuses one that does more than pick positions, and a run of the channels at `axis`.
    """
    parts = list(index) if isinstance(index, tuple) else [index]
    named = [part for part in parts if part is not None and part is not Ellipsis]
    place = len(parts)
    if Ellipsis in [part for part in parts if not isinstance(part, fx.Node)]:
        place = next(i for i, part in enumerate(parts) if part is Ellipsis)
    parts[place : place + 1] = [slice(None)] * (rank - len(named))
    dimensions = [at for at, part in enumerate(parts) if part is not None]
    if not all(isinstance(parts[dimensions[at]], slice) for at in (0, axis)):
        refuse(node, f"indexing with {index}", INDEX_ADVICE)
    if parts[0] not in _WHOLE:
        refuse(node, "indexing takes part of the batch, or puts it elsewhere", INDEX_ADVICE)
    for dimension, at in enumerate(dimensions):
        bounds = _bounds(parts[at])
        numbers = all(bound is None or type(bound) in (int, fx.Node) for bound in bounds)
        foreign = set() if dimension == axis else {0, 1}
        if not numbers or any(measured_by(bound) & foreign for bound in bounds):
            refuse(node, f"indexing with {index}", INDEX_ADVICE)
    return parts


def known_slice(node: fx.Node, part: slice) -> slice:
    """Return a slice of channels at full width; refuse one that depends on more than these."""
    bounds = []
    for bound in _bounds(part):
        if isinstance(bound, fx.Node):
            if VALUE not in bound.meta or measured_by(bound) - {1}:
                refuse(node, "indexing takes channels by the size of something else", INDEX_ADVICE)
            bound = bound.meta[VALUE]
        bounds.append(bound)
    return slice(*bounds)
