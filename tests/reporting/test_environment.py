"""What the record of the environment says of the runs, and what it keeps to itself."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pareco.reporting.collection import environment_record
from pareco.reporting.records import InvalidRecord

WriteRun = Callable[..., Path]


def with_sessions(folder: Path, *changes: dict[str, Any]) -> Path:
    """The folder, with one session for each of the changes to the first."""
    path = folder / "env.json"
    first = json.loads(path.read_text())[0]
    path.write_text(json.dumps([first | change for change in changes]))
    return folder


def test_alike_sessions_are_written_once(tmp_path: Path, write_run: WriteRun) -> None:
    gpu = {"gpus": ["H100"], "device": "cuda", "processes": 8}
    folders = [
        with_sessions(write_run(tmp_path, "random", 10), {}, gpu, {}),
        with_sessions(write_run(tmp_path, "random", 2), {}),
        with_sessions(write_run(tmp_path, "alone", 0, damaged_images=4), gpu, gpu),
    ]
    record = environment_record(folders)
    first, second = record["environments"]
    assert (first["gpus"], first["device"], first["processes"]) == (["H100"], "cuda", 8)
    assert (second["gpus"], second["device"], second["processes"]) == ([], "cpu", 1)
    assert first["commit"] == "0123abc"
    assert first["dirty"] is False
    assert first["packages"] == {"torch": "2.9.0"}
    assert first["python"] == "3.12.1"
    assert first["cpu"] == "A processor"
    rates = {"images_per_second": 812.0, "data_waiting_percent": 1.5}
    assert record["runs"] == {
        "alone": {"seed0": {"sessions": [0, 0], "seconds": 31.5, **rates, "damaged_images": 4}},
        "random": {
            "seed2": {"sessions": [1], "seconds": 33.5, **rates, "damaged_images": 0},
            "seed10": {"sessions": [1, 0, 1], "seconds": 41.5, **rates, "damaged_images": 0},
        },
    }
    assert list(record["runs"]["random"]) == ["seed2", "seed10"]
    assert json.dumps(environment_record(folders[::-1])) == json.dumps(record)


def test_no_path_and_no_host_gets_in(tmp_path: Path, write_run: WriteRun) -> None:
    private = {"hostname": "secret-host", "folder": "/home/someone", "argv": ["/usr/bin/x"]}
    folder = with_sessions(write_run(tmp_path, "random", 0), private)
    text = json.dumps(environment_record([folder]))
    assert "secret" not in text
    assert "/" not in text
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("env.json", [{"commit": "a"}], "env.json lacks 'dirty'"),
        ("env.json", "{", "env.json: "),
        ("result.json", {"damaged_images": 0}, "result.json lacks 'timing'"),
        ("result.json", {"timing": {"seconds": 1.0}}, "lacks 'images_per_second'"),
    ],
)
def test_an_incomplete_record_is_named(
    tmp_path: Path, write_run: WriteRun, file: str, content: object, message: str
) -> None:
    folder = write_run(tmp_path, "random", 0)
    text = content if isinstance(content, str) else json.dumps(content)
    (folder / file).write_text(text)
    with pytest.raises(InvalidRecord, match=message):
        environment_record([folder])
