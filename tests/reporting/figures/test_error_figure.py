"""Errors over costs: lines, bands and published markers, against values worked by hand.

Points are compared to 1e-7, relatively: they are a division or a mean of two numbers away.
"""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import Collection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from pareco.config import COSTS, Cost
from pareco.reporting.figures import error_figure
from pareco.reporting.records import CURVE_TYPES, LATENCY, VISIT_TYPES, ExperimentRecord, Records

NONE = pd.DataFrame(columns=["method", "source", "macs_millions", "top1_error"])
PUBLISHED = pd.DataFrame(
    [
        ("US-Net", "a", 2.06, 8.0),
        ("US-Net", "b", 4.12, 5.0),
        ("AutoSlim", "a", 1.03, 12.0),
        ("AutoSlim", "a", 90.0, 1.0),
    ],
    columns=list(NONE.columns),
)


def legend(figure: Figure) -> list[str]:
    (found,) = figure.legends
    return [text.get_text() for text in found.get_texts()]


def hollow(figure: Figure) -> dict[str, PathCollection]:
    """The published markers by their label."""
    (axes,) = figure.axes
    return {
        str(points.get_label()): points
        for points in axes.collections
        if isinstance(points, PathCollection) and "published" in str(points.get_label())
    }


def places(points: Collection) -> np.ndarray:
    """Where the markers stand: n x 2."""
    return np.ma.filled(np.ma.asarray(points.get_offsets(), dtype=np.float64), np.nan)


def two_seeds(cost: Cost) -> Records:
    """Three networks of one method, in two seeds."""
    rows = pd.DataFrame(
        {
            "method": "a",
            "seed": [0, 0, 1],
            "macs": [200, 600, 400],
            "search_loss": [0.5, 0.4, 0.5],
            "test_top1_error": [9.0, 5.0, 7.0],
            "params": [7, 3, 5],
            "activations": 1,
            "peak_activations": 1,
            "widths": "1",
            "gradient_steps": 1,
            "passes": 1,
        }
    )
    experiment = ExperimentRecord(
        experiment="e",
        network="n",
        data="d",
        image_size=8,
        scale="paper",
        cost=cost,
        full_costs={**dict.fromkeys(COSTS, 1000), "params": 10},
        groups=(),
    )
    return Records(
        experiment=experiment,
        fronts=rows,
        curves=pd.DataFrame(columns=list(CURVE_TYPES)),
        visits=pd.DataFrame(columns=list(VISIT_TYPES)),
        environment={},
    )


def test_each_method_has_its_own_look_and_place_in_the_legend(records: Records) -> None:
    figure = error_figure(records, NONE, "pareco")
    (axes,) = figure.axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["pareco (2 seeds)", "random (2 seeds)", "uniform (2 seeds)"]
    assert legend(figure) == labels
    lines = [handle for handle in handles if isinstance(handle, Line2D)]
    assert len({to_hex(line.get_color()) for line in lines}) == 3
    assert len({str(line.get_marker()) for line in lines}) == 3
    widths = [line.get_linewidth() for line in lines]
    assert widths[0] > widths[1] == widths[2]
    assert axes.get_xlabel() == "MACs (% of the full network's 4.12 M)"
    assert axes.get_ylabel() == "Test top-1 error (%)"


@pytest.mark.parametrize(
    ("cost", "percents", "errors"),
    [
        ("macs", [20, 40, 60, 100, 102], [np.nan, 8, 6, 6, 6]),
        # By parameters the second network is cheaper than the first, which drops out.
        ("params", [30, 50, 70, 100, 102], [np.nan, 6, 6, 6, 6]),
    ],
)
def test_the_line_is_the_mean_of_the_seeds_steps(
    cost: Cost, percents: list[float], errors: list[float]
) -> None:
    (axes,) = error_figure(two_seeds(cost), NONE, "a").axes
    line = axes.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata()), percents)
    np.testing.assert_allclose(np.asarray(line.get_ydata()), errors)
    assert line.get_drawstyle() == "steps-post"


