"""Training curves: the mean over seeds and the band, by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pareco.reporting.figures.training_and_search import curves_figure
from pareco.reporting.records import CURVE_TYPES, Records


def drawn(records: Records) -> tuple[Figure, list[str], str]:
    """The figure, and the names and the heading of its legend."""
    figure = curves_figure(records, "pareco")
    assert figure is not None
    (legend,) = figure.legends
    return figure, [text.get_text() for text in legend.get_texts()], legend.get_title().get_text()


def exempt(records: Records, *methods: str) -> Records:
    return replace(records, experiment=replace(records.experiment, budget_exempt=methods))


def test_lines_are_means_over_seeds_and_bands_their_intervals(records: Records) -> None:
    """Of 2.0, 2.5 and 3.0 at step 10: 2.5 -+ 4.30265 x 0.5 / sqrt(3); of 1, 2, 3 twice that.

    Step 30, which one seed lacks, has neither.
    """
    rows = [
        ("pareco", 0, 10, 2.0, 4.0),
        ("pareco", 0, 20, 1.0, 3.0),
        ("pareco", 1, 10, 2.5, 5.0),
        ("pareco", 1, 20, 2.0, 3.5),
        ("pareco", 2, 10, 3.0, 6.0),
        ("pareco", 2, 20, 3.0, 4.0),
        ("pareco", 2, 30, 0.1, 0.1),
        ("uniform", 0, 10, 9.0, 8.0),
        ("uniform", 0, 20, 7.0, 6.0),
    ]
    one = records.fronts[(records.fronts["method"] != "uniform") | (records.fronts["seed"] == 0)]
    curves = pd.DataFrame(rows, columns=[*CURVE_TYPES])
    figure, names, _ = drawn(replace(records, fronts=one, curves=curves))
    assert names == ["pareco", "uniform"]
    expected = {
        "largest network, on labels": ([2.5, 2], [9, 7]),
        "smallest network, on soft output": ([5, 3.5], [8, 6]),
    }
    assert [axes.get_title("left") for axes in figure.axes] == list(expected)
    for axes, values in zip(figure.axes, expected.values(), strict=True):
        assert axes.get_ylabel() == "training loss (nats)"
        for line, means in zip(axes.lines, values, strict=True):
            np.testing.assert_array_equal(line.get_xdata(), [10, 20])
            np.testing.assert_array_equal(line.get_ydata(), means)
    (band,) = figure.axes[0].collections
    vertices = np.asarray(band.get_paths()[0].vertices)
    corners = {tuple(map(float, point.round(4))) for point in vertices}
    assert corners == {(10, 1.2579), (10, 3.7421), (20, -0.4841), (20, 4.4841)}


def test_the_legend_says_whether_there_are_seeds_to_average(records: Records) -> None:
    curves = records.curves
    one = replace(records, curves=curves[curves["seed"] == 0])
    third = curves[curves["seed"] == 0].assign(seed=2)
    three = replace(records, curves=pd.concat([curves, third]))
    for shown, said in (
        (one, "one seed"),
        (records, "line: mean over seeds"),
        (three, "line: mean over seeds\nband: 95% t interval"),
    ):
        figure, names, heading = drawn(shown)
        assert heading == f"{said}\n(lines may coincide)"
        assert names == ["pareco", "random", "uniform"]
        assert bool(figure.axes[0].collections) == ("band" in said)


def test_exempt_methods_are_left_out_and_named(records: Records) -> None:
    """Their curves are of several trainings, one after the other, with steps that repeat."""
    twice = records.curves[records.curves["method"] == "random"]
    curves = pd.concat([records.curves, twice])
    figure, names, heading = drawn(exempt(replace(records, curves=curves), "random"))
    assert names == ["pareco", "uniform"]
    assert [len(axes.lines) for axes in figure.axes] == [2, 2]
    assert heading.endswith("\nnot shown: random")


def test_there_is_no_figure_without_a_curve(records: Records) -> None:
    assert curves_figure(replace(records, curves=records.curves.iloc[:0]), "pareco") is None
    assert curves_figure(exempt(records, "pareco", "random", "uniform"), "pareco") is None
