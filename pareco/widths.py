"""Widths of a slimmable network and the space of its width multipliers."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import get_args

import torch
from torch import Tensor

from pareco.config import Granularity

_BISECTION_TOLERANCE = 1e-9
_FLOOR_TOLERANCE = 1e-6  # so that the multiplier c / maximum decodes to c again


class Widths(tuple[int, ...]):
    """The channel count of every free channel group, in the order of the space's `names`.

    Immutable and hashable; equal counts are the same sub-network. Raises `TypeError` for a count
    that is not an integer and `ValueError` for one below 1.
    """

    __slots__ = ()

    def __new__(cls, counts: Iterable[int]) -> Widths:
        if not isinstance(counts, Iterable):
            raise TypeError(
                f"widths are channel counts, one for each group, got {counts!r}: those of one "
                "multiplier are net.space.uniform(multiplier)"
            )
        values = tuple(map(operator.index, counts))
        if any(count < 1 for count in values):
            raise ValueError(f"widths must be at least 1 channel each, got {values}")
        return super().__new__(cls, values)

    def __str__(self) -> str:
        """Return the counts separated by blanks; `Widths.parse` reads it back."""
        return " ".join(map(str, self))

    @classmethod
    def parse(cls, text: str) -> Widths:
        """Return the widths written as integers separated by blanks."""
        return cls(int(word) for word in text.split())


@dataclass(frozen=True, kw_only=True)
class ChannelGroup:
    """Channels that are always as many: tied by residual sums, products or depthwise convolutions.

    `stage` numbers the spatial resolutions from the input on; `at_least` lists the indices of all
    groups that this one may not be narrower than, directly or through others (zero-padding
    shortcuts). Their number is a multiple of `step`, as the maximum is: a grouped convolution and a
    group norm keep groups of so many channels whole.
    """

    name: str
    maximum: int
    stage: int = 0
    at_least: tuple[int, ...] = ()
    step: int = 1

    def lifted(self, counts: Sequence[int]) -> int:
        """Return the fewest channels that are not fewer than any of these counts."""
        return -(-max(counts, default=0) // self.step) * self.step


@dataclass(frozen=True, kw_only=True)
class WidthSpace:
    """The sub-networks that a slimmable network can be switched to.

    A point is a vector of `dimensions` width multipliers in [alpha_min, 1]: one for the network,
    one per stage or one per channel group, by `granularity`. `decode` makes channel counts of
    them: with `divisor` 1 the floor of multiplier times maximum, at least one channel (PareCO);
    otherwise the nearest multiple of `divisor` that loses at most 10% (US-Net's
    `make_divisible`), never above the maximum. 1 is the maximum itself. In a group that has a
    `step`, counts are multiples of it. Multipliers that decode to the same widths are one network.
    `only` restricts the space to a single network.
    """

    groups: tuple[ChannelGroup, ...]
    alpha_min: float = 0.42
    divisor: int = 1
    granularity: Granularity = "layer"
    only: Widths | None = None

    def __post_init__(self) -> None:
        if not self.groups:
            raise ValueError("groups: the network has no free channel group to slim")
        if not 0 < self.alpha_min <= 1:
            raise ValueError(f"alpha_min must be in (0, 1], got {self.alpha_min}")
        if operator.index(self.divisor) < 1:
            raise ValueError(f"divisor must be at least 1, got {self.divisor}")
        if self.granularity not in get_args(Granularity):
            known = ", ".join(get_args(Granularity))
            raise ValueError(f"granularity must be one of {known}, got {self.granularity!r}")
        if self.only is not None:
            self.check(self.only)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The names of the groups: the module that first produces their channels."""
        return tuple(group.name for group in self.groups)

    @cached_property
    def maxima(self) -> tuple[int, ...]:
        """The channel counts of the full network."""
        return tuple(group.maximum for group in self.groups)

    @cached_property
    def dimensions(self) -> int:
        """The number of width multipliers, `d`."""
        return max(self.multiplier_of_group) + 1

    @cached_property
    def multiplier_of_group(self) -> tuple[int, ...]:
        """For each group the index of the multiplier that sets its width."""
        if self.granularity == "network":
            return (0,) * len(self.groups)
        if self.granularity == "layer":
            return tuple(range(len(self.groups)))
        stages = sorted({group.stage for group in self.groups})
        return tuple(stages.index(group.stage) for group in self.groups)

    @cached_property
    def largest(self) -> Widths:
        """The widths of the full network."""
        return self.uniform(1.0)

    @cached_property
    def smallest(self) -> Widths:
        """The widths with every multiplier at `alpha_min`."""
        return self.uniform(self.alpha_min)

    def uniform(self, multiplier: float) -> Widths:
        """Return the widths with one multiplier for the whole network."""
        return self.decode([multiplier] * self.dimensions)

    def decode(self, alpha: Sequence[float] | Tensor) -> Widths:
        """Return the widths of `d` multipliers, wide enough for every zero-padding shortcut.

        Raises `ValueError` if there are not `dimensions` multipliers or one is outside
        [alpha_min, 1].
        """
        multipliers = [float(value) for value in alpha]
        if len(multipliers) != self.dimensions:
            raise ValueError(f"expected {self.dimensions} multipliers, got {len(multipliers)}")
        low, high = self.alpha_min - _FLOOR_TOLERANCE, 1 + _FLOOR_TOLERANCE
        if not all(low <= value <= high for value in multipliers):
            raise ValueError(f"multipliers must be in [{self.alpha_min}, 1], got {multipliers}")
        if self.only is not None:
            return self.only
        shares = [multipliers[index] for index in self.multiplier_of_group]
        counts = list(map(self._channels, shares, self.groups))
        for index, group in self._bounded:
            counts[index] = group.lifted([counts[i] for i in (index, *group.at_least)])
        return Widths(counts)

    def counts(self, alphas: Tensor) -> Tensor:
        """Return the channel counts `n x groups` (int64) that `n x d` multipliers decode to."""
        if self.only is not None:
            return torch.tensor(self.only).expand(len(alphas), -1)
        maxima, index = self._tensors
        shares = alphas.double()[:, index]
        exact = shares * maxima
        if self.divisor == 1:
            steps = torch.tensor([group.step for group in self.groups])
            counts = ((exact + _FLOOR_TOLERANCE).long() // steps * steps).maximum(steps)
        else:
            divisors = torch.tensor(list(map(self._divisor, self.groups)))
            counts = (exact + divisors / 2).long() // divisors * divisors
            counts = counts.maximum(divisors)
            counts = counts + divisors * (counts < 0.9 * exact)  # as timm's make_divisible
        counts = torch.where(shares >= 1 - _FLOOR_TOLERANCE, maxima, counts.minimum(maxima))
        for place, group in self._bounded:
            least = counts[:, [place, *group.at_least]].amax(1)
            counts[:, place] = -(-least // group.step) * group.step
        return counts

    def canonical(self, alphas: Tensor) -> Tensor:
        """Return what `encode` gives for the widths of each of `n x d` multipliers."""
        counts = self.counts(alphas)
        maxima, index = self._tensors
        least = torch.full((len(counts), self.dimensions), self.alpha_min, dtype=torch.double)
        shares = counts.double() / maxima
        encoded = least.scatter_reduce(1, index.expand_as(counts), shares, "amax")
        for row in (self.counts(encoded) != counts).any(dim=1).nonzero().flatten().tolist():
            encoded[row] = self.encode(Widths(counts[row].tolist()))
        return encoded

    def encode(self, widths: Widths) -> Tensor:
        """Return the `d` multipliers (double) that stand for these widths.

        `decode` gives back any widths that it made. Each multiplier is count over maximum, the
        largest of the groups that share it and not below `alpha_min`, if that decodes to the
        widths; otherwise the least that does.
        """
        self.check(widths)
        shares = torch.tensor(widths, dtype=torch.double) / torch.tensor(self.maxima)
        index = torch.tensor(self.multiplier_of_group)
        least = torch.full((self.dimensions,), self.alpha_min, dtype=torch.double)
        alpha = least.scatter_reduce(0, index, shares, "amax")
        if self.decode(alpha) == widths:
            return alpha
        exact = [self._least_multiplier(each, widths) for each in range(self.dimensions)]
        return torch.tensor(exact, dtype=torch.double)

    def _least_multiplier(self, index: int, widths: Widths) -> float:
        """Return the least multiplier whose groups reach their counts, but for what is repaired."""
        groups = zip(self.groups, self.multiplier_of_group, widths, strict=True)
        aims = [
            (group, count)
            for group, which, count in groups
            if which == index and count > group.lifted([widths[i] for i in group.at_least])
        ]

        def reaches(multiplier: float) -> bool:
            return all(self._channels(multiplier, group) >= count for group, count in aims)

        low, high = self.alpha_min, 1.0
        if reaches(low):
            return low
        while high - low > _BISECTION_TOLERANCE:
            middle = (low + high) / 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return high

    @cached_property
    def _bounded(self) -> list[tuple[int, ChannelGroup]]:
        """The groups, with their indices, that others bound; each after those that bound it."""
        bounded = [(index, group) for index, group in enumerate(self.groups) if group.at_least]
        return sorted(bounded, key=lambda pair: pair[1].maximum)

    @cached_property
    def _tensors(self) -> tuple[Tensor, Tensor]:
        """The maxima, and the index of each group's multiplier."""
        return torch.tensor(self.maxima), torch.tensor(self.multiplier_of_group)

    def sample_alpha(self, generator: torch.Generator) -> Tensor:
        """Return `d` multipliers (double) drawn uniformly from [alpha_min, 1]."""
        uniform = torch.rand(self.dimensions, generator=generator, dtype=torch.double)
        return self.alpha_min + (1 - self.alpha_min) * uniform

    def sample(self, generator: torch.Generator) -> Widths:
        """Return the widths of multipliers drawn uniformly from [alpha_min, 1]."""
        return self.decode(self.sample_alpha(generator))

    def spread(self, count: int) -> Iterator[Widths]:
        """Yield the distinct uniform widths of `count` multipliers evenly from 1 to alpha_min."""
        multipliers = torch.linspace(1.0, self.alpha_min, count, dtype=torch.double).tolist()
        yield from dict.fromkeys(self.uniform(multiplier) for multiplier in multipliers)

    def check(self, widths: Widths) -> None:
        """Raise `ValueError` unless the widths are one of this network's sub-networks."""
        if len(widths) != len(self.groups):
            raise ValueError(f"expected {len(self.groups)} widths, got {len(widths)}")
        for group, count in zip(self.groups, Widths(widths), strict=True):
            if count > group.maximum:
                raise ValueError(f"{group.name} has {group.maximum} channels, asked for {count}")
            if count % group.step:
                raise ValueError(
                    f"{group.name} keeps groups of {group.step} channels whole: give it a multiple "
                    f"of {group.step}, asked for {count}"
                )
            for other in group.at_least:
                if count < widths[other]:
                    raise ValueError(
                        f"{group.name} ({count} channels) may not be narrower than "
                        f"{self.groups[other].name} ({widths[other]}): a zero-padding shortcut "
                        "leads from the one to the other"
                    )

    def _divisor(self, group: ChannelGroup) -> int:
        """Return what the channels of a group are rounded to a multiple of."""
        return math.lcm(self.divisor, group.step)

    def _channels(self, multiplier: float, group: ChannelGroup) -> int:
        exact, step = multiplier * group.maximum, group.step
        if multiplier >= 1 - _FLOOR_TOLERANCE:
            return group.maximum
        if self.divisor == 1:
            return min(max(int(exact + _FLOOR_TOLERANCE) // step * step, step), group.maximum)
        from timm.layers import make_divisible  # seconds to import, and rarely needed

        return min(make_divisible(exact, self._divisor(group)), group.maximum)
