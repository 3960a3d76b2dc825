"""The index of tars that is kept: as good as reading them through, and never trusted blindly."""

import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest

from pareco.data import tar_index
from pareco.data.locations import located
from pareco.data.packed import shard_part, tar_part
from pareco.data.sources import Part
from tests.data.pictures import sample, written_shards, written_tar, written_tars

FILES = {"b/x.png": b"1", "a/\udcff.png": b"22", "a/y.png": b"333", "a/no.txt": b"", "._x": b""}


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(tar_index, "_KEPT_FROM", 1)


def content(found: Part) -> Any:
    files = [found.reader[index][0].read() for index in range(len(found.labels))]
    names = [found.name(index) for index in range(len(found.labels))]
    return names, files, found.labels.tolist(), found.classes, found.left_out


def index_beside(tar: Path) -> Path:
    return tar.with_name(f".{tar.name}{tar_index.ENDING}")


def unread(monkeypatch: pytest.MonkeyPatch) -> None:
    def read(*_: Any, **__: Any) -> None:
        raise AssertionError("a tar is read through")

    monkeypatch.setattr(tarfile, "open", read)


def test_tars_are_read_through_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = written_tar(tmp_path / "set" / "t.tar", FILES)
    shards = sorted(written_shards(tmp_path / "shards").glob("*train*.tar"))
    parts = tar_part(tar, {}), shard_part(shards)
    first = [content(each) for each in parts]
    assert [len(each.left_out) for each in parts] == [2, 0]
    unread(monkeypatch)
    assert [content(tar_part(tar, {})), content(shard_part(shards))] == first
    assert index_beside(tar).exists()
    assert not (tmp_path / "cache").exists()
    monkeypatch.setattr("PIL.__version__", "0")  # another one may read other images
    with pytest.raises(AssertionError, match="read through"):
        tar_part(tar, {})


def test_an_index_is_of_no_other_tars_and_of_no_other_reading(tmp_path: Path) -> None:
    tar = written_tar(tmp_path / "t.tar", FILES)
    before = content(tar_part(tar, {}))
    os.utime(tar, ns=(0, 0))
    written_tar(tar, FILES | {"b/x.png": b"4"})  # as large
    assert content(tar_part(tar, {}))[1] == [before[1][0], before[1][1], b"4"]
    shard = written_tar(tmp_path / "s-train-0.tar", sample("x", 1, 3))
    other = written_tar(tmp_path / "s-train-1.tar", sample("y", 2, 4))
    assert [len(shard_part(each).labels) for each in ([shard], [shard, other], [shard])] == [
        1,
        2,
        1,
    ]
    with pytest.raises(ValueError, match="outside of class folders"):
        tar_part(shard, {})


def test_a_damaged_index_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tar = written_tar(tmp_path / "t.tar", FILES)
    expected, index = content(tar_part(tar, {})), index_beside(tar)
    whole = index.read_bytes()
    middle = len(whole) // 2
    changed = whole[:middle] + bytes([whole[middle] ^ 255]) + whole[middle + 1 :]
    for damaged in (b"", whole[:middle], changed, b"no archive", pickle.dumps([1])):
        index.write_bytes(damaged)
        assert content(tar_part(tar, {})) == expected
        assert index.read_bytes()[-100:] == whole[-100:]
    unread(monkeypatch)
    assert content(tar_part(tar, {})) == expected


def test_where_nothing_can_be_written_beside_the_tar_the_index_is_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder of its name is in the way: to root, any other place is writable."""
    tar = written_tar(tmp_path / "t.tar", FILES)
    index_beside(tar).mkdir()
    expected = content(tar_part(tar, {}))
    (kept,) = (tmp_path / "cache").rglob("*.npz")
    assert kept.parent == tmp_path / "cache" / "pareco" / "tars"
    unread(monkeypatch)
    assert content(tar_part(tar, {})) == expected
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tar))  # no folder: nothing is kept
    assert content(tar_part(tar, {})) == expected


def test_an_index_is_no_part_of_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = located(str(written_tars(tmp_path / "set")))
    assert index_beside(tmp_path / "set" / "train.tar").exists()
    again = located(str(tmp_path / "set"))
    assert again.left_out == first.left_out == ()
    assert again.fingerprint() == first.fingerprint()
    monkeypatch.setattr(tar_index, "_KEPT_FROM", 10_000)
    located(str(written_tars(tmp_path / "small")))
    assert {each.name for each in (tmp_path / "small").iterdir()} == {"train.tar", "val.tar"}
