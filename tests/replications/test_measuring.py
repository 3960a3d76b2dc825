"""How long planned runs take: by clocks that tell what is known."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import replications
from pareco import processes
from pareco.config import Machine
from pareco.ledger import Ledger
from pareco.training.preparation import planner_before
from replications import measuring
from replications.__main__ import main
from replications.catalogue import method_named
from replications.measuring import Measured, Stopwatch, fitted
from replications.plan_times import PARTS, PlanTimes, seconds_of
from tests.data.pictures import written_folders
from tests.experiments import TINY

METHODS = {name: method_named(name) for name in ("pareco", "us_net", "two_stage")}
MACHINE = Machine(device="cpu")


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "_LEAST_SECONDS", 0.0)


def test_a_fit_finds_what_each_kind_of_work_takes() -> None:
    work = [[1, 2, 3e9], [1, 4, 5e9], [1, 4, 20e9], [1, 7, 9e9]]
    seconds = np.array(work) @ [0.5, 0.25, 1e-9]
    assert fitted(work, seconds.tolist()) == pytest.approx([0.5, 0.25, 1e-9])
    assert fitted([[1, 1], [1, 2]], [2.0, 1.0])[1] == 0  # no work takes less than no time


def test_steps_and_evaluation_are_timed_by_their_macs(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that tells the MACs that were booked, a MAC takes one unit, and nothing else any.

    So what is timed is what is counted, in each of the six kinds of steps and in evaluation.
    """
    booked = [0]
    book = Ledger.book

    def noted(ledger: Ledger, *, forward_macs: int = 0, backward_macs: int = 0) -> None:
        booked[0] += forward_macs + backward_macs
        book(ledger, forward_macs=forward_macs, backward_macs=backward_macs)

    monkeypatch.setattr(Ledger, "book", noted)
    watch = Stopwatch(planner=planner_before(TINY), machine=MACHINE, clock=lambda: booked[0])
    found = watch.measured({}, {}, 3, 2)
    macs = watch.planner.cost.macs_at(watch.planner.space.smallest)
    # The rest of a least-squares fit, in MACs, is far below one image's.
    assert found.step == pytest.approx([0, 0, 1, 0, 0, 1], rel=1e-3, abs=macs / 10)
    assert found.step[2::3] == pytest.approx([1, 1], rel=1e-3)
    assert found.after[1:4:2] == pytest.approx([1, 1], rel=1e-3)
    assert (found.images_per_second, found.asks) == (None, {})
    assert found.runs_on_a_device == 1.5


def known(**times: object) -> Measured:
    """Return what was measured, in which nothing takes any time but these."""
    nothing = {"step": [0.0] * 6, "after": [0.0] * 5, "asks": {}, "images_per_second": None}
    machine = {"device": "cpu", "processes": 1, "decoding_processes": 2, "runs_on_a_device": 1.0}
    return Measured(**(machine | nothing | times))  # type: ignore[arg-type]


