"""What is read from run folders, what is refused by name, and what earlier records keep."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pareco.config import COSTS
from pareco.reporting.collection import collected_runs, records_of, with_kept_times
from pareco.reporting.reading import InvalidRecord
from pareco.reporting.records import LATENCY, Records, read_records, write_records
from pareco.schema import (
    BUDGET_TYPES,
    COUNTS,
    CURVE_TYPES,
    FRONT_TYPES,
    LEDGER_TYPES,
    PHASES,
    VISIT_TYPES,
)
from tests.reporting.conftest import (
    COUNTS_OF_CIFAR,
    ENVIRONMENT,
    FULL,
    STEPS,
    changed,
    run_elsewhere,
    write_latency,
    write_run,
)


def test_runs_are_collected_in_a_stable_order(runs: Path) -> None:
    unfinished = write_run(runs, "random", 2, finished=False)
    records, left_out = collected_runs("digits", runs)
    assert list(records.fronts.columns) == [*FRONT_TYPES, *BUDGET_TYPES]
    assert left_out == (unfinished,)
    order = list(records.fronts[["method", "seed", "macs"]].itertuples(index=False, name=None))
    assert order == sorted(order)
    assert len(order) == 3 * 2 * 10
    assert records.experiment.network == "resnet8"
    assert records.experiment.groups[2].maximum == 32
    seed_one = records.fronts[records.fronts["seed"] == 1]
    assert set(seed_one["search_evaluations"]) == {121}
    assert records.runs == [(m, s) for m in ("pareco", "random", "uniform") for s in (0, 1)]
    assert list(records.environment["runs"]) == ["pareco", "random", "uniform"]


def test_classes_and_images_are_recorded_and_old_runs_do_without(
    runs: Path, tmp_path: Path
) -> None:
    """Those that some runs of an experiment recorded count for all; others are at odds."""
    old = collected_runs("digits", runs)[0].experiment
    assert [getattr(old, name) for name in COUNTS] == [None] * len(COUNTS)
    assert not set(COUNTS) & set(json.loads(old.to_json()))
    (first, second, *_) = sorted(runs.glob("digits/*/*/result.json"))
    changed(second, **COUNTS_OF_CIFAR)
    records = collected_runs("digits", runs)[0]
    assert {name: getattr(records.experiment, name) for name in COUNTS} == COUNTS_OF_CIFAR
    write_records(records, tmp_path / "digits")
    assert read_records(tmp_path / "digits").experiment == records.experiment
    said = "cifar10: 10 classes, 45,000 training images, 5,000 for the search"
    assert records.experiment.counts == f"{said}, held out, 10,000 test images."
    part = replace(records.experiment, held_out_images=0)
    assert part.counts == f"{said}, of the training images, 10,000 test images."
    assert "- classes, - training images, - for the search, - test" in old.counts
    changed(first, **COUNTS_OF_CIFAR | {"classes": 9})
    with pytest.raises(InvalidRecord, match=r"differ in classes: 9, 10"):
        collected_runs("digits", runs)


def test_curves_and_visits_are_ordered_by_run(runs: Path) -> None:
    records = collected_runs("digits", runs)[0]
    assert list(records.curves.columns) == list(CURVE_TYPES)
    assert list(records.visits.columns) == list(VISIT_TYPES)
    assert list(records.curves["step"]) == [*STEPS] * 6
    assert list(records.curves["seed"].unique()) == [0, 1]
    assert list(records.visits["visit"]) == [*range(9)] * 2
    assert set(records.visits["method"]) == {"pareco"}
    first = records.visits.iloc[0]
    assert first[["step", "predicted_loss", "target_cost"]].isna().all()
    assert list(records.visits["step"].dropna().unique()) == [20, 40, 60, 80, 100]


def test_a_curve_is_thinned_to_means_of_all_its_steps(tmp_path: Path) -> None:
    """Of 250 losses, where loss equals step, the 100 means are over two or three of them each."""
    path = write_run(tmp_path, "random", 0) / "metrics.jsonl"
    lines: list[dict[str, int | None]]
    lines = [{"step": step, "loss_largest": step, "loss_smallest": -step} for step in range(250)]
    lines.insert(7, {"step": 6, "loss_largest": None, "loss_smallest": None})
    path.write_text("\n".join(map(json.dumps, lines)))
    curves = collected_runs("digits", tmp_path)[0].curves
    assert len(curves) == 100
    # 0 to 2, 3 and 4, 5 to 7, 8 and 9, and so on.
    assert list(curves["loss_largest"][:4]) == [1, 3.5, 6, 8.5]
    assert list(curves["step"][:4]) == [2, 4, 7, 9]
    assert curves["step"].iloc[-1] == 249
    assert curves["loss_smallest"].iloc[-1] == -248.5


def test_latency_is_joined_by_widths_where_every_network_has_one(runs: Path) -> None:
    write_latency(runs, leave_out=1)
    records = collected_runs("digits", runs)[0]
    assert records.latency is None
    assert LATENCY not in {*records.fronts, *records.experiment.full_costs}
    write_latency(runs)
    records = collected_runs("digits", runs)[0]
    assert records.latency is not None
    assert records.latency["milliseconds"][FULL] == records.experiment.full_costs[LATENCY]
    assert records.experiment.full_costs[LATENCY] == 1 + 0.01 * (16 + 16 + 32 + 32 + 64)
    for widths, time in zip(records.fronts["widths"], records.fronts[LATENCY], strict=True):
        assert time == 1 + 0.01 * sum(map(int, widths.split()))


def test_the_order_is_by_the_experiments_own_cost(tmp_path: Path) -> None:
    front = write_run(tmp_path, "random", 0, cost="params") / "front.csv"
    header, *lines = [line.split(",") for line in front.read_text().splitlines()]
    macs, params = (header.index(name) for name in ("macs", "params"))
    for number, line in enumerate(sorted(lines, key=lambda line: int(line[macs]))):
        line[params] = str(1000 - number)
    front.write_text("\n".join(",".join(line) for line in [header, *lines]))
    collected = collected_runs("digits", tmp_path)[0].fronts
    assert list(collected["params"]) == [*range(991, 1001)]
    assert collected["macs"].is_monotonic_decreasing


def test_no_finished_run_says_where_it_looked(tmp_path: Path) -> None:
    write_run(tmp_path, "random", 0, finished=False)
    with pytest.raises(InvalidRecord, match=r"no finished run of 'digits' .*1 unfinished"):
        collected_runs("digits", tmp_path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("network", "resnet20"),
        ("full_costs", dict.fromkeys(COSTS, 9_000_000)),
        ("groups", []),
        ("cost", "params"),
        ("scale", "short: 1/10 of the epochs"),
        ("data", "digits"),
        ("image_size", 8),
        ("training.epochs", 4),
        ("data fingerprint", "other"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs: Path, field: str, value: object) -> None:
    folder = runs / "digits" / "uniform" / "seed1"
    if field == "data fingerprint":
        (folder / "env.json").write_text(json.dumps([ENVIRONMENT | {"data_fingerprint": value}]))
    else:
        changed(folder / ("config.json" if "." in field else "result.json"), **{field: value})
    with pytest.raises(InvalidRecord, match=rf"pareco/seed0 and .*uniform/seed1 differ in {field}"):
        collected_runs("digits", runs)


def test_a_field_that_one_run_lacks_has_its_default(runs: Path) -> None:
    """So that runs from before it was a field can be compared with later ones."""
    config = runs / "digits" / "uniform" / "seed1" / "config.json"
    changed(config, **{"training.precision": "fp32", "data.mean": [123.675, 116.28, 103.53]})
    assert len(collected_runs("digits", runs)[0].runs) == 6
    changed(config, **{"training.precision": "bf16"})
    with pytest.raises(InvalidRecord, match=r"differ in training\.precision: fp32, bf16:"):
        collected_runs("digits", runs)


def test_runs_of_one_method_meant_the_same_by_unset_fields(runs: Path) -> None:
    """Those of two methods need not, nor need one that doesn't say."""
    name = "unset.search.trains"
    for method, seed, value in (("uniform", 0, "front"), ("pareco", 0, "newest")):
        changed(runs / "digits" / method / f"seed{seed}" / "config.json", **{name: value})
    assert len(collected_runs("digits", runs)[0].runs) == 6
    changed(runs / "digits" / "uniform" / "seed1" / "config.json", **{name: "newest"})
    with pytest.raises(InvalidRecord, match=rf"uniform/seed. differ in {name}: front, newest"):
        collected_runs("digits", runs)


