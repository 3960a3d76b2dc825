"""What is read from run folders, and what is refused by name."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pareco.config import COSTS
from pareco.reporting.collection import collected_runs
from pareco.reporting.records import (
    BUDGET_TYPES,
    CURVE_TYPES,
    FRONT_TYPES,
    LATENCY,
    VISIT_TYPES,
    ExperimentRecord,
    InvalidRecord,
    read_records,
    write_records,
)
from tests.reporting.conftest import FULL, STEPS, write_latency

WriteRun = Callable[..., Path]


def test_runs_of_other_configurations_or_data_are_refused(runs: Path) -> None:
    folder = runs / "digits" / "random" / "seed1"
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"training.epochs": 4}))
    with pytest.raises(InvalidRecord, match=r"training.epochs: 3, 4"):
        collected_runs("digits", runs)
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "env.json").write_text(json.dumps([{"data_fingerprint": "other"}]))
    with pytest.raises(InvalidRecord, match="data fingerprint: abc, other"):
        collected_runs("digits", runs)


def test_runs_are_collected_in_a_stable_order(runs: Path, write_run: WriteRun) -> None:
    unfinished = write_run(runs, "random", 2, finished=False)
    collected = collected_runs("digits", runs)
    records = collected.records
    assert list(records.fronts.columns) == [*FRONT_TYPES, *BUDGET_TYPES]
    assert collected.unfinished == (unfinished,)
    order = list(zip(*(records.fronts[name] for name in ("method", "seed", "macs")), strict=True))
    assert order == sorted(order)
    assert len(order) == 3 * 2 * 10
    assert records.experiment.network == "resnet8"
    assert records.experiment.groups[2].maximum == 32
    seed_one = records.fronts[records.fronts["seed"] == 1]
    assert set(seed_one["search_evaluations"]) == {121}
    assert records.runs == [(m, s) for m in ("pareco", "random", "uniform") for s in (0, 1)]
    assert list(records.environment["runs"]) == ["pareco", "random", "uniform"]


def test_curves_and_visits_are_ordered_by_run(runs: Path) -> None:
    records = collected_runs("digits", runs).records
    assert list(records.curves.columns) == list(CURVE_TYPES)
    assert list(records.visits.columns) == list(VISIT_TYPES)
    assert list(records.curves["step"]) == [*STEPS] * 6
    assert list(records.curves["seed"].unique()) == [0, 1]
    assert list(records.visits["visit"]) == [*range(9)] * 2
    assert set(records.visits["method"]) == {"pareco"}
    first = records.visits.iloc[0]
    assert first[["step", "predicted_loss", "target_cost"]].isna().all()
    assert list(records.visits["step"].dropna().unique()) == [20, 40, 60, 80, 100]


def test_a_curve_is_thinned_to_means_of_all_its_steps(tmp_path: Path, write_run: WriteRun) -> None:
    """Of 250 losses, where loss equals step, the 100 means are over two or three of them each."""
    path = write_run(tmp_path, "random", 0) / "metrics.jsonl"
    lines: list[dict[str, int | None]]
    lines = [{"step": step, "loss_largest": step, "loss_smallest": -step} for step in range(250)]
    lines.insert(7, {"step": 6, "loss_largest": None, "loss_smallest": None})
    path.write_text("\n".join(map(json.dumps, lines)))
    curves = collected_runs("digits", tmp_path).records.curves
    assert len(curves) == 100
    # 0 to 2, 3 and 4, 5 to 7, 8 and 9, and so on.
    assert list(curves["loss_largest"][:4]) == [1, 3.5, 6, 8.5]
    assert list(curves["step"][:4]) == [2, 4, 7, 9]
    assert curves["step"].iloc[-1] == 249
    assert curves["loss_smallest"].iloc[-1] == -248.5


def test_latency_is_joined_by_widths_where_every_network_has_one(runs: Path) -> None:
    write_latency(runs, leave_out=1)
    records = collected_runs("digits", runs).records
    assert records.latency is None
    assert LATENCY not in {*records.fronts, *records.experiment.full_costs}
    write_latency(runs)
    records = collected_runs("digits", runs).records
    assert records.latency is not None
    assert records.latency["cpu"] == "A processor"
    assert records.experiment.full_costs[LATENCY] == 1 + 0.01 * (16 + 16 + 32 + 32 + 64)
    for widths, time in zip(records.fronts["widths"], records.fronts[LATENCY], strict=True):
        assert time == 1 + 0.01 * sum(map(int, widths.split()))
    assert records.latency["milliseconds"][FULL] == records.experiment.full_costs[LATENCY]


def test_the_order_is_by_the_experiments_own_cost(tmp_path: Path, write_run: WriteRun) -> None:
    front = write_run(tmp_path, "random", 0, cost="params") / "front.csv"
    header, *lines = [line.split(",") for line in front.read_text().splitlines()]
    macs, params = (header.index(name) for name in ("macs", "params"))
    for number, line in enumerate(sorted(lines, key=lambda line: int(line[macs]))):
        line[params] = str(1000 - number)
    front.write_text("\n".join(",".join(line) for line in [header, *lines]))
    collected = collected_runs("digits", tmp_path).records.fronts
    assert list(collected["params"]) == [*range(991, 1001)]
    assert collected["macs"].is_monotonic_decreasing


def test_no_finished_run_says_where_it_looked(tmp_path: Path, write_run: WriteRun) -> None:
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
    ],
)
def test_runs_that_cannot_be_compared_are_refused(runs: Path, field: str, value: object) -> None:
    path = runs / "digits" / "uniform" / "seed1" / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    if field == "groups":
        front = path.with_name("front.csv")
        lines = [line.split(",") for line in front.read_text().splitlines()]
        emptied = [lines[0], *([*line[:3], " ", *line[4:]] for line in lines[1:])]
        front.write_text("\n".join(map(",".join, emptied)))
    with pytest.raises(InvalidRecord, match=rf"uniform/seed1 and .*pareco/seed0 differ in {field}"):
        collected_runs("digits", runs)


def column_dropped(text: str) -> str:
    return text.replace("search_loss", "loss")


def value_dropped(text: str) -> str:
    lines = text.splitlines()
    cells = lines[3].split(",")
    return "\n".join([*lines[:3], ",".join([*cells[:8], "", *cells[9:]]), *lines[4:]])


def value_infinite(text: str) -> str:
    lines = text.splitlines()
    cells = lines[3].split(",")
    return "\n".join([*lines[:3], ",".join([*cells[:8], "inf", *cells[9:]]), *lines[4:]])


def rows_dropped(text: str) -> str:
    return text.splitlines()[0] + "\n"


def widths_shortened(text: str) -> str:
    return text.replace("16 16 32 32 64", "16 16 32 32")


def widths_beyond(text: str) -> str:
    return text.replace("16 16 32 32 64", "16 16 33 32 64")


def macs_beyond(text: str) -> str:
    return text.replace(",4120000,", ",4120001,")


def activations_beyond(text: str) -> str:
    return text.replace(",62500,8200,", ",62500,8201,")


def another_method(text: str) -> str:
    return text.replace("digits,random", "digits,uniform")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (column_dropped, "search_loss"),
        (value_dropped, "search_loss|could not convert"),
        (value_infinite, "infinite value in column search_loss"),
        (rows_dropped, "no network"),
        (widths_shortened, "4 counts for 5 groups"),
        (widths_beyond, r"33 channels in group 'layer2.0' of 32"),
        (macs_beyond, "macs outside 1 to 4120000"),
        (activations_beyond, "peak_activations outside 1 to 8200"),
        (another_method, "another run"),
        (lambda _: "", "No columns"),
    ],
)
def test_a_damaged_front_is_named(runs: Path, damage: Callable[[str], str], message: str) -> None:
    path = runs / "digits" / "random" / "seed0" / "front.csv"
    path.write_text(damage(path.read_text()))
    with pytest.raises(InvalidRecord, match=rf"random/seed0/front\.csv.*(?:{message})"):
        collected_runs("digits", runs)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "result.json: "),
        ("{}", "result.json lacks 'budget_exempt'"),
        (None, "No such file"),
        ({"cost": "latency"}, "cost 'latency' is none of macs, params, activations"),
        ({"cost": ["macs"]}, "is none of macs"),
        ({"scale": ""}, "scale '' is not one line of text"),
        ({"scale": "a\nb"}, "is not one line of text"),
        ({"full_costs": {"macs": 1}}, "lacks 'params'"),
    ],
)
def test_a_damaged_result_is_named(
    runs: Path, text: str | dict[str, object] | None, message: str
) -> None:
    path = runs / "digits" / "random" / "seed0" / "result.json"
    if isinstance(text, dict):
        text = json.dumps(json.loads(path.read_text()) | text)
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRecord, match=message):
        collected_runs("digits", runs)


def test_a_copied_folder_is_refused(runs: Path) -> None:
    (runs / "digits" / "random" / "seed0").rename(runs / "digits" / "random" / "seed5")
    with pytest.raises(InvalidRecord, match="belongs to digits/random/seed0"):
        collected_runs("digits", runs)


def test_an_error_outside_0_to_100_percent_is_refused(runs: Path) -> None:
    path = runs / "digits" / "random" / "seed1" / "front.csv"
    header, first, *rest = path.read_text().splitlines()
    cells = first.split(",")
    cells[header.split(",").index("test_top1_error")] = "-55"
    path.write_text("\n".join([header, ",".join(cells), *rest]))
    with pytest.raises(InvalidRecord, match="an error outside 0 to 100% in column test_top1_error"):
        collected_runs("digits", runs)


def test_exempt_methods_of_any_run_are_exempt(runs: Path, write_run: WriteRun) -> None:
    write_run(runs, "zalone", 0, budget_exempt=True)
    write_run(runs, "alone", 0, budget_exempt=True)
    exempt = collected_runs("digits", runs).records.experiment.budget_exempt
    assert exempt == ("alone", "zalone")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", None, "No such file"),
        ("metrics.jsonl", "", "lacks|step"),
        ("metrics.jsonl", "{", "Expecting property name"),
        ("metrics.jsonl", '{"step": 1, "loss_largest": 2.0}', "loss_smallest"),
        ("metrics.jsonl", '{"step": 1, "loss_largest": "a", "loss_smallest": 1}', "."),
        ("visits.csv", None, "No such file"),
        ("visits.csv", "", "No columns"),
        ("visits.csv", "method,seed\n", "visit"),
        ("result.json", "[1, 2]", "."),
        ("config.json", "{}", "lacks 'method'"),
        ("env.json", "[]", "list index out of range"),
        ("env.json", "[{}]", "lacks 'data_fingerprint'"),
    ],
)
def test_a_damaged_file_of_a_run_is_named(
    runs: Path, name: str, text: str | None, message: str
) -> None:
    path = runs / "digits" / "random" / "seed0" / name
    path.unlink()
    if text is not None:
        path.write_text(text)
    with pytest.raises(InvalidRecord, match=rf"random/seed0/{name}.*(?:{message})"):
        collected_runs("digits", runs)


def test_visits_of_another_run_are_refused(runs: Path) -> None:
    path = runs / "digits" / "pareco" / "seed1" / "visits.csv"
    path.write_bytes((runs / "digits" / "pareco" / "seed0" / "visits.csv").read_bytes())
    with pytest.raises(InvalidRecord, match=r"seed1/visits.csv: a row belongs to another run"):
        collected_runs("digits", runs)


def test_the_test_images_are_counted_from_the_splits_where_they_were_kept(
    runs: Path, tmp_path: Path
) -> None:
    assert collected_runs("digits", runs).records.experiment.test_images is None
    first = min((runs / "digits").glob("*/seed*"))
    splits = {"train": [[0, 90]], "search": [[90, 95]], "test": [[95, 98], [107, 111]]}
    (first / "splits.json").write_text(json.dumps(splits))
    records = collected_runs("digits", runs).records
    assert records.experiment.test_images == 7
    write_records(records, tmp_path / "digits")
    assert read_records(tmp_path / "digits").experiment == records.experiment
    unknown = replace(records.experiment, test_images=None)
    assert "test_images" not in unknown.to_json()
    with pytest.raises(ValueError, match="test_images 0 is no number of images"):
        ExperimentRecord.from_record({**json.loads(unknown.to_json()), "test_images": 0})
