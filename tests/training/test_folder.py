import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from pareco.config import Experiment
from pareco.data import load_data
from pareco.processes import Processes
from pareco.training import RunError, RunFolder
from pareco.training import checkpoint as checkpoint_module
from pareco.training.folder import RunState
from tests.experiments import TINY

ALONE = Processes(torch.device("cpu"))
ROW = {"experiment": "tiny", "widths": "1-2", "macs": 3}


def folder(path: Path, experiment: Experiment = TINY) -> RunFolder:
    return RunFolder(path=path, experiment=experiment, method="us_net", seed=0)


@pytest.fixture
def begun(tmp_path: Path) -> RunFolder:
    """Return the folder of a run with two checkpoints: at its steps 7 and 9."""
    run = folder(tmp_path / "run")
    with run.claimed(load_data(TINY.data), ALONE):
        for step in (7, 9):
            run.save(RunState(rows=[ROW]), {"a": torch.full((3,), float(step))}, {"step": step})
    return run


def test_it_loads_what_it_saved(begun: RunFolder) -> None:
    progress, tensors, trainer = begun.load()
    assert progress == RunState(rows=[ROW])
    assert tensors["a"].tolist() == [9.0, 9.0, 9.0]
    assert trainer == {"step": 9}


def test_checkpoints_are_named_for_the_steps_of_all_sets_of_weights(begun: RunFolder) -> None:
    begun.save(RunState(gradient_steps=14, trained=1), {}, None)
    begun.save(RunState(gradient_steps=14, trained=1), {}, {"step": 3})
    assert sorted(file.name for file in (begun.path / "checkpoints").iterdir()) == [
        "000000000014.safetensors",
        "000000000017.safetensors",
    ]
    (begun.path / "checkpoints" / "000000000017.safetensors").unlink()
    assert begun.load() == (RunState(gradient_steps=14, trained=1), {}, None)


def test_a_new_folder_has_nothing_done(tmp_path: Path) -> None:
    assert folder(tmp_path / "absent").load() == (RunState(), {}, None)


def test_a_damaged_checkpoint_leaves_the_one_before(
    begun: RunFolder, caplog: pytest.LogCaptureFixture
) -> None:
    (begun.path / "checkpoints" / "000000000009.safetensors").write_bytes(b"")
    with caplog.at_level(logging.WARNING):
        assert begun.load()[2] == {"step": 7}
    assert "000000000009.safetensors is damaged" in caplog.text


def test_a_checkpoint_of_another_configuration_is_refused(begun: RunFolder) -> None:
    """As when a checkpoint is copied there: `config.json` agrees, the checkpoint does not."""
    training = replace(TINY.training, epochs=3)
    other = folder(begun.path, replace(TINY, training=training))
    other.save(RunState(), {}, {"step": 11})
    begun.check()
    with pytest.raises(RunError, match=r"training.epochs: 3 there, 2 now.*--name NAME"):
        begun.load()
    more = folder(begun.path, replace(TINY, seeds=(0, 1), methods=("us_net",), training=training))
    assert more.load()[2] == {"step": 11}  # the sweep may grow


def test_a_checkpoint_of_another_format_is_refused(
    begun: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "FORMAT", "pareco-checkpoint-99")
        begun.save(RunState(), {}, {"step": 11})
    with pytest.raises(RunError, match="pareco-checkpoint-99, this version reads pareco-checkp"):
        begun.load()


def test_a_claim_removes_what_killed_writers_left(begun: RunFolder) -> None:
    leftovers = [
        begun.path / ".config.json.123.tmp",
        begun.path / "checkpoints" / ".000000000011.safetensors.123.tmp",
    ]
    for leftover in leftovers:
        leftover.write_bytes(b"half")
    with begun.claimed(load_data(TINY.data), ALONE):
        assert not any(leftover.exists() for leftover in leftovers)
        assert (begun.path / ".lock").exists()
        assert begun.load()[2] == {"step": 9}


def test_one_claim_at_a_time(begun: RunFolder) -> None:
    data = load_data(TINY.data)
    with (
        begun.claimed(data, ALONE),
        pytest.raises(RunError, match="in use by another process"),
        folder(begun.path).claimed(data, ALONE),
    ):
        pytest.fail("claimed twice")
    with begun.claimed(data, ALONE):
        pass


def test_timing() -> None:
    progress = RunState(seconds=12.34, images=700, training_seconds=8.0, waiting_seconds=1.0)
    assert progress.timing() == {
        "seconds": 12.3,
        "images_per_second": 87.5,
        "data_waiting_percent": 12.5,
    }
    assert RunState().timing()["images_per_second"] is None
    json.dumps(RunState().timing(), allow_nan=False)
