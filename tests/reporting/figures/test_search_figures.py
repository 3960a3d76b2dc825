"""What searches visited and predicted: points and ranks by hand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.figure import Figure
from matplotlib.patches import Polygon, Rectangle

from pareco.reporting.figures.training_and_search import prediction_figure, visits_figure
from pareco.reporting.records import VISIT_TYPES, Records

ORIGINS = ["uniform", "uniform", "largest", "model", "model", "model", "random", "model"]
VISITS = pd.DataFrame(
    {
        "method": "pareco",
        "seed": 1,
        "visit": range(8),
        "step": pd.array([None, None, None, 20, 20, 40, 40, 60], dtype="Int64"),
        "origin": ORIGINS,
        "widths": "1 1 1 1 1",
        "macs": [412_000, 824_000, 4_120_000, 2_060_000, 1_030_000, 3_090_000, 618_000, 206_000],
        "params": 1,
        "activations": [6_250, 12_500, 62_500, 31_250, 15_625, 46_875, 9_375, 3_125],
        "peak_activations": 1,
        "target_cost": [np.nan] * 3 + [2_472_000, 1_030_000, 2_884_000, np.nan, 412_000],
        "predicted_loss": [np.nan] * 3 + [1.0, 2.0, 0.5, np.nan, 3.0],
        "predicted_deviation": [np.nan] * 3 + [0.1, 0.1, 0.2, np.nan, 0.1],
        "refreshed_loss": [3.0, 2.0, 0.5, 1.1, 1.7, 1.2, 1.9, np.nan],
        "final_loss": 1.0,
        "asked_loss": 1.0,
        "gaps": pd.array([None] * 8, dtype="Int64"),
    }
)[list(VISIT_TYPES)]


Draw = Callable[[Records, str], Figure | None]


def drawn(draw: Draw, records: Records, *visits: pd.DataFrame) -> Figure:
    """The figure of some visits."""
    figure = draw(replace(records, visits=pd.concat(visits, ignore_index=True)), "pareco")
    assert figure is not None
    return figure


def points(figure: Figure, panel: int = 0) -> dict[str, list[list[float]]]:
    """The points of each label in a panel that are there."""
    return {
        str(each.get_label()): places[~np.isnan(places).any(axis=1)].tolist()
        for each in figure.axes[panel].collections
        if isinstance(each, PathCollection)
        for places in [np.ma.filled(np.ma.asarray(each.get_offsets(), dtype=float), np.nan)]
    }


def test_visits_stand_at_their_share_of_the_full_cost(records: Records) -> None:
    figure = drawn(visits_figure, records, VISITS)
    found = points(figure)
    expected = {
        "target": [[3, 60], [4, 25], [5, 70], [7, 10]],
        "uniform, at the start": [[0, 10], [1, 20]],
        "the largest network": [[2, 100]],
        "of the GPs": [[3, 50], [4, 25], [5, 75], [7, 5]],
        "random, where the GPs had nothing new": [[6, 15]],
    }
    assert list(found) == list(expected)
    for label, values in expected.items():
        np.testing.assert_allclose(found[label], values)
    left, right = figure.axes
    assert left.get_title("left") == "pareco, seed 1"
    assert left.get_ylabel() == "MACs (% of full)"
    assert right.get_xlabel() == "part (%)"
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert labels == [*expected, "visited", "targets"]
    own = replace(records, experiment=replace(records.experiment, cost="activations"))
    by_activations = drawn(visits_figure, own, VISITS)
    np.testing.assert_allclose(points(by_activations)["uniform, at the start"], [[0, 10], [1, 20]])
    assert by_activations.axes[0].get_ylabel() == "activations (% of full)"


def test_targets_in_gaps_are_counted_where_they_are_known(records: Records) -> None:
    known = VISITS.assign(gaps=pd.array([None, None, 0, 0, 2, 0, 0, 1], dtype="Int64"))
    title = drawn(visits_figure, records, known).axes[0].get_title("left")
    assert title == "pareco, seed 1, 3 targets in gaps of the front"


def test_the_distribution_is_in_percent_of_what_it_counts(records: Records) -> None:
    """20 bins of 5%: one of eight visits in each but none elsewhere, and four targets."""
    figure = drawn(visits_figure, records, VISITS)
    patches = figure.axes[1].patches
    bars = [patch for patch in patches if isinstance(patch, Rectangle)]
    widths = {round(bar.get_y()): bar.get_width() for bar in bars if bar.get_width()}
    assert widths == dict.fromkeys((5, 10, 15, 20, 25, 50, 75, 95), 12.5)
    (outline,) = [patch for patch in patches if isinstance(patch, Polygon)]
    corners = np.asarray(outline.get_path().vertices)
    assert corners[:, 0].max() == 25


def test_each_method_that_searches_has_a_row_for_its_first_seed(records: Records) -> None:
    other = VISITS.assign(method="another", seed=4)
    later = VISITS.assign(seed=2, macs=1)
    figure = drawn(visits_figure, records, later, other, VISITS)
    titles = [axes.get_title("left") for axes in figure.axes]
    assert titles == ["pareco, seed 1", "", "another, seed 4", ""]
    np.testing.assert_allclose(points(figure)["the largest network"], [[2, 100]])


def test_predictions_stand_over_the_losses_measured(records: Records) -> None:
    """Of visits that have both; 1.0 is within two deviations, 2.0 and 0.5 are not.

    The ranks are 2, 3, 1 and 1, 3, 2, whose correlation is 1 - 6 (1 + 0 + 1) / (3 (9 - 1)).
    """
    figure = drawn(prediction_figure, records, VISITS)
    axes = figure.axes[0]
    scatter = next(each for each in axes.collections if isinstance(each, PathCollection))
    np.testing.assert_array_equal(scatter.get_offsets(), [[1.1, 1.0], [1.7, 2.0], [1.2, 0.5]])
    np.testing.assert_array_equal(np.asarray(scatter.get_array()), [3, 4, 5])
    bars = next(each for each in axes.collections if isinstance(each, LineCollection))
    ends = [np.asarray(segment)[:, 1].tolist() for segment in bars.get_segments()]
    np.testing.assert_allclose(ends, [[0.8, 1.2], [1.8, 2.2], [0.1, 0.9]])
    (diagonal,) = axes.lines
    np.testing.assert_array_equal(diagonal.get_xydata(), [[0.5, 0.5], [2.0, 2.0]])
    first, second = axes.get_title("left").splitlines()
    assert first == "pareco: 3 proposals"
    assert second == "33% within the bars, rank correlation 0.50"


@pytest.mark.parametrize("changes", [{"predicted_loss": 1.0}, {"refreshed_loss": 1.0}])
def test_equal_values_have_no_rank_correlation(records: Records, changes: dict[str, float]) -> None:
    figure = drawn(prediction_figure, records, VISITS.assign(**changes))
    assert "correlation" not in figure.axes[0].get_title("left")


def test_a_colour_is_the_same_visit_in_every_panel(records: Records) -> None:
    """One bar of colours explains all panels, whose searches differ in length."""
    other = VISITS.assign(method="another", visit=VISITS["visit"] + 100)
    figure = drawn(prediction_figure, records, other, VISITS)
    limits = {
        each.get_clim()
        for axes in figure.axes[:2]
        for each in axes.collections
        if isinstance(each, PathCollection)
    }
    assert limits == {(3, 105)}


def test_there_is_no_figure_of_nothing(records: Records) -> None:
    for visits in (VISITS.iloc[:0], VISITS.iloc[:3], VISITS.iloc[6:]):
        known = replace(records, visits=visits)
        assert prediction_figure(known, "pareco") is None
        assert (visits_figure(known, "pareco") is None) is visits.empty
