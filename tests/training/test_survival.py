"""Runs that are killed, starved or signalled: the same command goes on, to the same bytes."""

import json
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pareco.training.folder import load_checkpoint, save_checkpoint
from replications.catalogue import method_names
from tests.experiments import quick
from tests.training.attempts import SELDOM, Accident, attempt, said, states, steps_of
from tests.training.conftest import Whole

STEPS = 14
SETS_OF_WEIGHTS = {"independent": 4}
WRITING = ("torn", "unsynced", "unnamed", "named", "crowded")
ROOT = Path(__file__).parents[2]


@pytest.fixture
def us_net(whole: Callable[[str], Whole]) -> Path:
    """Return the run of us_net that nothing befell."""
    return whole("us_net").path


def assert_results_same(path: Path, whole: Path) -> None:
    """The records, what was spent, and the weights are the same, bit for bit."""
    for name in ("front.csv", "visits.csv", "metrics.jsonl"):
        assert (path / name).read_bytes() == (whole / name).read_bytes(), name
    results = [json.loads((each / "result.json").read_text()) for each in (path, whole)]
    assert results[0]["budget"] == results[1]["budget"]
    assert macs_kept(path) == macs_kept(whole)
    for folder in ("weights", "statistics"):
        tensors = sorted((whole / folder).iterdir())
        assert tensors
        assert [(path / folder / file.name).read_bytes() for file in tensors] == [
            file.read_bytes() for file in tensors
        ]


def ledger(path: Path) -> dict[str, dict[str, float]]:
    return json.loads((path / "result.json").read_text())["ledger"]


def macs_kept(path: Path) -> dict[str, tuple[float, float]]:
    """Return the MACs of each phase, forward and backward, but those that were lost."""
    kept = {phase: each for phase, each in ledger(path).items() if phase != "lost"}
    return {phase: (each["forward_macs"], each["backward_macs"]) for phase, each in kept.items()}


