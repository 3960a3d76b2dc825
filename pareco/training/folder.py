"""The folder of one run: its configuration, provenance, checkpoint, front and end mark."""

from __future__ import annotations

import csv
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock, Timeout
from safetensors.torch import save
from torch import Tensor

from pareco.config import COSTS, Experiment, as_json
from pareco.cost import CostModel
from pareco.data import DataSet
from pareco.evaluation import Measurement
from pareco.files import remove_leftovers, sync, write_bytes, write_text
from pareco.methods import Visit
from pareco.processes import Processes
from pareco.schema import FRONT_TYPES, VISIT_NUMBERS, VISIT_TYPES
from pareco.slimmable import SlimmableNet
from pareco.training.checkpoint import add_checkpoint, newest_checkpoint
from pareco.training.interruption import RunError
from pareco.widths import Widths

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate"),
    *("botorch", "gpytorch", "numpy", "scipy", "wandb"),
)


def environment(data_fingerprint: str, processes: Processes) -> dict[str, Any]:
    """Return commit, dirty flag, versions, hardware and data fingerprint, ready for JSON.

    Commit and dirty flag are None outside a git checkout.
    """
    status = _git("status", "--porcelain", "--", ":/", ":!/results")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        **hardware(processes.device),
        "processes": processes.share.count,
        "data_fingerprint": data_fingerprint,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return system, processor, GPUs and the kind of device that computes, ready for JSON."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": os.cpu_count(),
        "device": device.type,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()


Row = dict[str, Any]


def front_rows(
    run: Row,
    cost: CostModel,
    chosen: Sequence[tuple[Widths, float]],
    tests: Sequence[Measurement],
    calibration_images: int,
) -> list[Row]:
    """Return a row for each network of a front: its widths, costs, search loss and test errors.

    `run` holds what the rows of a run share.
    """
    return [
        {
            **run,
            **_costs(cost, widths),
            "search_loss": f"{loss:.6f}",
            "test_top1_error": f"{test.top1_error:.4f}",
            "test_top5_error": f"{test.top5_error:.4f}",
            "calibration_images": calibration_images,
        }
        for (widths, loss), test in zip(chosen, tests, strict=True)
    ]


def visit_rows(run: Row, cost: CostModel, visits: Sequence[Visit], first: int) -> list[Row]:
    """Return a row for each visit, numbered from `first`; a number that is not there is empty."""
    return [
        {
            **run,
            "visit": first + index,
            "step": visit.step,
            "origin": visit.origin,
            **_costs(cost, visit.widths),
            **{
                name: format(value, shape)
                for name, shape in VISIT_NUMBERS.items()
                if (value := getattr(visit, name)) is not None
            },
        }
        for index, visit in enumerate(visits)
    ]


def _costs(cost: CostModel, widths: Widths) -> Row:
    return {"widths": str(widths), **{name: int(cost.of(name, widths)) for name in COSTS}}


@dataclass(kw_only=True)
class RunState:
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

    def load(self) -> tuple[RunState, dict[str, Tensor], dict[str, Any] | None]:
        """Return the progress, and tensors and state of a trainer if one was under way.

        They come from the newest checkpoint that is whole. Raises `RunError` if none of them is,
        or if it is of another format or configuration.
        """
        newest = newest_checkpoint(self._checkpoints)
        if newest is None:
            return RunState(), {}, None
        tensors, state = newest
        self._refuse(self._differences(state["configuration"]))
        return RunState(**state["progress"]), tensors, state["trainer"]

    def save(
        self, progress: RunState, tensors: dict[str, Tensor], trainer: dict[str, Any] | None
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

    def write_result(self, progress: RunState, net: SlimmableNet, *, budget_exempt: bool) -> None:
        """Write the front, what was visited, and the result."""
        self._sync_record()
        _write_csv(self.path / "front.csv", tuple(FRONT_TYPES), progress.rows)
        _write_csv(self.path / "visits.csv", ("experiment", *VISIT_TYPES), progress.visits)
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

    def finish(self, progress: RunState) -> None:
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
