"""The map of channels along the front: its counts, its names, and that nothing overlaps."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pareco.reporting.figures import widths_figure
from pareco.reporting.records import Records
from pareco.reporting.statistics import staircase
from pareco.schema import GroupSize


def printed(figure: Figure) -> list[list[str]]:
    """The counts that stand in the map, a list for each column."""
    axes, texts = figure.axes[0], figure.axes[0].texts
    columns = len(axes.get_xticklabels())
    counts = [text.get_text() for text in texts]
    return [counts[column::columns] for column in range(columns)]


def dense(records: Records, count: int) -> Records:
    """The records with one run, whose front has `count` networks."""
    macs = np.linspace(1e6, 4e6, count).astype(int)
    rows = records.fronts.iloc[np.resize(np.arange(10), count)]
    return replace(records, fronts=rows.assign(macs=macs, search_loss=1 / macs))


def test_the_counts_are_those_of_the_selected_networks(records: Records) -> None:
    figure = widths_figure(records, "random")
    of_run = (records.fronts["method"] == "random") & (records.fronts["seed"] == 0)
    steps = staircase(records.fronts[of_run], "macs")
    assert printed(figure) == [widths.split() for widths in steps["widths"]]
    axes = figure.axes[0]
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == [f"{group.name} ({group.maximum})" for group in records.experiment.groups]
    shares = [label.get_text().split("\n") for label in axes.get_xticklabels()]
    errors = steps["test_top1_error"]
    assert shares == [
        [f"{100 * macs / 4_120_000:.0f}%", f"{error:.1f}"]
        for macs, error in zip(steps["macs"], errors, strict=True)
    ]


def test_colours_are_fractions_of_the_full_count(records: Records) -> None:
    rows = records.fronts.iloc[:1].assign(widths="4 8 32 16 64")
    (values,) = widths_figure(replace(records, fronts=rows), "pareco").axes[0].collections
    np.testing.assert_array_equal(np.ravel(np.asarray(values.get_array())), [0.25, 0.5, 1, 0.5, 1])
    assert values.get_clim() == (0, 1)


def test_an_absent_focus_falls_back_to_the_first_method(records: Records) -> None:
    assert "pareco, seed 0" in widths_figure(records, "absent").get_suptitle()


def test_the_map_follows_the_cost(records: Records) -> None:
    own = replace(records, experiment=replace(records.experiment, cost="peak_activations"))
    axes = widths_figure(own, "pareco").axes[0]
    assert axes.get_xlabel() == (
        "network: peak activations (% of the full network's 8.2 k)\ntest top-1 error (%)"
    )
    # The cheapest network is made with the square root of 18% of the activations: 42%.
    assert axes.get_xticklabels()[0].get_text().startswith("42%\n")


@pytest.mark.parametrize(("count", "labels"), [(1, 1), (14, 14), (15, 8), (40, 14)])
def test_dense_fronts_have_no_counts_and_fewer_labels(
    records: Records, count: int, labels: int
) -> None:
    """15 columns have a label at every second one, 40 at every third."""
    axes = widths_figure(dense(records, count), "pareco").axes[0]
    assert len(axes.texts) == (5 * count if count <= 14 else 0)
    assert len(axes.get_xticklabels()) == labels
    (values,) = axes.collections
    assert np.asarray(values.get_array()).shape == (5, count)


@pytest.mark.parametrize("count", [14, 40])
def test_names_stand_inside_and_apart(records: Records, count: int) -> None:
    """24 groups, as MobileNetV2 has: no two names, counts or headings overlap when drawn."""
    groups = tuple(GroupSize(name=f"blocks.{n}.0.conv_pwl", maximum=960) for n in range(24))
    scale = "short: 1/10 of the epochs"
    experiment = replace(records.experiment, groups=groups, scale=scale)
    many = dense(replace(records, experiment=experiment), count)
    many = replace(many, fronts=many.fronts.assign(widths=" ".join(["806"] * 24)))
    figure = widths_figure(many, "pareco")
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    axes = figure.axes[0]
    texts = [*axes.get_xticklabels(), *axes.get_yticklabels(), *axes.texts]
    texts += [axes.xaxis.label, axes.yaxis.label]
    assert len(texts) == (14 + 24 + 14 * 24 if count == 14 else 14 + 24) + 2
    assert len(figure.texts) == 1
    boxes = [text.get_window_extent() for text in (*texts, *figure.texts)]
    assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert all(figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1 for box in boxes)
    overlapping = [(a, b) for a, b in combinations(boxes, 2) if a.overlaps(b)]
    assert overlapping == []