def test_the_seconds_of_a_run_are_those_of_its_pieces() -> None:
    planner = planner_before(TINY)  # 14 steps, asks before every second one, batches of 100
    plans = {name: planner.plan(kind, 0) for name, kind in METHODS.items()}
    asks = {
        (measuring.resolved(TINY, kind), count): [(0, 0.0), (100, 100.0)]
        for kind in METHODS.values()
        for count in (1, 2)
    }

    def seconds(name: str, **times: object) -> dict[str, float]:
        found = known(**({"asks": asks} | times))
        return seconds_of(planner, METHODS[name], plans[name], found)

    # The models are asked once the four uniform widths and the largest are there: at 6, 8, 10, 12.
    assert [entries for entries, _ in plans["pareco"].asks][-4:] == [6, 8, 10, 12]
    asked = sum(entries for entries, _ in plans["pareco"].asks)
    assert seconds("pareco")["asks"] == pytest.approx(asked)
    assert seconds("us_net")["asks"] == 0
    by_step = seconds("pareco", step=[1, 0, 0, 0, 0, 0])
    assert by_step["training"] == 14
    by_network = seconds("us_net", step=[0, 1, 0, 0, 1, 0])
    assert (by_network["training"], by_network["search"]) == (4 * 14, 0)
    # Before step 2k the 2k visits so far are measured, each on the batch of 100 held-out images.
    assert seconds("pareco", step=[0, 0, 0, 0, 1, 0])["search"] == sum(range(0, 14, 2))
    # The ends, and two new networks in each of the seven asks.
    assert seconds("pareco", step=[0, 0, 0, 1, 0, 0])["training"] == 2 + 14
    batches = seconds("us_net", after=[1, 0, 0, 0, 0])["choice"]
    assert batches == 2 * plans["us_net"].networks["choice"]  # 200 calibration images
    tested = seconds("us_net", after=[0, 0, 1, 0, 0])["test"]
    assert tested == (10 + 1) * plans["us_net"].networks["test"]  # of 997 images, and 100 held out
    new = seconds("us_net", after=[0, 0, 0, 0, 1])
    assert (new["choice"], new["test"]) == (plans["us_net"].networks["choice"], 0)
    macs = seconds("us_net", after=[0, 1, 0, 1, 0])
    assert macs["choice"] == pytest.approx(plans["us_net"].of("choice"))
    assert macs["test"] == pytest.approx(plans["us_net"].of("test"))
    # Two processes decode all images once, before the first step.
    decoded = seconds("us_net", images_per_second=10.0)["images"]
    assert decoded == (700 + 100 + 997) / 20


def test_images_are_waited_for_as_far_as_training_takes_less() -> None:
    anew = replace(TINY, data=replace(TINY.data, in_memory=False))
    planner = planner_before(anew)
    plan = planner.plan(METHODS["us_net"], 0)
    for rate in (1.0, 1e9):
        found = known(step=[1, 0, 0, 0, 0, 0], images_per_second=rate)
        seconds = seconds_of(planner, METHODS["us_net"], plan, found)
        assert seconds["images"] == pytest.approx(max(plan.decoded / (2 * rate) - 14, 0))
        between = replace(found, decoding_processes=0)  # the training process decodes by itself
        seconds = seconds_of(planner, METHODS["us_net"], plan, between)
        assert seconds["images"] == pytest.approx(plan.decoded / rate)


@pytest.mark.parametrize(("device", "asked"), [("cpu", 4.0), ("cuda", 2.0)])
def test_runs_on_one_device_share_its_time(device: str, asked: float) -> None:
    """Nothing is gained by a second run on it, in hours or device hours, unless by its cores."""
    planner = planner_before(replace(TINY, data=replace(TINY.data, in_memory=False)))
    plan = planner.plan(METHODS["pareco"], 0)
    plans = {("pareco", seed): plan for seed in range(16)}
    keys = {(measuring.resolved(TINY, METHODS["pareco"]), count) for _, count in plan.asks}
    asks = {key: [(0, 2 / len(plan.asks))] for key in keys}
    work = {"step": [1, 0, 0, 0, 1, 0], "after": [1, 0, 1, 0, 0]}
    work |= {"asks": {key: [(0, 0)] for key in keys}}
    alone = known(device=device, **work)
    shared = replace(alone, runs_on_a_device=2.0)
    first, second = (PlanTimes.of(planner, METHODS, plans, one, 8) for one in (alone, shared))
    second = replace(second, at_a_time=16)
    assert second.hours == pytest.approx(first.hours)
    assert second.device_hours == pytest.approx(first.device_hours)
    run = ("pareco", 0)
    assert sum(second.seconds[run].values()) == 2 * sum(first.seconds[run].values())
    times = seconds_of(planner, METHODS["pareco"], plan, replace(shared, asks=asks))
    assert times["asks"] == pytest.approx(asked)
    told = "runs on one device (2) are taken to share its time"
    assert (told in first.lines(), told in second.lines()) == (False, True)
    # Images that come at half the rate for each of twice as many runs: no hours more or fewer.
    slow = replace(alone, images_per_second=0.5)
    halved = replace(shared, images_per_second=0.25)
    waiting = [PlanTimes.of(planner, METHODS, plans, one, 8) for one in (slow, halved)]
    assert replace(waiting[1], at_a_time=16).hours == pytest.approx(waiting[0].hours)


