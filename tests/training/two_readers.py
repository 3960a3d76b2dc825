"""Runs of two processes on files, some damaged, or of which each finds others; see the test."""

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from pareco.config import EvaluationConfig, Experiment, Machine
from pareco.data import load_data
from pareco.data.images import Store
from pareco.training import RunError, StepReport, execute_run
from pareco.training.interruption import Interrupted
from replications.catalogue import method_named
from tests.data.pictures import picture, small
from tests.experiments import TINY

BATCHES = 4  # in an epoch: 80 of 81 images
BAD = ("ant/003.png", "bee/010.png", "cow/029.png")
EXPERIMENT = replace(
    TINY,
    data=small(search_split="holdout", search_images=9),
    training=replace(TINY.training, batch_size=20, epochs=2),
    evaluation=EvaluationConfig(calibration_images=20, batch_size=20),
)


def execute(path: Path, images: Path, experiment: Experiment = EXPERIMENT, end: int = 0) -> None:
    """Do a run on these images; the main process asks for an end after a step."""

    def on_step(report: StepReport) -> None:
        if report.step == end:
            os.kill(os.getpid(), signal.SIGTERM)

    # Without an accelerator processes join by themselves; of one they would need as many.
    device = "cpu" if torch.accelerator.is_available() else "auto"
    machine = Machine(device=device, images=str(images), decoding_workers=0)
    execute_run(experiment, method_named("us_net"), 0, path, on_step, machine)


def refused_run(folder: Path, rank: int) -> None:
    """Begin a run of which each process finds other images."""
    try:
        execute(folder / "refused", folder / f"images{rank}")
    except RunError as error:
        (folder / f"refused{rank}.txt").write_text(str(error))


def resumed_run(folder: Path, rank: int) -> None:
    """Do a run in two goes; between them the damaged files are mended."""
    own: set[int] = set()
    known: set[int] = set()
    tell = Store.tell

    def noted(self: Store, processes: Any) -> None:
        own.update(self.reasons.keys() - known)
        tell(self, processes)
        known.update(self.reasons)

    images = folder / "images0"
    with patch.object(Store, "tell", noted):
        try:
            execute(folder / "run", images, end=BATCHES - 1)
        except Interrupted:
            (folder / f"own{rank}.json").write_text(json.dumps(sorted(own)))
    for name in BAD:
        (images / "train" / name).write_bytes(picture(1))
    load_data.cache_clear()  # as in a process of its own
    execute(folder / "run", images)


if __name__ == "__main__":
    refused_run(Path(sys.argv[1]), int(os.environ["RANK"]))
    resumed_run(Path(sys.argv[1]), int(os.environ["RANK"]))
