"""Runs that are killed, starved or signalled: the same command goes on, to the same bytes."""

import json
import logging
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pareco.training.checkpoint import newest_checkpoint
from replications.catalogue import method_names
from tests.training.attempts import EACH_STEP, SELDOM, Accident, attempt, said, states, steps_of

LOGGER = logging.getLogger(__name__)
STEPS = 14
SETS_OF_WEIGHTS = {"independent": 4}
WRITING = ("torn", "unsynced", "unnamed", "named", "crowded")
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of us_net that nothing befell."""
    path = tmp_path_factory.mktemp("whole") / "us_net"
    assert attempt(path, "us_net") == 0
    return path


def assert_same(path: Path, whole: Path) -> None:
    """The records are the same, bit for bit, and so is every state that was ever saved."""
    for name in ("front.csv", "metrics.jsonl"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    expected = states(whole)
    assert all(len(digests) == 1 for digests in expected.values())
    assert states(path).keys() <= expected.keys()
    for step, digests in states(path).items():
        assert digests == expected[step], step
    assert max(states(path)) == max(expected)
    assert sorted(file.name for file in path.iterdir()) == sorted(
        file.name for file in whole.iterdir()
    )


def checkpoints(path: Path) -> list[int]:
    return [int(file.stem) for file in sorted((path / "checkpoints").glob("*.safetensors"))]


def leftovers(path: Path) -> list[Path]:
    return list(path.rglob("*.tmp"))


def accidents(method: str) -> list[Accident]:
    """Return four kills at random steps: two anywhere, two while a checkpoint is written."""
    source = random.Random(f"survival of {method}")
    steps = sorted(source.sample(range(1, STEPS * SETS_OF_WEIGHTS.get(method, 1) + 1), 4))
    place = method_names().index(method)
    kinds = ["killed", "killed_soon", WRITING[place % 5], WRITING[(place + 2) % 5]]
    source.shuffle(kinds)
    return [Accident(kind, step) for kind, step in zip(kinds, steps, strict=True)]


@pytest.mark.parametrize("method", method_names())
def test_killed_runs_go_on_exactly(tmp_path: Path, method: str) -> None:
    """28 kills with SIGKILL: at random moments, and at every point of writing a checkpoint."""
    assert attempt(tmp_path / "whole", method) == 0
    path = tmp_path / "killed"
    for accident in accidents(method):
        LOGGER.info("%s: %s", method, accident)
        assert attempt(path, method, accident) == -9, accident
        assert not (path / "DONE").exists()
        assert len(steps_of(path)) >= accident.step
    assert attempt(path, method) == 0
    assert_same(path, tmp_path / "whole")


def test_a_run_killed_just_before_its_end_mark_ends(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("unfinished", STEPS)) == -9
    assert len(leftovers(path)) == 1
    assert attempt(path, "us_net") == 0
    assert steps_of(path) == list(range(1, STEPS + 1))
    assert_same(path, whole)


@pytest.mark.parametrize("kind", WRITING)
def test_a_kill_while_writing_costs_one_checkpoint_at_most(
    tmp_path: Path, kind: str, whole: Path
) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident(kind, 5)) == -9
    written = kind in ("named", "crowded")
    assert checkpoints(path) == ([3, 4, 5] if written else [3, 4])
    assert len(leftovers(path)) == (0 if written else 1)
    again = Accident("killed", 8)
    assert attempt(path, "us_net", again) == -9
    assert not leftovers(path)
    assert checkpoints(path) == [6, 7]
    assert steps_of(path) == [1, 2, 3, 4, 5, *([] if written else [5]), 6, 7, 8]


@pytest.mark.parametrize(("kind", "status"), [("sigterm", 143), ("sigint", 130)])
def test_a_signal_saves_and_ends(tmp_path: Path, kind: str, status: int, whole: Path) -> None:
    """Checkpoints are an hour apart here, so the one that is there is the signal's."""
    path = tmp_path / "run"
    for step, steps in ((1, 2), (5, 6), (13, STEPS)):
        assert attempt(path, "us_net", Accident(kind, step), SELDOM) == status
        assert f"interrupted by {kind.upper()}; the same command goes on" in said(path)
        assert checkpoints(path)[-1] == steps
        assert steps_of(path) == list(range(1, steps + 1))  # none is done twice
    assert attempt(path, "us_net", machine=SELDOM) == 0
    assert_same(path, whole)


def test_a_signal_in_the_last_step_is_not_lost(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("sigterm", STEPS), SELDOM) == 143
    assert checkpoints(path) == [STEPS]
    assert attempt(path, "us_net", machine=SELDOM) == 0
    assert_same(path, whole)


