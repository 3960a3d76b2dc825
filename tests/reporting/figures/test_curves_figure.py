"""Training curves: the mean over seeds and the band, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from pareco.reporting.figures import curves_figure
from pareco.reporting.records import CURVE_TYPES, Records


@pytest.fixture
def drawn(records: Records) -> Figure:
    """Two methods over two steps: one with two seeds, one with a single one."""
    rows = [
        ("pareco", 0, 10, 2.0, 4.0),
        ("pareco", 0, 20, 1.0, 3.0),
        ("pareco", 1, 10, 2.5, 5.0),
        ("pareco", 1, 20, 2.0, 3.5),
        ("uniform", 0, 10, 9.0, 8.0),
        ("uniform", 0, 20, 7.0, 6.0),
    ]
    figure = curves_figure(replace(records, curves=pd.DataFrame(rows, columns=[*CURVE_TYPES])), "x")
    assert figure is not None
    return figure


def test_lines_are_means_over_seeds(drawn: Figure) -> None:
    largest, smallest = drawn.axes
    expected = {largest: ([2.25, 1.5], [9, 7]), smallest: ([4.5, 3.25], [8, 6])}
    for axes, values in expected.items():
        assert [line.get_label() for line in axes.lines] == ["pareco", "uniform"]
        for line, means in zip(axes.lines, values, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [10, 20])
            np.testing.assert_array_equal(line.get_ydata(), means)
    assert [axes.get_title("left") for axes in drawn.axes] == [
        "largest network, on labels",
        "smallest network, on soft output",
    ]
    assert largest.get_ylabel() == "training loss (nats)"


def test_a_band_goes_from_seed_to_seed_where_there_are_several(drawn: Figure) -> None:
    (band,) = drawn.axes[0].collections
    corners = {tuple(map(float, point)) for point in np.asarray(band.get_paths()[0].vertices)}
    assert corners == {(10, 2.0), (10, 2.5), (20, 1.0), (20, 2.0)}


def test_exempt_methods_are_left_out(records: Records) -> None:
    """Their curves are of several trainings, one after the other, with steps that repeat."""
    experiment = replace(records.experiment, budget_exempt=("random",))
    twice = records.curves[records.curves["method"] == "random"]
    curves = pd.concat([records.curves, twice])
    figure = curves_figure(replace(records, experiment=experiment, curves=curves), "uniform")
    assert figure is not None
    for axes in figure.axes:
        assert [line.get_label() for line in axes.lines] == ["uniform", "pareco"]


def test_the_legend_says_whether_there_are_seeds_to_average(records: Records) -> None:
    one = replace(records, curves=records.curves[records.curves["seed"] == 0])
    for drawn, said in (
        (records, "line: mean over seeds\nband: lowest to highest"),
        (one, "one seed"),
    ):
        figure = curves_figure(drawn, "pareco")
        assert figure is not None
        (legend,) = figure.legends
        assert legend.get_title().get_text() == f"{said}\n(lines may coincide)"
        assert [t.get_text() for t in legend.get_texts()] == ["pareco", "random", "uniform"]


def test_the_legend_names_the_methods_that_are_not_shown(records: Records) -> None:
    exempt = replace(records, experiment=replace(records.experiment, budget_exempt=("random",)))
    figure = curves_figure(exempt, "pareco")
    assert figure is not None
    (legend,) = figure.legends
    assert legend.get_title().get_text().endswith("\nnot shown: random")
    assert [t.get_text() for t in legend.get_texts()] == ["pareco", "uniform"]


def test_there_is_no_figure_without_a_curve(records: Records) -> None:
    assert curves_figure(replace(records, curves=records.curves.iloc[:0]), "pareco") is None
    exempt = replace(records.experiment, budget_exempt=("pareco", "random", "uniform"))
    assert curves_figure(replace(records, experiment=exempt), "pareco") is None
