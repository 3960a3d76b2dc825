"""The folder of one run: its configuration, provenance, checkpoint, front and end mark."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors import SafetensorError
from torch import Tensor

from pareco.config import Experiment, as_json
from pareco.cost import COSTS
from pareco.data import DataSet
from pareco.files import write_text
from pareco.processes import Processes
from pareco.slimmable import SlimmableNet
from pareco.training.checkpoint import load_checkpoint, save_checkpoint
from pareco.training.provenance import environment
from pareco.widths import Widths

FRONT_COLUMNS = (
    *("experiment", "method", "seed", "widths", *COSTS, "search_loss"),
    *("test_top1_error", "test_top5_error", "calibration_images"),
)


class RunError(RuntimeError):
    """A run that cannot start or go on; the message says what to do."""


@dataclass(kw_only=True)
class Progress:
    """What is done of a run: the sets of weights trained, their rows, and what was spent."""

    trained: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    gradient_steps: int = 0
    passes: int = 0
    search_evaluations: int = 0
    widths_visited: int = 0
    seconds: float = 0.0
    images: int = 0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    damaged_images: int = 0


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """`runs/<experiment>/<method>/seed<k>/`; complete in itself, `DONE` written last."""

    path: Path
    experiment: Experiment
    method: str
    seed: int

    @property
    def done(self) -> bool:
        """Whether the folder holds the finished run."""
        return (self.path / "DONE").exists()

    def differences(self) -> list[str]:
        """Return how the run that the folder holds is configured differently; none if it is new."""
        file = self.path / "config.json"
        if not file.exists():
            return []
        ours, theirs = self._configuration(), _read(file)
        return [
            f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} now"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]

    def check(self) -> None:
        """Raise `RunError` with the differences if it holds a run of another configuration."""
        differences = self.differences()
        if differences:
            raise RunError(
                f"{self.path} holds a run of another configuration ({'; '.join(differences)}). "
                "Remove that folder, or keep this run apart with --name NAME or --runs FOLDER"
            )

    @contextmanager
    def claimed(self, data: DataSet, processes: Processes) -> Iterator[None]:
        """Hold the folder inside the `with` block; write configuration, splits and environment.

        Raises `RunError` if another process holds it, or it holds a run of another configuration
        or of other data.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        lock = FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except Timeout:
            raise RunError(f"{self.path} is in use by another process") from None
        with lock:
            self.check()
            if not self.done:
                self._describe(data, processes)
            yield

    def _configuration(self) -> dict[str, Any]:
        configuration = as_json(self.experiment)
        for field_of_sweep in ("methods", "seeds"):
            del configuration[field_of_sweep]
        return configuration | {"method": self.method, "seed": self.seed}

    def _describe(self, data: DataSet, processes: Processes) -> None:
        file = self.path / "env.json"
        sessions = _read(file) if file.exists() else []
        if sessions and sessions[0]["data_fingerprint"] != data.fingerprint:
            raise RunError(f"{self.path} was begun on other data; remove that folder to start anew")
        if not sessions:
            _write(self.path / "config.json", self._configuration())
            _write(self.path / "splits.json", data.splits.as_json())
        _write(file, [*sessions, environment(data.fingerprint, processes)])

    def tidy(self) -> None:
        """Remove the checkpoint that an ended run no longer needs."""
        (self.path / "checkpoint.safetensors").unlink(missing_ok=True)

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[str, Any] | None]:
        """Return the progress, and tensors and state of a trainer if one was under way."""
        file = self.path / "checkpoint.safetensors"
        if not file.exists():
            return Progress(), {}, None
        try:
            tensors, state = load_checkpoint(file)
        except (SafetensorError, ValueError) as error:
            raise RunError(
                f"{file} cannot be read ({error}); remove it to start this run from the beginning"
            ) from error
        return Progress(**state["progress"]), tensors, state["trainer"]

    def save(
        self, progress: Progress, tensors: dict[str, Tensor], trainer: dict[str, Any] | None
    ) -> None:
        """Write a checkpoint; `trainer` is None between two sets of weights."""
        state = {"progress": asdict(progress), "trainer": trainer}
        save_checkpoint(self.path / "checkpoint.safetensors", tensors, state)

    def finish(self, progress: Progress, net: SlimmableNet, *, budget_exempt: bool) -> None:
        """Write the front, the result and, last, the end mark; drop the checkpoint."""
        rows = io.StringIO()
        writer = csv.DictWriter(rows, FRONT_COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(progress.rows)
        write_text(self.path / "front.csv", rows.getvalue())
        space, cost, full = net.space, net.cost, Widths(net.space.maxima)
        result = {
            "experiment": self.experiment.name,
            "method": self.method,
            "seed": self.seed,
            "network": self.experiment.network.name,
            "scale": self.experiment.scale,
            "cost": self.experiment.cost,
            "full_costs": {name: int(cost.of(name, full)) for name in COSTS},
            "groups": [{"name": group.name, "maximum": group.maximum} for group in space.groups],
            "budget": {
                "gradient_steps": progress.gradient_steps,
                "passes": progress.passes,
                "search_evaluations": progress.search_evaluations,
                "widths_visited": progress.widths_visited,
            },
            "budget_exempt": budget_exempt,
            "seconds": round(progress.seconds, 1),
        }
        _write(self.path / "result.json", result)
        _write(self.path / "DONE", {"rows": len(progress.rows)})
        self.tidy()


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove the folder to start anew") from error
