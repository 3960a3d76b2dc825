"""The folder of one run: its configuration, provenance, checkpoint, front and end mark."""

from __future__ import annotations

import csv
import io
import json
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from pareco.config import Experiment, as_json
from pareco.cost import COSTS
from pareco.data import DataSet
from pareco.files import remove_leftovers, sync, write_bytes, write_text
from pareco.processes import Processes
from pareco.slimmable import SlimmableNet
from pareco.training.checkpoint import add_checkpoint, newest_checkpoint
from pareco.training.failures import RunError
from pareco.training.provenance import environment
from pareco.training.rows import FRONT_COLUMNS, VISIT_COLUMNS
from pareco.widths import Widths


@dataclass(kw_only=True)
class Progress:
    """What is done of a run: the sets of weights trained, their rows, and what was spent.

    `rows` are those of front.csv, `visits` those of visits.csv.

    `images` were trained on in `training_seconds`, of which `waiting_seconds` passed without any.
    """

    trained: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    visits: list[dict[str, Any]] = field(default_factory=list)
    gradient_steps: int = 0
    passes: int = 0
    search_evaluations: int = 0
    widths_visited: int = 0
    seconds: float = 0.0
    images: int = 0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    damaged_images: int = 0

    def timing(self) -> dict[str, float | None]:
        """Return the time of the whole run, and the rates of its training (None if there was none).

        Ready for JSON.
        """
        spent = self.training_seconds
        return {
            "seconds": round(self.seconds, 1),
            "images_per_second": round(self.images / spent, 1) if spent else None,
            "data_waiting_percent": round(100 * self.waiting_seconds / spent, 1) if spent else None,
        }


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
        return self._differences(_read(file))

    def _differences(self, theirs: dict[str, Any]) -> list[str]:
        ours = self._configuration()
        return [
            f"{key}: {theirs.get(key, 'absent')} there, {ours.get(key, 'absent')} now"
            for key in sorted(ours.keys() | theirs.keys())
            if ours.get(key) != theirs.get(key)
        ]

    def check(self) -> None:
        """Raise `RunError` with the differences if it holds a run of another configuration."""
        self._refuse(self.differences())

    def _refuse(self, differences: list[str]) -> None:
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
        self._checkpoints.mkdir(exist_ok=True)
        for folder in (self.path, self._checkpoints, self.weights):
            remove_leftovers(folder)
        file = self.path / "env.json"
        sessions = _read(file) if file.exists() else []
        if sessions and sessions[0]["data_fingerprint"] != data.fingerprint:
            raise RunError(f"{self.path} was begun on other data; remove that folder to start anew")
        if not sessions:
            _write(self.path / "config.json", self._configuration())
            _write(self.path / "splits.json", data.splits.as_json())
        _write(file, [*sessions, environment(data.fingerprint, processes)])

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def tidy(self) -> None:
        """Remove the checkpoints that an ended run no longer needs."""
        shutil.rmtree(self._checkpoints, ignore_errors=True)

    def load(self) -> tuple[Progress, dict[str, Tensor], dict[str, Any] | None]:
        """Return the progress, and tensors and state of a trainer if one was under way.

        They come from the newest checkpoint that is whole. Raises `RunError` if none of them is,
        or if it is of another format or configuration.
        """
        newest = newest_checkpoint(self._checkpoints)
        if newest is None:
            return Progress(), {}, None
        tensors, state = newest
        self._refuse(self._differences(state["configuration"]))
        return Progress(**state["progress"]), tensors, state["trainer"]

    def save(
        self, progress: Progress, tensors: dict[str, Tensor], trainer: dict[str, Any] | None
    ) -> None:
        """Write a checkpoint, after the record; `trainer` is None between two sets of weights."""
        self._sync_record()
        state = {
            "configuration": self._configuration(),
            "progress": asdict(progress),
            "trainer": trainer,
        }
        step = progress.gradient_steps + (trainer["step"] if trainer else 0)
        add_checkpoint(self._checkpoints, step, tensors, state)

    def _sync_record(self) -> None:
        """Bring the record of scalars to the disk, so that no checkpoint is ever ahead of it."""
        record = self.path / "metrics.jsonl"
        if record.exists():
            sync(record)

    def save_weights(self, index: int, weights: dict[str, Tensor]) -> None:
        """Write one set of trained weights, the `index`-th, to `weights/`."""
        held = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        self.weights.mkdir(exist_ok=True)
        write_bytes(self.weights / f"{index}.safetensors", save(held))

    @property
    def weights(self) -> Path:
        """The folder of the trained weights, one file for each set."""
        return self.path / "weights"

    def write_result(self, progress: Progress, net: SlimmableNet, *, budget_exempt: bool) -> None:
        """Write the front, what was visited, and the result."""
        self._sync_record()
        _write_csv(self.path / "front.csv", FRONT_COLUMNS, progress.rows)
        _write_csv(self.path / "visits.csv", VISIT_COLUMNS, progress.visits)
        space, cost, full = net.space, net.cost, Widths(net.space.maxima)
        result = {
            "experiment": self.experiment.name,
            "method": self.method,
            "seed": self.seed,
            "network": self.experiment.network.name,
            "data": self.experiment.data.name,
            "image_size": self.experiment.data.image_size,
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
            "timing": progress.timing(),
            "damaged_images": progress.damaged_images,
        }
        _write(self.path / "result.json", result)

    def finish(self, progress: Progress) -> None:
        """Write the end mark, last of all; drop the checkpoints."""
        _write(self.path / "DONE", {"rows": len(progress.rows)})
        self.tidy()


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_text(path, text.getvalue())


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove the folder to start anew") from error
