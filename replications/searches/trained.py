"""A finished run's network, and the table of its sub-networks."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from safetensors.torch import load_file

from pareco.config import Experiment, Machine
from pareco.data import Images
from pareco.data.loading import DataSet, load_data
from pareco.evaluation import Counts, Evaluator, Measurement
from pareco.files import write_text
from pareco.processes import joined_processes
from pareco.slimmable import SlimmableNet
from pareco.training.preparation import stored_experiment, untrained_network
from pareco.widths import Widths, WidthSpace
from replications.searches.grid import GridRow, as_written, line_of, points, row_of, write_grid

AT_ONCE = 32
"""Networks that are measured in one pass over the images, and kept together."""
BATCH = 64
"""Images of a batch whose noise is told."""


@dataclass(frozen=True, kw_only=True)
class TrainedNetwork:
    """A finished run's network with a multiplier for each layer, and its images.

    `search_images` and `test_images` are how many of them are measured on, the first ones.
    """

    folder: Path
    images: str | None = None
    search_images: int = 1_000
    test_images: int = 1_000

    def __post_init__(self) -> None:
        """Raise `ValueError` unless the folder holds a finished run with one set of weights."""
        if not (self.folder / "DONE").exists():
            raise ValueError(f"{self.folder}: no finished run")
        if [*self.weights.parent.glob("*.safetensors")] != [self.weights]:
            raise self._of_several()

    @property
    def weights(self) -> Path:
        """The file of the trained weights."""
        return self.folder / "weights" / "0.safetensors"

    @cached_property
    def configuration(self) -> dict[str, Any]:
        """The run's configuration as it was stored."""
        return json.loads((self.folder / "config.json").read_text())

    @cached_property
    def experiment(self) -> Experiment:
        """The run's experiment, with a multiplier for each layer."""
        experiment = stored_experiment(self.configuration)
        return replace(experiment, network=replace(experiment.network, granularity="layer"))

    @cached_property
    def data(self) -> DataSet:
        """The images. Raises `ValueError` where they are not those of the run; `OSError`."""
        data = load_data(self.experiment.data, Machine(images=self.images, device="cpu"))
        sessions = json.loads((self.folder / "env.json").read_text())
        if sessions[0]["data_fingerprint"] != data.fingerprint:
            raise ValueError(f"{self.folder} is of other images: give its own with --images")
        return data

    @cached_property
    def net(self) -> SlimmableNet:
        """The trained network, on the CPU. Raises `ValueError` where batch norm isn't shared."""
        torch.set_num_threads(self.experiment.training.cpu_threads)
        data = self.data
        net = untrained_network(self.experiment, data.num_classes, data.in_chans)
        weights = load_file(self.weights)
        if weights.keys() - net.state_dict().keys():
            raise self._of_several()
        net.load_state_dict(weights)
        return net

    def _of_several(self) -> ValueError:
        return ValueError(
            f"{self.folder}: {self.configuration['method']} has weights or batch norm for each of "
            "its networks; give a run of a method with one slimmable network"
        )

    @cached_property
    def evaluator(self) -> Evaluator:
        """What calibrates and measures its sub-networks, on the search images.

        In batches of 64 or, where these would not calibrate on as many images as the run did, less.
        """
        own = self.experiment.evaluation
        evaluation = replace(own, batch_size=math.gcd(own.calibration_images, BATCH))
        return Evaluator(
            self.net,
            self.data.train,
            _first(self.data.search, self.search_images),
            evaluation,
            self.configuration["seed"],
            joined_processes("cpu"),
            due=lambda: True,
            precision=self.experiment.training.precision,
        )

    def measured(self, widths: Sequence[Widths]) -> list[GridRow]:
        """Return what is measured of these sub-networks, calibrated once."""
        losses, noise = self._with_noise(widths)
        tested = self.evaluator.counts_on(self._test, widths, Counts(), _dropped)
        return [
            GridRow(self.net.cost.macs_at(each), loss.loss, deviation, test.loss, test.top1_error)
            for each, loss, deviation, test in zip(
                widths, losses, noise, tested.measurements, strict=True
            )
        ]

    @cached_property
    def _test(self) -> Images:
        return _first(self.data.test, self.test_images).held(self.evaluator.config.batch_size)

    def _with_noise(self, widths: Sequence[Widths]) -> tuple[list[Measurement], list[float]]:
        """Return the search losses, and the standard deviations of such a loss of 64 images.

        As those of whole batches say, of independent images.
        """
        seen: list[Counts] = []
        evaluator, size = self.evaluator, self.evaluator.config.batch_size
        counts = evaluator.counts_on(evaluator.search, widths, Counts(), seen.append)
        sums = torch.tensor(
            [[row[0] for row in each.rows] for each in [*seen, counts] if each.images],
            dtype=torch.double,
        )
        images = torch.tensor([each.images for each in [*seen, counts] if each.images])
        whole = images.diff(prepend=images.new_zeros(1)) == size
        means = sums.diff(dim=0, prepend=torch.zeros_like(sums[:1]))[whole] / size
        return counts.measurements, (means.std(dim=0) * math.sqrt(size / BATCH)).tolist()


