import errno
import os
from pathlib import Path

import pytest
import torch

from pareco.training.interruption import RunError, explained

RUN = Path("runs/tiny/us_net/seed0")


def message_for(error: Exception) -> str:
    with pytest.raises(RunError) as raised, explained(RUN):
        raise error
    assert raised.value.__cause__ is error
    return str(raised.value)


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk(number: int) -> None:
    message = message_for(OSError(number, os.strerror(number)))
    assert message.startswith(f"{RUN} could not be written: {os.strerror(number)}.")
    assert "checkpoint too, is intact: make room" in message


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM])
def test_a_folder_that_cannot_be_written(number: int) -> None:
    file = str(RUN / "env.json")
    message = message_for(OSError(number, os.strerror(number), file))
    assert f"{RUN} cannot be written: {os.strerror(number)} ({file})." in message
    assert "--runs FOLDER" in message


def test_a_file_elsewhere_is_not_called_the_run_folder() -> None:
    message = message_for(PermissionError(errno.EACCES, "Permission denied", "/data/cat.png"))
    assert message.startswith("/data/cat.png cannot be used: Permission denied.")
    assert "--runs" not in message


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nGPU 0 ..."),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("CUDA error: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
)
def test_memory_that_runs_out(error: Exception) -> None:
    message = message_for(error)
    assert message.startswith(f"memory ran out during {RUN} (")
    assert "\n" not in message
    assert "is intact" in message
    assert "training.batch_size" in message


def test_an_allocation_that_really_fails() -> None:
    with pytest.raises(RunError, match="memory ran out"), explained(RUN):
        torch.empty(2**60, dtype=torch.uint8)
    with pytest.raises(RunError, match="memory ran out"), explained(RUN):
        bytearray(2**62)


@pytest.mark.parametrize(
    "error",
    [FileNotFoundError(errno.ENOENT, "No such file", "x"), RuntimeError("shapes"), ValueError("v")],
)
def test_other_errors_pass(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, explained(RUN):
        raise error
    assert raised.value is error