def test_processes_with_batch_norm_of_their_own_must_be_as_many(runs: Path) -> None:
    folders = list((runs / "digits").glob("*/seed*"))
    (folders[0] / "env.json").write_text(json.dumps([ENVIRONMENT | {"processes": 2}]))
    collected_runs("digits", runs)
    for folder in folders:
        changed(folder / "config.json", **{"training.sync_batch_norm": False})
    with pytest.raises(InvalidRecord, match=r"differ in processes: [12], [12]:"):
        collected_runs("digits", runs)


def test_a_copied_folder_is_refused(runs: Path) -> None:
    (runs / "digits" / "random" / "seed0").rename(runs / "digits" / "random" / "seed5")
    with pytest.raises(InvalidRecord, match="belongs to digits/random/seed0"):
        collected_runs("digits", runs)


def test_exempt_methods_of_any_run_are_exempt(runs: Path) -> None:
    write_run(runs, "zalone", 0, budget_exempt=True)
    write_run(runs, "alone", 0, budget_exempt=True)
    exempt = collected_runs("digits", runs)[0].experiment.budget_exempt
    assert exempt == ("alone", "zalone")


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        *((name, "", None, "No such file") for name in ("metrics.jsonl", "visits.csv")),
        ("result.json", "", None, "No such file"),
        ("metrics.jsonl", "", "", "lacks|step"),
        ("metrics.jsonl", "", "{", "Expecting property name"),
        ("metrics.jsonl", "", '{"step": 1, "loss_largest": 2.0}', "loss_smallest"),
        ("metrics.jsonl", "", '{"step": 1, "loss_largest": "a", "loss_smallest": 1}', "."),
        ("visits.csv", "", "", "No columns"),
        ("visits.csv", "", "method,seed\n", "visit"),
        ("result.json", "", "[1, 2]", "."),
        ("result.json", "", "{", "Invalid JSON"),
        ("result.json", "", "{}", "experiment: Field required"),
        ("result.json", '"macs", "full', '"speed", "full', "cost: Input should be 'macs', 'para"),
        ("result.json", '"macs", "full', '["macs"], "full', "cost: Input should be 'macs'"),
        ("result.json", '"paper"', '""', "scale: '' is not one line of text"),
        ("result.json", '"params"', '"others"', "full_costs: it lacks 'params'"),
        ("result.json", "images_per", "per", "timing.images_per_second: Field required"),
        ("result.json", "gradient_steps", "steps", "budget.gradient_steps: Field required"),
        ("config.json", "", "[]", "Input should be an object"),
        ("env.json", "", "[]", "at least 1 item"),
        ("env.json", "", '[{"commit": "a"}]', "0.dirty: Field required"),
        ("front.csv", "search_loss", "loss", "search_loss"),
        ("front.csv", "16 16 32 32 64", "16 16 32 32", "4 counts for 5 groups"),
        ("front.csv", ",62500,8200,", ",62500,8201,", "peak_activations outside 1 to 8200"),
        ("front.csv", "digits,random", "digits,uniform", "a row belongs to another run"),
        ("front.csv", "random,0", "random,1", "a row belongs to another run"),
        ("visits.csv", "\n", "\ndigits,random,1,0,,largest,1,1,1,1,1,,,,1,\n", "another run"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    runs: Path, name: str, old: str, new: str | None, message: str
) -> None:
    """All of it is `new` (None: it is missing), or the first `old` in it."""
    path = runs / "digits" / "random" / "seed0" / name
    text = path.read_text()
    path.unlink()
    if new is not None:
        assert old in text
        path.write_text(text.replace(old, new, 1) if old else new)
    with pytest.raises(InvalidRecord, match=rf"random/seed0/{name}.*(?:{message})"):
        collected_runs("digits", runs)


