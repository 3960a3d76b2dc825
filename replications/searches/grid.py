"""A table of networks: the losses and costs of all points of a grid of multipliers."""

from __future__ import annotations

import csv
import gzip
import io
import itertools
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from pareco.files import write_bytes

DECIMALS = 5


class GridRow(NamedTuple):
    """What is measured of one network: MACs, losses in nats, top-1 error in percent.

    `noise` is the standard deviation of the mean search loss of a batch.
    """

    macs: int
    search_loss: float
    noise: float
    test_loss: float
    test_error: float


@dataclass(frozen=True)
class Grid:
    """All networks of `d` multipliers out of `m` ascending ones, the last dimension fastest."""

    dimensions: int
    multipliers: Tensor
    measured: tuple[GridRow, ...]

    def __post_init__(self) -> None:
        """Raise `ValueError` unless there is a row for each point, and multipliers ascend."""
        expected = len(self.multipliers) ** self.dimensions
        if len(self.measured) != expected:
            raise ValueError(f"a table of {expected} networks has {len(self.measured)} rows")
        if not (self.multipliers.diff() > 0).all():
            raise ValueError(f"multipliers must ascend, got {self.multipliers.tolist()}")

    @cached_property
    def alphas(self) -> Tensor:
        """The multipliers of all networks, `n x d`."""
        return torch.cartesian_prod(*[self.multipliers] * self.dimensions).reshape(
            -1, self.dimensions
        )

    @cached_property
    def macs(self) -> Tensor:
        """Multiply-accumulates, `n`."""
        return torch.tensor([row.macs for row in self.measured])

    @cached_property
    def losses(self) -> Tensor:
        """Search losses, `n`."""
        return torch.tensor([row.search_loss for row in self.measured], dtype=torch.double)

    @cached_property
    def noise(self) -> Tensor:
        """Standard deviations of a batch's loss, `n`."""
        return torch.tensor([row.noise for row in self.measured], dtype=torch.double)

    def rows(self, alphas: Tensor) -> Tensor:
        """Return the place `n` in the table of the network nearest to each of `n x d` points."""
        middles = (self.multipliers[1:] + self.multipliers[:-1]) / 2
        levels = torch.bucketize(alphas.double().contiguous(), middles)
        radix = len(self.multipliers) ** torch.arange(self.dimensions - 1, -1, -1)
        return (levels * radix).sum(dim=-1)

    def canonical(self, alphas: Tensor) -> Tensor:
        """Return the multipliers of the nearest network for each of `n x d` points."""
        return self.alphas[self.rows(alphas)]


def as_written(multipliers: tuple[float, ...]) -> tuple[float, ...]:
    """Return the multipliers as a table has them, in six digits.

    Raises `ValueError` unless there are two or more, which ascend, above 0 and up to 1.
    """
    written = tuple(float(f"{each:g}") for each in multipliers)
    ascend = all(low < high for low, high in itertools.pairwise((0.0, *written)))
    if len(written) < 2 or not ascend or written[-1] > 1:
        listed = " ".join(f"{each:g}" for each in written)
        raise ValueError(f"--multipliers: two or more must ascend in (0, 1], got {listed}")
    return written


def points(multipliers: tuple[float, ...], dimensions: int) -> list[tuple[float, ...]]:
    """Return the multipliers of all networks, in the order of a table."""
    return list(itertools.product(multipliers, repeat=dimensions))


def line_of(row: GridRow) -> str:
    """Return a measured network as a line, in a fixed format."""
    numbers = (
        f"{row.search_loss:.{DECIMALS}f},{row.noise:.{DECIMALS}f},{row.test_loss:.{DECIMALS}f}"
    )
    return f"{row.macs},{numbers},{row.test_error:.2f}"


def row_of(line: str) -> GridRow:
    """Return what `line_of` wrote. Raises `ValueError` for anything else."""
    macs, *numbers = line.split(",")
    if 1 + len(numbers) != len(GridRow._fields):
        raise ValueError(f"not a row of a table: {line!r}")
    return GridRow(int(macs), *map(float, numbers))


def write_grid(
    path: Path, names: tuple[str, ...], multipliers: tuple[float, ...], lines: list[str]
) -> None:
    """Write a table, compressed; the same table gives the same bytes."""
    text = io.StringIO()
    text.write(",".join([*names, *GridRow._fields]) + "\n")
    for point, line in zip(points(multipliers, len(names)), lines, strict=True):
        text.write(",".join(f"{each:g}" for each in point) + f",{line}\n")
    packed = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
        file.write(text.getvalue().encode())
    write_bytes(path, packed.getvalue())


def read_grid(path: Path) -> Grid:
    """Return a table that `write_grid` wrote. Raises `ValueError` for one that is not whole."""
    with gzip.open(path, "rt", newline="") as file:
        header, *rows = csv.reader(file)
    dimensions = len(header) - len(GridRow._fields)
    multipliers = sorted({float(row[0]) for row in rows})
    grid = Grid(
        dimensions,
        torch.tensor(multipliers, dtype=torch.double),
        tuple(row_of(",".join(row[dimensions:])) for row in rows),
    )
    written = torch.tensor([[*map(float, row[:dimensions])] for row in rows], dtype=torch.double)
    if not torch.equal(written, grid.alphas):
        raise ValueError(f"{path}: not the rows of a table in their order")
    return grid
