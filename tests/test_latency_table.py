"""The latency table: what it foretells, its steps, and what is refused."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pareco.config import COSTS
from pareco.latency_table import (
    LatencyTable,
    OperatorTimes,
    check_table,
    level_weights,
    read_latency_table,
)
from pareco.slimmable import SlimmableNet
from pareco.training.preparation import initial_network, settled
from pareco.widths import Widths
from tests.documents import python_in
from tests.experiments import TINY
from tests.latency_tables import made_up_table, written_table

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def net() -> SlimmableNet:
    """Return the network of the tiny experiment, with 4/4/8/8/16/16 channels."""
    return initial_network(TINY, 10, 1, 0)


@pytest.fixture
def table(net: SlimmableNet) -> LatencyTable:
    """Return a table with a step every four channels."""
    return made_up_table(net)


def test_a_latency_is_the_scaled_sum_over_all_operators(table: LatencyTable) -> None:
    # 10 us for each four channels begun: 1 + 1 + 2 + 2 + 4 + 4 of them, and 5 us; twice that
    assert float(table.milliseconds(Widths([4, 4, 8, 8, 16, 16]))) == pytest.approx(0.29)
    narrow = [Widths([1, 1, 3, 3, 6, 6]), Widths([4, 4, 4, 8, 12, 13])]
    expected = [2 * (5 + 10 * n) / 1000 for n in (1 + 1 + 1 + 1 + 2 + 2, 1 + 1 + 1 + 2 + 3 + 4)]
    assert table.milliseconds(narrow).tolist() == pytest.approx(expected)


def test_between_whole_channels_it_is_interpolated_and_differentiable(table: LatencyTable) -> None:
    counts = torch.tensor([4.0, 4, 8, 8, 16, 12.25], dtype=torch.double, requires_grad=True)
    found = table.milliseconds(counts)
    assert found.item() == pytest.approx(2 * (5 + 130 + 10 * 0.25) / 1000)
    (slope,) = torch.autograd.grad(found, counts)
    assert slope[-1] == pytest.approx(2 * 10 / 1000)


def test_operators_of_two_groups_are_read_at_both_counts(
    net: SlimmableNet, table: LatencyTable
) -> None:
    product = [[float(a * b) for b in table.levels[4]] for a in table.levels[2]]
    conv = OperatorTimes(
        name="conv", operation="Conv2d", groups=(2, 4), cuts=(None, None), microseconds=product
    )
    alone = replace(table, operators=(conv,), scale=1.0)
    assert float(alone.milliseconds(Widths([4, 4, 5, 8, 11, 16]))) == pytest.approx(55 / 1000)
    assert alone.by_operation(Widths([4, 4, 5, 8, 11, 16])) == {
        "Conv2d": (1, pytest.approx(55 / 1000))
    }


def test_steps_of_vectors_are_kept_between_levels() -> None:
    """Times that step every 16 channels are read off some blocks' ends without an error."""
    levels = [27, 32, 33, 40, 48, 80, 81, 88, 96, 112, 113, 120, 128, 134]
    times = np.array([-(-count // 16) for count in levels], dtype=float)
    weights = level_weights(levels)
    assert weights.sum(1) == pytest.approx(1)
    found = dict(zip(range(27, 135), weights @ times, strict=True))
    wrong = [c for c in range(32, 129) if abs(found[c] - -(-c // 16)) > 1e-9]
    assert not wrong
    # a straight line between the levels would be off by half a step
    assert np.interp(56, levels, times) == pytest.approx(3.5)


def test_nothing_is_interpolated_across_another_kernel() -> None:
    levels = [30, 32, 48, 80, 81, 96, 112]
    times = np.array([count if count <= 80 else count / 2 for count in levels])
    found = dict(zip(range(30, 113), level_weights(levels, cut=80) @ times, strict=True))
    assert found[79] == pytest.approx(79)
    assert found[82] == pytest.approx(41)
    assert all(found[c] == pytest.approx(c if c <= 80 else c / 2) for c in range(30, 113))


def test_levels_count_as_themselves_and_lines_stay_lines() -> None:
    for levels in ([5], [5, 6], [3, 9, 30, 31], [16, 32, 48, 49, 56, 100]):
        weights = level_weights(levels)
        counts = np.arange(levels[0], levels[-1] + 1)
        assert weights @ np.array(levels) == pytest.approx(counts)
        rows = weights[[level - levels[0] for level in levels]]
        np.testing.assert_array_equal(rows, np.eye(len(levels)))


def test_a_table_is_read_as_it_was_written(table: LatencyTable, tmp_path: Path) -> None:
    path = written_table(table, tmp_path)
    assert read_latency_table(path) == table
    assert json.loads(path.read_text())["operators"][0]["operation"] == "Conv2d"


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("format", "pareco-latency-table-0", "none of this version, pareco-latency-table-1"),
        ("scale", -1, "scale is -1"),
        ("levels", [[1]] * 6, "levels of conv1 end at 1, not at its 4"),
        ("maxima", [4], "names, maxima and levels are not as many"),
        ("operators", [{}], "operators.0.name"),
    ],
)
def test_what_is_no_table_is_refused(
    table: LatencyTable, tmp_path: Path, field: str, value: object, message: str
) -> None:
    path = written_table(table, tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(ValueError, match=message) as raised:
        read_latency_table(path)
    assert str(path) in str(raised.value)


def test_damage_and_absence_are_told_with_the_file(table: LatencyTable, tmp_path: Path) -> None:
    path = written_table(table, tmp_path)
    path.write_text(path.read_text()[:-30])
    with pytest.raises(ValueError, match=r"table.json is none of this version"):
        read_latency_table(path)
    with pytest.raises(ValueError, match=r"none.json: No such file"):
        read_latency_table(tmp_path / "none.json")
    first, *others = table.operators
    with pytest.raises(ValueError, match="conv1 has not a time for each level"):
        replace(table, operators=(replace(first, microseconds=[1.0]), *others))


def test_widths_outside_the_table_are_refused(table: LatencyTable) -> None:
    with pytest.raises(ValueError, match=r"has layer3.0.conv1 from 6 to 16 channels"):
        table.milliseconds(Widths([4, 4, 8, 8, 5, 16]))
    with pytest.raises(ValueError, match="expected 6 widths, got 2"):
        table.milliseconds(Widths([4, 4]))


def test_a_table_of_another_network_is_refused(net: SlimmableNet, table: LatencyTable) -> None:
    space, costs = net.space, net.cost.full_costs
    check_table(table, space, costs, 8)
    with pytest.raises(ValueError, match="image size 8 there, 16 here"):
        check_table(table, space, costs, 16)
    more = costs | {"macs": costs["macs"] + 1}
    with pytest.raises(ValueError, match=r"macs [\d]+ there, [\d]+ here"):
        check_table(table, space, more, 8)
    renamed = replace(space, groups=(replace(space.groups[0], name="other"), *space.groups[1:]))
    with pytest.raises(ValueError, match="other channel groups"):
        check_table(table, renamed, costs, 8)
    with pytest.raises(ValueError, match=r"alpha_min 0.42 and divisor 1, which leaves out"):
        check_table(table, replace(space, alpha_min=0.25), costs, 8)
    check_table(table, replace(space, alpha_min=0.5, divisor=4), costs, 8)


def test_a_network_with_a_table_has_latency_as_a_cost(
    net: SlimmableNet, table: LatencyTable, tmp_path: Path
) -> None:
    path = written_table(table, tmp_path)
    with pytest.raises(ValueError, match=r"--latency-table FILE"):
        net.cost.of("latency", net.space.largest)
    assert net.cost.names == COSTS
    experiment = settled(replace(TINY, cost="latency", latency_table=str(path)))
    known = initial_network(experiment, 10, 1, 0)
    largest = net.space.largest
    found = known.cost.of("latency", [largest, largest])
    assert found.tolist() == [290_000, 290_000]  # nanoseconds
    assert found.dtype == torch.int64
    assert known.cost.full_costs == {**net.cost.full_costs, "latency": 290_000}
    relaxed = known.cost.of("latency", torch.ones(1, 6, dtype=torch.double))
    assert float(relaxed) == pytest.approx(290_000)
    assert [known.cost.monotone(name) for name in known.cost.names] == [True] * 4 + [False]


def test_the_page_reads_a_table(
    table: LatencyTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    written_table(table, tmp_path)
    monkeypatch.chdir(tmp_path)
    (code,) = python_in("latency.md", 120)
    exec(code, {})
    assert capsys.readouterr().out.startswith("0.29 {'Conv2d': (6, 0.28")


def test_an_experiment_names_its_table_and_refuses_another(
    table: LatencyTable, tmp_path: Path
) -> None:
    path = written_table(table, tmp_path)
    given = replace(TINY, cost="latency", latency_table=str(path))
    known = settled(given)
    assert str(known.latency_from).startswith("sha256:")
    assert settled(known) == known
    path.write_text(replace(table, scale=3.0).to_json())
    with pytest.raises(ValueError, match=r"table.json: this is sha256:\w+, and not sha256:"):
        settled(known)
    with pytest.raises(ValueError, match=r"latency_table .*none: No such file"):
        settled(replace(given, latency_table=str(tmp_path / "none")))
    with pytest.raises(ValueError, match="latency_table is for cost latency, and cost is macs"):
        replace(TINY, latency_table=str(path))


def test_operators_have_no_times_beyond_the_levels(table: LatencyTable) -> None:
    narrow = replace(table, levels=tuple(each[1:] for each in table.levels), operators=())
    for widths in (Widths([1] * 6), Widths([4, 4, 8, 8, 16, 99])):
        with pytest.raises(ValueError, match="channels, and a network is outside"):
            narrow.by_operation(widths)
