"""What the figures show, and that drawing them leaves matplotlib as it was.

Lines are compared to 1e-7, relatively: their points are a division or a mean of two numbers away
from the values worked by hand.
"""

from dataclasses import replace
from itertools import combinations
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.lines import Line2D

from pareco.cost import COSTS, Cost
from pareco.reporting.experiment import Experiment, Group
from pareco.reporting.figures import error_figure, widths_figure, write_figure
from pareco.reporting.records import collected_runs
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


@pytest.mark.parametrize(
    ("cost", "percents", "errors"),
    [
        ("macs", [20, 40, 60, 102], [np.nan, 8, 6, 6]),
        # By parameters the second network is cheaper than the first, which drops out.
        ("params", [30, 50, 70, 100], [np.nan, 6, 6, 6]),
    ],
)
def test_the_line_is_the_mean_of_the_seeds_steps(
    cost: Cost, percents: list[float], errors: list[float]
) -> None:
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
    full_costs: dict[Cost, int] = {**dict.fromkeys(COSTS, 1000), "params": 10}
    experiment = Experiment(
        experiment="e",
        network="n",
        data="d",
        image_size=8,
        scale="paper",
        cost=cost,
        full_costs=full_costs,
        groups=(),
    )
    (axes,) = error_figure(experiment, rows, "a").axes
    line = axes.lines[0]
    np.testing.assert_allclose(np.asarray(line.get_xdata()), percents)
    np.testing.assert_allclose(np.asarray(line.get_ydata()), errors)


def test_the_widths_are_those_of_selected_networks(
    collected: tuple[Experiment, pd.DataFrame],
) -> None:
    experiment, fronts = collected
    figure = widths_figure(experiment, fronts, "random")
    of_run = (fronts["method"] == "random") & (fronts["seed"] == 0)
    steps = staircase(fronts[of_run], "macs")
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


def test_the_axis_and_the_charts_follow_the_cost(
    collected: tuple[Experiment, pd.DataFrame],
) -> None:
    experiment, fronts = collected
    experiment = replace(experiment, cost="peak_activations")
    (axes,) = error_figure(experiment, fronts, "pareco").axes
    assert axes.get_xlabel() == (
        "Peak activations: elements held at once (% of the full network's 8.2 k)"
    )
    cheapest = widths_figure(experiment, fronts, "pareco").axes[0]
    # The cheapest network is made with the square root of 18% of the activations: 42%.
    assert cheapest.get_title("left").startswith("cheapest: 3.48 k peak activations (42%), ")


@pytest.mark.parametrize(("scale", "said"), [("short: 1/10 of the epochs", True), ("paper", False)])
def test_both_figures_say_data_and_a_scale_that_is_not_published(
    collected: tuple[Experiment, pd.DataFrame], scale: str, said: bool
) -> None:
    experiment, fronts = collected
    experiment = replace(experiment, scale=scale)
    (axes,) = error_figure(experiment, fronts, "pareco").axes
    heading = widths_figure(experiment, fronts, "pareco").get_suptitle()
    for title in (axes.get_title("left"), heading):
        lines = title.splitlines()
        assert lines[0] == "digits: resnet8 on cifar10, 32 x 32 pixels"
        label = "scale: short: 1/10 of the epochs, not the published schedule"
        assert (label in lines) is said
        assert ("scale" in title) is said


def test_a_label_is_drawn_as_it_is_and_wrapped(
    collected: tuple[Experiment, pd.DataFrame], tmp_path: Path
) -> None:
    """As mathematics it could not be drawn: \\everything is no command."""
    experiment, fronts = collected
    label = "half of $\\everything$ " * 12
    figure = error_figure(replace(experiment, scale=label.strip()), fronts, "pareco")
    (axes,) = figure.axes
    assert max(map(len, axes.get_title("left").splitlines())) <= 70
    write_figure(figure, tmp_path / "figure.svg")
    assert "half of $\\everything$" in (tmp_path / "figure.svg").read_text()


@pytest.mark.parametrize(
    ("count", "places"),
    [
        (1, ["cheapest"]),
        (2, ["cheapest", "costliest"]),
        (3, ["cheapest", "middle", "costliest"]),
        (9, ["cheapest", "middle", "costliest"]),
    ],
)
def test_few_networks_have_one_chart_each(
    collected: tuple[Experiment, pd.DataFrame], count: int, places: list[str]
) -> None:
    experiment, fronts = collected
    macs = np.linspace(1e6, 4e6, count).astype(int)
    rows = fronts.iloc[:count].assign(macs=macs, search_loss=1 / macs)
    titles = [axes.get_title("left") for axes in widths_figure(experiment, rows, "pareco").axes]
    assert [title.partition(":")[0] for title in titles] == places


def test_the_names_of_many_groups_stand_upright_and_apart(
    collected: tuple[Experiment, pd.DataFrame],
) -> None:
    """24 groups, as MobileNetV2 has: no two names or counts overlap when drawn."""
    experiment, fronts = collected
    groups = tuple(Group(name=f"blocks.{n}.0.conv_pwl", maximum=960) for n in range(24))
    rows = fronts.assign(widths=" ".join(["806"] * 24))
    figure = widths_figure(replace(experiment, groups=groups), rows, "pareco")
    FigureCanvasAgg(figure).draw()
    lowest = figure.axes[-1]
    for labels in (lowest.get_xticklabels(), list(lowest.texts)):
        boxes = [text.get_window_extent() for text in labels if text.get_text()]
        assert len(boxes) == 24
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in boxes)
        assert not any(a.overlaps(b) for a, b in combinations(boxes, 2))
