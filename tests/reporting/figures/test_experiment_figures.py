"""All figures of an experiment: which there are, and that drawing leaves matplotlib as it was."""

from dataclasses import replace
from pathlib import Path

import matplotlib
import pytest

from pareco.reporting.figures import FIGURE_FILES, experiment_figures, write_figure
from pareco.reporting.figures.style import method_looks
from pareco.reporting.records import Records
from tests.reporting.pages import NONE, without_latency

OTHERS = ["front_points", "widths", "curves", "visits", "predictions"]


def test_the_own_cost_comes_first_and_what_was_not_recorded_is_left_out(records: Records) -> None:
    plots = ["error_vs_flops", "error_vs_peak_activations"]
    drawn = experiment_figures(records, NONE, "pareco")
    assert list(drawn) == [*plots, "error_vs_latency", *OTHERS]
    assert set(drawn) < set(FIGURE_FILES)
    plain = without_latency(records)
    assert list(experiment_figures(plain, NONE, "pareco")) == [*plots, *OTHERS]
    by_params = replace(plain, experiment=replace(plain.experiment, cost="params"))
    drawn = experiment_figures(by_params, NONE, "pareco")
    assert list(drawn) == ["error_vs_params", *plots, *OTHERS]
    few = replace(plain, curves=records.curves.iloc[:0], visits=records.visits.iloc[:4])
    assert list(experiment_figures(few, NONE, "pareco")) == [
        *plots,
        "front_points",
        "widths",
        "visits",
    ]


def test_settings_of_matplotlib_neither_leak_nor_matter(records: Records, tmp_path: Path) -> None:
    def images(name: str) -> dict[str, bytes]:
        written = {}
        for kind, figure in experiment_figures(records, NONE, "pareco").items():
            path = tmp_path / f"{kind}-{name}.svg"
            write_figure(figure, path)
            written[kind] = path.read_bytes()
        return written

    before = dict(matplotlib.rcParams)
    plain = images("plain")
    assert dict(matplotlib.rcParams) == before
    with matplotlib.rc_context({"font.size": 20, "lines.linewidth": 9, "svg.hashsalt": "other"}):
        assert images("other") == plain


@pytest.mark.parametrize(("scale", "said"), [("short: 1/10 of the epochs", True), ("paper", False)])
def test_all_figures_say_data_and_a_scale_that_is_not_published(
    records: Records, scale: str, said: bool
) -> None:
    scaled = replace(records, experiment=replace(records.experiment, scale=scale))
    figures = experiment_figures(scaled, NONE, "pareco")
    assert len(figures) == 8
    for name, figure in figures.items():
        text = " ".join(figure.get_suptitle().splitlines())
        assert "digits: resnet8 on cifar10, 32 x 32 pixels" in text, name
        label = "scale: short: 1/10 of the epochs, not the published schedule"
        assert (label in text) is said, name
        assert ("scale" in text) is said, name


def test_a_label_is_drawn_as_it_is_and_wrapped(records: Records, tmp_path: Path) -> None:
    """As mathematics it could not be drawn: \\everything is no command."""
    label = "half of $\\everything$ " * 12
    scaled = replace(records, experiment=replace(records.experiment, scale=label.strip()))
    figures = experiment_figures(scaled, NONE, "pareco")
    for name, columns in (("error_vs_flops", 73), ("widths", 121)):
        assert columns - 20 < max(map(len, figures[name].get_suptitle().splitlines())) <= columns
    write_figure(figures["error_vs_flops"], tmp_path / "figure.svg")
    assert "half of $\\everything$" in (tmp_path / "figure.svg").read_text()


def test_a_method_looks_the_same_in_all_figures(records: Records) -> None:
    """The focus first, then by ascending area: errors are least with pareco, most with uniform."""
    looks = method_looks(records, "uniform")
    assert list(looks) == ["uniform", "pareco", "random"]
    assert looks["uniform"].legend == "uniform (2 seeds)"
    fewer = replace(records.experiment, planned_seeds=2, planned_fewer={"pareco": 1})
    assert list(method_looks(replace(records, experiment=fewer), "uniform"))[-1] == "pareco"
    figures = experiment_figures(records, NONE, "uniform")
    for name in ("error_vs_flops", "error_vs_latency", "curves"):
        lines = {str(line.get_label()).split()[0]: line for line in figures[name].axes[0].lines}
        for method, look in looks.items():
            assert (lines[method].get_color(), lines[method].get_linewidth()) == (
                look.color,
                look.width,
            )
