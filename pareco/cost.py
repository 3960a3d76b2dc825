"""What a sub-network costs: multiply-accumulates, parameters and activation memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from pareco.config import Cost
from pareco.widths import ChannelGroup, Widths, WidthSpace

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
class Trace:
    """What tracing finds: the free groups, the layers, and the tensors alive at each step.

    `live[t]` lists (positions, channels) of every tensor held while step `t` runs, with
    elementwise operations and batch norm done in place where their input is not needed later.
    """

    groups: tuple[ChannelGroup, ...]
    sites: tuple[Site, ...]
    live: tuple[tuple[tuple[int, ChannelRef], ...], ...] = field(default=())


Factors = tuple[int, ChannelRef | None, ChannelRef | None]


class CostModel:
    """The exact costs of any widths of a network, from the trace that made it slimmable.

    Every cost takes one point or `n` of them and returns a number for each:

    - `Widths`, a sequence of `n` Widths, or an integer tensor `n x groups`: channel counts; the
      cost is exact (int64);
    - a floating tensor `n x d` of multipliers in [alpha_min, 1]: the relaxed cost (double) at
      multiplier times maximum channels, without rounding; gradients flow.

    Less is better. All costs are for one image of the traced size.
    """

    def __init__(self, space: WidthSpace, layout: Trace) -> None:
        """Collect the terms of each cost from the layers of the network."""
        self._space = space
        self._macs = _Bilinear(_mac_terms(layout.sites), len(space.groups))
        self._params = _Bilinear(_parameter_terms(layout.sites), len(space.groups))
        self._activations = _Bilinear(_activation_terms(layout.sites), len(space.groups))
        self._peak = _held(layout, len(space.groups))

    def of(self, cost: Cost, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the cost of this name, `n`."""
        return getattr(self, cost)(widths)

    def macs(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the multiply-accumulates of convolutions and linear layers, `n`."""
        return self._macs(self._channels(widths))

    def params(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the number of weights of convolutions, linear layers and batch norm, `n`."""
        return self._params(self._channels(widths))

    def activations(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the number of elements that convolutions and linear layers put out, `n`.

        The sum over layers (Radosavovic et al., arXiv 2003.13678, section 3; timm's `macts`).
        """
        return self._activations(self._channels(widths))

    def peak_activations(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the largest number of elements held at once in inference, `n`.

        Layers run in the order of the network. Batch norm, activations, sums and products work in
        place where an operand is not needed later, as in inference engines; a convolution holds
        its input and its output.
        """
        channels = self._channels(widths)
        held = _with_one(channels.double()) @ self._peak.to(channels.device, torch.double).T
        return held.amax(-1).to(channels.dtype)

    def _channels(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return channel counts `(n x) groups`: int64 if exact, double if relaxed."""
        counts = widths if isinstance(widths, Tensor) else torch.tensor(widths)
        if not counts.is_floating_point():
            if counts.shape[-1] != len(self._space.groups):
                raise ValueError(
                    f"expected {len(self._space.groups)} widths, got {counts.shape[-1]}"
                )
            return counts.to(torch.int64)
        if counts.shape[-1] != self._space.dimensions:
            raise ValueError(
                f"expected {self._space.dimensions} multipliers, got {counts.shape[-1]}"
            )
        index = torch.tensor(self._space.multiplier_of_group, device=counts.device)
        maxima = torch.tensor(self._space.maxima, dtype=torch.double, device=counts.device)
        channels = list((counts.double()[..., index] * maxima).unbind(-1))
        for position, group in enumerate(self._space.groups):
            for other in group.at_least:
                channels[position] = torch.maximum(channels[position], channels[other])
        return torch.stack(channels, -1)


class _Bilinear:
    """A sum of terms coefficient x count x count, evaluated for many widths at once."""

    def __init__(self, terms: Iterable[Factors], groups: int) -> None:
        rows = [_row(term, groups) for term in terms]
        self.coefficients = torch.tensor([row[0] for row in rows], dtype=torch.int64)
        self.left = torch.tensor([row[1] for row in rows])
        self.right = torch.tensor([row[2] for row in rows])

    def __call__(self, channels: Tensor) -> Tensor:
        extended = _with_one(channels)
        left, right = (index.to(channels.device) for index in (self.left, self.right))
        products = extended[..., left] * extended[..., right]
        return (products * self.coefficients.to(channels)).sum(-1)


def _with_one(channels: Tensor) -> Tensor:
    """Return the counts with a last column of ones, which stands for constants."""
    return torch.cat([channels, torch.ones_like(channels[..., :1])], -1)


def _row(term: Factors, groups: int) -> tuple[int, int, int]:
    coefficient, *references = term
    columns = []
    for reference in references:
        if reference is None or reference.group is None:
            coefficient *= 1 if reference is None else reference.size
            columns.append(groups)
        else:
            coefficient *= reference.factor
            columns.append(reference.group)
    return coefficient, columns[0], columns[1]


def _mac_terms(sites: Iterable[Site]) -> Iterable[Factors]:
    for site in sites:
        if site.kind in ("convolution", "linear"):
            yield site.positions * site.kernel, site.inputs, site.outputs
        elif site.kind == "depthwise":
            yield site.positions * site.kernel, None, site.outputs


def _parameter_terms(sites: Iterable[Site]) -> Iterable[Factors]:
    for site in sites:
        if site.repeated or site.kind == "pad":
            continue
        if site.kind != "norm":
            yield site.kernel, None if site.kind == "depthwise" else site.inputs, site.outputs
        yield site.vectors, None, site.outputs


def _activation_terms(sites: Iterable[Site]) -> Iterable[Factors]:
    for site in sites:
        if site.kind in ("convolution", "depthwise", "linear"):
            yield site.positions, None, site.outputs


def _held(layout: Trace, groups: int) -> Tensor:
    """Return `steps x (groups + 1)`: how much each channel count adds to what is held."""
    held = torch.zeros(len(layout.live), groups + 1, dtype=torch.int64)
    for step, tensors in enumerate(layout.live):
        for term in ((positions, None, channels) for positions, channels in tensors):
            coefficient, _, column = _row(term, groups)
            held[step, column] += coefficient
    return held
