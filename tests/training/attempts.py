"""A run with an accident on its way, in a process of its own where that may not survive it."""

from __future__ import annotations

import hashlib
import json
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import torch

from pareco.config import Machine
from pareco.processes import worker_context
from pareco.training import RunError, StepReport, execute_run
from pareco.training.folder import RunFolder
from pareco.training.interruption import Interrupted
from replications import sweep
from replications.catalogue import method_named
from tests.experiments import TINY

MIB = 2**20
EACH_STEP = Machine(checkpoint_minutes=0, device="cpu")
SELDOM = Machine(checkpoint_minutes=60, device="cpu")


@dataclass(frozen=True)
class Accident:
    """What befalls a run once it has done a step; a name of a function below, or of a moment."""

    kind: str
    step: int


def attempt(
    path: Path, method: str, accident: Accident | None = None, machine: Machine = EACH_STEP
) -> int:
    """Return the exit status of a run; what it says is in `path.log`, its weights in `.states`."""
    if accident is None or accident.kind in _SIGNALS:
        return _status(path, method, accident, machine)
    context: Any = worker_context(sweep.__name__)
    process = context.Process(target=_attempt, args=(path, method, accident, machine))
    process.start()
    process.join()
    return process.exitcode


def states(path: Path) -> dict[tuple[int, int], set[str]]:
    """Return the digests of what was saved for every step: one each, unless attempts differ.

    A step, and how many losses were measured with the final weights, once there are such.
    """
    found: dict[tuple[int, int], set[str]] = {}
    for line in path.with_suffix(".states").read_text().splitlines():
        step, measured, digest = line.split()
        found.setdefault((int(step), int(measured)), set()).add(digest)
    return found


def steps_of(path: Path) -> list[int]:
    """Return the steps that all attempts have done, in order."""
    return [int(line) for line in path.with_suffix(".steps").read_text().splitlines()]


def said(path: Path) -> str:
    """Return what the last attempt has said."""
    return path.with_suffix(".log").read_text()


def _attempt(path: Path, method: str, accident: Accident, machine: Machine) -> NoReturn:
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    sys.exit(_status(path, method, accident, machine))


def _status(path: Path, method: str, accident: Accident | None, machine: Machine) -> int:
    """Do the run in this process and return with what status a command would end."""
    done, before = [0], signal.signal(signal.SIGINT, signal.default_int_handler)
    if accident is not None and accident.kind in _MOMENTS:
        _die_at_moment(accident, done)
    files = [path.with_suffix(end).open("a", buffering=1) for end in (".states", ".steps", ".log")]
    states_file, steps, log = files
    log.truncate(0)

    def on_step(report: StepReport) -> None:
        done[0] = report.step
        steps.write(f"{report.step}\n")
        if accident is not None and accident.step == report.step and accident.kind in _ACCIDENTS:
            _ACCIDENTS[accident.kind](path)

    def saved(self: RunFolder, state: Any, tensors: Any, trainer: Any) -> None:
        if trainer is not None:
            digest = hashlib.sha256(json.dumps(trainer).encode())
            for name, tensor in sorted(tensors.items()):
                digest.update(name.encode())
                digest.update(tensor.detach().contiguous().numpy().tobytes())
            place = state.gradient_steps + trainer["step"], len(trainer["evaluations"]["final"])
            states_file.write(f"{place[0]} {place[1]} {digest.hexdigest()}\n")
        save(self, state, tensors, trainer)

    save = RunFolder.save
    try:
        with patch.dict(os.environ, WANDB_MODE="disabled"), patch.object(RunFolder, "save", saved):
            execute_run(TINY, method_named(method), 0, path, on_step, machine)
    except Interrupted as error:
        log.write(f"{error}")
        return error.exit_status
    except RunError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.write(f"{error}\n{error.__cause__!r}")
        return 1
    finally:
        os.seteuid(os.getuid())
        signal.signal(signal.SIGINT, before)
        for file in files:
            file.close()
    return 0


def _die(*unused: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _die_at_moment(accident: Accident, done: list[int]) -> None:
    """Have the process killed in the midst of the first such call once the step is done."""
    owner, name, cut = _MOMENTS[accident.kind]
    original = getattr(owner, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        if done[0] >= accident.step:
            return cut(original, *arguments, **options)
        return original(*arguments, **options)

    setattr(owner, name, patched)


def _die_in_sync(torn: bool, fsync: Callable[[int], None], descriptor: int) -> None:
    if "/checkpoints/." not in os.readlink(f"/proc/self/fd/{descriptor}"):
        return fsync(descriptor)
    if torn:
        os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    _die()


def _die_in_replace(where: str, named: bool, replace: Any, self: Path, target: Path) -> Path:
    due = where in (target.name, target.parent.name)
    result = replace(self, target) if named or not due else target
    return _die() if due else result


def _die_in_unlink(unlink: Callable[..., None], self: Path, missing_ok: bool = False) -> None:
    _die() if self.parent.name == "checkpoints" else unlink(self, missing_ok=missing_ok)


_MOMENTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    # half of a checkpoint's bytes are written; all are, but not synced; they are, but not renamed
    "torn": (os, "fsync", partial(_die_in_sync, True)),
    "unsynced": (os, "fsync", partial(_die_in_sync, False)),
    "unnamed": (Path, "replace", partial(_die_in_replace, "checkpoints", False)),
    # it is renamed, but its folder not synced; it is in place, and an old one too many
    "named": (Path, "replace", partial(_die_in_replace, "checkpoints", True)),
    "crowded": (Path, "unlink", _die_in_unlink),
    # all results are written, but not the end mark
    "unfinished": (Path, "replace", partial(_die_in_replace, "DONE", False)),
}


def _full_record(path: Path) -> None:
    """Let the metrics file grow by half a line only."""
    room = (path / "metrics.jsonl").stat().st_size + 40
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, -1))


def _out_of_memory(path: Path) -> None:
    """Leave little more memory than is in use, and ask for more."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    room = pages * resource.getpagesize() + 64 * MIB
    resource.setrlimit(resource.RLIMIT_AS, (room, -1))
    held = [torch.zeros(16 * MIB, dtype=torch.uint8) for _ in range(8)]
    raise AssertionError(f"{len(held)} tensors found room")


def _other_user(path: Path) -> None:
    """Go on as a user who may not write there."""
    for folder in (path, path / "checkpoints"):
        folder.chmod(0o555)
    if os.getuid() == 0:
        os.seteuid(65534)


def _hold_on(path: Path) -> None:
    """Wait while another process tries the same folder."""
    path.with_suffix(".held").touch()
    while path.with_suffix(".held").exists():
        time.sleep(0.02)


_SIGNALS: dict[str, Callable[[Path], None]] = {
    "sigterm": lambda path: os.kill(os.getpid(), signal.SIGTERM),
    "sigint": lambda path: os.kill(os.getpid(), signal.SIGINT),
}
_ACCIDENTS: dict[str, Callable[[Path], None]] = {
    **_SIGNALS,
    "killed": _die,
    "killed_soon": lambda path: threading.Timer(0.02, _die).start(),
    # No file may grow over 10 kB, so that the next checkpoint fails half way.
    "full_disk": lambda path: resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1)),
    "full_record": _full_record,
    "out_of_memory": _out_of_memory,
    "other_user": _other_user,
    "hold_on": _hold_on,
}
