"""Channel counts as the tracer sees them: variables that are unified, and references to them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pareco.widths import ChannelGroup

Kind = Literal["convolution", "depthwise", "linear", "norm", "pad"]


class Variable:
    """An unknown channel count, unified with others that must agree (union-find).

    `size` is the count at full width; `producers` are the module names whose output has it.
    """

    def __init__(self, size: int, positions: int = 1, *, fixed: bool = False) -> None:
        """Start a variable of its own."""
        self.size = size
        self.positions = positions
        self.fixed = fixed
        self.producers: list[str] = []
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


@dataclass(frozen=True)
class ChannelRef:
    """A feature count: `factor` times the width of a free group, or, without one, a constant.

    `factor` is the number of positions per channel that a flatten has put into the features.
    """

    group: int | None
    size: int
    factor: int = 1

    def count(self, widths: tuple[int, ...]) -> int:
        """Return the number of features at these widths."""
        return self.size if self.group is None else self.factor * widths[self.group]


@dataclass(frozen=True, kw_only=True)
class Site:
    """One call of a layer whose cost or shape depends on the widths.

    `positions` is the number of output positions (height x width) per image, `kernel` the number
    of weights per input and output channel, `repeated` whether an earlier site calls the same
    module.
    """

    name: str
    kind: Kind
    inputs: ChannelRef
    outputs: ChannelRef
    positions: int = 1
    kernel: int = 1
    bias: bool = False
    repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What tracing finds: the free groups, the layers, and the tensors alive at each step.

    `live[t]` lists (positions, channels) of every tensor held while step `t` runs, with
    elementwise operations and batch norm done in place.
    """

    groups: tuple[ChannelGroup, ...]
    sites: tuple[Site, ...]
    live: tuple[tuple[tuple[int, ChannelRef], ...], ...] = field(default=())