def with_sessions(folder: Path, *changes: dict[str, Any]) -> Path:
    """The folder, with one session for each of the changes to the first."""
    path = folder / "env.json"
    first = json.loads(path.read_text())[0]
    path.write_text(json.dumps([first | change for change in changes]))
    return folder


def test_alike_sessions_are_written_once(tmp_path: Path) -> None:
    gpu = {"gpus": ["H100"], "device": "cuda", "processes": 8}
    folders = [
        with_sessions(write_run(tmp_path, "random", 10), {}, gpu, {}),
        with_sessions(write_run(tmp_path, "random", 2), {}),
        with_sessions(write_run(tmp_path, "alone", 0, damaged_images=4), gpu, gpu),
    ]
    record = records_of(folders).environment
    assert record["environments"] == [ENVIRONMENT | gpu, ENVIRONMENT]
    rates = {"images_per_second": 812.0, "data_waiting_percent": 1.5}
    assert record["runs"] == {
        "alone": {"seed0": {"sessions": [0, 0], "seconds": 31.5, **rates, "damaged_images": 4}},
        "random": {
            "seed2": {"sessions": [1], "seconds": 33.5, **rates, "damaged_images": 0},
            "seed10": {"sessions": [1, 0, 1], "seconds": 41.5, **rates, "damaged_images": 0},
        },
    }
    assert list(record["runs"]["random"]) == ["seed2", "seed10"]
    assert json.dumps(records_of(folders[::-1]).environment) == json.dumps(record)


