"""What a sub-network costs: multiply-accumulates, parameters, activation memory and latency."""

from __future__ import annotations

import copy
import itertools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor

from pareco.config import COSTS, Cost
from pareco.widths import ChannelGroup, Widths, WidthSpace

Kind = Literal[
    "convolution",
    "grouped",
    "linear",
    "filter",
    "product",
    "whole",
    "norm",
    "activation",
    "pad",
    "split",
    "tensor",
]


@dataclass(frozen=True)
class FeatureCount:
    """A number of features: `factor` times the width of a free group or, without one, times 1.

    `maximum` is that width at most.
    """

    group: int | None
    factor: int = 1
    maximum: int = 1

    @property
    def column(self) -> int:
        """The index of its group among all channel counts; -1 for a constant."""
        return -1 if self.group is None else self.group

    @property
    def full(self) -> int:
        """The number of features of the full network."""
        return self.factor * self.maximum

    def at(self, widths: tuple[int, ...]) -> int:
        """Return the number of features at these widths."""
        return self.factor if self.group is None else self.factor * widths[self.group]


Runs = tuple[tuple[int, int], ...]
"""Where features in use begin and end among all, in order."""


@dataclass(frozen=True)
class Features:
    """The features of a tensor: several parts in their order, of each of which the first are used.

    Concatenated tensors have several.
    """

    parts: tuple[FeatureCount, ...]

    @cached_property
    def full(self) -> int:
        """The number of features of the full network."""
        return sum(part.full for part in self.parts)

    def at(self, widths: tuple[int, ...]) -> int:
        """Return the number of features at these widths."""
        return sum([part.at(widths) for part in self.parts])

    def in_use(self, widths: tuple[int, ...]) -> int | Runs:
        """Return where the features at these widths lie; a number of them where those are first."""
        if len(self.parts) == 1:
            return self.parts[0].at(widths)
        runs = self.runs(widths)
        return runs[0][1] if len(runs) == 1 else runs

    def runs(self, widths: tuple[int, ...]) -> Runs:
        """Return where the features at these widths lie; no two runs touch."""
        found: list[tuple[int, int]] = []
        start = 0
        for part in self.parts:
            first, stop = start, start + part.at(widths)
            if found and found[-1][1] == start:
                first, _ = found.pop()
            found.append((first, stop))
            start += part.full
        return tuple(found)


@dataclass(frozen=True, kw_only=True)
class Site:
    """One call of a layer, or a product without one, whose cost or shape depends on the widths.

    `positions` is the number of output positions (height x width) per image, `kernel` the number
    of weights per input and output channel (if grouped: of all those of an output channel),
    `vectors` the number of parameters per output channel alone (bias 1, affine batch norm 2) that
    no earlier site has, `repeated` whether an earlier site has the same weight (it calls the same
    module, or a tied one) or it has none that grows with the width. `applied` is the number of
    positions that the kernel is applied at, where it is not that of outputs (transposed).
    """

    name: str
    kind: Kind
    inputs: Features
    outputs: Features
    positions: int
    kernel: int
    vectors: int
    repeated: bool
    applied: int | None = None


@dataclass(frozen=True, kw_only=True)
class Trace:
    """What tracing finds: the free groups, the layers, and the tensors alive at each step.

    `live[t]` lists the size of every tensor held while step `t` runs, with elementwise operations
    and batch norm done in place where their input is not needed later.
    `width_independent_parameters` counts those in no site. `whole` has the paths of modules that
    run as they are, `image_shape` is that of the one image that costs hold for.
    """

    groups: tuple[ChannelGroup, ...]
    sites: tuple[Site, ...]
    live: tuple[tuple[FeatureCount, ...], ...]
    width_independent_parameters: int = 0
    whole: tuple[str, ...] = ()
    image_shape: tuple[int, ...] = ()


_LEAST, _ROUNDING = 1e-9, 1e-6  # of a multiplier, and by what it may be above 1
Term = tuple[int, Features, Features]
ONE = Features((FeatureCount(None),))