def test_the_band_goes_from_seed_to_seed_and_every_network_has_a_marker() -> None:
    """At 40% the errors are 9 and 7, from 60% on 5 and 7; before, a seed has no network."""
    (axes,) = error_figure(two_seeds("macs"), NONE, "a").axes
    markers, band = axes.collections
    np.testing.assert_allclose(places(markers), [[20, 9], [60, 5], [40, 7]])
    (outline,) = band.get_paths()
    points = np.asarray(outline.vertices)
    assert set(points[:, 0].round(7)) == {40, 60, 100, 102}
    for left, right, ends in ((40, 60, {7, 9}), (60, 100, {5, 7})):
        inside = points[(points[:, 0] > left - 1e-7) & (points[:, 0] < right + 1e-7)]
        assert ends <= set(inside[:, 1])
    assert set(points[:, 1]) == {5, 7, 9}


def test_one_seed_has_no_band() -> None:
    records = two_seeds("macs")
    records = replace(records, fronts=records.fronts[records.fronts["seed"] == 0])
    figure = error_figure(records, NONE, "a")
    assert len(figure.axes[0].collections) == 1
    assert legend(figure) == ["a (1 seed)"]
    assert "band" not in figure.legends[0].get_title().get_text()


def test_methods_of_another_budget_are_marked_in_the_legend(records: Records) -> None:
    experiment = replace(records.experiment, budget_exempt=("random",))
    fronts = records.fronts.assign(
        passes=records.fronts["passes"].where(records.fronts["method"] != "uniform", 7)
    )
    figure = error_figure(replace(records, experiment=experiment, fronts=fronts), NONE, "pareco")
    marked = ["pareco (2 seeds)", "random † (2 seeds)", "uniform ‡ (2 seeds)"]
    assert legend(figure) == marked
    assert "† ‡ other training budget" in figure.legends[0].get_title().get_text()


def test_published_networks_are_hollow_markers_where_they_belong(records: Records) -> None:
    """Of 4.12 M MACs 2.06 M are 50%; those of 90 M would take the space of ours."""
    figure = error_figure(records, PUBLISHED, "pareco")
    points = hollow(figure)
    assert list(points) == ["AutoSlim, published", "US-Net, published"]
    np.testing.assert_allclose(places(points["AutoSlim, published"]), [[25, 12]])
    np.testing.assert_allclose(places(points["US-Net, published"]), [[50, 8], [100, 5]])
    for each in points.values():
        assert len(each.get_facecolor()) == 0
        assert np.asarray(each.get_edgecolor())[:, 3].tolist() == [1]
    first, second = (np.asarray(each.get_paths()[0].vertices) for each in points.values())
    assert not np.array_equal(first, second)
    assert legend(figure)[-2:] == list(points)
    assert "hollow: published" in figure.legends[0].get_title().get_text()


def test_published_networks_stand_in_the_plot_over_macs_only(records: Records) -> None:
    for cost in ("params", LATENCY):
        figure = error_figure(records, PUBLISHED, "pareco", cost)
        assert hollow(figure) == {}
        assert "hollow" not in figure.legends[0].get_title().get_text()
    far = PUBLISHED[PUBLISHED["macs_millions"] > 5]
    figure = error_figure(records, far, "pareco")
    assert hollow(figure) == {}
    assert "hollow" not in figure.legends[0].get_title().get_text()


def test_the_axis_follows_the_cost(records: Records) -> None:
    own = replace(records, experiment=replace(records.experiment, cost="peak_activations"))
    label = "Peak activations: elements held at once (% of the full network's 8.2 k)"
    assert error_figure(own, NONE, "pareco").axes[0].get_xlabel() == label
    other = error_figure(records, NONE, "pareco", "peak_activations")
    assert other.axes[0].get_xlabel() == label


def test_latency_has_its_unit_and_its_own_order(records: Records) -> None:
    """The full network takes 2.6 ms."""
    (axes,) = error_figure(records, NONE, "pareco", LATENCY).axes
    label = "Latency: measured, of one image (% of the full network's 2.6 ms)"
    assert axes.get_xlabel() == label
    own = records.fronts[records.fronts["method"] == "pareco"]
    channels = [sum(map(int, widths.split())) for widths in own["widths"]]
    times = [100 * (1 + 0.01 * count) / 2.6 for count in channels]
    expected = list(zip(times, own["test_top1_error"], strict=True))
    np.testing.assert_allclose(places(axes.collections[0]), expected)
