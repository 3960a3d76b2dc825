"""What the figures show, and that drawing them leaves matplotlib as it was."""

from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.lines import Line2D

from pareco.reporting.figures import error_figure, widths_figure, write_figure
from pareco.reporting.records import Experiment, collected_runs
from pareco.reporting.statistics import staircase


@pytest.fixture
def collected(runs: Path) -> tuple[Experiment, pd.DataFrame]:
    collected = collected_runs("digits", runs)
    return collected.experiment, collected.fronts


def test_each_method_has_its_own_look_and_place_in_the_legend(
    collected: tuple[Experiment, pd.DataFrame],
) -> None:
    (axes,) = error_figure(*collected, "pareco").axes
    handles, labels = axes.get_legend_handles_labels()
    assert labels == ["pareco (2 seeds)", "random (2 seeds)", "uniform (2 seeds)"]
    lines = [handle for handle in handles if isinstance(handle, Line2D)]
    looks = {(str(line.get_color()), line.get_linestyle(), line.get_marker()) for line in lines}
    assert len(looks) == 3
    assert axes.get_xlabel() == "MACs (% of the full network's 4.12 M)"
    assert axes.get_ylabel() == "Test top-1 error (%)"


def test_the_line_is_the_mean_of_the_seeds_steps() -> None:
    rows = pd.DataFrame(
        {
            "method": "a",
            "seed": [0, 0, 1],
            "macs": [200, 600, 400],
            "search_loss": [0.5, 0.4, 0.5],
            "test_top1_error": [9.0, 5.0, 7.0],
            "params": 1,
            "widths": "1",
            "gradient_steps": 1,
            "passes": 1,
        }
    )
    experiment = Experiment(experiment="e", network="n", full_macs=1000, full_params=1, groups=())
    (axes,) = error_figure(experiment, rows, "a").axes
    line = axes.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata()), [20, 40, 60, 102])
    np.testing.assert_allclose(np.asarray(line.get_ydata()), [np.nan, 8, 6, 6])


def test_the_widths_are_those_of_selected_networks(
    collected: tuple[Experiment, pd.DataFrame],
) -> None:
    experiment, fronts = collected
    figure = widths_figure(experiment, fronts, "random")
    of_run = (fronts["method"] == "random") & (fronts["seed"] == 0)
    steps = staircase(fronts[of_run])
    printed = [" ".join(text.get_text() for text in axes.texts) for axes in figure.axes]
    assert printed[0] == steps["widths"].iloc[0]
    assert printed[1] in list(steps["widths"])
    assert printed[2] == steps["widths"].iloc[-1]
    names = [label.get_text() for label in figure.axes[-1].get_xticklabels()]
    assert names == [group.name for group in experiment.groups]


def test_an_absent_focus_falls_back_to_the_first_method(
    collected: tuple[Experiment, pd.DataFrame],
) -> None:
    figure = widths_figure(*collected, "absent")
    assert "pareco, seed 0" in figure.get_suptitle()


def test_settings_of_matplotlib_neither_leak_nor_matter(
    collected: tuple[Experiment, pd.DataFrame], tmp_path: Path
) -> None:
    def image(name: str) -> bytes:
        write_figure(error_figure(*collected, "pareco"), tmp_path / name)
        return (tmp_path / name).read_bytes()

    before = dict(matplotlib.rcParams)
    plain = image("plain.svg")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        assert image("other.svg") == plain
