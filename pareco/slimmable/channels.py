"""The channels of tensors while a network is traced: unknown counts, some of which must agree."""

from __future__ import annotations

import math
from dataclasses import dataclass

from pareco.cost import FeatureCount


class Variable:
    """An unknown channel count, unified with others that must agree (union-find).

    `size` is the count at full width, `positions` the most that it is put out at (0 for vectors and
    globally pooled features), `producers` how many calls of convolutions and linear layers put it
    out, `step` what the count must be a multiple of, `group` the index of its channel group once
    these are numbered (None: its channels are fixed). It is the root's count `ratio` times.
    """

    def __init__(self, size: int, positions: int = 0, *, fixed: bool = False) -> None:
        self.size = size
        self.positions = positions
        self.fixed = fixed
        self.producers = 0
        self.step = 1
        self.group: int | None = None
        self._parent: Variable | None = None
        self._times = 1

    @property
    def root(self) -> Variable:
        """The variable that stands for all those unified with this one."""
        node = self
        while node._parent is not None:
            node = node._parent
        return node

    @property
    def ratio(self) -> int:
        """How many times the root's count this one is."""
        ratio, node = 1, self
        while node._parent is not None:
            ratio, node = ratio * node._times, node._parent
        return ratio

    def unify(self, other: Variable, factor: int = 1, others: int = 1) -> bool:
        """Let `factor` times this count be `others` times the other one, as at full width it is.

        Returns whether that can be: neither root's count need be a broken number of the other's.
        """
        first, second = self.root, other.root
        left, right = factor * self.ratio, others * other.ratio
        if first is second:
            return left == right
        if left % right:
            first, second, left, right = second, first, right, left
        if left % right:
            return False
        second._parent, second._times = first, left // right
        first.fixed |= second.fixed
        first.producers += second.producers
        first.positions = max(first.positions, second.positions)
        second.restrict(second.step)
        return True

    def restrict(self, step: int) -> None:
        """Keep the channels in whole blocks of so many, which are a part of all channels."""
        root, ratio = self.root, self.ratio
        root.step = math.lcm(root.step, math.lcm(step, ratio) // ratio)
        root.fixed |= root.step >= root.size


@dataclass(frozen=True)
class Tag:
    """The channels of a tensor, at its dimension `axis`: their variable, the features per channel.

    `factor` is more than 1 where a flatten put positions beside channels, or where a grouped
    convolution puts several features out for each channel. `pooled` tells that the tensor has
    passed a pooling that is global at every image size.
    """

    variable: Variable
    factor: int = 1
    pooled: bool = False
    axis: int = 1

    @property
    def features(self) -> int:
        """How many features there are at full width."""
        return self.variable.size * self.factor

    @property
    def single(self) -> bool:
        """Whether it is one feature, which may be combined with any number of them."""
        return self.features == 1

    def count(self, positions: int = 1) -> FeatureCount:
        """Return the features at so many positions, once the channel groups are numbered."""
        variable = self.variable
        channels = variable.size if variable.root.group is None else variable.ratio
        return FeatureCount(variable.root.group, positions * self.factor * channels)
