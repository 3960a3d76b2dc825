"""The bench on a network so small that its numbers say nothing: what it writes, and prints."""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from replications import bench
from replications.bench import BenchCase, BenchCommand, BenchRow

TINY = BenchCase(
    network="cifar_resnet8", image_size=8, images=2, channels=1, base_width=2, refreshed=2
)


def test_every_goal_is_measured_and_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench, "SWITCHES", 3)
    monkeypatch.setattr(bench, "CASES", (TINY,))
    command = BenchCommand(results=tmp_path, repetitions=2, only="step")
    threads = torch.get_num_threads()
    shown = io.StringIO()
    status = command.carried_out(Console(file=shown, width=120))
    assert torch.get_num_threads() == threads
    with (tmp_path / "bench" / "step.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == [*bench.GOALS]
    assert status == int(any(float(row["median"]) > float(row["goal"]) for row in rows))
    for row in rows:
        assert 0 < float(row["lower"]) <= float(row["median"]) <= float(row["upper"])
        assert row["what"] in shown.getvalue()
    found = json.loads((tmp_path / "bench" / "step.json").read_text())
    assert (found["threads"], found["device"]) == (1, "cpu")
    assert found["packages"]["torch"]


def test_a_ratio_is_the_firsts_time_over_the_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("replications.bench.time.process_time", lambda: clock[0])

    def taking(seconds: float) -> None:
        clock[0] += seconds

    assert bench._in_turns(lambda: taking(3), lambda: taking(2), 4, 2) == [1.5] * 4


def test_the_most_held_is_what_torch_holds_at_once() -> None:
    def work() -> None:
        first = torch.zeros(1000)  # 4 bytes each
        second = torch.zeros(500)
        del first
        third = torch.zeros(700)
        del second, third

    assert bench._most_held(work) == pytest.approx(4 * 1500, rel=0.05)  # blocks are rounded up


def test_quartiles_by_hand() -> None:
    row = bench._row("refresh", TINY, [1.0, 5.0, 3.0, 2.0, 4.0], 3.0)
    assert (row.lower, row.median, row.upper, row.met) == (2.0, 3.0, 4.0, True)
    assert isinstance(row, BenchRow)


def test_one_repetition_has_no_spread(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least 2, got 1"):
        BenchCommand(results=tmp_path, repetitions=1).carried_out(Console())
