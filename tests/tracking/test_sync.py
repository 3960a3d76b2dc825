"""The command that uploads what was recorded offline, with the real client and the stub."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.tracking.clients import run_command, run_script
from tests.wandb_server import WandbServer

RUN = Path("runs/digits/pareco/seed0")
KILLED = """
t = tracker()
log(t, 0, 30)
time.sleep(2.5)
os.kill(os.getpid(), signal.SIGKILL)
"""
RESUMED = """
with tracker(resume_from=20) as t:
    log(t, 20, 40)
"""


@pytest.fixture
def server() -> Iterator[WandbServer]:
    with WandbServer() as server:
        yield server
    assert not server.unknown


@pytest.mark.timeout(90)
def test_two_offline_parts_go_up_in_order_the_torn_one_mended(
    tmp_path: Path, server: WandbServer
) -> None:
    assert run_script(tmp_path, None, KILLED).returncode == -9
    (part,) = tmp_path.glob(f"{RUN}/wandb/offline-run-*/*.wandb")
    part.write_bytes(part.read_bytes()[:-70])  # the last row has about a hundred bytes
    finished = run_script(tmp_path, None, RESUMED)
    assert finished.returncode == 0, finished.stderr
    synced = run_command(tmp_path, server, "wandb_sync", "--runs", "runs")
    assert synced.returncode == 0, synced.stderr
    lines = synced.stdout.splitlines()
    assert len(lines) == 2
    assert (
        lines[0]
        == f"{part.parent.relative_to(tmp_path)}: uploaded, cut after its last whole record"
    )
    assert re.fullmatch(rf"{RUN}/wandb/offline-run-\S+: uploaded", lines[1])
    ((_, run),) = server.runs.items()
    assert [row["_step"] for row in run.history] == [*range(40)]
    assert [row["loss"] for row in run.history] == [1 / (step + 1) for step in range(40)]
    again = run_command(tmp_path, server, "wandb_sync")
    assert (again.returncode, again.stdout) == (0, "nothing to upload in runs\n")


@pytest.mark.timeout(90)
def test_a_part_that_fails_is_named_and_the_later_ones_wait(
    tmp_path: Path, server: WandbServer
) -> None:
    for script in ("with tracker() as t: log(t, 0, 3)", RESUMED):
        assert run_script(tmp_path, None, script).returncode == 0
    first, second = sorted(tmp_path.glob(f"{RUN}/wandb/offline-run-*/*.wandb"))
    whole = first.read_bytes()
    first.write_bytes(b"no file of W&B")
    with FileLock(tmp_path / RUN / ".lock"):
        used = run_command(tmp_path, server, "wandb_sync")
    assert used.returncode == 1
    assert "the run is in use; sync again when it has ended" in used.stdout
    synced = run_command(tmp_path, server, "wandb_sync")
    assert synced.returncode == 1
    names = [part.parent.relative_to(tmp_path) for part in (first, second)]
    assert synced.stdout.splitlines() == [
        f"failed {names[0]}: it is no file of W&B",
        f"failed {names[1]}: waits for {names[0].name}",
        "2 of 2 parts were not uploaded; the same command tries again",
    ]
    assert not server.runs
    first.write_bytes(whole)
    assert run_command(tmp_path, server, "wandb_sync").returncode == 0
    ((_, run),) = server.runs.items()
    assert [row["_step"] for row in run.history] == [0, 1, 2, *range(20, 40)]


@pytest.mark.timeout(60)
def test_without_key_or_server_it_says_so(tmp_path: Path, server: WandbServer) -> None:
    finished = run_command(tmp_path, None, "wandb_sync")
    assert finished.returncode == 2
    assert "no API key is set: run `wandb login`" in " ".join(finished.stderr.split())
    server.failing = True
    finished = run_command(tmp_path, server, "wandb_sync")
    assert finished.returncode == 2
    assert f"{server.address} does not answer" in " ".join(finished.stderr.split())


@pytest.mark.timeout(90)
def test_a_server_that_dies_meanwhile_is_not_taken_for_one_that_has_all(
    tmp_path: Path, server: WandbServer
) -> None:
    """Of its own, `wandb sync` would wait for days, or give up and mark the part as uploaded."""
    assert run_script(tmp_path, None, "with tracker() as t: log(t, 0, 3)").returncode == 0
    script = """
    from pareco.tracking import upload
    upload._SILENCE_SECONDS = 2
    print([outcome.problem for outcome in upload.upload(Path("runs"))])
    """
    server.dies_at = "/file_stream"
    finished = run_script(tmp_path, server, script)
    assert finished.returncode == 0, finished.stderr
    assert finished.stdout == f"['{server.address} does not answer any more']\n"
    assert not list(tmp_path.glob(f"{RUN}/wandb/*/*.synced"))
    server.failing, server.dies_at = False, ""
    assert run_command(tmp_path, server, "wandb_sync").returncode == 0
    ((_, run),) = server.runs.items()
    assert [row["_step"] for row in run.history] == [0, 1, 2]
