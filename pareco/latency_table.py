"""Latency from a table: what each operator of a network takes, by its channels, on one machine."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from pareco.widths import Widths, WidthSpace

FORMAT = "pareco-latency-table-1"
BLOCK = 16
"""Channels that kernels take at a time: a vector of 32-bit floats in AVX-512, two in AVX2."""

Grid = float | list[float] | list[list[float]]


@dataclass(frozen=True, kw_only=True)
class OperatorTimes:
    """What one operator takes, in microseconds, at each of the levels of its channel groups.

    `groups` are the indices of the groups that its size depends on, two at most, and the axes of
    `microseconds`. `cuts` has for each the count after which another kernel runs, if there is one.
    """

    name: str
    operation: str
    groups: tuple[int, ...]
    cuts: tuple[int | None, ...]
    microseconds: Grid


@dataclass(frozen=True, kw_only=True)
class LatencyTable:
    """The latency of any sub-network of one network, on the machine that it was measured on.

    It is the sum over all operators that run, each read off its own times at its channel counts,
    times `scale`, which is what whole networks took for each part of such a sum. The times are in
    the table at the `levels` of each channel group. Between them they follow the steps of vectors:
    a count is read off the levels that are as far within their block of 16 channels. Where all
    counts that a group can have are levels, nothing is interpolated.
    """

    format: Literal["pareco-latency-table-1"]
    network: str
    image_size: int
    """Height and width in pixels."""
    channels: int
    """Of an image."""
    batch_size: int
    """Images at a time: latency is that of a batch."""
    cpu_threads: int
    torch: str
    machine: Mapping[str, Any]
    """As `pareco.training.environment.hardware` has it."""
    full_costs: Mapping[str, int]
    """Those of the full network for an image; they say with the groups which network it is."""
    alpha_min: float
    divisor: int
    names: tuple[str, ...]
    """The channel groups."""
    maxima: tuple[int, ...]
    levels: tuple[tuple[int, ...], ...]
    """Of each group: the counts at which operators were measured, in ascending order."""
    scale: float
    operators: tuple[OperatorTimes, ...]

    def __post_init__(self) -> None:
        """Raise `ValueError`, naming the part, for what does not fit together."""
        if not len(self.names) == len(self.maxima) == len(self.levels):
            raise ValueError("names, maxima and levels are not as many")
        for name, most, levels in zip(self.names, self.maxima, self.levels, strict=True):
            if not levels or list(levels) != sorted({*levels}) or levels[0] < 1:
                raise ValueError(f"levels of {name} are no ascending channel counts")
            if levels[-1] != most:
                raise ValueError(f"levels of {name} end at {levels[-1]}, not at its {most}")
        if not 0 < self.scale < np.inf:
            raise ValueError(f"scale is {self.scale}, not a positive number")
        for each in self.operators:
            if any(not 0 <= group < len(self.names) for group in each.groups):
                raise ValueError(f"operator {each.name} names a group that is not there")
            if len(each.groups) != len(each.cuts):
                raise ValueError(f"operator {each.name} has other cuts than groups")
            times = np.asarray(each.microseconds, dtype=float)
            if times.shape != tuple(len(self.levels[group]) for group in each.groups):
                raise ValueError(f"operator {each.name} has not a time for each level")
            if not (np.isfinite(times).all() and (times >= 0).all()):
                raise ValueError(f"operator {each.name} has a time that is none")

    def to_json(self) -> str:
        """Return the text of its file, a line for each operator, from which it is read again."""
        head = {
            each.name: getattr(self, each.name)
            for each in dataclasses.fields(self)
            if each.name != "operators"
        }
        lines = ",\n".join(json.dumps(asdict(each)) for each in self.operators)
        return f'{json.dumps(head)[:-1]},\n"operators": [\n{lines}\n]}}\n'

    def milliseconds(self, counts: Tensor | Widths | Sequence[Widths]) -> Tensor:
        """Return the latency of a batch at channel counts `(n x) groups`, `n` (double).

        Counts between whole ones are interpolated, and gradients flow. Raises `ValueError` where
        there are not as many as groups, or one is outside its levels.
        """
        values = torch.as_tensor(counts).double()
        least, most = (
            torch.tensor([levels[end] for levels in self.levels], device=values.device)
            for end in (0, -1)
        )
        if values.shape[-1] != len(self.names):
            raise ValueError(f"expected {len(self.names)} widths, got {values.shape[-1]}")
        outside = ((values < least) | (values > most)).reshape(-1, len(self.names)).any(0)
        if outside.any():
            group = int(outside.nonzero()[0])
            raise ValueError(
                f"the latency table has {self.names[group]} from {self.levels[group][0]} to "
                f"{self.maxima[group]} channels, and a network is outside: measure one with a "
                "smaller --alpha-min"
            )
        places = values - least
        whole = places.detach().floor().long()
        above = torch.minimum(whole + 1, (most - least).long())
        parts = places - whole
        total = torch.zeros(values.shape[:-1], dtype=torch.double, device=values.device)
        for groups, times in self._times.items():
            total = total + _interpolated(times.to(values.device), groups, whole, above, parts)
        return self.scale * total / 1000

    def by_operation(self, widths: Widths) -> dict[str, tuple[int, float]]:
        """Return how many operators of each kind run, and their milliseconds, longest first.

        Raises `ValueError` as `milliseconds`.
        """
        self.milliseconds(torch.tensor(widths))
        found: dict[str, tuple[int, float]] = {}
        for each in self.operators:
            own = self._expanded(each)
            place = tuple(widths[group] - self.levels[group][0] for group in each.groups)
            calls, before = found.get(each.operation, (0, 0.0))
            spent = self.scale * float(own[place]) / 1000
            found[each.operation] = calls + 1, before + spent
        return dict(sorted(found.items(), key=lambda item: -item[1][1]))

    @cached_property
    def _times(self) -> dict[tuple[int, ...], Tensor]:
        """The sums of the times of all operators of the same groups, at all counts."""
        sums: dict[tuple[int, ...], Any] = {}
        for each in self.operators:
            sums[each.groups] = sums.get(each.groups, 0) + self._expanded(each)
        return {groups: torch.as_tensor(times) for groups, times in sums.items()}

    def _expanded(self, operator: OperatorTimes) -> np.ndarray:
        """Return the times of an operator at all counts between the ends of its levels."""
        times = np.asarray(operator.microseconds, dtype=float)
        for axis, (group, cut) in enumerate(zip(operator.groups, operator.cuts, strict=True)):
            weights = level_weights(self.levels[group], cut)
            times = np.moveaxis(np.tensordot(weights, times, (1, axis)), 0, axis)
        return np.maximum(times, 0.0)


def _interpolated(
    times: Tensor, groups: tuple[int, ...], whole: Tensor, above: Tensor, parts: Tensor
) -> Tensor:
    """Return times between the whole counts below and above, weighted by the parts between."""
    total = torch.zeros(whole.shape[:-1], dtype=torch.double, device=whole.device)
    for corner in itertools.product((False, True), repeat=len(groups)):
        weight, place = torch.ones_like(total), []
        for group, up in zip(groups, corner, strict=True):
            weight = weight * (parts[..., group] if up else 1 - parts[..., group])
            place.append((above if up else whole)[..., group])
        total = total + weight * times[tuple(place)]
    return total


def level_weights(levels: Sequence[int], cut: int | None = None) -> np.ndarray:
    """Return what each level counts for each count from the first level to the last, `n x levels`.

    Rows sum to 1. A level is read as it stands. Another count lies in its block of 16 channels
    between two places that levels have too: at both, times are interpolated from block to block,
    and then between them. Nothing is interpolated across a `cut`: counts up to it and after it are
    apart. Where levels have too few such places they are interpolated as they follow each other.
    """
    first, last = levels[0], levels[-1]
    weights = np.zeros((last - first + 1, len(levels)))
    for count in range(first, last + 1):
        own = [i for i, each in enumerate(levels) if cut is None or (each <= cut) == (count <= cut)]
        weights[count - first] = _weights_at(count, levels, own)
    return weights


def _weights_at(count: int, levels: Sequence[int], own: Sequence[int]) -> np.ndarray:
    """Return what each level counts for one count, `levels`, where `own` may count."""
    row = np.zeros(len(levels))
    if count in levels:
        row[levels.index(count)] = 1.0
        return row
    at: dict[int, list[int]] = {}
    for index in own:
        at.setdefault((levels[index] - 1) % BLOCK, []).append(index)
    places = sorted(place for place, indices in at.items() if len(indices) > 1)
    place = (count - 1) % BLOCK
    if place in places:
        return _between(count, levels, at[place])
    below, beyond = bisect.bisect(places, place) - 1, bisect.bisect(places, place)
    if below < 0 or beyond == len(places):
        return _between(count, levels, own)
    low, high = places[below], places[beyond]
    for each, share in ((low, high - place), (high, place - low)):
        row += share / (high - low) * _between(count - place + each, levels, at[each])
    return row


def _between(count: int, levels: Sequence[int], own: Sequence[int]) -> np.ndarray:
    """Return what the two nearest of the `own` levels count at a count: linear, beyond them too."""
    row = np.zeros(len(levels))
    if len(own) < 2:
        row[list(own)] = 1.0
        return row
    right = min(max(bisect.bisect([levels[index] for index in own], count), 1), len(own) - 1)
    low, high = own[right - 1], own[right]
    share = (count - levels[low]) / (levels[high] - levels[low])
    row[low], row[high] = 1 - share, share
    return row


_TABLE = TypeAdapter(LatencyTable)


def read_latency_table(path: str | Path) -> LatencyTable:
    """Return the table in a file that `LatencyTable.to_json` wrote; nothing in it is run.

    Raises `ValueError`, naming the file and what is wrong, for any other.
    """
    try:
        content = Path(path).expanduser().read_bytes()
    except OSError as error:
        raise ValueError(f"latency table {path}: {error.strerror}") from error
    try:
        return _TABLE.validate_json(content)
    except ValidationError as error:
        fault = error.errors()[0]
        where = ".".join(map(str, fault["loc"]))
        what = fault["msg"].removeprefix("Value error, ")
        raise ValueError(
            f"latency table {path} is none of this version, {FORMAT} ({where and f'{where}: '}"
            f"{what}): measure it again by pareco latency"
        ) from error


def check_table(
    table: LatencyTable, space: WidthSpace, full_costs: Mapping[str, int], image_size: int
) -> None:
    """Raise `ValueError`, saying what differs, unless a table is of this very network.

    Groups, size of images and all costs of the full network must be the same, and the table must
    have all widths of the space.
    """
    theirs = {"image size": table.image_size, **table.full_costs}
    differences = [
        f"{name} {theirs.get(name, 'unknown')} there, {ours} here"
        for name, ours in {"image size": image_size, **full_costs}.items()
        if theirs.get(name) != ours
    ]
    if (table.names, table.maxima) != (space.names, space.maxima):
        differences.append("other channel groups")
    if differences:
        raise ValueError(
            f"the latency table is of another network, {table.network} at {table.image_size} x "
            f"{table.image_size} pixels ({'; '.join(differences)}): measure one of this network"
        )
    if table.alpha_min > space.alpha_min or space.divisor % table.divisor:
        raise ValueError(
            f"the latency table has alpha_min {table.alpha_min} and divisor {table.divisor}, which "
            f"leaves out widths of alpha_min {space.alpha_min} and divisor {space.divisor}: "
            "measure one with these"
        )
