"""The latencies of an experiment's fronts are measured once, for every network."""

import json
import time
from pathlib import Path

import pytest
import torch

from pareco import latency as latency_module
from pareco.config import Machine
from pareco.latency import measure_latencies
from pareco.training import RunError
from pareco.training.preparation import initial_network
from tests.experiments import TINY

FRONT = {"4 4 8 8 16 16", "2 1 4 3 8 6"}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return the folder of the tiny experiment, with a finished run there and one under way."""
    for seed, rows in enumerate((sorted(FRONT), ["1 1 3 3 6 6"])):
        run = tmp_path / "tiny" / "us_net" / f"seed{seed}"
        run.mkdir(parents=True)
        (run / "front.csv").write_text("\n".join(["widths", *rows, ""]))
    (tmp_path / "tiny" / "us_net" / "seed0" / "DONE").touch()
    return tmp_path / "tiny"


def test_every_network_on_a_front_is_measured_once(folder: Path) -> None:
    assert measure_latencies(TINY, folder.parent, Machine(device="cpu"))
    path = folder / "latency.json"
    record = json.loads(path.read_text())
    assert set(record["milliseconds"]) == FRONT  # with the full network
    assert all(0 < value < 1000 for value in record["milliseconds"].values())
    assert (record["device"], record["batch_size"], record["cpu_threads"]) == ("cpu", 1, 1)
    assert record["image_size"] == 8
    before = path.stat().st_mtime_ns
    assert not measure_latencies(TINY, folder.parent, Machine(device="cpu"))
    assert path.stat().st_mtime_ns == before
    other = "2 2 4 4 8 8"
    assert measure_latencies(TINY, folder.parent, Machine(device="cpu"), [other])
    assert set(json.loads(path.read_text())["milliseconds"]) == FRONT | {other}
    path.write_text("{")
    with pytest.raises(RunError, match=r"latency.json is damaged .*: remove it"):
        measure_latencies(TINY, folder.parent)


def test_milliseconds_agree_with_a_plain_clock() -> None:
    """A loop around the same network: units and count are right."""
    net = initial_network(TINY, 10, 1, 0)
    largest, image, times = net.space.largest, torch.zeros(1, 1, 8, 8), []
    measured = latency_module._milliseconds(net, [largest], image)[largest]
    plain = net.extract(largest).eval()
    with torch.no_grad():
        for _ in range(200):
            start = time.perf_counter()
            plain(image)
            times.append(1000 * (time.perf_counter() - start))
    assert 1 / 4 < measured / min(times) < 4  # the least of both, as other work only adds
