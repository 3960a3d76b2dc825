"""Times of operators: what is measured and where; no test looks at how long it took."""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pareco import operator_times
from pareco.latency_table import LatencyTable
from pareco.operator_times import agreement, measured_table
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.training.preparation import initial_network
from pareco.widths import Widths
from tests.experiments import TINY

IMAGE = torch.randn(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def net() -> SlimmableNet:
    """Return the network of the tiny experiment, with 4/4/8/8/16/16 channels."""
    return initial_network(TINY, 10, 1, 0)


@pytest.fixture(scope="module")
def table(net: SlimmableNet) -> LatencyTable:
    """Return the table of one measurement, as short as can be."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(operator_times, "_PASSES", 1)
        patched.setattr(operator_times, "_ROUNDS", 1)
        patched.setattr(operator_times, "_SECONDS", 0.0)
        patched.setattr(operator_times, "_SCALING", 2)
        patched.setattr(operator_times, "_ALL_COUNTS", 1)  # both ends alone
        return measured_table(net, "tiny", IMAGE)


def test_every_operator_that_runs_is_in_the_table(net: SlimmableNet, table: LatencyTable) -> None:
    plain = net.extract(net.space.largest)
    layers = [name for name, each in plain.named_modules() if not list(each.children())]
    assert {*layers} <= {each.name for each in table.operators}
    kinds = {each.operation for each in table.operators}
    assert {"Conv2d", "BatchNorm2d", "ReLU", "Linear", "AdaptiveAvgPool2d", "add"} <= kinds
    assert len(table.operators) == len(operator_times._timed(plain.graph))


def test_operators_know_their_groups(net: SlimmableNet, table: LatencyTable) -> None:
    names = {each.name: [net.space.names[g] for g in each.groups] for each in table.operators}
    assert names["conv1"] == names["bn1"] == ["conv1"]
    assert names["layer2.0.conv1"] == ["conv1", "layer2.0.conv1"]
    assert names["layer2.0.conv2"] == ["layer2.0.conv1", "layer2.0.conv2"]
    assert names["fc"] == ["layer3.0.conv2"]


def test_times_are_positive_and_add_up(net: SlimmableNet, table: LatencyTable) -> None:
    assert table.levels[4] == (6, 16)
    found = table.milliseconds([net.space.largest, net.space.smallest])
    assert (found > 0).all()
    largest = table.by_operation(net.space.largest)
    assert sum(spent for _, spent in largest.values()) == pytest.approx(float(found[0]))
    assert (table.image_size, table.batch_size, table.cpu_threads) == (8, 1, 1)
    assert table.machine["device"] == "cpu"
    assert table.full_costs == net.cost.full_costs


def test_a_table_is_compared_with_whole_networks(net: SlimmableNet, table: LatencyTable) -> None:
    widths = [net.space.largest, net.space.smallest]
    found = agreement(table, net, widths, IMAGE)
    assert all(each > 0 for each in found.measured)
    off = [abs(p / m - 1) for p, m in zip(found.predicted, found.measured, strict=True)]
    assert found.error == pytest.approx(sum(off) / 2)
    assert abs(found.rank) == pytest.approx(1)
    assert math.isnan(agreement(table, net, widths[:1], IMAGE).rank)


def clocked(net: SlimmableNet, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    """Return the table that a made-up clock gives: each operator takes the product of its widths.

    The stem reads the images; whole networks take twice the sum of their operators.
    """
    by_operator = operator_times._operators(net, IMAGE)

    def times(net: SlimmableNet, widths: Widths, images: Tensor, *, whole: bool = False) -> Any:
        own = [math.prod(widths[group] for group in each.groups) for each in by_operator]
        return operator_times.np.array([2.0 * sum(own)] if whole else own, dtype=float)

    monkeypatch.setattr(operator_times, "_least_times", times)
    return measured_table(net, "made up", IMAGE)


def test_all_pairs_of_levels_are_measured(
    net: SlimmableNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then products, which no pair but the own one gives, are exact at all widths."""
    table = clocked(net, monkeypatch)
    assert table.scale == 2.0
    generator = torch.Generator().manual_seed(0)
    drawn = [net.space.sample(generator) for _ in range(20)]
    found = agreement(table, net, drawn, IMAGE)
    assert found.error < 1e-3  # times have four digits
    assert found.rank > 0.99


def test_wide_groups_are_measured_at_some_levels(monkeypatch: pytest.MonkeyPatch) -> None:
    wide = nn.Sequential(
        *(nn.Conv2d(1, 100, 3, padding=1), nn.ReLU(), nn.Conv2d(100, 90, 3, padding=1), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(90, 3)),
    )
    net = make_slimmable(wide, IMAGE, slim_head=True)
    table = clocked(net, monkeypatch)
    first = table.levels[0]
    assert (first[0], first[-1]) == (42, 100)
    assert {48, 49, 56, 64, 80, 81, 96} <= {*first}
    assert len(first) <= 17
    found = agreement(table, net, [Widths([45, 77]), Widths([70, 90]), Widths([99, 38])], IMAGE)
    assert found.error < 1e-3  # a product is linear in each width


def test_convolutions_know_where_another_kernel_begins() -> None:
    layers = nn.Sequential(
        *(nn.Conv2d(1, 100, 3, padding=1), nn.Conv2d(100, 40, 3, padding=1)),
        *(nn.Conv2d(40, 40, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(40, 3)),
    )
    images = torch.zeros(1, 1, 16, 16)
    net = make_slimmable(layers, images, slim_head=True)
    cuts = {each.name: each.cuts for each in operator_times._operators(net, images)}
    assert cuts["1"] == (80, None)  # 80 x 16 x 16 are 20,480
    assert cuts["2"] == (None, None)
    several = operator_times._operators(net, torch.zeros(2, 1, 16, 16))
    assert all(cut is None for each in several for cut in each.cuts)
    levels = operator_times._levels(net.space, operator_times._operators(net, images))
    assert {80, 81} <= {*levels[0]}
    rounded = replace(net.space, divisor=8)
    assert all(level % 8 == 0 for level in operator_times._levels(rounded, [])[0][:-1])


def test_what_no_table_can_hold_is_named() -> None:
    probes = operator_times.np.array([[4, 8], [3, 5], [2, 7]])
    node = torch.fx.symbolic_trace(nn.Identity()).graph.find_nodes(op="output")[0]
    with pytest.raises(ValueError, match="no latency table can hold output"):
        operator_times._groups(node, probes.sum(1, keepdims=True), probes)
