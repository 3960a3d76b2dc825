"""What was recorded offline, or not uploaded in time, brought to the W&B server run by run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

from filelock import FileLock, Timeout

from pareco.tracking import offline
from pareco.tracking.server import answers, last_step_there

_SILENCE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one part of a run."""

    part: Path
    """Its `.wandb` file."""

    done: str = ""
    """What was done, if it went well."""

    problem: str = ""
    """What went wrong, else nothing."""


class UploadError(Exception):
    """A part that did not arrive."""


def upload(runs: Path) -> Iterator[Outcome]:
    """Upload every part below a folder that is not on the server; yield what became of each.

    The parts of a run go in the order of their starts, each cut after its last whole record and
    without the rows that the server has. Where one fails, the later ones of that run wait. A run
    that is in use is left alone. It needs a key, and a server that answers: see `unreachable`.
    """
    parts = sorted(offline.recorded_parts(runs), key=lambda part: str(_run_folder(part)))
    for _, of_run in groupby(parts, key=lambda part: (_run_folder(part), part.name)):
        yield from _upload_run(_waiting(list(of_run)))


def _upload_run(parts: Sequence[Path]) -> Iterator[Outcome]:
    with ExitStack() as held:
        for position, part in enumerate(parts):
            try:
                if not position:
                    _hold(_run_folder(part), held)
                yield Outcome(part=part, done=_upload(part))
            except (OSError, ValueError, UploadError) as error:
                yield Outcome(part=part, problem=str(error))
                after = f"waits for {part.parent.name}"
                yield from (Outcome(part=later, problem=after) for later in parts[position + 1 :])
                return


def _hold(run: Path, held: ExitStack) -> None:
    """Hold a run's lock for as long as the stack lasts, where it has one."""
    if (run / ".lock").exists():
        try:
            held.enter_context(FileLock(run / ".lock", timeout=0))
        except Timeout:
            raise UploadError("the run is in use; sync again when it has ended") from None


def _run_folder(part: Path) -> Path:
    """The folder of a run, which has W&B's in it, with a folder for each part."""
    return part.parent.parent.parent


def _waiting(parts: Sequence[Path]) -> list[Path]:
    """The parts of a run to upload. An online one that has arrived holds all before it, too."""
    whole = [
        position
        for position, part in enumerate(parts)
        if offline.is_synced(part) and not part.parent.name.startswith("offline-")
    ]
    first = max(whole, default=-1) + 1
    return [part for part in parts[first:] if not offline.is_synced(part)]


def _upload(part: Path) -> str:
    """Upload a part; return what was done."""
    from wandb.errors import CommError

    notes = ["cut after its last whole record"] if offline.repair(part) else []
    run = offline.run_path(part)
    if run is None:
        return "nothing to upload, as it ended at its start"
    try:
        if offline.drop_steps(part, last_step_there(run)):
            notes.append("without the steps that were there")
        _sync(part)
        if last_step_there(run) < offline.last_step([part]):
            raise UploadError("the server has not got all of it")
    except (CommError, UploadError) as error:
        offline.mark_synced(part, False)
        raise UploadError(str(error)) from error
    return ", ".join(["uploaded", *notes])


def _sync(part: Path) -> None:
    """Have W&B's own command upload a part. It ends well whatever happens, so this reads along.

    It would also wait for days: it is ended when the server has been silent for a while.
    """
    import wandb

    address = wandb.setup().settings.base_url
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "wandb", "sync", "--include-online", str(part)],
            env={**os.environ, "WANDB_SILENT": "false"},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        heard = time.monotonic()
        while process.poll() is None:
            try:
                process.wait(_SILENCE_SECONDS / 10)
            except subprocess.TimeoutExpired:
                if answers(address):
                    heard = time.monotonic()
                elif time.monotonic() - heard > _SILENCE_SECONDS:
                    process.kill()
                    process.wait()
                    raise UploadError(f"{address} does not answer any more") from None
        output.seek(0)
        lines = output.read().splitlines()
    errors = [line for line in lines if "ERROR" in line]
    if errors or process.returncode or not offline.is_synced(part):
        raise UploadError((errors or lines or ["nothing was said"])[-1])
