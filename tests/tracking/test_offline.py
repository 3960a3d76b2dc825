"""The log format, against files that wandb wrote and against one built by hand."""

import zlib
from pathlib import Path
from struct import pack

import pytest

from pareco.tracking import sync as offline

HEADER = b":W&B\xe1\xbe\x00"


def chunk(kind: int, data: bytes) -> bytes:
    return pack("<IHB", zlib.crc32(bytes([kind]) + data), len(data), kind) + data


def hand_built() -> bytes:
    """Three records: one in a chunk, one over three blocks, one after six bytes of padding."""
    head = HEADER + chunk(1, b"one")
    first = b"a" * (32768 - len(head) - 7)
    last = b"c" * (32768 - 7 - 6)
    long = chunk(2, first) + chunk(3, b"b" * (32768 - 7)) + chunk(4, last)
    return head + long + bytes(6) + chunk(1, b"end")


def test_records_are_read_over_blocks() -> None:
    content = hand_built()
    records = [data for data, _ in offline.whole_records(content)]
    assert len(records) == 3
    assert records[0] == b"one"
    assert records[1] == b"a" * 32744 + b"b" * 32761 + b"c" * 32755
    assert records[2] == b"end"
    assert offline.log_content(HEADER, records) == content


def test_a_torn_or_damaged_record_ends_the_file(tmp_path: Path) -> None:
    content = hand_built()
    ends = [end for _, end in offline.whole_records(content)]
    assert ends[-1] == len(content)
    part = tmp_path / "run-a.wandb"
    for size, kept in [(ends[0], 1), (ends[1] - 1, 1), (ends[1], 2), (ends[1] + 9, 2), (7, 0)]:
        part.write_bytes(content[:size])
        expected = ends[kept - 1] if kept else 7
        assert offline.repair(part) is (expected != size)
        assert part.read_bytes() == content[:expected]
    damaged = bytearray(content)
    damaged[ends[0] + 40_000] ^= 1
    assert [end for _, end in offline.whole_records(bytes(damaged))] == [ends[0]]


def test_another_file_is_refused(tmp_path: Path) -> None:
    part = tmp_path / "run-a.wandb"
    part.write_bytes(b"something else")
    with pytest.raises(ValueError, match="no file of W&B"):
        offline.repair(part)


def test_parts_come_in_the_order_of_their_starts(tmp_path: Path) -> None:
    names = ["offline-run-20260103_000000-a", "run-20260102_000000-a", "run-20260104_000000-a"]
    for name in names:
        (tmp_path / "seed0/wandb" / name).mkdir(parents=True)
        (tmp_path / "seed0/wandb" / name / "run-a.wandb").touch()
    (tmp_path / "seed0/wandb/latest-run").symlink_to(names[0])
    found = [part.parent.name for part in offline.recorded_parts(tmp_path)]
    assert found == [names[1], names[0], names[2]]
