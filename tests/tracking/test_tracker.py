"""The metrics file of a run, and a mirror that can neither block nor break it."""

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pareco.tracking import Publication, Tracker, mirror
from tests.tracking.clients import RUN, recorded_steps, run_script
from tests.wandb_server import KEY, WandbServer

IDENTITY: dict[str, Any] = {
    "project": "pareco",
    "config": {"name": "digits", "method": "random", "seed": 0},
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a run, without a mirror."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    return tmp_path / "runs" / "digits" / "random" / "seed0"


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_each_line_is_on_disk_at_once_and_disabled_makes_no_wandb_folder(folder: Path) -> None:
    """What is not finite is null there."""
    with Tracker(folder, **IDENTITY) as tracker:
        tracker.log(7, **{"train/loss": 2.5, "widths": 3, "a": float("nan"), "b": float("inf")})
        line = '{"step": 7, "train/loss": 2.5, "widths": 3, "a": null, "b": null}\n'
        assert (folder / "metrics.jsonl").read_text() == line
    assert [path.name for path in folder.iterdir()] == ["metrics.jsonl"]


def test_an_interrupted_record_reads_as_if_it_never_was(folder: Path) -> None:
    with Tracker(folder, **IDENTITY) as tracker:
        for step in range(6):
            tracker.log(step, loss=1 / (step + 1))
    path = folder / "metrics.jsonl"
    uninterrupted = path.read_bytes()
    path.write_bytes(uninterrupted[:-9])
    with Tracker(folder, **IDENTITY, resume_from=4) as tracker:
        assert [record["step"] for record in records(folder)] == [0, 1, 2, 3]
        for step in (4, 5):
            tracker.log(step, loss=1 / (step + 1))
    assert path.read_bytes() == uninterrupted
    assert list(folder.iterdir()) == [path]


@pytest.mark.parametrize("torn", ['{"st', '{"step": 3', "\0\0\0", '{"step": 3, "loss": 0.2'])
def test_a_torn_last_line_is_dropped(folder: Path, torn: str) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 2, "loss": 0.5}\n' + torn)
    Tracker(folder, **IDENTITY, resume_from=9).close()
    assert (folder / "metrics.jsonl").read_text() == '{"step": 2, "loss": 0.5}\n'


def test_a_broken_line_elsewhere_is_named(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 1}\n{"st\n{"step": 3}\n')
    with pytest.raises(ValueError, match="line 2 is no line of metrics"):
        Tracker(folder, **IDENTITY, resume_from=9)


def test_without_resume_the_record_starts_empty(folder: Path) -> None:
    for loss in (1.0, 2.0):
        with Tracker(folder, **IDENTITY) as tracker:
            tracker.log(0, loss=loss)
    assert records(folder) == [{"step": 0, "loss": 2.0}]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9"},
        pytest.param({"WANDB_MODE": "online"}, marks=pytest.mark.slow),
    ],
    ids=["no key", "key and dead server", "online asked without a key"],
)
def test_without_key_or_server_it_records_offline(
    tmp_path: Path, variables: dict[str, str]
) -> None:
    script = """
    logging.getLogger().setLevel(logging.INFO)
    with tracker() as t:
        t.log(0, loss=float("nan"))
        log(t, 1, 4)
    with tracker(resume_from=2) as t:
        log(t, 2, 4)
        t.publish(publication)  # whose files are not staged in the home folder
    """
    finished = run_script(tmp_path, None, script, **variables)
    assert finished.stdout == ""
    lines = finished.stderr.splitlines()
    assert lines.count(f"INFO W&B mode for {tmp_path / RUN}: offline") == 2
    expected = 0 if not variables else 2  # silence only where nothing was asked for
    assert len([line for line in lines if line.startswith("WARNING")]) == expected
    assert recorded_steps(tmp_path) == [0, 1, 2, 3]
    identifier = (tmp_path / RUN / "wandb/run_id").read_text()
    assert identifier.startswith("digits-pareco-seed0-")
    assert len(list(tmp_path.glob(f"{RUN}/wandb/offline-run-*/run-{identifier}.wandb"))) == 2
    assert {path.name for path in tmp_path.iterdir()} <= {".cache", ".config", "runs"}


