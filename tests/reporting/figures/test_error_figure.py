"""Errors over costs: lines, bands, differences and published markers, by values worked by hand.

Points are compared to 1e-7, relatively: they are a division or a mean of two numbers away.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from pareco.config import COSTS
from pareco.reporting.figures.error_vs_cost import error_figure, joined_errors, points_figure
from pareco.reporting.records import LATENCY, Records
from tests.reporting.pages import NONE

PUBLISHED = pd.DataFrame(
    [
        ("US-Net", "a", 2.06, 8.0),
        ("US-Net", "b", 4.12, 5.0),
        ("AutoSlim", "a", 1.03, 12.0),
        ("AutoSlim", "a", 90.0, 1.0),
    ],
    columns=list(NONE.columns),
)
# Method, seed, MACs, parameters, search loss, error; that of 500 MACs has a worse loss than 400.
NETWORKS = [
    ("a", 0, 200, 7, 0.5, 9.0),
    ("a", 0, 600, 3, 0.4, 5.0),
    ("a", 1, 400, 5, 0.5, 7.0),
    ("a", 1, 500, 6, 0.6, 1.0),
]


def worked(records: Records, networks: Sequence[tuple] = NETWORKS) -> Records:
    """Records of these networks alone; the full one has 1000 MACs and 10 parameters."""
    columns = ["method", "seed", "macs", "params", "search_loss", "test_top1_error"]
    rows = pd.DataFrame(networks, columns=columns)
    constant = {"activations": 1, "peak_activations": 1, "widths": "1"}
    fronts = rows.assign(**constant, gradient_steps=1, passes=1)
    costs = {**dict.fromkeys(COSTS, 1000), "params": 10}
    return replace(records, fronts=fronts, experiment=replace(records.experiment, full_costs=costs))


def method(name: str, change: float) -> list[tuple]:
    """The networks as those of a method with other errors."""
    return [(name, *each[1:5], each[5] + change) for each in NETWORKS]


def drawn(axes: Axes, kind: type) -> list:
    return [each for each in axes.collections if type(each) is kind]


def places(points: PathCollection) -> np.ndarray:
    return np.ma.filled(np.ma.asarray(points.get_offsets(), dtype=np.float64), np.nan)


def legend(figure: Figure) -> tuple[list[str], str]:
    """The labels, and the caption in one line."""
    (found,) = figure.legends
    caption = " ".join(found.get_title().get_text().split())
    return [text.get_text() for text in found.get_texts()], caption


@pytest.mark.parametrize(
    ("cost", "costs", "errors"),
    [
        ("macs", [200, 400, 600], [[9, 7, 5], [np.nan, 7, 7]]),
        # By parameters the second network is cheaper than the first, which drops out.
        ("params", [3, 5], [[5, 5], [np.nan, 7]]),
    ],
)
def test_a_line_joins_the_networks_that_budgets_select(
    records: Records, cost: str, costs: list[int], errors: list[list[float]]
) -> None:
    """A second network of the first seed, and past a seed's last one its error."""
    joined = joined_errors(worked(records).fronts, cost)
    assert list(joined.columns) == costs
    assert list(joined.index) == [0, 1]
    np.testing.assert_allclose(joined, errors)


def test_the_line_is_the_mean_of_the_seeds_where_all_have_one(records: Records) -> None:
    figure = error_figure(worked(records), NONE, "a")
    (axes,) = figure.axes
    np.testing.assert_allclose(np.asarray(axes.lines[0].get_xydata()), [[40, 7], [60, 6]])
    (markers,) = drawn(axes, PathCollection)
    np.testing.assert_allclose(places(markers), [[20, 9], [60, 5], [40, 7]])
    assert len(axes.collections) == 1
    labels, caption = legend(figure)
    assert labels == ["a (2 seeds)"]
    assert "mean over seeds" in caption
    assert "two seeds: no bands, intervals in the table" in caption


def test_three_seeds_have_the_band_of_students_interval(records: Records) -> None:
    """Of 7, 7 and 1 at 40%: 5 -+ 4.30265 x 2; of 5, 7 and 1 at 60%: 4.3333 -+ 4.30265 x 1.7638."""
    third = [("a", 2, 200, 1, 0.5, 3.0), ("a", 2, 400, 1, 0.4, 1.0)]
    figure = error_figure(worked(records, NETWORKS + third), NONE, "a")
    (band,) = [each for each in figure.axes[0].collections if not isinstance(each, PathCollection)]
    vertices = np.asarray(band.get_paths()[0].vertices)
    corners = {tuple(map(float, point.round(3))) for point in vertices}
    assert corners == {(40, -3.605), (40, 13.605), (60, -3.256), (60, 11.922)}
    assert "bands: 95% t interval of the mean at each cost" in legend(figure)[1]
    assert figure.axes[0].get_ylim()[0] == 0  # no error is less


