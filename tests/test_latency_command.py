"""The command `pareco latency`: what it writes, prints and refuses."""

import json
from pathlib import Path

import pytest

from pareco import operator_times
from pareco.cli import main
from pareco.latency_table import read_latency_table
from pareco.training.preparation import initial_network
from tests.experiments import TINY
from tests.latency_tables import made_up_table, written_table

NETWORK = ["latency", "cifar_resnet8", "--base-width", "4", "--channels", "1"]
SMALL = [*NETWORK, "--num-classes", "10", "--image-size", "8", "--device", "cpu"]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Measure as little as can be, in a folder of its own."""
    for name, value in {"_PASSES": 1, "_ROUNDS": 1, "_SECONDS": 0, "_ALL_COUNTS": 1}.items():
        monkeypatch.setattr(operator_times, name, value)
    monkeypatch.chdir(tmp_path)


def test_a_table_is_written_and_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*SMALL, "--check", "3", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    table = read_latency_table("cifar_resnet8-8-latency.json")
    assert record["table"] == "cifar_resnet8-8-latency.json"
    assert record["operators"] == len(table.operators)
    assert record["networks"][0]["widths"] == "4 4 8 8 16 16"
    assert record["check"]["networks"] == len(record["check"]["measured_ms"]) == 3
    assert all(each["measured_ms"] > 0 for each in record["networks"])


def test_a_given_table_is_not_measured_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    path = written_table(made_up_table(initial_network(TINY, 10, 1, 0)), tmp_path)
    assert main([*SMALL, "--table", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "4 4 8 8 16 16" in shown
    assert "0.29" in shown  # see test_latency_table.py
    assert "made up; --threads 1 --batch 1" in shown
    assert sorted(tmp_path.iterdir()) == [path]
    assert main([*SMALL[:-4], "--image-size", "16", "--table", str(path)]) == 2
    assert "image size 8 there, 16 here" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        ([*SMALL, "--threads", "0"], 2, "--threads must be at least 1, got 0"),
        ([*SMALL, "--check", "-1"], 2, "--check must not be negative"),
        ([*SMALL, "--table", "a", "-o", "b"], 2, "a table that is given is not written again"),
        ([*SMALL, "--table", "nowhere.json"], 2, "latency table nowhere.json: No such file"),
        (["latency", "cifar_resnet9"], 2, "depth must be 6k + 2"),
        ([*SMALL, "-o", "no/such/folder.json"], 2, "folder.json: its folder is not there"),
        (["latency", "damaged.pareco"], 1, "error: "),
    ],
)
def test_wrong_requests_end_with_a_message(
    arguments: list[str],
    status: int,
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Path("damaged.pareco").write_text("no bundle")
    assert main(arguments) == status
    assert message in capsys.readouterr().err
