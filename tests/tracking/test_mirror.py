"""The mirror with a server, which is the stub: what arrives, and what happens when it dies."""

import json
from pathlib import Path

import pytest

from tests.experiments import quick
from tests.tracking.clients import RUN, recorded_steps, run_script
from tests.wandb_server import WandbServer

AT_ONCE = {"WANDB__FILE_STREAM_TRANSMIT_INTERVAL": "1"}  # second, not 15


def test_a_run_arrives_whole(tmp_path: Path, server: WandbServer) -> None:
    script = """
    with tracker() as t:
        log(t, 1, 4)
        t.publish(publication)
    """
    finished = run_script(tmp_path, server, script)
    assert "WARNING" not in finished.stderr
    ((identity, run),) = server.runs.items()
    assert identity == (tmp_path / RUN / "wandb/run_id").read_text()
    names = {"groupName": "digits", "jobType": "pareco", "displayName": "pareco-seed0"}
    assert names.items() <= run.attributes.items()
    assert run.config == {"name": "digits", "method": "pareco", "seed": 0}
    assert run.exit_code == 0
    assert [row["_step"] for row in run.history] == [1, 2, 3, 4, 5, 6]
    assert [row["loss"] for row in run.history[:3]] == [1 / 2, 1 / 3, 1 / 4]
    points = [(row["front/cost"], row["front/error"]) for row in run.history[3:5]]
    assert points == [(20, 3.5), (40, 2.5)]
    assert run.summary["passes"] == 12
    shown = run.history[5]
    table = json.loads(run.files[shown["front/networks"]["path"]])
    assert table["columns"] == ["widths", "macs", "test_top1_error"]
    assert table["data"] == [["2 4", 20, 3.5], ["8 8", 40, 2.5]]
    assert run.files[shown["figures/errors"]["path"]].startswith(b"\x89PNG")
    metrics = json.loads(run.attributes["config"])["_wandb"]["value"]["m"]
    over_cost = [metric for metric in metrics if metric.get("1") == "front/error"]
    assert [metrics[metric["5"] - 1]["1"] for metric in over_cost] == ["front/cost"]
    assert server.artifact("model").files == {"0.safetensors": bytes(range(256)) * 50}
    front = (tmp_path / RUN / "front.csv").read_bytes()
    assert server.artifact("front").files == {"front.csv": front}
    assert all(artifact.committed for artifact in server.artifacts.values())


@pytest.mark.parametrize(
    "variables", [{}, {**AT_ONCE, "WAIT": "4"}], ids=["nothing there", "ahead of checkpoint"]
)
def test_a_killed_run_goes_on_as_one(
    tmp_path: Path, server: WandbServer, variables: dict[str, str]
) -> None:
    """Its checkpoint is at step 2. Nothing has arrived, or step 3, too (4 is held back)."""
    first = """
    t = tracker()
    log(t, 0, 5)
    time.sleep(float(os.environ.get("WAIT", "0.5")))
    os.kill(os.getpid(), signal.SIGKILL)
    """
    second = """
    with tracker(resume_from=3) as t:
        log(t, 3, 8)
    """
    run_script(tmp_path, server, first, -9, **variables)
    ((_, run),) = server.runs.items()
    assert [row["_step"] for row in run.history] == ([*range(4)] if variables else [])
    finished = run_script(tmp_path, server, second)
    assert "WARNING" not in finished.stderr
    assert list(server.runs.values()) == [run]
    assert [row["_step"] for row in run.history] == recorded_steps(tmp_path) == [*range(8)]
    assert [row["loss"] for row in run.history] == [1 / (step + 1) for step in range(8)]


@pytest.mark.slow
def test_a_server_that_dies_stops_nothing_and_loses_nothing(
    tmp_path: Path, server: WandbServer
) -> None:
    script = """
    t = tracker()
    log(t, 0, 5)
    time.sleep(4)
    let_the_server_die()
    longest = max(seconds(t.log, step, loss=1 / (step + 1)) for step in range(5, 105))
    t.publish(publication)
    print(longest, seconds(t.close))
    (folder / "DONE").touch()
    """
    finished = run_script(tmp_path, server, script, **AT_ONCE)
    longest, closing = map(float, finished.stdout.split())
    assert longest < 5
    assert 9 < closing < 60  # what has not arrived is tried for ten seconds
    gone, stopped = finished.stderr.splitlines()
    assert gone == "WARNING W&B does not answer any more: wandb-sync can publish the front"
    assert stopped.startswith("WARNING W&B mirroring stopped (metrics.jsonl goes on")
    assert recorded_steps(tmp_path) == [*range(105)]
    ((_, run),) = server.runs.items()
    assert [row["_step"] for row in run.history] == [*range(4)]
    server.failing = False
    synced = run_script(tmp_path, server, "print(synced(), synced())")
    assert synced.stdout == f"[('{RUN}', '')] []\n", synced.stderr
    assert [row["_step"] for row in run.history] == [*range(108)]
    assert [row["loss"] for row in run.history[:105]] == [1 / (step + 1) for step in range(105)]
    assert server.artifact("model").committed


@pytest.mark.parametrize("online", quick([True, False], True), ids=["online", "offline"])
def test_a_disk_that_is_full_for_wandb_stops_nothing(
    tmp_path: Path, server: WandbServer, online: bool
) -> None:
    """No file may grow beyond 64 KB, which W&B's does long before the metrics file."""
    script = """
    import resource
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, 65536))
    t = tracker()
    longest = max(seconds(t.log, step, loss=0.5) for step in range(1000))
    t.publish(publication)
    print(longest, seconds(t.close))
    """
    finished = run_script(tmp_path, server if online else None, script)
    longest, closing = map(float, finished.stdout.split())
    assert longest < 5
    assert closing < 60
    assert recorded_steps(tmp_path) == [*range(1000)]
    (files,) = tmp_path.glob(f"{RUN}/wandb/*run-*/*.wandb")
    assert files.stat().st_size <= 65536


def test_a_publication_that_takes_too_long_is_given_up(tmp_path: Path, server: WandbServer) -> None:
    script = """
    mirror._PUBLISH_SECONDS = mirror._FINISH_SECONDS = 1
    mirror.answers = lambda address: True
    with tracker() as t:
        log(t, 0, 5)
        let_the_server_die()
        print(seconds(t.publish, publication))
    """
    finished = run_script(tmp_path, server, script)
    assert "TimeoutError: no answer within 1 seconds" in finished.stderr
    assert 1 <= float(finished.stdout) < 10
