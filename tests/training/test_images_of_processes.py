"""Two gloo processes on the same images, or not: compared before step 1, damage counted once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.pictures import written_folders
from tests.training.two_readers import BAD


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the runs that two processes did."""
    folder = tmp_path_factory.mktemp("two")
    for rank in (0, 1):
        written_folders(folder / f"images{rank}", train=30)
    # As many images of each class: only the names of the files tell that they are others.
    own = folder / "images1" / "train" / "bee"
    (own / "000.png").rename(own / "other.png")
    for name in BAD:
        (folder / "images0" / "train" / name).write_bytes(b"")
    how = "torch.distributed.run --standalone --nproc-per-node=2 -m tests.training.two_readers"
    environment = os.environ | {"WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *how.split(), str(folder)]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=600, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return folder


@pytest.mark.slow
def test_processes_that_find_other_images_are_refused_before_anything_is_written(two: Path) -> None:
    for rank in (0, 1):
        assert "1 of 2 processes have other images" in (two / f"refused{rank}.txt").read_text()
    assert not (two / "refused").exists()


@pytest.mark.slow
def test_damaged_images_are_counted_over_processes_and_restarts(two: Path) -> None:
    """Each process alone knows of fewer, and the resumed run finds none: they are mended."""
    own = [set(json.loads((two / f"own{rank}.json").read_text())) for rank in (0, 1)]
    assert own[0] | own[1] == {3, 40, 89}
    assert own[0] != {3, 40, 89} != own[1]
    assert len(json.loads((two / "run" / "env.json").read_text())) == 2
    assert json.loads((two / "run" / "result.json").read_text())["damaged_images"] == 3
