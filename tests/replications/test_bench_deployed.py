"""Deployed networks side by side, of a network so small that its times say nothing."""

import csv
import math
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pareco.reporting.rendering import markdown_table
from replications import bench_deployed
from replications.bench import BenchCommand
from replications.bench_goals import goals_table


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_deployed, "NETWORKS", {"cifar_resnet8": 8})
    monkeypatch.setattr(bench_deployed, "UNTIMED", 1)


def rows_in(results: Path) -> list[dict[str, str]]:
    with (results / "bench" / "deployed.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_what_is_missing_is_left_out_with_the_reason(
    tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(bench_deployed.importlib.util, "find_spec", lambda name: None)
    command = BenchCommand(results=tmp_path, repetitions=2, only="deployed")
    status = command.carried_out(Console())
    rows = rows_in(tmp_path)
    goals = [row for row in rows if row["goal"]]
    assert status == int(any(float(row["median"]) > float(row["goal"]) for row in goals))
    found = {row["what"]: [each for each in rows if each["what"] == row["what"]] for row in rows}
    assert [*found] == ["extracted", "switched", "compiled", "ONNX Runtime", "switch (ms)"]
    assert [len(each) for each in found.values()] == [3] * 5
    assert len({row["macs"] for row in rows}) == 3
    assert "install g++" in found["compiled"][0]["skipped"]
    assert "pip install onnx" in found["ONNX Runtime"][0]["skipped"]
    assert math.isnan(float(found["compiled"][0]["median"]))
    assert all(float(row["median"]) == 1 for row in found["extracted"])
    assert all(float(row["milliseconds"]) > 0 for row in (*found["switched"], *goals))
    table = markdown_table(bench_deployed.deployed_table(tmp_path))
    assert table in capsys.readouterr().out
    assert table.count("install g++") == 3
    shown = goals_table(tmp_path)
    assert shown is not None
    assert [row[0].text for row in shown.rows] == ["switched", "switch (ms)"] * 3


@pytest.mark.slow
def test_every_way_is_measured(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("onnxruntime")
    monkeypatch.setenv("CXX", sys.executable)  # which this backend does not need
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    BenchCommand(results=tmp_path, repetitions=2, only="deployed").carried_out(Console())
    rows = rows_in(tmp_path)
    assert all(float(row["milliseconds"]) > 0 for row in rows)
    assert {row["what"] for row in rows} > {"compiled", "ONNX Runtime"}


def test_times_are_taken_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, said = [0.0], []
    monkeypatch.setattr(bench_deployed.time, "process_time", lambda: clock[0])

    def taking(name: str, seconds: float) -> None:
        said.append(name)
        clock[0] += seconds

    passes = {"a": lambda: taking("a", 2), "b": lambda: taking("b", 1)}
    assert bench_deployed.in_turns(passes, 2) == {"a": [2000.0] * 2, "b": [1000.0] * 2}
    assert said == ["a", "b"] * (bench_deployed.UNTIMED + 2)
