"""The bench of training steps, by a network so small, and on the CPU, that its times say nothing.

What records passes there is the tape of the tests; only the device's own calls are left untried.
"""

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pareco.processes import joined_processes
from pareco.training import replay
from replications import bench_gpu
from replications.bench import BenchCommand
from tests.training.tape import Tape


@pytest.fixture
def tape(monkeypatch: pytest.MonkeyPatch) -> Tape:
    tape = Tape(torch.device("cpu"))
    recorders = {"cpu": lambda device: tape}
    monkeypatch.setattr(replay, "RECORDERS", recorders)
    monkeypatch.setattr(bench_gpu, "RECORDERS", recorders)
    monkeypatch.setattr(bench_gpu, "CASES", {"digits": 4})
    monkeypatch.setattr(bench_gpu, "_SECONDS", 1e-9)
    monkeypatch.setattr(bench_gpu, "REFRESHED", 2)
    monkeypatch.setattr("pareco.processes.joined_processes", lambda device: joined_processes("cpu"))
    return tape


def test_steps_are_timed_in_every_way_with_what_they_come_to(tape: Tape, tmp_path: Path) -> None:
    shown = io.StringIO()
    command = BenchCommand(results=tmp_path, repetitions=2, device="cuda")
    assert command.carried_out(Console(file=shown, width=160)) == 0
    with (tmp_path / "bench" / "gpu.csv").open(newline="") as file:
        rows = {row["what"]: row for row in csv.DictReader(file)}
    assert [*rows] == [*bench_gpu.WAYS, "eager refresh of 2 widths"]
    assert tape.recorded == 2 * 4  # two ways, four networks each
    for row in rows.values():
        milliseconds = float(row["milliseconds"])
        assert 0 < float(row["lower"]) <= milliseconds <= float(row["upper"])
        per_second = 1000 * int(row["images"]) / milliseconds  # of four digits after the point
        assert float(row["images_per_second"]) == pytest.approx(per_second, rel=1e-3)
        assert row["what"] in shown.getvalue()
    assert float(rows["eager"]["eager_steps"]) == 1
    assert float(rows["graphs"]["loss_difference"]) == 0  # the tape does the same operations
    # bfloat16 has eight bits, so that losses of about 2 differ, and not by much.
    assert 0 < float(rows["bf16"]["loss_difference"]) < 0.5
    assert rows["bf16"]["loss_difference"] == rows["bf16, graphs"]["loss_difference"]
    found = json.loads((tmp_path / "bench" / "gpu.json").read_text())
    assert found["device"] == "cpu"
    assert "threads" not in found


@pytest.mark.skipif(torch.accelerator.is_available(), reason="there is a device to time")
def test_without_a_gpu_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--device cuda needs an NVIDIA or AMD GPU, and this mach"):
        BenchCommand(results=tmp_path, device="cuda").carried_out(Console())
    assert not list(tmp_path.iterdir())