def test_no_path_and_no_host_gets_in(tmp_path: Path) -> None:
    private = {"hostname": "secret-host", "folder": "/home/someone", "argv": ["/usr/bin/x"]}
    folder = with_sessions(write_run(tmp_path, "random", 0), private)
    text = json.dumps(records_of([folder]).environment)
    assert "secret" not in text
    assert "/" not in text
    assert str(tmp_path) not in text


@pytest.fixture
def before(runs: Path, tmp_path: Path) -> Records:
    """The records of `runs`, written and read; their times have changed since."""
    write_latency(runs)
    write_records(collected_runs("digits", runs)[0], tmp_path / "digits")
    run_elsewhere(runs)
    return read_records(tmp_path / "digits")


@pytest.mark.parametrize("part", ["front", "budget"])
def test_only_the_runs_whose_fronts_changed_have_new_times(
    runs: Path, before: Records, part: str
) -> None:
    folder = runs / "digits" / "random" / "seed1"
    if part == "front":
        front = folder / "front.csv"
        front.write_text(front.read_text().replace(",512", ",513"))
    else:
        budget = json.loads((folder / "result.json").read_text())["budget"]
        changed(folder / "result.json", budget=budget | {"passes": 1601})
    kept = with_kept_times(collected_runs("digits", runs)[0], before)
    first, second = kept.environment["environments"]
    assert (first, second["cpu"]) == (before.environment["environments"][0], "Another")
    found = {
        (method, seed): run
        for method, seeds in kept.environment["runs"].items()
        for seed, run in seeds.items()
    }
    new = found.pop(("random", "seed1"))
    assert (new["sessions"], new["seconds"], new["damaged_images"]) == ([1], 7.25, 3)
    for (method, seed), run in found.items():
        assert run == before.environment["runs"][method][seed]
    assert kept.latency == before.latency


def test_a_new_network_brings_all_latencies_anew(runs: Path, before: Records) -> None:
    write_run(runs, "other", 0)
    write_latency(runs)
    run_elsewhere(runs)
    kept = with_kept_times(collected_runs("digits", runs)[0], before)
    assert kept.latency is not None
    assert kept.latency["cpu"] == "Another"
    assert kept.experiment.full_costs[LATENCY] == 2 * before.experiment.full_costs[LATENCY]
    assert list(kept.environment["runs"]) == ["other", "pareco", "random", "uniform"]
    kept_run, run = (each.environment["runs"]["random"]["seed0"] for each in (kept, before))
    assert kept_run == run | {"sessions": [1]}


@pytest.mark.parametrize("splits", ["{}", '{"test": [[1]]}', "["])
def test_damaged_splits_are_refused(runs: Path, splits: str) -> None:
    (min((runs / "digits").glob("*/seed*")) / "splits.json").write_text(splits)
    with pytest.raises(InvalidRecord, match=r"splits\.json"):
        collected_runs("digits", runs)


