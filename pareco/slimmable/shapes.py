"""How channels pass through operations that move, join or take away dimensions."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from pareco.slimmable.channels import Tag, Variable, cut, keep_blocks, unify
from pareco.slimmable.nodes import (
    AXIS,
    INDEX_ADVICE,
    PIECES,
    RESHAPE_ADVICE,
    VALUE,
    argument,
    block_of,
    expanded_sizes,
    index_parts,
    known_slice,
    measured_by,
    positions_in,
    refuse,
    reshaped_sizes,
    rewrite,
    shape_of,
    source_of,
    spatial_dimensions,
    written_sizes,
)
from pareco.slimmable.operations import PIXEL_SHUFFLES, REDUCTIONS, SPLITS, UNBINDS

_FIRST = "its channels must be dimension 1, and they are dimension {}"
_FIRST_ADVICE = "Permute the features back to n x channels x height x width before it"
MEASURED = "sizes of positions depend on the batch or on the channels"
MEASURED_ADVICE = "Give numbers, or compute them from heights and widths"
_WHOLE_ADVICE = (
    "Wrap it in a module that does; recurrent layers are refused there too, as nothing counts what "
    "they take (docs/rules.md)"
)
_KEPT = "it must keep the batch and channel dimensions"
_KEPT_ADVICE = "Give it keepdim=True, so that one feature stays in their place"


def tie(node: fx.Node, first: Tag, second: Tag, why: str = "") -> None:
    """Let the channels of two tensors, which the node needs alike, be as many; or refuse it."""
    sizes = first.features, second.features
    if sizes[0] != sizes[1]:
        refuse(node, f"{sizes[0]} and {sizes[1]} channels cannot be tied{why}")
    if first.axis != second.axis:
        refuse(node, f"features that must agree are laid out differently{why}")
    unify(first.segments, second.segments)


class Shapes:
    """Assigns a `Tag` to every tensor, and passes it on where dimensions change.

    `views` has the nodes that need no memory of their own, `pieces` the tags of each piece that a
    node splits its input into. `splits` has the nodes that split channels: into how many at full
    width, and which piece alone the node takes, if it is not all. Sizes that hold for the example
    input alone are rewritten in the graph.
    """

    def __init__(self) -> None:
        self.tags: dict[fx.Node, Tag] = {}
        self.views: set[fx.Node] = set()
        self.pieces: dict[fx.Node, list[Tag]] = {}
        self.splits: dict[fx.Node, tuple[list[int], int | None]] = {}
        self.whole_calls: list[fx.Node] = []
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

    def keep_whole(self, node: fx.Node) -> None:
        """Tag the node of a module that runs as it is: all channels stay, before and behind it."""
        features = [each for each in node.all_input_nodes if each in self.tags]
        if not features or not node.meta.get("shape"):
            reason = "a module that runs whole must take features and return one tensor"
            refuse(node, reason, _WHOLE_ADVICE, more="")
        for each in node.all_input_nodes:
            if each not in self.tags and type(each.meta.get(VALUE)) is not int:
                reason = "a module that runs whole may take features and numbers alone"
                refuse(node, reason, _WHOLE_ADVICE, more="")
            if each in self.tags:
                self.tags[each].fix()
        shape, first = shape_of(node), features[0]
        alike = len(shape) == len(shape_of(first))
        if not alike and len(shape) != 2:
            reason = "a module that runs whole must keep the layout, or return n x features"
            refuse(node, reason, _WHOLE_ADVICE, more="")
        axis = self.tags[first].axis if alike else 1
        self.whole_calls.append(node)
        channels = Variable(shape[axis], math.prod(positions_in(shape, axis)), fixed=True)
        self._set(node, Tag.of(channels, axis=axis))

    def _permute(self, node: fx.Node) -> None:
        listed = node.args[1:] or (argument(node, 1, "dims"),)
        self._move(node, listed[0] if isinstance(listed[0], (tuple, list)) else listed)

    def _transpose(self, node: fx.Node) -> None:
        order = list(range(len(shape_of(node))))
        first, second = (
            argument(node, 1 + at, f"dim{at}", node.kwargs.get(f"axis{at}")) for at in (0, 1)
        )
        if not (isinstance(first, int) and isinstance(second, int)):
            refuse(node, "it transposes dimensions that are no numbers", "Name them by numbers")
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
            one = Tag.of(Variable(1, fixed=True), axis=tag.axis, pooled=tag.pooled)
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
        if not isinstance(start, int) or start % len(shape_of(source_of(node))) == 0:
            refuse(node, f"flatten from {start} to {end}", "Flatten from dimension 1 to the last")
        self._set(node, self._regrouped(node), view=True)

    def _reshape(self, node: fx.Node) -> None:
        tag, source = self.input_of(node), source_of(node)
        sizes = written_sizes(node, "size" if node.target == "view" else "shape")
        found = self._regrouped(node)
        rewrite(node, source, reshaped_sizes(node, sizes, block_of(node, tag.axis), found.axis))
        self._set(node, found, view=True)

    def _regrouped(self, node: fx.Node) -> Tag:
        """Return the tag of what has the features in the same order, in other dimensions.

        Of several that take the place of the channels, these are the first if those behind it are
        what each has side by side. Else they are the largest: those before it repeat channels that
        must be alike, and those behind it are blocks of them.
        """
        tag, before, after = self.input_of(node), shape_of(source_of(node)), shape_of(node)
        held, taken = block_of(node, tag.axis)
        beside = math.prod(before[tag.axis + 1 : held.stop])
        repeats = math.prod(before[held.start : tag.axis])
        tag = tag.scaled(beside)
        tag = replace(tag, segments=repeats * tag.segments)
        axis = self._place(tag, after, taken, unflattened=len(before) == 2 or beside > 1)
        if axis > taken.start and beside > 1:
            refuse(node, "a reshape that mixes channels with positions", RESHAPE_ADVICE)
        copies = math.prod(after[taken.start : axis])
        width = math.prod(after[axis + 1 : taken.stop])
        first, *others = cut(tag.segments, [tag.features // copies] * copies)
        for other in others:
            unify(first, other)
        keep_blocks(first, width)
        return replace(replace(tag, segments=first).scaled(1, width), axis=axis)

    @staticmethod
    def _place(tag: Tag, after: tuple[int, ...], taken: range, *, unflattened: bool) -> int:
        """Return which of several dimensions get the channels, which had positions beside them."""
        width = math.prod(after[taken.start + 1 : taken.stop])
        free = [each.factor for each in tag.leaves if not each.variable.fixed]
        if unflattened and free and not any(factor % width for factor in free):
            return taken.start
        return max(taken, key=lambda each: after[each])

    def _pixel_shuffle(self, node: fx.Node) -> None:
        together = PIXEL_SHUFFLES[node.target]  # type: ignore[index]
        name = "upscale_factor" if together else "downscale_factor"
        self._shuffle_pixels(node, argument(node, 1, name), together=together)

    def _shuffling_module(self, node: fx.Node, module: nn.PixelShuffle | nn.PixelUnshuffle) -> None:
        if isinstance(module, nn.PixelShuffle):
            self._shuffle_pixels(node, module.upscale_factor, together=True)
        else:
            self._shuffle_pixels(node, module.downscale_factor, together=False)

    def _shuffle_pixels(self, node: fx.Node, factor: Any, *, together: bool) -> None:
        """Tag what has `factor` times the height and width, of blocks of channels; or the reverse.

        (Shi et al., arXiv 1609.05158.) A block of channels stays or goes as one.
        """
        tag = self._channels_first(node)
        if type(factor) is not int or len(shape_of(node)) != 4:
            refuse(node, "it shuffles positions by what is no number", "Give it a number")
        if together:
            keep_blocks(tag.segments, factor**2)
        self._set(node, tag.scaled(1, factor**2) if together else tag.scaled(factor**2))

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
        source, index = source_of(node), node.args[1]
        if source in self.pieces:
            if not isinstance(index, int):
                refuse(node, f"pieces of a tensor are indexed with {index}", "Take them by numbers")
            return self._set(node, self.pieces[source][index], view=True)
        tag, shape = self.input_of(node), shape_of(source)
        parts = index_parts(node, index, len(shape), tag.axis)
        place = axis = 0
        for at, part in enumerate(parts):
            if place == tag.axis and part is not None:
                axis = at - sum(isinstance(each, (int, fx.Node)) for each in parts[:at])
                tag = self._taken(node, tag, parts, at)
                break
            place += part is not None
        return self._set(node, replace(tag, axis=axis), view=True)

    def _taken(self, node: fx.Node, tag: Tag, parts: list[Any], at: int) -> Tag:
        """Return the tag of what the slice at a place of an index takes of the channels."""
        chosen = range(tag.features)[known_slice(node, parts[at])]
        if len(chosen) == tag.features and chosen.step == 1:
            parts[at] = slice(None)
            node.args = (source_of(node), tuple(parts))
            return tag
        if chosen.step != 1 or not chosen:
            refuse(node, "indexing takes channels that are no run", INDEX_ADVICE)
        sizes = [chosen.start, len(chosen), tag.features - chosen.stop]
        piece = int(chosen.start > 0)
        pieces = cut(tag.segments, sizes)
        self.splits[node] = [size for size in sizes if size], piece
        rest = [slice(None) if place == at else part for place, part in enumerate(parts)]
        node.args = (source_of(node), tuple(rest))
        return replace(tag, segments=pieces[1])

    def _split(self, node: fx.Node) -> None:
        """Tag the pieces of a tensor, which are as many as at full width."""
        tag, shapes = self.input_of(node), node.meta[PIECES]
        rank = len(shape_of(source_of(node)))
        dimension = argument(node, 2 if node.target in SPLITS else 1, "dim", 0)
        axis = dimension % rank if isinstance(dimension, int) else 0
        if axis == 0:
            refuse(node, "it splits the batch, or no known dimension", "Name the dimension")
        tags = [tag] * len(shapes)
        if node.target in UNBINDS:
            if axis == tag.axis:
                refuse(node, "it takes the channels one by one", INDEX_ADVICE)
            tags = [replace(tag, axis=tag.axis - (axis < tag.axis))] * len(shapes)
        elif axis == tag.axis:
            sizes = [shape[axis] for shape in shapes]
            tags = [replace(tag, segments=each) for each in cut(tag.segments, sizes)]
            self.splits[node] = sizes, None
        elif measured_by(node.all_input_nodes[1:]) & {0, 1}:
            refuse(node, MEASURED, MEASURED_ADVICE)
        self.pieces[node] = tags
        self._set(node, tag, view=True)

    def _narrow(self, node: fx.Node) -> None:
        """Take a narrowing for the index that it is."""
        source = source_of(node)
        names = enumerate(("dim", "start", "length"), start=1)
        dimension, start, length = (argument(node, at, name) for at, name in names)
        rank = len(shape_of(source))
        if not all(type(each) is int for each in (dimension, start, length)):
            refuse(node, "it narrows by what is no number", INDEX_ADVICE)
        parts = [slice(None)] * rank
        start %= max(shape_of(source)[dimension], 1)
        parts[dimension % rank] = slice(start, start + length)
        node.op, node.target, node.args, node.kwargs = (
            "call_function",
            operator.getitem,
            (source, tuple(parts)),
            {},
        )
        self._getitem(node)

    def _join(self, node: fx.Node) -> None:
        """Tag tensors one behind the other, along the channels or along another dimension."""
        listed = argument(node, 0, "tensors")
        whole = isinstance(listed, (tuple, list)) and all(each in self.tags for each in listed)
        if not whole or any(each in self.pieces for each in listed):
            refuse(node, "it joins what is no traced tensor", "Join features alone")
        first, *others = (self.tags[each] for each in listed)
        dimension = argument(node, 1, "dim", node.kwargs.get("axis", 0))
        if not isinstance(dimension, int) or dimension % len(shape_of(node)) == 0:
            refuse(node, "it joins batches, or along no known dimension", "Name the dimension")
        dimension %= len(shape_of(node))
        if any(other.axis != first.axis for other in others):
            refuse(node, "features that must agree are laid out differently")
        pooled = first.pooled and all(other.pooled for other in others)
        if dimension == first.axis and node.target is not torch.stack:
            segments = sum((other.segments for other in others), first.segments)
            return self._set(node, replace(first, segments=segments, pooled=pooled))
        for other in others:
            tie(node, first, other)
        axis = first.axis + (node.target is torch.stack and dimension <= first.axis)
        return self._set(node, replace(first, axis=axis, pooled=pooled))
