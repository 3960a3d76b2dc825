"""A tiny run whose weights and widths each process writes down; started by a launcher."""

from __future__ import annotations

import json
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from pareco.config import Machine
from pareco.training import StepReport, execute_run
from pareco.training import trainer as trainer_module
from replications.catalogue import method_named
from tests.experiments import TINY

# A gentle learning rate: at TINY's, rounding errors of the first steps grow a thousandfold.
GENTLE = replace(
    TINY,
    data=replace(TINY.data, search_split="batch"),
    training=replace(TINY.training, lr_per_256=0.02),
)


def observed_run(folder: Path, method: str, *, rank: int, accident: str = "") -> None:
    """Do the run in `folder/run`; write this process's weights and widths beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    trained: list[list[str]] = []
    weights: dict[str, Any] = {}
    original = trainer_module.accumulate_gradients

    def noted(net: Any, images: Any, labels: Any, widths: Any, **options: Any) -> Any:
        trained.append([str(each) for each in widths])
        if len(trained) == 5:
            happen(accident, rank)
        weights.update(net.named_parameters())
        return original(net, images, labels, widths, **options)

    experiment = GENTLE
    if accident == "odd":
        experiment = replace(experiment, training=replace(experiment.training, batch_size=99))
    if accident == "alone":
        alone = replace(experiment.training, sync_batch_norm=False)
        experiment = replace(experiment, training=alone)
    trainer_module.accumulate_gradients = noted
    try:
        execute_run(
            experiment,
            method_named(method),
            0,
            folder / "run",
            on_step=_ignored,
            machine=Machine(device="cpu"),
        )
    finally:
        trainer_module.accumulate_gradients = original
    save_file(
        {name: value.detach().clone() for name, value in weights.items()},
        folder / f"rank{rank}.safetensors",
    )
    (folder / f"rank{rank}.json").write_text(json.dumps(trained))


def happen(accident: str, rank: int) -> None:
    """Let this process come to grief, or ask it to end."""
    if (accident, rank) in (("raise", 1), ("raise-main", 0)):
        raise RuntimeError("this process dies")
    if (accident, rank) == ("kill", 1):
        os.kill(os.getpid(), signal.SIGKILL)
    if (accident, rank) == ("terminate", 1):
        os.kill(os.getpid(), signal.SIGTERM)


def _ignored(report: StepReport) -> None:
    pass


if __name__ == "__main__":
    where, name, *how = sys.argv[1:]
    own_rank = int(os.environ["RANK"])
    observed_run(Path(where), name, rank=own_rank, accident=how[0] if how else "")
