"""The parts of runs that W&B keeps on disk: found, repaired, and freed of what was uploaded.

Each start of a run leaves a folder with one `.wandb` file: seven bytes, then LevelDB's log
format. That is blocks of 32 KiB with chunks of a checksum, a length and a type each; a record is
one chunk, or a first, middle ones and a last.
"""

import zlib
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from struct import Struct
from typing import Any

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
