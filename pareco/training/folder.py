"""The folder of one run: its configuration, environment, checkpoints, front and end mark.

A checkpoint holds tensors and JSON in one safetensors file, with a checksum; nothing runs code. The
last two are kept, so that one is left if the newest is damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Self

import pandas as pd
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pareco.config import OF_SWEEP, Experiment, as_json, completed
from pareco.data import DataSet
from pareco.files import remove_leftovers, sync, write_bytes, write_text
from pareco.methods import Method, code_digest, is_own
from pareco.processes import Processes
from pareco.schema import (
    BUDGET_TYPES,
    FRONT_TYPES,
    LATENCY_TABLE,
    MEANT,
    METHOD_CODE,
    OBJECTIVES,
    OF_METHOD,
    PHASES,
    VISIT_TYPES,
)
from pareco.slimmable import SlimmableNet
from pareco.tracking.tracker import metrics_rows
from pareco.training.environment import environment
from pareco.training.interruption import RunError
from pareco.widths import Widths

FORMAT = "pareco-checkpoint-3"
_LOGGER = logging.getLogger("pareco.training")

Row = dict[str, Any]


@dataclass(kw_only=True)
class RunState:
    """What is done of a run: the sets of weights trained, their rows, and what was spent.

    `rows` are those of front.csv, `visits` those of visits.csv. `seconds` are of the wall clock,
    from the moment that network and data are there to the end of the last measurement; steps that
    an interruption has lost are not in it. `images` were trained on, each by every network of a
    step, in `training_seconds`: these are of the gradient steps alone, with the waiting for images
    (`waiting_seconds`), the averaging of gradients over processes (`reduction_seconds`: on an
    accelerator the time to ask for it) and, where a method searches in training, its search. They
    leave out what is decoded into memory before the first step, the metrics file, checkpoints, and
    all that comes after the last step: choosing and testing the front. `damaged` tells why images
    could not be read, in any process, by their index. `counts` are those of the front that is being
    measured, as of `pareco.evaluation.Counts`, by the images. `ledger` is the state of a
    `pareco.ledger.Ledger`; None for a run that was begun before there were ledgers. `limits` are
    what the run may spend, as of `pareco.training.plan.Limits`, from its first session on.
    """

    trained: int = 0
    rows: list[Row] = field(default_factory=list)
    visits: list[Row] = field(default_factory=list)
    gradient_steps: int = 0
    passes: int = 0
    search_evaluations: int = 0
    widths_visited: int = 0
    seconds: float = 0.0
    images: int = 0
    training_seconds: float = 0.0
    waiting_seconds: float = 0.0
    reduction_seconds: float = 0.0
    damaged: dict[str, str] = field(default_factory=dict)
    counts: dict[str, dict[str, Any]] = field(default_factory=dict)
    ledger: dict[str, dict[str, Any]] | None = field(default_factory=dict)
    limits: dict[str, int | None] | None = None

    @property
    def parts(self) -> dict[str, float] | None:
        """What the time went to, in seconds, as of `RunResult.parts`; None without a ledger."""
        if self.ledger is None:
            return None
        spent = {phase: self.ledger[phase]["seconds"] for phase in PHASES if phase != "lost"}
        beside = {"images": self.waiting_seconds, "reduction": self.reduction_seconds}
        spent["training"] -= sum(beside.values())
        return {name: round(seconds, 1) for name, seconds in (spent | beside).items()}


@dataclass(frozen=True, kw_only=True)
class RunFolder:
    """`runs/<experiment>/<method>/seed<k>/`; complete in itself, `DONE` written last."""

    path: Path
    experiment: Experiment
    method: str
    seed: int
    own_search: Mapping[str, Any] | None = None
    """The method's own values of `search` fields left unset; None where they aren't at hand."""
    method_code: str | None = None
    """The SHA-256 of the file that defines the method; None where there is none, or it is not at
    hand."""
    own_method: bool = False
    """Whether the method is somebody's own, whose code is then part of the configuration."""

    def of_method(self, kind: type[Method]) -> Self:
        """Return the folder with what the method says of itself, to be found alike in it."""
        return replace(
            self,
            own_search=kind.own_search,
            method_code=code_digest(kind),
            own_method=is_own(kind),
        )

    @property
    def done(self) -> bool:
        """Whether the folder holds the finished run."""
        return (self.path / "DONE").exists()

    @property
    def begun(self) -> bool:
        """Whether a session of the run has been there."""
        return (self.path / "env.json").exists()

    @property
    def weights(self) -> Path:
        """The folder of the trained weights, one file for each set."""
        return self.path / "weights"

    @property
    def statistics(self) -> Path:
        """The folder of what each network of the front has of its own, one file for each set."""
        return self.path / "statistics"

    @property
    def identity(self) -> Row:
        """What every row of this run begins with."""
        return {"experiment": self.experiment.name, "method": self.method, "seed": self.seed}

    @property
    def _checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def configuration(self) -> dict[str, Any]:
        """Return what `config.json` has of a run: of the experiment, and its own."""
        ours = {key: each for key, each in as_json(self.experiment).items() if key not in OF_SWEEP}
        return ours | self.own

    @property
    def own(self) -> dict[str, Any]:
        """What a configuration has beside the experiment: whose run it is, of which search."""
        run: dict[str, Any] = {"method": self.method, "seed": self.seed}
        if self.own_method and self.method_code is not None:
            run[METHOD_CODE] = self.method_code
        if self.own_search is None:
            return run
        search = self.experiment.search
        resolved = as_json(search.resolved(self.own_search), MEANT)
        unset = as_json(search, MEANT)
        return run | {key: each for key, each in resolved.items() if unset[key] is None}

    def differences(self, theirs: dict[str, Any] | None = None) -> list[str]:
        """Return how the run that the folder holds is configured differently; none if it is new.

        `theirs` is its configuration, unless given that of `config.json`. A field that it lacks has
        its default there; one that this version does not know is a difference. What unset fields
        meant, and the code of a method of somebody's own, is compared where both say it.
        """
        file, ours = self.path / "config.json", self.configuration()
        stored: dict[str, Any] = theirs or (_read(file, dict) if file.exists() else ours)
        there = {key: each for key, each in completed(stored).items() if key not in OF_SWEEP}
        both = ours.keys() & there.keys()
        known = {key for key in ours.keys() | there.keys() if not key.startswith(OF_METHOD)}
        return [
            f"{key}: {there.get(key, 'absent')} there, {ours.get(key, 'unknown to this version')}"
            + " now" * (key in ours)
            for key in sorted(known | both)
            if key not in ours or key not in there or ours[key] != there[key]
        ]

    def _check(self, theirs: dict[str, Any] | None = None) -> None:
        if differences := self.differences(theirs):
            raise RunError(
                f"{self.path} holds a run of another configuration ({'; '.join(differences)}). "
                "Remove that folder, or keep this run apart with --name NAME or --runs FOLDER"
            )

    def finished(self) -> bool:
        """Return whether nothing is left to do; checkpoints are then removed.

        Raises `RunError` with the differences if it holds a run of another configuration.
        """
        self._check()
        if self.done:
            shutil.rmtree(self._checkpoints, ignore_errors=True)
        return self.done

    @contextmanager
    def claimed(self, data: DataSet, processes: Processes, seconds: float = 0.0) -> Iterator[None]:
        """Hold the folder inside the `with` block; write configuration, splits and environment.

        Raises `RunError` if another process holds it, so many seconds on still, or it holds a run
        of another configuration or of other data.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            held = FileLock(self.path / ".lock", timeout=seconds).acquire()
        except Timeout:
            raise RunError(f"{self.path} is in use by another process") from None
        with held:  # and not the lock itself, which would count a second time
            if not self.finished():
                self._describe(data, processes)
            yield

    def _describe(self, data: DataSet, processes: Processes) -> None:
        self._checkpoints.mkdir(exist_ok=True)
        for folder in (self.path, self._checkpoints, self.weights, self.statistics):
            remove_leftovers(folder)
        file = self.path / "env.json"
        sessions = _read(file, list) if self.begun else []
        if not sessions:
            _write(self.path / "config.json", self.configuration())
            _write(self.path / "splits.json", data.splits.as_json())
            if self.experiment.latency_table is not None:
                table = Path(self.experiment.latency_table).expanduser()
                write_bytes(self.path / LATENCY_TABLE, table.read_bytes())
        else:
            self._check_session(sessions[0], data.fingerprint, processes.share.count)
            if sessions[0].get("method_code", self.method_code) != self.method_code:
                _LOGGER.warning("the code of %s is not that which began %s", self.method, self.path)
        session = environment(data.fingerprint, processes) | {"method_code": self.method_code}
        _write(file, [*sessions, session])

    def check_begun(self, data_fingerprint: str, processes: int) -> None:
        """Raise `RunError` if the run that is there was begun otherwise than it could go on.

        With other data, by other code of one's own or, where numbers depend on it, by another
        number of processes.
        """
        first = _read(self.path / "env.json", list)[0]
        self._check_session(first, data_fingerprint, processes)

    def _check_session(self, first: Mapping[str, Any], data_fingerprint: str, ours: int) -> None:
        if first["data_fingerprint"] != data_fingerprint:
            raise RunError(f"{self.path} was begun on other data; remove that folder to start anew")
        code = first.get("method_code", self.method_code)
        if self.own_method and None not in (code, self.method_code) and code != self.method_code:
            raise RunError(
                f"{self.path} was begun by other code of {self.method}: give the changed method "
                "another name, or remove that folder"
            )
        theirs = first.get("processes", 1)
        if theirs != ours and not self.experiment.training.sync_batch_norm:
            raise RunError(
                f"{self.path} was begun by {theirs} processes, not {ours}, each with batch norm of "
                "its own (training.sync_batch_norm False), whose number it depends on: go on with "
                f"{theirs}, or keep this run apart with --name NAME or --runs FOLDER"
            )

    def load(self) -> tuple[RunState, dict[str, Tensor], dict[str, Any] | None]:
        """Return the run's state, and tensors and state of a trainer if one was under way.

        They come from the newest checkpoint that is whole. Raises `RunError` if none of them is,
        or if it is of another format or configuration.
        """
        newest = newest_checkpoint(self._checkpoints)
        if newest is None:
            return RunState(), {}, None
        tensors, state = newest
        self._check(state["configuration"])
        known = {each.name for each in fields(RunState)}  # earlier versions knew others
        progress = {name: each for name, each in state["progress"].items() if name in known}
        return RunState(**{"ledger": None, **progress}), tensors, state["trainer"]

    def macs_beyond(self, steps: int) -> dict[str, int]:
        """Return the MACs that the metrics file was at, if it goes beyond so many steps; else 0."""
        names = ("forward_macs", "backward_macs")
        try:
            step, scalars = metrics_rows(self.path / "metrics.jsonl")[-1][1]
            return {name: int(scalars[name]) if step > steps else 0 for name in names}
        except (IndexError, KeyError, ValueError):  # there is none, or it is an earlier version's
            return dict.fromkeys(names, 0)

    def save(
        self, done: RunState, tensors: dict[str, Tensor], trainer: dict[str, Any] | None
    ) -> None:
        """Write a checkpoint, after the record; `trainer` is None between two sets of weights."""
        self._sync_metrics()
        own = {"configuration": self.configuration(), "progress": asdict(done)}
        step = done.gradient_steps + (trainer["step"] if trainer else 0)
        save_checkpoint(self._checkpoints, step, tensors, own | {"trainer": trainer})

    def _sync_metrics(self) -> None:
        """Bring the metrics file to the disk, so that no checkpoint is ever ahead of it."""
        metrics = self.path / "metrics.jsonl"
        if metrics.exists():
            sync(metrics)

    def save_weights(self, index: int, weights: dict[str, Tensor]) -> None:
        """Write one set of trained weights, the `index`-th, to `weights/`."""
        self.weights.mkdir(exist_ok=True)
        write_bytes(self.weights / f"{index}.safetensors", save(_on_the_cpu(weights)))

    def save_statistics(
        self, index: int, networks: Sequence[tuple[Widths, Mapping[str, Tensor]]]
    ) -> None:
        """Write the batch norm of the front's networks on the `index`-th set, to `statistics/`.

        Each has its widths, in the order of the front, and its tensors by names of the plain
        network's state dict.
        """
        self.statistics.mkdir(exist_ok=True)
        tensors = {
            f"{place}/{name}": tensor
            for place, (_, own) in enumerate(networks)
            for name, tensor in own.items()
        }
        metadata = {"widths": json.dumps([str(widths) for widths, _ in networks])}
        path = self.statistics / f"{index}.safetensors"
        write_bytes(path, save(_on_the_cpu(tensors), metadata))

    def write_result(
        self, done: RunState, net: SlimmableNet, data: DataSet, *, budget_exempt: bool
    ) -> None:
        """Write the front, what was visited, and the result."""
        self._sync_metrics()
        tables = {
            "front": (done.rows, FRONT_TYPES),
            "visits": (done.visits, ("experiment", *VISIT_TYPES)),
        }
        for name, (rows, columns) in tables.items():
            names = [*columns, *(each for each in OBJECTIVES if each in net.cost.names)]
            table = pd.DataFrame(rows, columns=names, dtype=object)
            write_text(self.path / f"{name}.csv", table.to_csv(index=False, lineterminator="\n"))
        space = net.space
        spent, waited = done.training_seconds, done.waiting_seconds
        result = {
            **self.identity,
            "network": self.experiment.network.name,
            "data": self.experiment.data.name,
            "image_size": self.experiment.data.image_size,
            **data.counts,
            "class_names": list(data.store.classes),
            "scale": self.experiment.scale,
            "cost": self.experiment.cost,
            "full_costs": net.cost.full_costs,
            "started_from": self.experiment.network.start,
            "groups": [{"name": group.name, "maximum": group.maximum} for group in space.groups],
            "budget": {name: getattr(done, name) for name in BUDGET_TYPES},
            "budget_exempt": budget_exempt,
            "equal_macs": self.experiment.training.macs,
            "limits": done.limits,
            "timing": {
                "seconds": round(done.seconds, 1),
                "images_per_second": round(done.images / spent, 1) if spent else None,
                "data_waiting_percent": round(100 * waited / spent, 1) if spent else None,
            },
            "parts": done.parts,
            "damaged_images": len(done.damaged),
            "ledger": done.ledger,
        }
        _write(self.path / "result.json", result)

    def finish(self, done: RunState) -> None:
        """Write the end mark, last of all; drop the checkpoints."""
        _write(self.path / "DONE", {"rows": len(done.rows)})
        shutil.rmtree(self._checkpoints, ignore_errors=True)


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")


def _read(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, kind):
            raise ValueError(f"it holds no {kind.__name__}")
        return content
    except ValueError as error:
        raise RunError(f"{path} is damaged ({error}); remove the folder to start anew") from error


class DamagedCheckpoint(RunError):
    """A file that is not what was written: truncated, or changed."""


def save_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write tensors and a JSON-ready state after a step; keep this checkpoint and the one before.

    Those of later steps go too: training has gone on from an earlier one, as they were damaged.
    """
    path = folder / f"{step:012}.safetensors"
    held, text = _on_the_cpu(tensors), json.dumps(state)
    metadata = {"format": FORMAT, "state": text, "sha256": _checksum(held, text)}
    write_bytes(path, save(held, metadata))
    earlier = [other for other in _files_of(folder) if other < path]
    for other in set(_files_of(folder)) - {path, *earlier[-1:]}:
        other.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state of the last checkpoint that is whole; None if there is none at all.

    A damaged one is reported as a warning. Raises `RunError` if all are damaged, or one is of
    another format.
    """
    damaged: list[str] = []
    for path in reversed(_files_of(folder)):
        try:
            return load_checkpoint(path)
        except DamagedCheckpoint as error:
            _LOGGER.warning("%s; the checkpoint before it is tried", error)
            damaged.append(str(error))
    if not damaged:
        return None
    raise DamagedCheckpoint(
        f"no checkpoint is whole: {'; '.join(damaged)}. Put back a copy of one, or remove "
        f"{folder} to start this run from the beginning"
    )


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the state that `save_checkpoint` wrote.

    Raises `DamagedCheckpoint` if the file has changed since, `RunError` if it is of another format.
    """
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        found = metadata["format"]
        if re.fullmatch(r"pareco-checkpoint-\d+", found) is None:
            raise ValueError(f"it says that it is of the format {found!r}")
        if found != FORMAT:
            raise RunError(
                f"{path} has the format {found}, this version reads {FORMAT}: go on with the one "
                f"that wrote it, or remove {path.parent} to start this run from the beginning"
            )
        tensors = load(content)
        if _checksum(tensors, metadata["state"]) != metadata["sha256"]:
            raise ValueError("its checksum is another")
        return tensors, json.loads(metadata["state"])
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DamagedCheckpoint(f"{path} is damaged ({error})") from error
    except OSError as error:
        if error.errno != errno.EIO:
            raise
        raise DamagedCheckpoint(f"{path} cannot be read ({error.strerror})") from error


def _on_the_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}


def _files_of(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest last."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def _checksum(tensors: dict[str, Tensor], state: str) -> str:
    """Return the SHA-256 of the state and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps([FORMAT, state]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
