"""Checkpoints: tensors and JSON in one safetensors file, with a checksum; nothing runs code.

A folder holds the last two, so that one is left if the newest is damaged.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from pareco.files import write_bytes
from pareco.training.interruption import RunError

FORMAT = "pareco-checkpoint-3"
_LOGGER = logging.getLogger("pareco.training")


class DamagedCheckpoint(RunError):
    """A file that is not what was written: truncated, or changed."""


def add_checkpoint(
    folder: Path, step: int, tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    """Write the checkpoint of a step; then remove all but this one and the one before.

    Those of later steps go too: training has gone on from an earlier one, as they were damaged.
    """
    path = folder / f"{step:012}.safetensors"
    save_checkpoint(path, tensors, state)
    earlier = [other for other in _checkpoints(folder) if other < path]
    for other in set(_checkpoints(folder)) - {path, *earlier[-1:]}:
        other.unlink(missing_ok=True)


def newest_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Return tensors and state of the last checkpoint that is whole; None if there is none at all.

    A damaged one is reported as a warning. Raises `RunError` if all are damaged, or one is of
    another format.
    """
    damaged: list[str] = []
    for path in reversed(_checkpoints(folder)):
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


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON-ready state to `path`; a reader sees the old file or the new one."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(state)
    metadata = {"format": FORMAT, "state": text, "sha256": _checksum(held, text)}
    write_bytes(path, save(held, metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors, on the CPU, and the state that `save_checkpoint` wrote.

    Raises `DamagedCheckpoint` if the file has changed since, `RunError` if it is of another format.
    """
    try:
        content = path.read_bytes()
        header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
        metadata = header["__metadata__"]
        if re.fullmatch(r"pareco-checkpoint-\d+", metadata["format"]) is None:
            raise ValueError(f"it says that it is of the format {metadata['format']!r}")
        _check_format(path, metadata["format"])
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


def _checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder, the newest last."""
    return sorted(folder.glob("[0-9]*.safetensors"))


def _check_format(path: Path, found: str) -> None:
    if found != FORMAT:
        raise RunError(
            f"{path} has the format {found}, this version reads {FORMAT}: go on with the version "
            f"that wrote it, or remove {path.parent} to start this run from the beginning"
        )


def _checksum(tensors: dict[str, Tensor], state: str) -> str:
    """Return the SHA-256 of the state and of every tensor's name, type, shape and bytes."""
    digest = hashlib.sha256(json.dumps([FORMAT, state]).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
