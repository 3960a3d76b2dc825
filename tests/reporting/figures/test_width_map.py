"""The map of channels along the front: its counts, its uniform networks, that nothing overlaps."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pareco.reporting.figures.width_map import is_uniform, widths_figure
from pareco.reporting.records import Records
from pareco.reporting.statistics import staircase
from pareco.schema import GroupSize

FRONT = {  # widths by MACs, in percent of the full network's
    20: "6 6 13 13 26",
    40: "4 9 20 32 30",
    60: "9 9 19 30 60",
    64: "9 9 19 31 60",
    100: "16 16 32 32 64",
}
UNIFORM = {36: "9 9 19 19 38", 41.25: "10 10 20 20 40", 55.5: "11 11 23 23 46"}


def front(records: Records, networks: Mapping[Any, str], **others: str) -> Records:
    """Records of a front of these networks by their cost, and of others of another method."""
    rows = records.fronts.iloc[np.zeros(len(networks), dtype=int)]
    macs = [round(41_200 * percent) for percent in networks]
    rows = rows.assign(widths=list(networks.values()), macs=macs, search_loss=1 / np.array(macs))
    return replace(records, fronts=rows.assign(**others), visits=records.visits.iloc[:0])


def shown(figure: Figure) -> dict[str, str]:
    """The counts of each column by its label."""
    axes = figure.axes[0]
    labels = [label.get_text() for label in axes.get_xticklabels()]
    counts = [text.get_text() for text in axes.texts]
    columns = [" ".join(counts[n :: len(labels)]) for n in range(len(labels))]
    return dict(zip(labels, columns, strict=True))


def test_the_counts_are_those_of_the_selected_networks(records: Records) -> None:
    rows = records.fronts[records.fronts["method"] == "random"].iloc[::2]
    figure = widths_figure(replace(records, fronts=rows), "absent")
    steps = staircase(rows[rows["seed"] == 0], "macs")
    assert 2 < len(steps) <= 6
    found = {label: widths for label, widths in shown(figure).items() if "uniform" not in label}
    assert list(found.values()) == list(steps["widths"])
    assert list(found) == [
        f"{100 * macs / 4_120_000:.0f}%\n{error:.1f}"
        for macs, error in zip(steps["macs"], steps["test_top1_error"], strict=True)
    ]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names == [f"{group.name} ({group.maximum})" for group in records.experiment.groups]
    assert "random, seed 0: networks that budgets select" in figure.get_suptitle()


def test_uniform_networks_of_about_the_same_cost_stand_beside_those_of_the_front(
    records: Records,
) -> None:
    """41.25% is nearest to 40%, and 55.5% to 60%; to 64% none within 5%, and two are uniform."""
    ours, others = front(records, FRONT), front(records, UNIFORM, method="other")
    both = replace(ours, fronts=pd.concat([ours.fronts, others.fronts]))
    expected = ["20%", "40%", "41%", "60%", "56%", "64%", "100%"]
    for known in (both, replace(ours, visits=others.fronts)):
        columns = shown(widths_figure(known, "pareco"))
        assert [label.split("\n")[0] for label in columns] == expected
        beside = {k.split("\n")[0]: v for k, v in columns.items() if k.endswith("\nuniform")}
        assert beside == {"41%": UNIFORM[41.25], "56%": UNIFORM[55.5]}
    assert "uniform" not in widths_figure(ours, "pareco").get_suptitle()


@pytest.mark.parametrize(
    ("widths", "expected"),
    [
        ("6 6 13 13 26", True),  # 0.42 of each, rounded down
        ("16 16 32 32 64", True),
        ("1 1 1 1 1", True),  # at least one channel
        ("6 6 13 13 28", False),
        ("7 6 13 13 26", False),
    ],
)
def test_one_multiplier_gives_uniform_widths(widths: str, expected: bool) -> None:
    assert is_uniform(widths, [16, 16, 32, 32, 64]) is expected


def test_no_two_columns_have_one_label(records: Records) -> None:
    """Networks of one error whose costs differ in the second digit; uniform ones of one cost."""
    near = {50 + n / 100: f"9 9 19 {n + 20} 60" for n in range(4)}
    labels = list(shown(widths_figure(front(records, near), "pareco")))
    assert [label.split("\n")[0] for label in labels] == ["50.00%", "50.01%", "50.02%", "50.03%"]
    both = front(records, {50: "9 9 19 20 60", 52: "9 9 19 21 60"})
    alike = pd.concat([front(records, {51: widths}).fronts for widths in UNIFORM.values()])
    labels = list(shown(widths_figure(replace(both, visits=alike), "pareco")))
    assert [label.split("\n")[0] for label in labels] == ["50%", "51%", "52%"]


def test_colours_are_fractions_of_the_full_count(records: Records) -> None:
    figure = widths_figure(front(records, {40: "4 8 32 16 64"}), "pareco")
    values = figure.axes[0].collections[0]
    np.testing.assert_array_equal(np.ravel(np.asarray(values.get_array())), [0.25, 0.5, 1, 0.5, 1])
    assert values.get_clim() == (0, 1)


def test_the_map_follows_the_cost(records: Records) -> None:
    own = replace(records, experiment=replace(records.experiment, cost="peak_activations"))
    axes = widths_figure(own, "pareco").axes[0]
    assert axes.get_xlabel() == (
        "network: peak activations (% of the full network's 8.2 k)\ntest top-1 error (%)"
    )
    # The cheapest network is made with the square root of 18% of the activations: 42%.
    assert axes.get_xticklabels()[0].get_text().startswith("42%\n")


def test_names_stand_inside_and_apart_and_of_many_networks_there_are_six(records: Records) -> None:
    """24 groups, as MobileNetV2 has: no two names, counts or headings overlap when drawn."""
    groups = tuple(GroupSize(name=f"blocks.{n}.0.conv_pwl", maximum=960) for n in range(24))
    experiment = replace(records.experiment, groups=groups, scale="short: 1/10 of the epochs")
    ours = {20 + 2 * n: " ".join(["806"] * 23 + [str(100 + n)]) for n in range(40)}
    uniform = {21 + 2 * n: " ".join([str(800 + n)] * 24) for n in range(40)}
    many = replace(front(records, ours), visits=front(records, uniform).fronts)
    figure = widths_figure(replace(many, experiment=experiment), "pareco")
    FigureCanvasAgg(figure).draw()
    axes = figure.axes[0]
    percents = [label.split("%")[0] for label in shown(figure) if "uniform" not in label]
    assert percents == ["20", "36", "52", "66", "82", "98"]
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    texts += [axes.xaxis.label, axes.yaxis.label]
    assert len(texts) == 12 + 24 + 12 * 24 + 2
    assert "6 of the 40 networks" in figure.get_suptitle()
    boxes = [text.get_window_extent() for text in (*texts, *figure.texts)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    assert [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)] == []