def step_macs(path: Path, step: int) -> tuple[int, int]:
    """Return the MACs of one step, forward and backward, as the metrics file has them."""
    lines = [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
    before, after = lines[step - 2 : step]
    forward, backward = (after[n] - before[n] for n in ("forward_macs", "backward_macs"))
    return forward, backward


def lost(path: Path) -> tuple[float, float]:
    """Return the MACs that were lost, forward and backward."""
    return ledger(path)["lost"]["forward_macs"], ledger(path)["lost"]["backward_macs"]


def assert_same(path: Path, whole: Path) -> None:
    """The results are the same, and so is every state ever saved."""
    assert_results_same(path, whole)
    expected, found = states(whole), states(path)
    assert all(len(digests) == 1 for digests in expected.values())
    assert found == {step: expected[step] for step in found}
    assert max(found)[0] == max(expected)[0]
    assert {file.name for file in path.iterdir()} == {file.name for file in whole.iterdir()}


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


@pytest.mark.parametrize("method", quick(method_names(), "pareco"))
def test_killed_runs_go_on_exactly(
    tmp_path: Path, method: str, whole: Callable[[str], Whole]
) -> None:
    """32 kills with SIGKILL: at random moments, and at every point of writing a checkpoint."""
    path = tmp_path / "killed"
    for accident in accidents(method):
        assert attempt(path, method, accident) == -9, accident
        assert not (path / "DONE").exists()
        assert len(steps_of(path)) >= accident.step
    assert attempt(path, method) == 0
    assert_same(path, whole(method).path)
    assert len(json.loads((path / "env.json").read_text())) == 5  # sessions


def test_a_run_killed_just_before_its_end_mark_ends(tmp_path: Path, us_net: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("unfinished", STEPS)) == -9
    assert len(leftovers(path)) == 1
    assert attempt(path, "us_net") == 0
    assert steps_of(path) == list(range(1, STEPS + 1))
    assert_same(path, us_net)


@pytest.mark.parametrize("kind", quick(WRITING, WRITING[0], WRITING[-1]))
def test_a_kill_while_writing_costs_one_checkpoint_at_most(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident(kind, 5)) == -9
    written = kind in ("named", "crowded")
    assert checkpoints(path) == ([3, 4, 5] if written else [3, 4])
    assert len(leftovers(path)) == (0 if written else 1)
    assert attempt(path, "us_net", Accident("sigterm", 7)) == 143
    assert not leftovers(path)
    assert checkpoints(path) == [7, 8]
    assert steps_of(path) == [1, 2, 3, 4, 5, *([] if written else [5]), 6, 7, 8]
    assert attempt(path, "us_net") == 0
    assert lost(path) == ((0, 0) if written else step_macs(path, 5))


@pytest.mark.parametrize(("kind", "status", "last"), [("sigterm", 143, 13), ("sigint", 130, 14)])
def test_a_signal_saves_and_ends(
    tmp_path: Path, kind: str, status: int, last: int, us_net: Path
) -> None:
    """Checkpoints are an hour apart here, so the one that is there is the signal's."""
    path = tmp_path / "run"
    for step, steps in ((1, 2), (5, 6), (last, STEPS)):  # in the last step it is not lost
        assert attempt(path, "us_net", Accident(kind, step), SELDOM) == status
        assert f"interrupted by {kind.upper()}; the same command goes on" in said(path)
        assert checkpoints(path)[-1] == steps
        assert steps_of(path) == list(range(1, steps + 1))  # none is done twice
    assert attempt(path, "us_net", machine=SELDOM) == 0
    assert_same(path, us_net)
    assert lost(path) == (0, 0)


@pytest.mark.parametrize(
    ("kind", "message", "advice"),
    [
        ("full_disk", "{} could not be written: File too large.", "make room, then the same"),
        pytest.param(
            *("out_of_memory", "memory ran out during {} (", "training.batch_size"),
            marks=pytest.mark.slow,
        ),
        pytest.param(
            *("other_user", "{} cannot be written: Permission denied (", "--runs FOLDER"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_befalls_the_machine_costs_no_run(
    tmp_path: Path, kind: str, message: str, advice: str, us_net: Path
) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident(kind, 5)) == 1
    assert said(path).startswith(message.format(path))
    assert advice in said(path)
    assert checkpoints(path) == [3, 4]
    assert not leftovers(path)
    for folder in (path, path / "checkpoints"):
        folder.chmod(0o755)
    assert attempt(path, "us_net") == 0
    assert_same(path, us_net)


def test_a_run_killed_before_its_first_checkpoint_has_lost_its_steps(
    tmp_path: Path, us_net: Path
) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("killed", 3), SELDOM) == -9
    assert attempt(path, "us_net", machine=SELDOM) == 0
    assert_same(path, us_net)
    third = json.loads((us_net / "metrics.jsonl").read_text().splitlines()[2])
    assert lost(path) == (third["forward_macs"], third["backward_macs"])


def test_a_run_begun_without_a_ledger_ends_without_one(tmp_path: Path, us_net: Path) -> None:
    """As an earlier version began it: what it had spent is not known."""
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("sigterm", 3), SELDOM) == 143
    (file,) = (path / "checkpoints").iterdir()
    tensors, state = load_checkpoint(file)
    del state["progress"]["ledger"]
    save_checkpoint(file.parent, 4, tensors, state)
    assert attempt(path, "us_net", machine=SELDOM) == 0
    result = json.loads((path / "result.json").read_text())
    assert result["ledger"] is None
    assert (path / "front.csv").read_bytes() == (us_net / "front.csv").read_bytes()


def test_a_full_disk_while_the_record_grows(tmp_path: Path, us_net: Path) -> None:
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("sigterm", 3), SELDOM) == 143
    assert attempt(path, "us_net", Accident("full_record", 9), SELDOM) == 1
    assert said(path).startswith(f"{path} could not be written: File too large.")
    assert not (path / "metrics.jsonl").read_text().endswith("\n")  # a torn line
    assert checkpoints(path) == [4]
    assert attempt(path, "us_net") == 0
    assert_same(path, us_net)


def test_a_folder_in_use_by_another_process(tmp_path: Path, us_net: Path) -> None:
    path, held = tmp_path / "run", tmp_path / "run.held"
    status: list[int] = []
    first = threading.Thread(
        target=lambda: status.append(attempt(path, "us_net", Accident("hold_on", 5)))
    )
    first.start()
    while not held.exists():
        assert first.is_alive()
        time.sleep(0.02)
    before = {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert attempt(path, "us_net") == 1
    assert said(path).startswith(f"{path} is in use by another process")
    assert {file: file.read_bytes() for file in path.rglob("*") if file.is_file()} == before
    held.unlink()
    first.join()
    assert status == [0]
    assert_same(path, us_net)


def test_damaged_checkpoints_cost_steps_not_the_run(tmp_path: Path, us_net: Path) -> None:
    """One is enough to go on from; where none is whole, nothing is touched."""
    path = tmp_path / "run"
    assert attempt(path, "us_net", Accident("sigterm", 7)) == 143
    files = sorted((path / "checkpoints").iterdir())
    before = files[0].read_bytes()
    for file in files:
        file.write_bytes(file.read_bytes()[:-1])
    assert attempt(path, "us_net") == 1
    assert said(path).startswith("no checkpoint is whole: ")
    assert f"remove {path / 'checkpoints'} to start this run from the beginning" in said(path)
    assert len((path / "metrics.jsonl").read_text().splitlines()) == 8
    files[0].write_bytes(before)
    assert attempt(path, "us_net") == 0
    assert steps_of(path) == [*range(1, 9), *range(8, STEPS + 1)]
    assert_same(path, us_net)
    assert lost(path) == step_macs(path, 8)


def _may_mount() -> bool:
    command = ["unshare", "-Urm", "mount", "-t", "tmpfs", "tmpfs", "/mnt"]
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(command, capture_output=True, check=False).returncode
    )


@pytest.mark.slow
@pytest.mark.skipif(not _may_mount(), reason="this user may not mount a file system")
def test_a_disk_that_is_really_full_and_one_that_is_read_only(tmp_path: Path, us_net: Path) -> None:
    """On a small file system, made for this test: ENOSPC and EROFS as the kernel gives them."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = 'mount -t tmpfs -o size=1m tmpfs "$0" && exec "$@"'
    script = [sys.executable, "-m", "tests.training.small_disk", str(disk)]
    command = ["unshare", "-Urm", "sh", "-c", mount, str(disk), *script]
    result = subprocess.run(command, check=True, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    told = json.loads(result.stdout.splitlines()[-1])
    path = disk / "run"
    assert told["full"].startswith(f"{path} could not be written: No space left on device.")
    assert told["checkpoints"] == ["000000000003.safetensors", "000000000004.safetensors"]
    assert told["read_only"].startswith(f"{path} cannot be written: Read-only file system (")
    assert told["read_only_from_the_start"].startswith(f"{disk / 'other'} cannot be written: Read-")
    assert "end" not in told
    for name in ("front.csv", "metrics.jsonl"):
        assert told[name] == (us_net / name).read_text()


def test_every_moment_of_writing_is_among_the_accidents() -> None:
    drawn = [accident for method in method_names() for accident in accidents(method)]
    assert len(drawn) == 32
    assert {accident.kind for accident in drawn} == {"killed", "killed_soon", *WRITING}
