"""What tracing finds of a network: its channel groups, its layers and what they hold."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from pareco.widths import ChannelGroup

Kind = Literal["convolution", "depthwise", "linear", "norm", "pad"]


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
    of weights per input and output channel, `vectors` the number of parameters per output channel
    alone (bias 1, affine batch norm 2), `repeated` whether an earlier site calls the same module.
    """

    name: str
    kind: Kind
    inputs: ChannelRef
    outputs: ChannelRef
    positions: int = 1
    kernel: int = 1
    vectors: int = 0
    repeated: bool = False


@dataclass(frozen=True, kw_only=True)
class Layout:
    """What tracing finds: the free groups, the layers, and the tensors alive at each step.

    `live[t]` lists (positions, channels) of every tensor held while step `t` runs, with
    elementwise operations and batch norm done in place where their input is not needed later.
    """

    groups: tuple[ChannelGroup, ...]
    sites: tuple[Site, ...]
    live: tuple[tuple[tuple[int, ChannelRef], ...], ...] = field(default=())