def test_a_full_disk_while_a_checkpoint_is_written(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("full_disk", 5)) == 1
    assert said(path).startswith(f"{path} could not be written: File too large.")
    assert "make room, then the same command goes on" in said(path)
    assert checkpoints(path) == [3, 4]
    assert newest_checkpoint(path / "checkpoints") is not None
    assert not leftovers(path)
    assert attempt(path, "us_net") == 0
    assert_same(path, whole)


def test_a_full_disk_while_the_record_grows(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("sigterm", 3), SELDOM) == 143
    assert attempt(path, "us_net", Accident("full_record", 9), SELDOM) == 1
    assert said(path).startswith(f"{path} could not be written: File too large.")
    assert not (path / "metrics.jsonl").read_text().endswith("\n")  # a torn line
    assert checkpoints(path) == [4]
    assert attempt(path, "us_net") == 0
    assert_same(path, whole)


def test_memory_that_runs_out(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("out_of_memory", 5)) == 1
    assert said(path).startswith(f"memory ran out during {path} (")
    assert "training.batch_size" in said(path)
    assert checkpoints(path) == [3, 4]
    assert attempt(path, "us_net") == 0
    assert_same(path, whole)


def test_a_folder_that_becomes_read_only(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("other_user", 5)) == 1
    assert said(path).startswith(f"{path} cannot be written: Permission denied (")
    assert checkpoints(path) == [3, 4]
    for folder in (path, path / "checkpoints"):
        folder.chmod(0o755)
    assert attempt(path, "us_net") == 0
    assert_same(path, whole)


def test_a_folder_in_use_by_another_process(tmp_path: Path, whole: Path) -> None:
    path, held = tmp_path / "run", tmp_path / "run.held"
    status: list[int] = []
    first = threading.Thread(
        target=lambda: status.append(attempt(path, "us_net", Accident("hold_on", 5)))
    )
    first.start()
    deadline = time.monotonic() + 60
    while not held.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert attempt(path, "us_net") == 1
    assert said(path).startswith(f"{path} is in use by another process")
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    held.unlink()
    first.join()
    assert status == [0]
    assert_same(path, whole)


def test_a_damaged_checkpoint_costs_one_not_the_run(tmp_path: Path, whole: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("killed", 9)) == -9
    newest = path / "checkpoints" / "000000000008.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert attempt(path, "us_net") == 0
    assert steps_of(path) == [*range(1, 10), *range(8, STEPS + 1)]
    assert_same(path, whole)


def test_if_all_checkpoints_are_damaged_nothing_is_touched(tmp_path: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("killed", 9)) == -9
    for file in (path / "checkpoints").iterdir():
        file.write_bytes(b"")
    assert attempt(path, "us_net") == 1
    assert said(path).startswith("no checkpoint is whole: ")
    assert f"remove {path / 'checkpoints'} to start this run from the beginning" in said(path)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 9
    shutil.rmtree(path / "checkpoints")
    assert attempt(path, "us_net", Accident("killed", 2)) == -9
    assert steps_of(path)[-2:] == [1, 2]


def _may_mount() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.mark.skipif(not _may_mount(), reason="this user may not mount a file system")
def test_a_disk_that_is_really_full_and_one_that_is_read_only(tmp_path: Path, whole: Path) -> None:
    """On a small file system, made for this test: ENOSPC and EROFS as the kernel gives them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    script = [sys.executable, "-m", "tests.training.small_disk", str(disk), str(tmp_path / "end")]
    command = ["unshare", "-Urm", "sh", "-c", mount, str(disk), *script]
    subprocess.run(command, check=True, cwd=ROOT)
    told = json.loads((tmp_path / "end" / "told.json").read_text())
    path = disk / "run"
    assert told["full"].startswith(f"{path} could not be written: No space left on device.")
    assert told["checkpoints"] == ["000000000003.safetensors", "000000000004.safetensors"]
    assert told["read_only"].startswith(f"{path} cannot be written: Read-only file system (")
    assert told["read_only_from_the_start"].startswith(f"{disk / 'other'} cannot be written: Read-")
    for name in ("front.csv", "metrics.jsonl"):
        assert (tmp_path / "end" / name).read_bytes() == (whole / name).read_bytes()


def test_the_record_of_the_accidents_is_the_same_each_time() -> None:
    """So that a failure can be looked at again; and every moment of writing is among them."""
    drawn = [accident for method in method_names() for accident in accidents(method)]
    assert drawn == [accident for method in method_names() for accident in accidents(method)]
    assert len(drawn) >= 20
    assert {accident.kind for accident in drawn} >= set(WRITING)
    assert EACH_STEP.checkpoint_minutes == 0