def _dropped(counts: Counts) -> None:
    """Keep nothing of what is counted: a block is short."""


def _first(images: Images, count: int) -> Images:
    if count > len(images):
        raise ValueError(f"{count} images asked for, there are {len(images)}")
    return images.subset(range(count))


def by_module(space: WidthSpace) -> tuple[WidthSpace, tuple[str, ...]]:
    """Return the space with a multiplier for each part of the network, and the parts' names.

    A part is what the first word of the names of its layers says, such as `stage1`.
    """
    words = [name.partition(".")[0] for name in space.names]
    parts = tuple(dict.fromkeys(words))
    groups = tuple(
        replace(group, stage=parts.index(word))
        for group, word in zip(space.groups, words, strict=True)
    )
    return replace(space, groups=groups, granularity="stage"), parts


def make_table(
    trained: TrainedNetwork, multipliers: tuple[float, ...], path: Path, console: Console
) -> None:
    """Measure all networks of a grid, and write the table and what it was made of beside it.

    What is measured is kept in a file beside it, so that the same call goes on after an
    interruption. Raises `ValueError` where that file is of another table, for multipliers that
    `as_written` refuses, and for fewer search images than two batches, which tell of no noise.
    """
    multipliers = as_written(multipliers)
    size = trained.evaluator.config.batch_size
    if trained.search_images < 2 * size:
        raise ValueError(f"--search-images: {2 * size} or more are needed to tell their noise")
    space, parts = by_module(trained.net.space)
    about = _about(trained, multipliers, parts)
    widths = [space.decode(point) for point in points(multipliers, len(parts))]
    partial = path.with_name(f"{path.name}.partial")
    lines = _kept(partial, about, len(widths))
    with partial.open("a") as file:
        for first in range(len(lines), len(widths), AT_ONCE):
            rows = trained.measured(widths[first : first + AT_ONCE])
            lines += map(line_of, rows)
            file.writelines(f"{line_of(row)}\n" for row in rows)
            file.flush()
            console.print(f"{len(lines)} of {len(widths)} networks measured")
    write_grid(path, parts, multipliers, lines)
    write_text(path.with_suffix("").with_suffix(".json"), about)
    partial.unlink()


def _about(trained: TrainedNetwork, multipliers: tuple[float, ...], parts: tuple[str, ...]) -> str:
    """Return what a table is made of, as JSON."""
    configuration, experiment = trained.configuration, trained.experiment
    found = {
        "experiment": experiment.name,
        "scale": experiment.scale,
        "method": configuration["method"],
        "seed": configuration["seed"],
        "data_fingerprint": trained.data.fingerprint,
        "parts": parts,
        "channels": dict(zip(trained.net.space.names, trained.net.space.maxima, strict=True)),
        "multipliers": multipliers,
        "calibration_images": experiment.evaluation.calibration_images,
        "search_images": trained.search_images,
        "test_images": trained.test_images,
        "noise_images": BATCH,
    }
    return json.dumps(found, indent=1) + "\n"


def _kept(partial: Path, about: str, expected: int) -> list[str]:
    """Return the lines that an interrupted call has kept; begin the file if there is none."""
    head = json.dumps(json.loads(about))
    if not partial.exists():
        partial.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(f"{head}\n")
        return []
    theirs, *lines = partial.read_text().split("\n")
    if theirs != head:
        raise ValueError(f"{partial} is of another table: remove it to begin anew")
    whole = lines[:-1][:expected]  # the last one is empty, or was being written
    for line in whole:
        row_of(line)
    partial.write_text("".join(f"{line}\n" for line in [head, *whole]))
    return whole