def test_the_band_of_a_difference_is_that_of_the_paired_one(records: Records) -> None:
    """The methods spread over 30 points; the differences are 1, 2 and 3: 2 -+ 4.30265 / sqrt(3)."""
    networks = [
        (name, seed, 200, 1, 0.5, 30.0 * seed + (name == "b") * (seed + 1))
        for name in ("a", "b")
        for seed in range(3)
    ]
    _, lower = error_figure(worked(records, networks), NONE, "a").axes
    (band,) = lower.collections
    vertices = np.asarray(band.get_paths()[0].vertices)
    assert {float(point.round(3)) for point in vertices[:, 1]} == {-0.484, 4.484}


def test_differences_are_taken_seed_by_seed(records: Records) -> None:
    """The other method is 2 points worse in the first seed; it has no second, but a third."""
    other = [*method("b", 2)[:2], ("b", 7, 200, 1, 0.1, 90.0)]
    _, lower = error_figure(worked(records, [*NETWORKS, *other]), NONE, "a").axes
    (zero,) = [line for line in lower.lines if np.array_equal(line.get_ydata(), [0, 0])]
    (line,) = [line for line in lower.lines if line is not zero]
    np.testing.assert_allclose(np.asarray(line.get_xydata())[[0, -1]], [[20, 2], [60, 2]])
    assert lower.get_ylabel() == "Difference to\na (points)"
    assert zero.get_color() != line.get_color()


def test_four_methods_have_colours_and_the_others_their_names_at_the_ends(
    records: Records,
) -> None:
    """Strong are the focus and the three of least area; of another budget comes after all."""
    # From the first budget of the tables on, so that there is an area to order by.
    whole = [("", 0, 100, 1, 0.9, 9.0), ("", 0, 600, 1, 0.1, 5.0)]
    shifts = {"a": 6, "b": 0, "c": 3, "d": 2, "e": 1, "f": 3.01, "g": -4}
    networks = [(n, *w[1:5], w[5] + s) for n, s in shifts.items() for w in whole]
    many = worked(records, networks)
    many = replace(many, experiment=replace(many.experiment, budget_exempt=("g",)))
    figure = error_figure(many, NONE, "a")
    upper, lower = figure.axes
    labels, caption = legend(figure)
    assert labels == [f"{name} (1 seed)" for name in "abed"]
    assert "Grey: the other methods. † other training budget" in caption
    strong = [line for line in upper.lines if str(line.get_label()) in labels]
    assert len({to_hex(line.get_color()) for line in strong}) == 4
    assert len({str(line.get_marker()) for line in strong}) == 4
    assert strong[0].get_linewidth() > strong[1].get_linewidth() == strong[3].get_linewidth()
    grey = [line for line in upper.lines if line.get_color() == "0.6"]
    assert [np.asarray(line.get_ydata())[0] for line in grey] == [12, 12.01, 5]
    names = {text.get_text().strip(): text.get_position() for text in upper.texts}
    assert list(names) == ["g †", "c", "f"]
    assert names["f"][1] - names["c"][1] > 0.5
    assert len(lower.lines) == 4


def test_methods_of_another_budget_are_marked(records: Records) -> None:
    passes = records.fronts["passes"].where(records.fronts["method"] != "uniform", 7)
    unequal = replace(records, fronts=records.fronts.assign(passes=passes))
    unequal = replace(unequal, experiment=replace(unequal.experiment, budget_exempt=("random",)))
    labels, caption = legend(error_figure(unequal, NONE, "pareco"))
    assert labels == ["pareco (2 seeds)", "random † (2 seeds)", "uniform ‡ (2 seeds)"]
    assert "† ‡ other training budget" in caption


