"""The latencies of an experiment's fronts are measured once, for every network."""

import json
import statistics
import time
from pathlib import Path

import pytest
import torch

from pareco import latency as latency_module
from pareco.latency import measure_latencies
from pareco.training import RunError, execute_run
from replications.catalogue import method_named
from tests.experiments import TINY


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished run of the tiny experiment."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "disabled")
        execute_run(TINY, method_named("us_net"), 0, folder / "tiny" / "us_net" / "seed0")
    return folder


def test_every_network_on_a_front_is_measured_once(runs: Path) -> None:
    assert measure_latencies(TINY, runs)
    path = runs / "tiny" / "latency.json"
    record = json.loads(path.read_text())
    front = (runs / "tiny" / "us_net" / "seed0" / "front.csv").read_text().splitlines()
    place = front[0].split(",").index("widths")
    assert {line.split(",")[place] for line in front[1:]} <= set(record["milliseconds"])
    assert all(0 < value < 1000 for value in record["milliseconds"].values())
    assert (record["device"], record["batch_size"], record["cpu_threads"]) == ("cpu", 1, 1)
    assert record["image_size"] == 8
    before = path.stat().st_mtime_ns
    assert not measure_latencies(TINY, runs)
    assert path.stat().st_mtime_ns == before


def test_milliseconds_agree_with_a_plain_clock(runs: Path) -> None:
    """Within a factor of 3 of a loop around the same network: units and count are right."""
    net = latency_module.initial_network(
        TINY, latency_module.load_data(TINY.data, latency_module.Machine(), torch.device("cpu")), 0
    )
    image = torch.zeros(1, 1, 8, 8)
    measured = latency_module._milliseconds(net, [net.space.largest], image)[net.space.largest]
    plain, times = net.extract(net.space.largest).eval(), []
    with torch.no_grad():
        for _ in range(50):
            start = time.perf_counter()
            plain(image)
            times.append(1000 * (time.perf_counter() - start))
    assert 1 / 3 < measured / statistics.median(times) < 3


def test_a_damaged_file_is_named(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "us_net").symlink_to(runs / "tiny" / "us_net")
    (tmp_path / "tiny" / "latency.json").write_text("{")
    with pytest.raises(RunError, match=r"latency.json is damaged .*: remove it"):
        measure_latencies(TINY, tmp_path)
