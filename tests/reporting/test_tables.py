"""Tables of two hand-made methods, as Markdown and in the terminal."""

import io
from dataclasses import replace

import pandas as pd
import pytest
import rich.console

from pareco.reporting.experiment import Experiment, Group
from pareco.reporting.tables import Tables, experiment_tables, markdown, terminal

EXPERIMENT = Experiment(
    experiment="digits",
    network="resnet8",
    data="cifar10",
    image_size=32,
    scale="paper",
    cost="macs",
    full_costs={
        "macs": 2_500_000,
        "params": 80_000,
        "activations": 50_000,
        "peak_activations": 9_000,
    },
    groups=(Group(name="stem", maximum=16),),
    budget_exempt=("alone",),
)


def run(method: str, seed: int, *errors: float, steps: int = 100) -> pd.DataFrame:
    """A run of one network at 30% of the MACs and, if two errors are given, one at 100%.

    They take 44% and 100% of the activations.
    """
    rows = [
        (method, seed, *costs, 1.0 / costs[0], error)
        for costs, error in zip(((750_000, 22_000), (2_500_000, 50_000)), errors, strict=False)
    ]
    columns = ["method", "seed", "macs", "activations", "search_loss", "test_top1_error"]
    table = pd.DataFrame(rows, columns=columns)
    return table.assign(
        params=1,
        peak_activations=1,
        widths="1",
        calibration_images=2000,
        gradient_steps=steps,
        passes=4 * steps,
        search_evaluations=1234,
        widths_visited=7,
    )


@pytest.fixture
def tables() -> Tables:
    runs = [
        run("pareco", 0, 4.0, 2.0),
        run("pareco", 1, 6.0, 3.0),
        run("alone", 0, 1.0),
        run("big", 0, 9.0, 2.5),
        run("cut", 0, 1.5, steps=50),
    ]
    return experiment_tables(EXPERIMENT, pd.concat(runs), "pareco")


def test_markdown(tables: Tables) -> None:
    text = markdown(tables)
    assert text.startswith("# digits: resnet8 on cifar10, 32 x 32 pixels\n\nThe full network: ")
    assert "2.5 M MACs, 80 k parameters, 50 k activations (elements put out by layers), 9 k" in text
    assert "re-calibrated on 2,000 training images." in text
    lines = text.splitlines()
    first = lines.index("| method | seeds | 30% | 40% | 60% | 80% | 100% | area |")
    five = area = "**5.00 ± 1.41**"
    assert lines[first + 2 : first + 6] == [
        f"| pareco | 2 | {five} | {five} | {five} | {five} | **2.50 ± 0.71** | {area} |",
        "| alone † | 1 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 | 1.00 |",
        "| big | 1 | 9.00 | 9.00 | 9.00 | 9.00 | **2.50** | 9.00 |",
        "| cut ‡ | 1 | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 | 1.50 |",
    ]
    assert "| cut ‡ | 50 | 200 | 1,234 | 7 |" in lines
    assert lines[-3].startswith("† exempt")
    assert lines[-1].startswith("‡ spent another training budget")


def test_the_terminal_shows_the_same_numbers(tables: Tables) -> None:
    console = rich.console.Console(file=io.StringIO(), width=120)
    with console.capture() as capture:
        console.print(terminal(tables))
    text = capture.get()
    for expected in ("5.00 ±1.41", "alone †", "‡ spent another", "widths visited", "1,234"):
        assert expected in text


def test_no_number_is_cut_in_a_terminal_of_80_columns(tables: Tables) -> None:
    console = rich.console.Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(terminal(tables))
    assert "…" not in capture.get()


def test_no_footnote_without_a_mark() -> None:
    runs = pd.concat([run("a", 0, 4.0), run("b", 0, 5.0)])
    text = markdown(experiment_tables(EXPERIMENT, runs, "pareco"))
    assert "†" not in text
    assert "‡" not in text


def test_columns_follow_the_cost() -> None:
    runs = pd.concat([run("a", 0, 4.0, 2.0), run("b", 0, 5.0)])
    text = markdown(experiment_tables(replace(EXPERIMENT, cost="activations"), runs, "b"))
    assert "| method | seeds | 45% | 60% | 80% | 100% | area |" in text
    assert "at most x% of the full network's activations (" in text
    assert "over 45% to 100%" in text


def test_a_budget_that_no_network_fits_is_a_dash() -> None:
    late = run("b", 0, 9.0).assign(macs=1_600_000)
    text = markdown(experiment_tables(EXPERIMENT, pd.concat([run("a", 0, 4.0), late]), "a"))
    assert "| b | 1 | – | – | – | 9.00 | 9.00 | – |" in text


def test_another_scale_is_said_in_both_forms_and_the_published_one_is_not() -> None:
    runs = pd.concat([run("a", 0, 4.0), run("b", 0, 5.0)])
    label = "scale: short: 1/10 of the epochs, not the published schedule"
    for scale, said in (("short: 1/10 of the epochs", True), ("paper", False)):
        tables = experiment_tables(replace(EXPERIMENT, scale=scale), runs, "a")
        console = rich.console.Console(file=io.StringIO(), width=80)
        with console.capture() as capture:
            console.print(terminal(tables))
        assert (label in capture.get().splitlines()) is said
        assert (f"**{label}**" in markdown(tables).splitlines()) is said
        assert ("scale" in markdown(tables)) is said