def test_an_offline_run_is_read_back_by_the_clients_own_reader(tmp_path: Path) -> None:
    script = """
    with tracker() as t:
        log(t, 0, 3)
        t.publish(publication)
    """
    run_script(tmp_path, None, script)
    (written,) = tmp_path.glob(f"{RUN}/wandb/offline-run-*")
    wandb = Path(sys.executable).with_name("wandb")
    command = [str(wandb), "leet", "inspect", "--json"]
    environment = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    read = [
        subprocess.run(
            [*command, *more, str(written)],
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=True,
        ).stdout
        for more in ([], ["--summary"])
    ]
    rows = [json.loads(line) for line in read[0].splitlines()]
    history = [row["history"]["item"] for row in rows if row["type"] == "history"]
    assert [row["_step"] for row in history] == [*range(6)]
    assert [row["loss"] for row in history[:3]] == [1, 1 / 2, 1 / 3]
    points = [(row["front/cost"], row["front/error"]) for row in history[3:5]]
    assert points == [(20, 3.5), (40, 2.5)]
    for shown in ("front/networks", "figures/errors"):  # a table and an image, beside the log
        assert (written / "files" / history[5][f"{shown}.path"]).stat().st_size > 0
    told = json.loads(read[1])
    assert (told["state"], told["exit_code"]) == ("finished", 0)
    assert {"loss": 1 / 3, "passes": 12}.items() <= told["summary"].items()


def failing(*_: Any, **__: Any) -> Any:
    raise RuntimeError("the mirror broke")


BROKEN = SimpleNamespace(starting_step=0, log=failing, finish=failing)
"""A W&B run whose every call raises."""


@pytest.mark.parametrize("started", [failing, lambda *_, **__: BROKEN], ids=["start", "log"])
def test_an_exception_of_wandb_is_logged_once_and_the_record_is_complete(
    folder: Path,
    started: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr(mirror, "started_run", started)
    with Tracker(folder, **IDENTITY) as tracker:
        for step in range(3):
            tracker.log(step, loss=0.5)
    assert [record["step"] for record in records(folder)] == [0, 1, 2]
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "the mirror broke" in warning.getMessage()


@pytest.mark.parametrize("mode", ["offline", "disabled"])
def test_a_publication_is_made_for_a_mirror_only_and_its_exception_is_contained(
    folder: Path, mode: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    made: list[str] = []

    def make() -> Publication:
        made.append(mode)
        raise RuntimeError("no front")

    monkeypatch.setenv("WANDB_MODE", mode)
    monkeypatch.setattr(mirror, "started_run", lambda *_, **__: BROKEN)
    with Tracker(folder, **IDENTITY) as tracker:
        tracker.publish(make)
        tracker.publish(make)
    assert made == (["offline"] if mode == "offline" else [])
    assert ("no front" in caplog.text) is (mode == "offline")


@pytest.mark.parametrize(
    ("asked", "expected"),
    [("disabled", "disabled"), ("offline", "offline"), ("dryrun", "offline"), ("online", "online")],
)
def test_a_mode_that_is_asked_for_needs_no_server_but_online(
    asked: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def reached() -> None:
        assert asked == "online"

    monkeypatch.setattr(mirror, "wandb_settings", lambda: SimpleNamespace(mode=asked))
    monkeypatch.setattr(mirror, "unreachable", reached)
    monkeypatch.setenv("WANDB_MODE", asked)
    assert mirror.wandb_mode() == expected


def test_any_answer_but_that_of_a_server_that_is_down_counts_and_silence_is_waited_out(
    server: WandbServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert mirror.answers(server.address)
    assert mirror.answers(f"{server.address}/nothing")
    assert "GET /nothing" in server.unknown.pop()
    server.failing = True
    assert not mirror.answers(server.address)
    monkeypatch.setattr(mirror, "_PROBE_SECONDS", 0.2)
    silence = threading.Event()
    monkeypatch.setattr("urllib.request.urlopen", lambda *_, **__: silence.wait())
    assert not mirror.answers("http://silent.invalid")
    silence.set()
