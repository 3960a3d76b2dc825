"""Checkpoints: tensors and JSON in one safetensors file, replaced as a whole; nothing runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from pareco.files import replace_file

FORMAT = "pareco-checkpoint-1"


def save_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
    """Write tensors and a JSON-ready state to `path`; a reader sees the old file or the new one."""
    metadata = {"format": FORMAT, "state": json.dumps(state)}
    contiguous = {name: tensor.detach().contiguous() for name, tensor in tensors.items()}
    replace_file(path, lambda temporary: save_file(contiguous, temporary, metadata=metadata))


def load_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors and the state that `save_checkpoint` wrote.

    Raises `ValueError` if the file is of another format.
    """
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if metadata.get("format") != FORMAT:
            found = metadata.get("format", "unknown")
            raise ValueError(f"{path} has the format {found}, this version reads {FORMAT}")
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return tensors, json.loads(metadata["state"])
