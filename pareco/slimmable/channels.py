"""The channels of tensors while a network is traced: unknown counts, some of which must agree.

Those of a tensor are a list of segments, in the order in which they lie: concatenation joins lists,
splitting cuts them, and what must agree is unified segment by segment. Where a boundary falls into
a segment, its variable is taken for several, everywhere; where it falls into what stays or goes as
one, that stays.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from pareco.cost import FeatureCount, Features


class Variable:
    """An unknown count of what stays or goes as one: a channel, or a block of several.

    `size` is the count at full width, `positions` the most that it is put out at (0 for vectors and
    globally pooled features), `parts` what it was found to consist of, if anything. Of one without
    parts, `group` is the index of its channel group (None: its channels are fixed) and `step` how
    many of the group's channels it counts as one, once the groups are numbered.
    """

    def __init__(self, size: int, positions: int = 0, *, fixed: bool = False) -> None:
        self.size = size
        self.positions = positions
        self.fixed = fixed
        self.parts: list[Segment] | None = None
        self.group: int | None = None
        self.step = 1

    def count_blocks(self, members: int) -> None:
        """Let so many of it, which divide its size, stay or go as one."""
        if members > 1:
            size = self.size // members
            self.parts = [Segment(Variable(size, self.positions, fixed=size == 1), members)]


@dataclass(frozen=True, eq=False)
class Segment:
    """Some channels of a tensor, of which the first are in use: `factor` for each of a variable.

    That is more than 1 for blocks, and where a flatten put positions beside channels.
    """

    variable: Variable
    factor: int = 1

    @property
    def features(self) -> int:
        """How many features there are at full width."""
        return self.variable.size * self.factor

    def divided(self, at: int) -> list[Segment]:
        """Return segments of which the first are `at` features, or fewer of them and a fixed one.

        What the cut goes through stays whole.
        """
        variable, sizes = self.variable, (at, self.features - at)
        if variable.fixed:
            return [fixed(size) for size in sizes]
        before, through = at // self.factor, int(at % self.factor > 0)
        counts = before, through, variable.size - before - through
        variable.parts = [
            Segment(Variable(count, variable.positions, fixed=place == 1))
            for place, count in enumerate(counts)
            if count
        ]
        return leaves([self])


def fixed(features: int) -> Segment:
    """Return so many features that stay."""
    return Segment(Variable(features, fixed=True))


def leaves(segments: Iterable[Segment]) -> list[Segment]:
    """Return the segments of variables that have no parts."""
    found: list[Segment] = []
    for segment in segments:
        parts = segment.variable.parts
        if parts is None:
            found.append(segment)
        else:
            found += leaves(Segment(x.variable, x.factor * segment.factor) for x in parts)
    return found


def cut(segments: Iterable[Segment], sizes: Sequence[int]) -> list[tuple[Segment, ...]]:
    """Return the segments of each of the pieces of so many features, which are all of them."""
    pieces, rest = [], leaves(segments)
    for size in sizes:
        piece: list[Segment] = []
        while size:
            while rest[0].features > size:
                rest = [*rest[0].divided(size), *leaves(rest[1:])]
            piece.append(rest[0])
            size -= rest[0].features
            rest = rest[1:]
        pieces.append(tuple(piece))
    return pieces


def unify(first: Iterable[Segment], second: Iterable[Segment]) -> None:
    """Let two lists of as many features have as many in use, at the same places."""
    left, right = leaves(first), leaves(second)
    while left:
        one, other = left[0], right[0]
        if one.features == other.features:
            _merge(one, other)
            left, right = left[1:], right[1:]
        else:
            longer = left if one.features > other.features else right
            longer[:1] = longer[0].divided(min(one.features, other.features))
        left, right = leaves(left), leaves(right)


def _merge(one: Segment, other: Segment) -> None:
    """Let two segments of variables without parts be one."""
    first, second, block = one.variable, other.variable, math.lcm(one.factor, other.factor)
    if first is second:
        return
    if first.fixed or second.fixed:
        first.fixed = second.fixed = True
        return
    size = one.features // block
    alone = size == 1 < max(first.size, second.size)
    common = Variable(size, max(first.positions, second.positions), fixed=alone)
    first.parts = [Segment(common, block // one.factor)]
    second.parts = [Segment(common, block // other.factor)]


def keep_blocks(segments: Iterable[Segment], width: int) -> None:
    """Let blocks of so many features stay or go as one; those across segments stay."""
    at, rest = 0, leaves(segments)
    while rest:
        head, missing = rest[0], -at % width
        size = missing or head.features // width * width
        if head.variable.fixed or 0 < head.features <= missing or not size:
            head.variable.fixed = True
        elif head.features > size:
            rest = [*head.divided(size), *rest[1:]]
            continue
        else:
            head.variable.count_blocks(math.lcm(width, head.factor) // head.factor)
        at += head.features
        rest = leaves(rest[1:])


@dataclass(frozen=True)
class Tag:
    """The channels of a tensor, at its dimension `axis`.

    `pooled` tells that the tensor has passed a pooling that is global at every image size.
    """

    segments: tuple[Segment, ...]
    pooled: bool = False
    axis: int = 1

    @classmethod
    def of(cls, variable: Variable, *, pooled: bool = False, axis: int = 1) -> Tag:
        """Return the tag of channels that are one variable."""
        return cls((Segment(variable),), pooled, axis)

    @property
    def leaves(self) -> list[Segment]:
        """The segments as they are known by now."""
        return leaves(self.segments)

    @property
    def variables(self) -> list[Variable]:
        """The variables that are not fixed, each once."""
        return list(dict.fromkeys(x.variable for x in self.leaves if not x.variable.fixed))

    @property
    def features(self) -> int:
        """How many features there are at full width."""
        return sum(segment.features for segment in self.segments)

    @property
    def single(self) -> bool:
        """Whether it is one feature, which may be combined with any number of them."""
        return self.features == 1

    def fix(self) -> None:
        """Let all channels stay."""
        for variable in self.variables:
            variable.fixed = True

    def scaled(self, times: int, by: int = 1) -> Tag:
        """Return `times` features for every `by`, which must be blocks that stay or go as one."""
        segments = []
        for stays, run in itertools.groupby(self.leaves, lambda each: each.variable.fixed):
            if stays:
                segments.append(fixed(sum(each.features for each in run) * times // by))
            else:
                segments += [Segment(each.variable, each.factor * times // by) for each in run]
        return replace(self, segments=tuple(segments))

    def count(self, positions: int = 1) -> Features:
        """Return the features at so many positions, once the channel groups are numbered."""
        parts = []
        for each in self.scaled(positions).leaves:
            variable = each.variable
            if variable.group is None:
                parts.append(FeatureCount(None, each.features))
            else:
                maximum = variable.size * variable.step
                factor = each.factor // variable.step
                parts.append(FeatureCount(variable.group, factor, maximum))
        return Features(tuple(parts))