class CostModel:
    """The exact costs of any widths of a network, from the trace that made it slimmable.

    Every cost takes one point or `n` of them and returns a number for each:

    - `Widths`, a sequence of `n` Widths, or an integer tensor `n x groups`: channel counts; the
      cost is exact (int64);
    - a floating tensor `n x d` of multipliers in [alpha_min, 1]: the relaxed cost (double) at
      multiplier times maximum channels, without rounding; gradients flow.

    Raises `ValueError` for channels or multipliers beyond what the network has, or of another
    number. Less is better. All costs are for one image of the traced size.
    """

    def __init__(self, space: WidthSpace, trace: Trace) -> None:
        self._space = space
        macs: list[Term] = []
        params: list[Term] = [(trace.width_independent_parameters, ONE, ONE)]
        activations: list[Term] = []
        for site in trace.sites:
            if site.kind in ("convolution", "grouped", "linear", "filter", "product", "whole"):
                # how many inputs each output is a weighted sum of, kernel aside
                wide = site.kind in ("convolution", "linear")
                summed = site.inputs if wide else ONE
                applied = site.positions if site.applied is None else site.applied
                macs.append((applied * site.kernel, summed, site.outputs))
                if site.kind != "product":
                    activations.append((site.positions, ONE, site.outputs))
                if not site.repeated:
                    params.append((site.kernel, summed, site.outputs))
            params.append((site.vectors, ONE, site.outputs))
        self._macs, self._params = _Bilinear(macs), _Bilinear(params)
        self._activations = _Bilinear(activations)
        self._peak = _held(trace)
        self._maxima = torch.tensor(space.maxima)
        self._milliseconds: Callable[[Tensor], Tensor] | None = None

    def with_latency(self, milliseconds: Callable[[Tensor], Tensor]) -> CostModel:
        """Return these costs and a latency: what `milliseconds` returns of counts `n x groups`."""
        costs = copy.copy(self)
        costs.__dict__.pop("full_costs", None)
        costs._milliseconds = milliseconds
        return costs

    @property
    def names(self) -> tuple[Cost, ...]:
        """The costs that are known: latency only where there is one."""
        return COSTS if self._milliseconds is None else (*COSTS, "latency")

    @cached_property
    def full_costs(self) -> dict[str, int]:
        """All costs of the full network, by name."""
        full = Widths(self._space.maxima)
        return {name: int(self.of(name, full)) for name in self.names}

    def of(self, cost: Cost, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the cost of this name, `n`; `ValueError` for one that there is not."""
        if cost not in get_args(Cost):
            raise ValueError(f"no cost is called {cost!r}; known: {', '.join(get_args(Cost))}")
        return getattr(self, cost)(widths)

    @staticmethod
    def monotone(cost: Cost) -> bool:
        """Return whether a cost never falls as a width rises: a latency may, and no other does."""
        return cost in COSTS

    def macs(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the multiply-accumulates of convolutions and linear layers, `n`."""
        return self._macs(self._columns(widths))

    def macs_at(self, widths: Widths) -> int:
        """Return the multiply-accumulates of one sub-network: fast enough to ask at every pass."""
        maxima = self._space.maxima
        if len(widths) != len(maxima) or any(map(operator.gt, widths, maxima)) or min(widths) < 1:
            self._columns(Widths(widths))  # says what is wrong
        return self._macs.at((*widths, 1))

    def params(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the number of parameters, tied ones once, `n`."""
        return self._params(self._columns(widths))

    def activations(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the number of elements that convolutions and linear layers put out, `n`.

        The sum over layers (Radosavovic et al., arXiv 2003.13678, section 3; timm's `macts`).
        """
        return self._activations(self._columns(widths))

    def peak_activations(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the largest number of elements held at once in inference, `n`.

        Layers run in the order of the network. Batch norm, activations, sums and products work in
        place where an operand is not needed later, as in inference engines, but for those in
        modules that run whole; a convolution holds its input and its output.
        """
        columns = self._columns(widths)
        held = columns.double() @ self._peak.to(columns.device, torch.double).T
        return held.amax(-1).to(columns.dtype)

    def latency(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the latency in nanoseconds, as a table foretells it, `n`.

        Of channel counts it is rounded to whole ones. Raises `ValueError` without a table.
        """
        if self._milliseconds is None:
            raise ValueError(
                "the cost latency needs a table: measure it by pareco latency and give it, "
                "--latency-table FILE"
            )
        columns = self._columns(widths)
        nanoseconds = 1e6 * self._milliseconds(columns[..., :-1])
        return nanoseconds if columns.is_floating_point() else nanoseconds.round().long()

    def _columns(self, widths: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return channel counts `(n x) groups` (exact: int64) and a last column of ones."""
        counts = widths if isinstance(widths, Tensor) else torch.tensor(widths)
        space, relaxed = self._space, counts.is_floating_point()
        expected = space.dimensions if relaxed else len(space.groups)
        given = counts.shape[-1] if counts.dim() else "one number"
        if given != expected:
            what = "multipliers" if relaxed else "widths"
            raise ValueError(f"expected {expected} {what}, got {given}")
        if not relaxed:
            counts = counts.to(torch.int64)
        self._check_within(counts)
        if relaxed:
            counts = self._relaxed(counts)
        return torch.cat([counts, torch.ones_like(counts[..., :1])], -1)

    def _check_within(self, counts: Tensor) -> None:
        """Raise `ValueError` for channels or multipliers that the network has not, or none."""
        counts = counts.detach()
        if relaxed := counts.is_floating_point():
            nearest = counts.clamp(_LEAST, 1 + _ROUNDING)
        else:
            nearest = torch.minimum(counts.clamp(min=1), self._maxima.to(counts.device))
        if torch.equal(nearest, counts):  # not so for what is no number
            return
        outside = nearest != counts
        place, value = int(outside.nonzero()[0, -1]), counts[outside][0].item()
        if relaxed:
            raise ValueError(f"a multiplier must be above 0 and at most 1, got {value:g}")
        group, channels = self._space.names[place], self._space.maxima[place]
        raise ValueError(f"{group} has 1 to {channels} channels, asked for the cost of {value}")

    def _relaxed(self, multipliers: Tensor) -> Tensor:
        """Return multiplier times maximum, `(n x) groups`, wide enough for zero-padding."""
        maxima = torch.tensor(self._space.maxima, dtype=torch.double, device=multipliers.device)
        index = list(self._space.multiplier_of_group)
        channels = list((multipliers.double()[..., index] * maxima).unbind(-1))
        for position, group in enumerate(self._space.groups):
            for other in group.at_least:
                channels[position] = torch.maximum(channels[position], channels[other])
        return torch.stack(channels, -1)


class _Bilinear:
    """A sum of terms coefficient x count x count, evaluated for many widths at once."""

    def __init__(self, terms: Sequence[Term]) -> None:
        rows = [
            (coefficient * a.factor * b.factor, a.column, b.column)
            for coefficient, left, right in terms
            for a, b in itertools.product(left.parts, right.parts)
        ]
        self.rows = rows
        self.coefficients, self.left, self.right = torch.tensor(rows).unbind(-1)

    def at(self, columns: tuple[int, ...]) -> int:
        """Return the sum for one row of columns, without a tensor."""
        return sum(c * columns[left] * columns[right] for c, left, right in self.rows)

    def __call__(self, columns: Tensor) -> Tensor:
        products = columns[..., self.left] * columns[..., self.right]
        return (products * self.coefficients.to(columns)).sum(-1)


def _held(trace: Trace) -> Tensor:
    """Return `steps x (groups + 1)`: how much each channel count adds to what is held."""
    held = torch.zeros(len(trace.live), len(trace.groups) + 1, dtype=torch.int64)
    for step, tensors in enumerate(trace.live):
        for tensor in tensors:
            held[step, tensor.column] += tensor.factor
    return held
