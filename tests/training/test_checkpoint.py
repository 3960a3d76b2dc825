from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from pareco.training.checkpoint import load_checkpoint, save_checkpoint


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    tensors = {"a": torch.randn(3, 4).t(), "count": torch.tensor(7), "empty": torch.zeros(0)}
    state = {"losses": [0.1, 1 / 3, 1e-300], "widths": [[1, 2]], "none": None}
    save_checkpoint(tmp_path / "c.safetensors", tensors, state)
    loaded, loaded_state = load_checkpoint(tmp_path / "c.safetensors")
    assert loaded_state == state
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["c.safetensors"]


def test_a_checkpoint_without_tensors(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "c.safetensors", {}, {"step": 1})
    assert load_checkpoint(tmp_path / "c.safetensors") == ({}, {"step": 1})


def test_a_failed_write_leaves_the_old_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "c.safetensors"
    save_checkpoint(path, {"a": torch.ones(2)}, {"step": 1})

    def full(*arguments: object, **options: object) -> None:
        raise OSError("no space left on device")

    monkeypatch.setattr("pareco.training.checkpoint.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        save_checkpoint(path, {"a": torch.zeros(2)}, {"step": 2})
    assert load_checkpoint(path)[1] == {"step": 1}


def test_another_format_is_refused(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "c.safetensors")
    with pytest.raises(ValueError, match="has the format unknown"):
        load_checkpoint(tmp_path / "c.safetensors")
