"""How channels pass through operations that move, join or take away dimensions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from torch import fx

from pareco.slimmable.channels import Tag, Variable
from pareco.slimmable.nodes import (
    AXIS,
    argument,
    check_index,
    expanded_sizes,
    positions_of,
    refuse,
    reshaped_sizes,
    rewrite,
    shape_of,
    source_of,
    spatial_dimensions,
    written_sizes,
)
from pareco.slimmable.operations import REDUCTIONS

_FIRST = "its channels must be dimension 1, and they are dimension {}"
_FIRST_ADVICE = "Permute the features back to n x channels x height x width before it"
_KEPT = "it must keep the batch and channel dimensions"
_KEPT_ADVICE = "Give it keepdim=True, so that one feature stays in their place"


def tie(node: fx.Node, first: Tag, second: Tag, why: str = "") -> None:
    """Let the channels of two tensors, which the node needs alike, be as many; or refuse it."""
    sizes = first.features, second.features
    if sizes[0] != sizes[1]:
        refuse(node, f"{sizes[0]} and {sizes[1]} channels cannot be tied{why}")
    whole = first.variable.unify(second.variable, first.factor, second.factor)
    if first.axis != second.axis or not whole:
        refuse(node, f"features that must agree are laid out differently{why}")


class Shapes:
    """Assigns a `Tag` to every tensor, and passes it on where dimensions change.

    `views` has the nodes that need no memory of their own. Sizes that hold for the example input
    alone are rewritten in the graph.
    """

    def __init__(self) -> None:
        self.tags: dict[fx.Node, Tag] = {}
        self.views: set[fx.Node] = set()
        self._averaged: dict[fx.Node, set[int]] = {}

    def input_of(self, node: fx.Node) -> Tag:
        """Return the tag of the node's first argument."""
        source = source_of(node)
        if not isinstance(source, fx.Node) or source not in self.tags:
            refuse(node, "its first argument is not a traced tensor")
        return self.tags[source]

    def _channels_first(self, node: fx.Node) -> Tag:
        """Return the tag of the node's first argument, whose channels must be dimension 1."""
        tag = self.input_of(node)
        if tag.axis != 1:
            refuse(node, _FIRST.format(tag.axis), _FIRST_ADVICE)
        return tag

    def _set(self, node: fx.Node, tag: Tag, *, view: bool = False) -> None:
        self.tags[node] = tag
        node.meta[AXIS] = tag.axis
        if view:
            self.views.add(node)

    def pass_through(self, node: fx.Node, *, view: bool) -> None:
        """Tag the node of a module that maps each channel, at dimension 1, by itself."""
        (source,) = node.all_input_nodes
        if source not in self.tags:
            refuse(node, "its argument is not a traced tensor")
        if self.tags[source].axis != 1:
            refuse(node, _FIRST.format(self.tags[source].axis), _FIRST_ADVICE)
        self._set(node, self.tags[source], view=view)

    def _permute(self, node: fx.Node) -> None:
        listed = node.args[1:] or (argument(node, 1, "dims"),)
        self._move(node, listed[0] if isinstance(listed[0], (tuple, list)) else listed)

    def _transpose(self, node: fx.Node) -> None:
        order = list(range(len(shape_of(node))))
        first, second = (argument(node, 1 + i, name) for i, name in enumerate(("dim0", "dim1")))
        order[first], order[second] = order[second], order[first]
        self._move(node, order)

    def _move(self, node: fx.Node, order: Sequence[Any]) -> None:
        """Tag what puts dimensions in this order."""
        tag, rank = self.input_of(node), len(shape_of(node))
        numbers = [each % rank for each in order if isinstance(each, int)]
        if sorted(numbers) != list(range(rank)) or numbers[0] != 0:
            refuse(node, f"dimensions in the order {tuple(order)}", "Keep the batch the first one")
        self._set(node, replace(tag, axis=numbers.index(tag.axis)), view=True)

    def _reduction(self, node: fx.Node) -> None:
        """Tag an average, sum, norm or extreme over positions; over channels with keepdim=True."""
        tag, source = self.input_of(node), source_of(node)
        before, after = shape_of(source), shape_of(node)
        dimensions = argument(node, REDUCTIONS[node.target], "dim", node.kwargs.get("axis"))
        listed = dimensions if isinstance(dimensions, (tuple, list)) else (dimensions,)
        over = {each % len(before) for each in listed if isinstance(each, int)}
        if tag.axis in over and 0 not in over and len(over) == len(listed):
            if len(after) != len(before):
                refuse(node, _KEPT, _KEPT_ADVICE)
            one = Tag(Variable(1, fixed=True), axis=tag.axis, pooled=tag.pooled)
            return self._set(node, one)
        averaged = set(spatial_dimensions(node, dimensions, len(before), tag.axis))
        axis = tag.axis
        if len(after) == len(before):  # as in x.mean(2, keepdim=True).mean(3, keepdim=True)
            averaged |= self._averaged.get(source, set())
            self._averaged[node] = averaged
        else:
            axis -= sum(each < axis for each in averaged)
        pooled = tag.pooled or len(averaged) == len(before) - 2
        return self._set(node, replace(tag, pooled=pooled, axis=axis))

    def _flatten_call(self, node: fx.Node) -> None:
        self._flatten(node, argument(node, 1, "start_dim", 0), argument(node, 2, "end_dim", -1))

    def _flatten(self, node: fx.Node, start: Any, end: Any) -> None:
        tag, before = self.input_of(node), shape_of(source_of(node))
        first, last = (dimension % len(before) for dimension in (start, end))
        beside = first == 1 == tag.axis and last == len(before) - 1  # positions beside channels
        if first == 0 or (first <= tag.axis <= last and first < last and not beside):
            refuse(node, f"flatten from {start} to {end}", "Flatten from dimension 1 to the last")
        if beside:
            factor = tag.factor * positions_of(source_of(node))
            return self._set(node, replace(tag, factor=factor), view=True)
        axis = tag.axis - (last - first if last < tag.axis else 0)
        return self._set(node, replace(tag, axis=axis), view=True)

    def _reshape(self, node: fx.Node) -> None:
        if self._moves_features(node):
            return
        tag = self._channels_first(node)
        channels = tag.variable.size
        sizes = written_sizes(node, "size" if node.target == "view" else "shape")
        source = source_of(node)
        rewrite(node, source, reshaped_sizes(node, source, sizes, channels))
        self._set(node, replace(tag, factor=shape_of(node)[1] // channels), view=True)

    def _moves_features(self, node: fx.Node) -> bool:
        """Return whether a reshape puts the features of one position at another dimension."""
        tag, source = self.input_of(node), source_of(node)
        after = shape_of(node)
        places = [at for at, size in enumerate(after) if at and size == tag.features > 1]
        one = positions_of(source) == 1 and math.prod(after[1:]) == tag.features
        if not one or len(places) != 1 or (tag.axis == 1 and places == [1]):
            return False
        with node.graph.inserting_before(node):
            sizes = [node.graph.call_method("size", (source, 0)), *[1] * (len(after) - 1)]
        sizes[places[0]] = -1
        rewrite(node, source, sizes)
        node.target = "reshape" if isinstance(node.target, str) else node.target
        self._set(node, replace(tag, axis=places[0]), view=True)
        return True

    def _expand(self, node: fx.Node) -> None:
        tag, source = self._channels_first(node), source_of(node)
        rewrite(node, source, expanded_sizes(node, source, written_sizes(node, "size")))
        self._set(node, tag, view=True)

    def _expand_as(self, node: fx.Node) -> None:
        tag, other = self.input_of(node), argument(node, 1, "other")
        if other not in self.tags or len(shape_of(other)) != len(shape_of(source_of(node))):
            refuse(node, "features that must agree are laid out differently")
        tie(node, tag, self.tags[other])
        self._set(node, tag, view=True)

    def _squeeze(self, node: fx.Node) -> None:
        tag, source = self.input_of(node), source_of(node)
        before = shape_of(source)
        asked = argument(node, 1, "dim")
        if asked is None:  # else a batch, or a width, of one would vanish too
            others = (d for d in range(1, len(before)) if d != tag.axis)
            asked = tuple(d for d in others if before[d] == 1)
            if len(shape_of(node)) != len(before) - len(asked):
                refuse(node, "it takes away the batch or channel dimension")
        taken: tuple[int, ...] = ()
        if asked != ():
            taken = spatial_dimensions(node, asked, len(before), tag.axis)
        rewrite(node, source, taken)
        gone = sum(each < tag.axis and before[each] == 1 for each in taken)
        self._set(node, replace(tag, axis=tag.axis - gone), view=True)

    def _unsqueeze(self, node: fx.Node) -> None:
        tag, rank = self.input_of(node), len(shape_of(node))
        place = argument(node, 1, "dim")
        if not isinstance(place, int) or place % rank == 0:
            refuse(node, _KEPT)
        axis = tag.axis + (place % rank <= tag.axis)
        self._set(node, replace(tag, axis=axis), view=True)

    def _getitem(self, node: fx.Node) -> None:
        tag = self._channels_first(node)
        check_index(node, node.args[1], len(shape_of(source_of(node))))
        self._set(node, tag, view=True)