def test_hours_and_what_limits_them() -> None:
    seconds = {
        ("a", 0): dict.fromkeys(PARTS, 0.0) | {"training": 3600.0, "asks": 1800.0},
        ("a", 1): dict.fromkeys(PARTS, 0.0) | {"training": 3600.0, "asks": 5400.0},
        ("b", 0): dict.fromkeys(PARTS, 0.0) | {"images": 3600.0},
    }
    measured = replace(known(), processes=4, images_per_second=100.0)
    times = PlanTimes(measured=measured, at_a_time=2, seconds=seconds)
    assert (times.hours, times.device_hours) == (2.5, 20)  # the second run takes 2.5 hours
    assert replace(times, at_a_time=1).hours == 5
    lines = list(times.lines())
    assert lines[2].split()[:5] == ["a", "2", "16", "50.0", "0.0"]
    assert lines[4] == "in all 2.5 hours, 2 runs at a time; 20 device hours"
    assert any("what takes longest (b): decoding" in line for line in lines)
    both = replace(times, seconds=seconds | {("c", 0): seconds["b", 0]})
    assert any("what takes longest (b, c): decoding" in line for line in both.lines())
    assert [each["limited_by"] for each in times.as_json()["runs"]] == [
        "training",
        "asks",
        "images",
    ]
    assert list(replace(times, seconds={}).lines()) == []  # of several processes one speaks


def test_plan_measures_on_request(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [*replications.__path__, str(Path(__file__).parent)]
    monkeypatch.setattr(replications, "__path__", folders)
    images = written_folders(tmp_path / "images", train=40)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    flags = ["--measure", "--device", "cpu", "--workers", "2"]
    monkeypatch.setattr(processes, "usable_cores", lambda: 1)  # so that two runs share them
    assert main(["plan", "tiny", *flags, "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)["measured"]
    assert measured["runs_on_a_device"] == measured["runs_at_a_time"] == 2
    assert [each["method"] for each in measured["runs"]] == ["pareco", "us_net"]
    for run in measured["runs"]:
        assert set(run["seconds"]) == set(PARTS)
        assert min(run["seconds"].values()) >= 0
        assert run["hours"] * 3600 == pytest.approx(sum(run["seconds"].values()))
        assert 0 < run["seconds"]["training"] < math.inf
    assert measured["runs"][0]["seconds"]["asks"] > measured["runs"][1]["seconds"]["asks"] == 0
    assert measured["images_per_second_of_a_process"] is None
    own = [
        "--images",
        str(images),
        "--data.name",
        "bugs",
        "--data.mean",
        *"123",
        "--data.std",
        *"123",
    ]
    sizes = ["--training.batch-size", "20", "--data.search-images", "8", "--method", "us_net"]
    calibration = ["--evaluation.calibration-images", "20", "--evaluation.batch-size", "20"]
    tested = ["--data.test-images", "12", "--decoding-workers", "0"]
    assert main(["plan", "tiny", *flags, *own, *sizes, *calibration, *tested]) == 0
    told = capsys.readouterr().out
    assert "one process decodes" in told
    assert "each run has none, and decodes between its steps" in told
    assert "hours a run" in told
    assert list((tmp_path / "here").iterdir()) == []  # nothing is written
    assert main(["plan", "tiny", *flags, "--engine", "ray"]) == 2
    assert "--measure times this machine: leave out --engine ray" in capsys.readouterr().err