def test_published_networks_are_hollow_markers_where_they_belong(records: Records) -> None:
    """Of 4.12 M MACs 2.06 M are 50%; those of 90 M would take the space of ours."""

    def hollow(figure: Figure) -> dict[str, PathCollection]:
        found = drawn(figure.axes[0], PathCollection)
        return {str(e.get_label()): e for e in found if "published" in str(e.get_label())}

    figure = error_figure(records, PUBLISHED, "pareco")
    points = hollow(figure)
    assert list(points) == ["AutoSlim, published", "US-Net, published"]
    np.testing.assert_allclose(places(points["AutoSlim, published"]), [[25, 12]])
    np.testing.assert_allclose(places(points["US-Net, published"]), [[50, 8], [100, 5]])
    assert all(len(each.get_facecolor()) == 0 for each in points.values())
    first, second = (np.asarray(each.get_paths()[0].vertices) for each in points.values())
    assert not np.array_equal(first, second)
    assert legend(figure)[0][-2:] == list(points)
    assert "Hollow: published" in legend(figure)[1]
    far = PUBLISHED[PUBLISHED["macs_millions"] > 5]
    for published, cost in ((PUBLISHED, "params"), (PUBLISHED, LATENCY), (far, "macs")):
        without = error_figure(records, published, "pareco", cost)
        assert hollow(without) == {}
        assert "Hollow" not in legend(without)[1]


def test_the_axes_follow_the_cost(records: Records) -> None:
    """Percent below, amounts at the top; the full network takes 2.6 ms."""
    label = "Peak activations: elements held at once\n(% of the full network's 8.2 k)"
    own = replace(records, experiment=replace(records.experiment, cost="peak_activations"))
    assert error_figure(own, NONE, "pareco").axes[-1].get_xlabel() == label
    assert error_figure(records, NONE, "pareco", "peak_activations").axes[-1].get_xlabel() == label
    figure = error_figure(records, NONE, "pareco", LATENCY)
    upper, lower = figure.axes
    assert lower.get_xlabel() == "Latency: measured, of one image\n(% of the full network's 2.6 ms)"
    assert "Latencies that differ by a few percent may be noise" in legend(figure)[1]
    upper.set_xlim(50, 100)
    figure.draw_without_rendering()
    (amounts,) = upper.child_axes
    np.testing.assert_allclose(amounts.get_xlim(), [1.3, 2.6])
    assert "2 ms" in [text.get_text() for text in amounts.get_xticklabels()]


@pytest.mark.parametrize(("images", "said"), [(597, "597 images; one is 0.17 points"), (None, "")])
def test_the_caption_says_what_one_image_is_worth(
    records: Records, images: int | None, said: str
) -> None:
    known = replace(records, experiment=replace(records.experiment, test_images=images))
    caption = legend(error_figure(known, NONE, "pareco"))[1]
    assert said in caption
    assert ("image" in caption) is bool(said)


def test_all_points_of_the_fronts_are_drawn_whatever_a_budget_selects(records: Records) -> None:
    """A panel for each method, a line for each seed, as many points as the records have rows."""
    figure = points_figure(records, "pareco")
    headings = [f"{name} (2 seeds): 20 networks" for name in ("pareco", "random", "uniform")]
    assert [axes.get_title("left") for axes in figure.axes] == headings
    for axes, method in zip(figure.axes, ("pareco", "random", "uniform"), strict=True):
        own = records.fronts[records.fronts["method"] == method]
        points = np.concatenate([np.asarray(line.get_xydata()) for line in axes.lines])
        percents = 100 * own["macs"] / records.experiment.full_costs["macs"]
        expected = np.column_stack([percents, own["test_top1_error"]])
        assert sorted(points.tolist()) == sorted(expected.tolist())
        assert len(axes.lines) == 2
        assert all((np.diff(np.asarray(line.get_xdata())) >= 0).all() for line in axes.lines)
        behind = [len(places(each)) for each in drawn(axes, PathCollection)]
        assert behind == ([] if method == "pareco" else [20])
    assert "none chosen by a budget" in " ".join(figure.get_suptitle().split())


def test_the_lowest_panel_of_each_column_has_numbers_at_its_axis(records: Records) -> None:
    """Of five methods in rows of three the third's panel has none below it."""
    extra = dict.fromkeys(("a", "b"), records.fronts[records.fronts["method"] == "random"])
    fronts = [records.fronts, *(rows.assign(method=name) for name, rows in extra.items())]
    figure = points_figure(replace(records, fronts=pd.concat(fronts)), "pareco")
    numbered = [axes.xaxis.get_tick_params()["labelbottom"] for axes in figure.axes]
    assert numbered == [False, False, True, True, True]
