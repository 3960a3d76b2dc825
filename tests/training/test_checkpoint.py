import json
import logging
import os
import resource
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from pareco.training import RunError
from pareco.training.checkpoint import (
    FORMAT,
    DamagedCheckpoint,
    add_checkpoint,
    load_checkpoint,
    newest_checkpoint,
    save_checkpoint,
)

TENSORS = {
    "a": torch.arange(12.0).reshape(3, 4).t(),
    "count": torch.tensor(7),
    "empty": torch.zeros(0, 3),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "flags": torch.tensor([True, False]),
}
STATE = {"losses": [0.1, 1 / 3, 1e-300], "widths": [[1, 2]], "none": None}


def changed(path: Path, change: Callable[[bytes], bytes]) -> None:
    path.write_bytes(change(path.read_bytes()))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def name_of(step: int) -> str:
    return f"{step:012}.safetensors"


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", TENSORS, STATE)
    loaded, state = load_checkpoint(tmp_path / "c")
    assert state == STATE
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype
        assert torch.equal(loaded[name], tensor), name
    assert names(tmp_path) == ["c"]


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {}, {"step": 1})
    assert load_checkpoint(tmp_path / "c") == ({}, {"step": 1})


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_tensors_of_an_accelerator_come_back_on_the_cpu(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c", {"a": torch.ones(3, device="cuda")}, {})
    assert load_checkpoint(tmp_path / "c")[0]["a"].device.type == "cpu"


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (3, 9, 10, 11):
        add_checkpoint(tmp_path, step, {}, {"step": step})
    assert names(tmp_path) == [name_of(10), name_of(11)]
    add_checkpoint(tmp_path, 11, {}, {"step": "11 again"})
    assert names(tmp_path) == [name_of(10), name_of(11)]
    assert newest_checkpoint(tmp_path) == ({}, {"step": "11 again"})


def test_there_may_be_none(tmp_path: Path) -> None:
    assert newest_checkpoint(tmp_path) is None
    assert newest_checkpoint(tmp_path / "absent") is None


def test_any_flipped_bit_and_any_cut_are_noticed(tmp_path: Path) -> None:
    path = tmp_path / "c"
    save_checkpoint(path, {"a": torch.arange(6.0), "count": torch.tensor(7)}, {"step": 1})
    whole = path.read_bytes()
    for place in range(len(whole)):
        flipped = bytes([whole[place] ^ 1 << place % 8])
        path.write_bytes(whole[:place] + flipped + whole[place + 1 :])
        of_the_version = whole[:place].endswith(FORMAT[:-1].encode())
        with pytest.raises(RunError if of_the_version else DamagedCheckpoint):
            load_checkpoint(path)
        path.write_bytes(whole[:place])
        with pytest.raises(DamagedCheckpoint):
            load_checkpoint(path)


def stored(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Return tensors and metadata of a checkpoint as they stand in the file."""
    content = path.read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return load(content), header["__metadata__"]


@pytest.mark.parametrize("part", ["state", "name", "dtype", "shape", "values", "dropped"])
def test_the_checksum_covers_everything(tmp_path: Path, part: str) -> None:
    """Files that are whole for safetensors, but not what was written."""
    save_checkpoint(tmp_path / "c", {"a": torch.ones(4), "b": torch.zeros(2)}, {"step": 1})
    tensors, metadata = stored(tmp_path / "c")
    a = tensors.pop("a")
    if part == "state":
        tensors["a"] = a
        metadata["state"] = metadata["state"].replace("1", "2")
    elif part != "dropped":
        others = {"name": a, "dtype": a.view(torch.int32), "shape": a.reshape(2, 2), "values": -a}
        tensors["A" if part == "name" else "a"] = others[part]
    (tmp_path / "c").write_bytes(save(tensors, metadata))
    with pytest.raises(DamagedCheckpoint, match="checksum"):
        load_checkpoint(tmp_path / "c")


def test_a_damaged_newest_checkpoint_is_reported_and_the_one_before_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (3, 9):
        add_checkpoint(tmp_path, step, TENSORS, {"step": step})
    changed(tmp_path / name_of(9), lambda content: content[:-1])
    with caplog.at_level(logging.WARNING, logger="pareco.training"):
        newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1] == {"step": 3}
    (record,) = caplog.records
    assert record.name == "pareco.training"
    assert f"{name_of(9)} is damaged (" in record.getMessage()
    add_checkpoint(tmp_path, 5, {}, {"step": 5})  # training goes on from 3: nothing is behind 5
    assert names(tmp_path) == [name_of(3), name_of(5)]


def test_if_all_are_damaged_it_says_what_to_do(tmp_path: Path) -> None:
    for step in (3, 9):
        add_checkpoint(tmp_path, step, TENSORS, {"step": step})
        changed(tmp_path / name_of(step), lambda content: content[:-1] + b"\xff")
    with pytest.raises(RunError, match=rf"{name_of(9)}.*{name_of(3)}.*remove {tmp_path} to start"):
        newest_checkpoint(tmp_path)
    assert names(tmp_path) == [name_of(3), name_of(9)]


def test_another_format_is_refused_not_skipped(tmp_path: Path) -> None:
    add_checkpoint(tmp_path, 3, {}, {"step": 3})
    metadata = {"format": "pareco-checkpoint-1", "state": "{}"}
    save_file({"a": torch.ones(1)}, tmp_path / name_of(9), metadata)
    with pytest.raises(RunError, match=f"format pareco-checkpoint-1, .* reads {FORMAT}") as refusal:
        newest_checkpoint(tmp_path)
    assert not isinstance(refusal.value, DamagedCheckpoint)


def test_a_foreign_file_is_damaged(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "c")
    with pytest.raises(DamagedCheckpoint):
        load_checkpoint(tmp_path / "c")


def test_a_write_that_fails_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """The limit is the kernel's: `write` fails half way through the file, as on a full disk."""
    large = {"a": torch.zeros(100_000)}
    add_checkpoint(tmp_path, 3, large, {"step": 3})
    if (child := os.fork()) == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
        try:
            add_checkpoint(tmp_path, 3, large, {"step": 4})
        except OSError as error:
            os._exit(error.errno or 0)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 27  # EFBIG
    assert names(tmp_path) == [name_of(3)]
    newest = newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest[1] == {"step": 3}