def test_the_test_images_are_counted_from_the_splits_where_they_were_kept(
    runs: Path, tmp_path: Path
) -> None:
    assert collected_runs("digits", runs)[0].experiment.test_images is None
    first = min((runs / "digits").glob("*/seed*"))
    splits = {"train": [[0, 90]], "search": [[90, 95]], "test": [[95, 98], [107, 111]]}
    (first / "splits.json").write_text(json.dumps(splits))
    records = collected_runs("digits", runs)[0]
    assert records.experiment.test_images == 7
    write_records(records, tmp_path / "digits")
    assert read_records(tmp_path / "digits").experiment == records.experiment
    unknown = replace(records.experiment, test_images=None)
    assert "test_images" not in unknown.to_json()
    path = tmp_path / "digits" / "records" / "network.json"
    path.write_text(path.read_text().replace('"test_images": 7', '"test_images": 0'))
    with pytest.raises(InvalidRecord, match=r"network\.json.*test_images"):
        read_records(tmp_path / "digits")


def spent(**macs: int) -> dict[str, dict[str, Any]]:
    """The ledger of a run, as its result.json has it."""
    nothing = {"forward_macs": 0, "backward_macs": 0, "seconds": 1.5, "device_seconds": 3.0}
    return {phase: nothing | {"forward_macs": macs.get(phase, 0)} for phase in PHASES}


def test_ledgers_are_recorded_and_old_runs_do_without(runs: Path, tmp_path: Path) -> None:
    old, _ = collected_runs("digits", runs)
    write_records(old, tmp_path / "digits")
    assert old.ledger.empty
    assert not (tmp_path / "digits/records/ledger.csv").exists()
    assert list(read_records(tmp_path / "digits").ledger.columns) == list(LEDGER_TYPES)
    changed(runs / "digits/random/seed1/result.json", ledger=spent(training=2**63, test=7))
    changed(runs / "digits/random/seed0/result.json", ledger=None)  # begun by an earlier version
    records, _ = collected_runs("digits", runs)
    write_records(records, tmp_path / "digits")
    read = read_records(tmp_path / "digits").ledger
    assert read.equals(records.ledger)
    assert [*zip(read["phase"], read["forward_macs"], strict=True)] == [
        *(("training", 2**63), ("search", 0), ("choice", 0), ("test", 7), ("lost", 0)),
    ]
    assert set(read["method"]) == {"random"}
    assert set(read["seed"]) == {1}
    write_records(old, tmp_path / "digits")
    assert not (tmp_path / "digits/records/ledger.csv").exists()


def test_a_ledger_without_a_phase_is_refused(runs: Path, tmp_path: Path) -> None:
    """In a run and in records: what it lacks would be taken for nothing."""
    file = runs / "digits/random/seed1/result.json"
    changed(file, ledger={name: each for name, each in spent().items() if name != "search"})
    with pytest.raises(InvalidRecord, match=r"seed1/result.json: ledger: its phases are training,"):
        collected_runs("digits", runs)
    changed(file, ledger=spent() | {"test": spent()["test"] | {"forward_macs": -1}})
    with pytest.raises(InvalidRecord, match=r"result.json: ledger.test.forward_macs"):
        collected_runs("digits", runs)
    changed(file, ledger=spent())
    write_records(collected_runs("digits", runs)[0], tmp_path / "digits")
    path = tmp_path / "digits/records/ledger.csv"
    text = path.read_text()
    path.write_text("".join(line for line in text.splitlines(True) if ",search," not in line))
    with pytest.raises(InvalidRecord, match=r"ledger.csv: random, seed 1 has the phases training,"):
        read_records(tmp_path / "digits")


def test_times_of_a_ledger_are_kept_where_its_macs_are_the_same(runs: Path) -> None:
    first, second = (runs / f"digits/random/seed{seed}/result.json" for seed in (0, 1))
    for file in (first, second):
        changed(file, ledger=spent(training=5, lost=9))
    before, _ = collected_runs("digits", runs)
    slower = {name: each | {"seconds": 9.0} for name, each in spent(training=5).items()}
    changed(first, ledger=slower)
    changed(second, ledger={name: each | {"forward_macs": 1} for name, each in slower.items()})
    changed(runs / "digits/pareco/seed0/result.json", ledger=slower)
    after = with_kept_times(collected_runs("digits", runs)[0], before).ledger
    rows = dict(list(after.groupby(["method", "seed"])))
    assert list(rows) == [("pareco", 0), ("random", 0), ("random", 1)]
    assert set(rows["random", 0]["seconds"]) == {1.5}  # with what was lost then
    assert rows["random", 0]["forward_macs"].sum() == 14
    assert set(rows["random", 1]["seconds"]) == set(rows["pareco", 0]["seconds"]) == {9.0}
