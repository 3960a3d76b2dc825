"""A run in a process of its own, with an accident on its way; the process ends as its run does."""

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
from pathlib import Path
from typing import Any, NoReturn

import torch

from pareco.config import Experiment, Machine
from pareco.training import RunError, StepReport, execute_run
from pareco.training.folder import RunFolder
from pareco.training.interruption import Interrupted
from replications.catalogue import method_named
from replications.sweep import worker_context
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
    path: Path,
    method: str,
    accident: Accident | None = None,
    machine: Machine = EACH_STEP,
    experiment: Experiment = TINY,
) -> int:
    """Return the exit status of a run; what it says is in `path.log`, its weights in `.states`."""
    context: Any = worker_context()
    arguments = (path, method, accident, machine, experiment)
    process = context.Process(target=_attempt, args=arguments)
    process.start()
    process.join()
    return process.exitcode


def states(path: Path) -> dict[int, set[str]]:
    """Return the digests of what was saved for every step: one each, unless attempts differ."""
    found: dict[int, set[str]] = {}
    for line in path.with_suffix(".states").read_text().splitlines():
        step, digest = line.split()
        found.setdefault(int(step), set()).add(digest)
    return found


def steps_of(path: Path) -> list[int]:
    """Return the steps that all attempts have done, in order."""
    return [int(line) for line in path.with_suffix(".steps").read_text().splitlines()]


def said(path: Path) -> str:
    """Return what the last attempt has said."""
    return path.with_suffix(".log").read_text()


def _attempt(
    path: Path, method: str, accident: Accident | None, machine: Machine, experiment: Experiment
) -> NoReturn:
    os.environ["WANDB_MODE"] = "disabled"
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM, signal.SIGINT))
    signal.signal(signal.SIGINT, signal.default_int_handler)
    _note_states(path)
    at = [0]
    if accident is not None and accident.kind in _MOMENTS:
        _die_at_moment(accident, at)

    steps, log = (path.with_suffix(ending).open("a", buffering=1) for ending in (".steps", ".log"))
    log.truncate(0)

    def on_step(report: StepReport) -> None:
        at[0] = report.step
        steps.write(f"{report.step}\n")
        if accident is not None and accident.step == report.step and accident.kind in _ACCIDENTS:
            _ACCIDENTS[accident.kind](path)

    try:
        execute_run(experiment, method_named(method), 0, path, on_step, machine)
    except Interrupted as error:
        log.write(f"{error}")
        sys.exit(error.exit_status)
    except RunError as error:
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        log.write(f"{error}\n{error.__cause__!r}")
        sys.exit(1)
    finally:
        os.seteuid(os.getuid())
    sys.exit(0)


def _note_states(path: Path) -> None:
    """Write a digest of weights, momentum and state of the method for every checkpoint."""
    save, file = RunFolder.save, path.with_suffix(".states").open("a", buffering=1)

    def noted(self: RunFolder, progress: Any, tensors: Any, trainer: Any) -> None:
        if trainer is not None:
            digest = hashlib.sha256(json.dumps(trainer).encode())
            for name, tensor in sorted(tensors.items()):
                digest.update(name.encode())
                digest.update(tensor.detach().contiguous().numpy().tobytes())
            file.write(f"{progress.gradient_steps + trainer['step']} {digest.hexdigest()}\n")
        save(self, progress, tensors, trainer)

    RunFolder.save = noted  # type: ignore[method-assign]


def _die(*unused: object) -> NoReturn:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("unreachable")


def _die_at_moment(accident: Accident, at: list[int]) -> None:
    """Have the process killed in the midst of the first such call once the step is done."""
    owner, name, cut = _MOMENTS[accident.kind]
    original = getattr(owner, name)

    def patched(*arguments: Any, **options: Any) -> Any:
        if at[0] >= accident.step:
            return cut(original, *arguments, **options)
        return original(*arguments, **options)

    setattr(owner, name, patched)


def _torn(fsync: Callable[[int], None], descriptor: int) -> None:
    """Die with half of a checkpoint's bytes written."""
    if "/checkpoints/." not in os.readlink(f"/proc/self/fd/{descriptor}"):
        return fsync(descriptor)
    os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
    _die()


def _unsynced(fsync: Callable[[int], None], descriptor: int) -> None:
    """Die with a checkpoint written, but not synced."""
    if "/checkpoints/." not in os.readlink(f"/proc/self/fd/{descriptor}"):
        return fsync(descriptor)
    _die()


def _unnamed(replace: Callable[..., Path], self: Path, target: Path) -> Path:
    """Die with a checkpoint synced, but not renamed."""
    return _die() if target.parent.name == "checkpoints" else replace(self, target)


def _named(replace: Callable[..., Path], self: Path, target: Path) -> Path:
    """Die with a checkpoint renamed, but its folder not synced."""
    result = replace(self, target)
    return _die() if target.parent.name == "checkpoints" else result


def _crowded(unlink: Callable[..., None], self: Path, missing_ok: bool = False) -> None:
    """Die with a checkpoint in place, and an old one too many."""
    _die() if self.parent.name == "checkpoints" else unlink(self, missing_ok=missing_ok)


def _unfinished(replace: Callable[..., Path], self: Path, target: Path) -> Path:
    """Die with all results written, but not the end mark."""
    return _die() if target.name == "DONE" else replace(self, target)


_MOMENTS: dict[str, tuple[Any, str, Callable[..., Any]]] = {
    "torn": (os, "fsync", _torn),
    "unsynced": (os, "fsync", _unsynced),
    "unnamed": (Path, "replace", _unnamed),
    "named": (Path, "replace", _named),
    "crowded": (Path, "unlink", _crowded),
    "unfinished": (Path, "replace", _unfinished),
}


def _die_soon(path: Path) -> None:
    """Die some milliseconds later, wherever the process is then."""
    threading.Timer(0.02, _die).start()


def _full_disk(path: Path) -> None:
    """Let no file grow over 10 kB, so that the next checkpoint fails half way."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, -1))


def _full_record(path: Path) -> None:
    """Let the record grow by half a line only."""
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


_ACCIDENTS: dict[str, Callable[[Path], None]] = {
    "killed": _die,
    "killed_soon": _die_soon,
    "sigterm": lambda path: os.kill(os.getpid(), signal.SIGTERM),
    "sigint": lambda path: os.kill(os.getpid(), signal.SIGINT),
    "full_disk": _full_disk,
    "full_record": _full_record,
    "out_of_memory": _out_of_memory,
    "other_user": _other_user,
    "hold_on": _hold_on,
}
