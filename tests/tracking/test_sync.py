"""What a sync brings to the server from the runs' own files, with the real client and the stub."""

import json
from pathlib import Path

import pytest
from filelock import FileLock

from tests.reporting.conftest import write_run
from tests.tracking.clients import RUN, run_script
from tests.wandb_server import WandbServer


@pytest.mark.slow
def test_a_run_killed_and_resumed_offline_arrives_as_one(
    tmp_path: Path, server: WandbServer
) -> None:
    killed = """
    t = tracker()
    log(t, 0, 30)
    os.kill(os.getpid(), signal.SIGKILL)
    """
    resumed = """
    with tracker(resume_from=20) as t:
        log(t, 20, 40)
        t.publish(publication)
    (folder / "DONE").touch()
    """
    run_script(tmp_path, None, killed, -9)
    metrics = tmp_path / RUN / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-9])
    torn = run_script(tmp_path, server, "print(synced(), synced())")
    assert torn.stdout == f"[('{RUN}', '')] []\n", torn.stderr
    ((identity, run),) = server.runs.items()
    assert [row["_step"] for row in run.history] == [*range(29)]
    assert run.exit_code == 1  # it has not finished
    run_script(tmp_path, None, resumed)
    parts = tmp_path.glob(f"{RUN}/wandb/offline-run-*/run-{identity}.wandb")
    assert len(list(parts)) == 2
    twice = "print(synced(), synced())"
    synced = run_script(tmp_path, server, twice, WANDB_MODE="offline")  # as the runs were
    assert synced.stdout == f"[('{RUN}', '')] []\n", synced.stderr
    assert list(server.runs) == [identity]
    assert [row["_step"] for row in run.history] == [*range(43)]
    assert [row["loss"] for row in run.history[:40]] == [1 / (step + 1) for step in range(40)]
    assert (run.exit_code, run.summary["passes"]) == (0, 12)
    arrived = len(server.artifacts)
    (tmp_path / RUN / "wandb/synced").unlink()  # as of a run that another version has uploaded
    again = run_script(tmp_path, server, "print(synced())")
    assert again.stdout == f"[('{RUN}', '')]\n", again.stderr
    assert [row["_step"] for row in run.history] == [*range(43)]
    assert len(server.artifacts) == arrived


def test_runs_in_use_and_damaged_ones_are_named_and_spare_the_others(
    tmp_path: Path, server: WandbServer
) -> None:
    script = """
    for seed in (0, 1, 2):
        folder = Path(f"runs/digits/pareco/seed{seed}")
        with tracker() as t:
            log(t, 0, 3)
    (folder.parent / "seed1/metrics.jsonl").write_text('{"st\\n{"step": 3}\\n')
    """
    run_script(tmp_path, None, script)
    with FileLock(tmp_path / RUN / ".lock"):
        used = run_script(tmp_path, server, "print(*synced(), sep='\\n')")
    lines = used.stdout.splitlines()
    assert lines[0] == f"('{RUN}', 'the run is in use; sync again when it has ended')"
    assert "seed1', 'ValueError: " in lines[1]
    assert "line 1 is no line of metrics" in lines[1]
    assert lines[2] == f"('{RUN.with_name('seed2')}', '')"
    ((identity, run),) = server.runs.items()
    assert "seed2" in identity
    assert [row["_step"] for row in run.history] == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("address", ["/file_stream", "/artifact/"])
def test_a_server_that_dies_meanwhile_is_not_taken_for_one_that_has_all(
    tmp_path: Path, server: WandbServer, address: str
) -> None:
    """Of its own, the client would wait for days."""
    script = """
    for seed in (0, 1):
        folder = Path(f"runs/digits/pareco/seed{seed}")
        with tracker() as t:
            log(t, 0, 3)
        (folder / "DONE").touch()
    """
    run_script(tmp_path, None, script)
    server.dies_at = address
    impatient = "sync._SILENCE_SECONDS = sync._FINISH_SECONDS = 2\nprint(synced())"
    finished = run_script(tmp_path, server, impatient)
    gone = f"{server.address} does not answer any more"
    assert (
        finished.stdout == f"{[(str(RUN.with_name(name)), gone) for name in ('seed0', 'seed1')]}\n"
    )
    assert not list(tmp_path.glob("runs/**/synced"))
    server.failing, server.dies_at = False, ""
    again = run_script(tmp_path, server, "print([problem for _, problem in synced()])")
    assert again.stdout == "['', '']\n", again.stderr
    for run in server.runs.values():
        assert [row["_step"] for row in run.history] == [*range(6)]


def test_the_command_uploads_finished_runs_or_says_why_not(
    tmp_path: Path, server: WandbServer
) -> None:
    folder = write_run(tmp_path / "runs", "pareco", 0)
    config = json.loads((folder / "config.json").read_text()) | {"name": "digits"}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "splits.json").write_text('{"test": [[0, 597]]}')
    (folder / "wandb").mkdir()
    (folder / "wandb/run_id").write_text("pareco-0")
    script = """
    from replications.wandb_commands import WandbReportCommand, WandbSyncCommand
    sync = WandbSyncCommand(runs=Path("runs"))
    print(told(sync.carried_out), told(sync.carried_out))
    print(told(WandbReportCommand(name="digits").carried_out))
    """
    for refusing in (None, server):
        server.failing = True
        refused = run_script(tmp_path, refusing, script)
        reason = (
            f"{server.address} does not" if refusing else "no API key is set: run `wandb login`"
        )
        assert refused.stdout.count(f"Weights & Biases: {reason}") == 3, refused.stderr
    server.failing = False
    uploaded = run_script(tmp_path, server, script)
    shown = f"{folder.relative_to(tmp_path)}: uploaded\nnothing to upload in runs\n0 0\n"
    assert uploaded.stdout.startswith(shown), uploaded.stderr
    run = server.runs["pareco-0"]
    assert run.summary["budget/passes"] == 1600
    assert "front/networks" in run.history[-1]
    assert server.artifact("front").committed
