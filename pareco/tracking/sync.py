"""What was recorded offline, brought to the W&B server run by run."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from struct import Struct
from typing import Any

from filelock import FileLock, Timeout

from pareco.files import write_bytes

_BLOCK = 32 * 1024
_IDENTITY = b":W&B"
_START = 7
_CHUNK = Struct("<IHB")
_FULL, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4


def recorded_parts(folder: Path) -> list[Path]:
    """The `.wandb` files below a folder, in the order of their starts."""
    files = folder.glob("**/wandb/*run-*/run-*.wandb")
    # A folder is named [offline-]run-DATE_TIME-ID; `latest-run` is a link to one of them.
    real = (file for file in files if not file.parent.is_symlink())
    return sorted(real, key=lambda file: file.parent.name.removeprefix("offline-"))


def run_id(part: Path) -> str:
    """The id of the run that a part belongs to."""
    return part.stem.removeprefix("run-")


def is_synced(part: Path) -> bool:
    """Whether all of a part is on the server."""
    return _mark(part).exists()


def mark_synced(part: Path, synced: bool = True) -> None:
    """Leave beside a part the mark that `wandb sync` leaves, too; or remove it."""
    if synced:
        _mark(part).touch()
    else:
        _mark(part).unlink(missing_ok=True)


def _mark(part: Path) -> Path:
    return part.with_name(part.name + ".synced")


def whole_records(content: bytes) -> Iterator[tuple[bytes, int]]:
    """Yield each record and where it ends, up to the first one that is torn or damaged.

    Raises ValueError if the content is not that of a `.wandb` file.
    """
    if content[:4] != _IDENTITY[: len(content)]:
        raise ValueError("it is no file of W&B")
    at, parts = _START, []
    while True:
        left = -at % _BLOCK
        if 0 < left < _CHUNK.size:
            at += left
        head = content[at : at + _CHUNK.size]
        if len(head) < _CHUNK.size:
            return
        checksum, length, kind = _CHUNK.unpack(head)
        data = content[at + _CHUNK.size : at + _CHUNK.size + length]
        sound = len(data) == length and zlib.crc32(bytes([kind]) + data) == checksum
        expected = (_FULL, _FIRST) if not parts else (_MIDDLE, _LAST)
        if not sound or kind not in expected:
            return
        at += _CHUNK.size + length
        parts.append(data)
        if kind in (_FULL, _LAST):
            yield b"".join(parts), at
            parts = []


def log_content(header: bytes, records: Iterable[bytes]) -> bytes:
    """The content of a `.wandb` file with these records; `header` are its first seven bytes."""
    content = bytearray(header)
    for record in records:
        rest, begun = memoryview(record), False
        while True:
            left = _BLOCK - len(content) % _BLOCK
            if left < _CHUNK.size:
                content += bytes(left)
                left = _BLOCK
            data, rest = rest[: left - _CHUNK.size], rest[left - _CHUNK.size :]
            kind = (_MIDDLE if begun else _FIRST) if rest else (_LAST if begun else _FULL)
            checksum = zlib.crc32(bytes([kind]) + bytes(data))
            content += _CHUNK.pack(checksum, len(data), kind) + data
            begun = True
            if not rest:
                break
    return bytes(content)


def repair(part: Path) -> bool:
    """Cut a part that ends in the midst of a record after its last whole one; say whether it did.

    Raises ValueError if it is not a file of W&B.
    """
    content = part.read_bytes()
    end = max((end for _, end in whole_records(content)), default=_START)
    if end >= len(content):
        return False
    write_bytes(part, content[:end])
    return True


def last_step(parts: Iterable[Path]) -> int:
    """The last step in the whole records of some parts, or -1."""
    steps = (_step(data) for part in parts for data, _ in whole_records(part.read_bytes()))
    return max((step for step in steps if step is not None), default=-1)


def drop_steps(part: Path, last: int) -> bool:
    """Take the rows up to a step, which are uploaded, out of a part; say whether there were any."""
    content = part.read_bytes()
    records = [data for data, _ in whole_records(content)]
    kept = [data for data in records if (step := _step(data)) is None or step > last]
    if len(kept) == len(records):
        return False
    write_bytes(part, log_content(content[:_START], kept))
    return True


def run_path(part: Path) -> str | None:
    """The run that a part belongs to, `[entity/]project/id`; None if it ends before it says so."""
    for data, _ in whole_records(part.read_bytes()):
        record = _parsed(data)
        if record.HasField("run"):
            run = record.run
            return "/".join(filter(None, (run.entity, run.project, run.run_id)))
    return None


def _step(data: bytes) -> int | None:
    """The step of a row of the history; None for any other record."""
    record = _parsed(data)
    return record.history.step.num if record.HasField("history") else None


def _parsed(data: bytes) -> Any:
    messages: Any = import_module("wandb.proto.wandb_internal_pb2")
    record = messages.Record()
    record.ParseFromString(data)
    return record


_SILENCE_SECONDS = 30.0


@dataclass(frozen=True, kw_only=True)
class UploadResult:
    """What became of one part of a run."""

    part: Path
    """Its `.wandb` file."""

    done: str = ""
    """What was done, if it went well."""

    problem: str = ""
    """What went wrong, else nothing."""


class UploadError(Exception):
    """A part that did not arrive."""


def upload(runs: Path) -> Iterator[UploadResult]:
    """Upload every part below a folder that is not on the server; yield what became of each.

    The parts of a run go in the order of their starts, each cut after its last whole record and
    without the rows that the server has. Where one fails, the later ones of that run wait. A run
    that is in use is left alone. It needs a key, and a server that answers: see `unreachable`.
    """
    parts = sorted(recorded_parts(runs), key=lambda part: str(_run_folder(part)))
    for _, of_run in groupby(parts, key=lambda part: (_run_folder(part), part.name)):
        yield from _upload_run(_waiting(list(of_run)))


def _upload_run(parts: Sequence[Path]) -> Iterator[UploadResult]:
    with ExitStack() as held:
        for position, part in enumerate(parts):
            try:
                if not position:
                    _hold(_run_folder(part), held)
                yield UploadResult(part=part, done=_upload(part))
            except (OSError, ValueError, UploadError) as error:
                yield UploadResult(part=part, problem=str(error))
                after = f"waits for {part.parent.name}"
                yield from (
                    UploadResult(part=later, problem=after) for later in parts[position + 1 :]
                )
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
        if is_synced(part) and not part.parent.name.startswith("offline-")
    ]
    first = max(whole, default=-1) + 1
    return [part for part in parts[first:] if not is_synced(part)]


def _upload(part: Path) -> str:
    """Upload a part; return what was done."""
    from wandb.errors import CommError

    from pareco.tracking.mirror import last_step_there

    notes = ["cut after its last whole record"] if repair(part) else []
    run = run_path(part)
    if run is None:
        return "nothing to upload, as it ended at its start"
    try:
        if drop_steps(part, last_step_there(run)):
            notes.append("without the steps that were there")
        _sync(part)
        if last_step_there(run) < last_step([part]):
            raise UploadError("the server has not got all of it")
    except (CommError, UploadError) as error:
        mark_synced(part, False)
        raise UploadError(str(error)) from error
    return ", ".join(["uploaded", *notes])


def _sync(part: Path) -> None:
    """Have W&B's own command upload a part. It ends well whatever happens, so this reads along.

    It would also wait for days: it is ended when the server has been silent for a while.
    """
    import wandb

    from pareco.tracking.mirror import answers

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
    if errors or process.returncode or not is_synced(part):
        raise UploadError((errors or lines or ["nothing was said"])[-1])
