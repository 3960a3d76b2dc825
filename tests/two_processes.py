"""Tiny runs whose weights and widths each process writes down; started by a launcher."""

import json
import os
import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from pareco.config import Machine
from pareco.evaluation import Evaluator
from pareco.methods import Method
from pareco.training import execute_run
from pareco.training import trainer as trainer_module
from pareco.training.interruption import Interrupted
from replications.catalogue import method_named
from tests.experiments import TINY

# A gentle learning rate: at TINY's, rounding errors of the first steps grow a thousandfold.
GENTLE = replace(
    TINY,
    data=replace(TINY.data, search_split="batch"),
    training=replace(TINY.training, lr_per_256=0.02),
)
MEASURED = 9  # networks, when the choice of the front is interrupted
CHANGES: dict[str, Any] = {
    "odd": {"batch_size": 99},
    "alone": {"sync_batch_norm": False},
    "late": {"ask_every_steps": 100},  # as losses are read before
}

# Without an accelerator processes join by themselves; of one they would need as many.
MACHINE = Machine(device="cpu" if torch.accelerator.is_available() else "auto")


def observed_run(folder: Path, method: str, *, rank: int, accident: str = "") -> None:
    """Do the run in `folder/run`; write down beside it what this process trained and sent."""
    folder.mkdir(parents=True, exist_ok=True)
    trained: list[list[str]] = []
    heard: list[Any] = []
    last: dict[str, Any] = {}
    original = trainer_module.accumulate_gradients

    def noted(net: Any, images: Any, labels: Any, widths: Any, **options: Any) -> Any:
        trained.append([str(each) for each in widths])
        if len(trained) == 5:
            happen(accident, rank)
        if (len(trained), accident, rank) == (5, "differ", 1):
            with torch.no_grad():
                net.get_parameter("layer2.0.conv1.weight")[0, 0, 0, 0] += 1e-3
        last["net"] = net
        return original(net, images, labels, widths, **options)

    def hear(self: Method, step: int, widths: Any, losses: Any) -> None:
        heard.append([step, [str(each) for each in widths], losses])

    kind = method_named(method)
    listens = patch.object(kind, "hear", hear) if accident == "late" else nullcontext()
    training = replace(GENTLE.training, **CHANGES.get(accident, {}))
    with (
        listens,
        patch.object(trainer_module, "accumulate_gradients", noted),
        patch.object(dist, "all_gather", wraps=dist.all_gather) as gather,
        patch.object(dist, "all_reduce", wraps=dist.all_reduce) as reduce,
    ):
        often = replace(MACHINE, checkpoint_minutes=0)
        seldom = replace(MACHINE, read_every_steps=3)
        machine = {"differ": often, "die-once": often, "late": seldom, "terminate": seldom}.get(
            accident, MACHINE
        )
        options: Any = {"on_step": lambda report: None, "machine": machine}
        experiment = replace(GENTLE, training=training)
        execute_run(experiment, kind, 0, folder / "run", **options)
    if not trained:
        return
    weights = {name: each.detach().clone() for name, each in last["net"].named_parameters()}
    save_file(weights, folder / f"rank{rank}.safetensors")
    reduced = sum("group" not in call.kwargs for call in reduce.call_args_list)
    sent = {"gathered": gather.call_count, "reduced": reduced}
    notes = {"widths": trained, "norms": len(last["net"].norms()), "heard": heard, **sent}
    (folder / f"rank{rank}.json").write_text(json.dumps(notes))


@contextmanager
def accident_in_choosing(accident: str, rank: int) -> Iterator[None]:
    """Let the main process hear a signal while it chooses the front."""
    measure, calls = Evaluator.search_losses, []

    def losses(self: Evaluator, widths: Any) -> Any:
        calls.append(len(calls))
        if (accident, rank, len(calls)) == ("choosing", 0, MEASURED):
            os.kill(os.getpid(), signal.SIGTERM)
        return measure(self, widths)

    with patch.object(Evaluator, "search_losses", losses):
        yield


def happen(accident: str, rank: int) -> None:
    """Let this process come to grief, or ask it to end."""
    if (accident, rank) in (("raise", 1), ("raise-main", 0)):
        raise RuntimeError("this process dies")
    ends = {"kill": signal.SIGKILL, "die-once": signal.SIGKILL, "terminate": signal.SIGTERM}
    again = accident == "die-once" and os.environ["TORCHELASTIC_RESTART_COUNT"] != "0"
    if rank == 1 and accident in ends and not again:
        os.kill(os.getpid(), ends[accident])


if __name__ == "__main__":  # FOLDER RUN=METHOD/ACCIDENT ..., one after another
    own_rank = int(os.environ["RANK"])
    for request in sys.argv[2:]:
        name, method_name, mishap = re.split("[=/]", request + "/")[:3]
        try:
            with accident_in_choosing(mishap, own_rank):
                observed_run(Path(sys.argv[1], name), method_name, rank=own_rank, accident=mishap)
        except (ValueError, RuntimeError, Interrupted) as refusal:
            if mishap not in ("odd", "differ", "choosing"):
                raise
            Path(sys.argv[1], name, f"refused{own_rank}").write_text(str(refusal))
