"""The folder of one run: its configuration, provenance, checkpoint, front and end mark."""

from __future__ import annotations

import csv
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from pareco.config import Experiment, as_json
from pareco.data import DataSet
from pareco.slimmable import SlimmableNet
from pareco.training.checkpoint import load_checkpoint, save_checkpoint
from pareco.training.provenance import environment
from pareco.widths import Widths

FRONT_COLUMNS = (
    *("experiment", "method", "seed", "widths", "macs", "params", "search_loss"),
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
        ours, theirs = self._configuration(), json.loads(file.read_text(encoding="utf-8"))
        return [
            f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} now"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]

    def claim(self) -> None:
        """Make the folder and write its configuration.

        Raises `RunError` with the differences if it holds a run of another configuration.
        """
        differences = self.differences()
        if differences:
            raise RunError(
                f"{self.path} holds a run of another configuration ({'; '.join(differences)}). "
                "Remove that folder, or keep this run apart with --name NAME or --runs FOLDER"
            )
        self.path.mkdir(parents=True, exist_ok=True)
        if not (self.path / "config.json").exists():
            _write(self.path / "config.json", self._configuration())

    def _configuration(self) -> dict[str, Any]:
        configuration = as_json(self.experiment)
        for field_of_sweep in ("methods", "seeds"):
            del configuration[field_of_sweep]
        return configuration | {"method": self.method, "seed": self.seed}

    def describe(self, data: DataSet) -> None:
        """Write the splits, and add this session to the environments of the run.

        Raises `RunError` if the run was begun on other data.
        """
        _write(self.path / "splits.json", data.splits.as_json())
        file = self.path / "env.json"
        sessions = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
        sessions.append(environment(data.fingerprint))
        if sessions[0]["data_fingerprint"] != data.fingerprint:
            raise RunError(f"{self.path} was begun on other data; remove that folder to start anew")
        _write(file, sessions)

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[str, Any] | None]:
        """Return the progress, and tensors and state of a trainer if one was under way."""
        file = self.path / "checkpoint.safetensors"
        if not file.exists():
            return Progress(), {}, None
        tensors, state = load_checkpoint(file)
        return Progress(**state["progress"]), tensors, state["trainer"]

    def save(
        self, progress: Progress, tensors: dict[str, Tensor], trainer: dict[str, Any] | None
    ) -> None:
        """Write a checkpoint; `trainer` is None between two sets of weights."""
        state = {"progress": asdict(progress), "trainer": trainer}
        save_checkpoint(self.path / "checkpoint.safetensors", tensors, state)

    def finish(self, progress: Progress, net: SlimmableNet, *, budget_exempt: bool) -> None:
        """Write the front, the result and, last, the end mark; drop the checkpoint."""
        with (self.path / "front.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, FRONT_COLUMNS, lineterminator="\n")
            writer.writeheader()
            writer.writerows(progress.rows)
        space, cost = net.space, net.cost
        result = {
            "experiment": self.experiment.name,
            "method": self.method,
            "seed": self.seed,
            "network": self.experiment.network.name,
            "full_macs": int(cost.macs(Widths(space.maxima))),
            "full_params": int(cost.params(Widths(space.maxima))),
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
        (self.path / "checkpoint.safetensors").unlink(missing_ok=True)


def _write(path: Path, content: Any) -> None:
    temporary = path.with_name(f".{path.name}.new")
    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)
