"""What stands in results/ is what its records give, byte for byte."""

import math
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pareco.reporting.across import comparison_tables
from pareco.reporting.records import COMMON, LATENCY, Records, read_records
from pareco.reporting.rendering import Table, latex, markdown
from pareco.reporting.report import loaded_report
from pareco.reporting.statistics import AREA, comparison, staircase
from pareco.reporting.tables import measure_csv
from pareco.widths import Widths
from replications.catalogue import FOCUS, REFERENCE, experiment_named
from replications.verdicts import claim_outcomes
from tests.experiments import quick

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "results"
INPUTS = ("records", "published", "bench", "search")


def _compared(ran: Sequence[Records], cost: str) -> tuple[Table, Table]:
    """The errors, and the differences of areas, of experiments beside the first."""
    tables = comparison_tables(ran, cost, "pareco").tables
    errors, differences = (
        next(each for each in tables if each.title.startswith(title))
        for title in ("Test top-1 error", "Difference to A")
    )
    return errors, differences


def files(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("which", quick(["digits", "--all"], "digits"))
def test_results_are_made_again_from_their_records_byte_for_byte(
    tmp_path: Path, which: str
) -> None:
    again, wanted = tmp_path / "results", {which, "published"}
    for path in RESULTS.rglob("*"):
        parts = path.relative_to(RESULTS).parts
        if path.is_file() and {*parts} & {*INPUTS} and (which == "--all" or parts[0] in wanted):
            (again / path.relative_to(RESULTS)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, again / path.relative_to(RESULTS))
    command = [sys.executable, "-m", "replications", "report", which, "--results", str(again)]
    made = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr
    folder = "." if which == "--all" else which
    expected, found = files(RESULTS / folder), files(again / folder)
    assert found.keys() == expected.keys()
    assert [name for name in found if found[name] != expected[name]] == []


def test_the_tables_of_every_experiment_are_those_of_its_records() -> None:
    for folder in (path.parent for path in RESULTS.glob("*/records")):
        report = loaded_report(folder, focus=FOCUS, reference=REFERENCE)
        assert (folder / "table.md").read_text() == markdown(report.tables)
        assert (folder / "table.tex").read_text() == latex(report.tables)
        assert (folder / "table.csv").read_text() == measure_csv(report.records, FOCUS)


def test_no_place_of_a_machine_of_ours_is_in_the_results() -> None:
    places = (b"/work/", b"/tmp/", b"/home/", b"/root/", b"/Users/")
    for name, content in files(RESULTS).items():
        if not name.endswith(".png"):
            assert not [place for place in places if place in content], name


def test_the_readme_opens_with_what_the_records_say() -> None:
    """The gains, their intervals and the number of seeds: neither without the other."""
    found = {each.id: each.ours for each in claim_outcomes(RESULTS)}
    told = " ".join((ROOT / "README.md").read_text().partition("## Start")[0].split())
    for claim, words in (
        ("exact-equal-passes", "at equal passes {} more than `pareco_exact`"),
        ("exact-equal-compute", "at equal compute, {} more ([table]"),
        ("pareco-equal-passes", "at equal passes {} more than PareCO as published."),
    ):
        gain = re.search(r"(\S+) \[(\S+), (\S+)\] \(([0-9]+) seeds", found[claim])
        assert gain is not None
        mean, low, high, seeds = gain.groups()
        said = f"{mean} points (95% interval {low} to {high}, {seeds} seeds)"
        before, _, after = words.partition("{}")
        assert said in told
        assert told.partition(said)[2].startswith(after), claim
        assert before.split(", ")[0].strip() in told.partition(said)[0], claim
    rows = pd.read_csv(RESULTS / "cifar10_vgg-compute-cpu/table.csv")
    (full,) = rows.query("statistic == 'difference to pareco_exact' and measure == '100%'").iloc
    less = f"{-full['mean']:.2f} points less error ({-full['high']:.2f} to {-full['low']:.2f})"
    assert f"at equal compute US-Net's has {less}" in told


def test_the_readme_says_which_layers_stay_wide_as_the_records_have_it() -> None:
    """Channels kept at 35 to 50% of the MACs, mean over seeds, of layers 2 to 5 and 9 to 12."""
    told = " ".join((ROOT / "README.md").read_text().partition("## Start")[0].split())
    fronts = read_records(RESULTS / "cifar10_vgg-cpu").fronts
    channels = np.array([Widths.parse(each) for each in fronts["widths"]])
    kept = pd.DataFrame(channels / channels.max(axis=0)).assign(
        method=fronts["method"], seed=fronts["seed"], part=fronts["macs"] / fronts["macs"].max()
    )
    means = kept.query("0.35 <= part <= 0.5").groupby(["method", "seed"]).mean()
    layers = means[[1, 2, 3, 4]].mean(axis=1), means[[8, 9, 10, 11]].mean(axis=1)
    (early, late), (theirs_early, theirs_late) = (
        [round(100 * each[method].mean()) for each in layers]
        for method in ("pareco_exact", "us_net")
    )
    count = len(means.loc["pareco_exact"])
    assert f"the second to fifth layers keep {early}% of their channels" in told
    assert f"(US-Net {theirs_early}%), the ninth to twelfth {late}% (US-Net {theirs_late}%)" in told
    assert f"(US-Net {theirs_late}%), means of {count} seeds." in told


def test_what_is_said_of_the_seconds_of_a_search_is_what_was_measured() -> None:
    told = " ".join((ROOT / "docs/processes.md").read_text().split())
    rows = pd.read_csv(RESULTS / "bench/search.csv").query("experiment == 'imagenet_mbv2'")
    training = experiment_named("imagenet_mbv2").training
    published = math.ceil(training.epochs * 1_281_167 / training.batch_size)
    sizes = np.arange(20, 1_001, 2)
    assert len(sizes) == pytest.approx(published / training.ask_every_steps - 10, abs=2)
    minutes = [
        np.interp(sizes, each["entries"], each["median"]).sum() / 60
        for solver in ("tchebyshev", "exact")
        for each in [rows.query("what == 'ask that fits (s)' and solver == @solver")]
    ]
    assert f"the {len(sizes)} requests" in told
    assert "take {:.1f} minutes with the paper's solver and {:.1f} with".format(*minutes) in told
    assert (
        "2% of a run that lasts {:.1f}, or {:.1f}, hours".format(*(m / 60 / 0.02 for m in minutes))
        in told
    )


def test_what_is_said_of_full_weights_is_what_the_records_say() -> None:
    text = (ROOT / "docs/pretrained.md").read_text()
    names = [f"cifar10_vgg-{start}-cpu" for start in ("as-they-are", "fresh", "ordered")]
    ran = [read_records(RESULTS / name) for name in names]
    errors, differences = _compared(ran, "macs")
    rows = {row[0].text: [cell.text for cell in row[1:]] for row in errors.rows}
    starts = {"full, as they are": "A", "fresh": "B", "full, ordered": "C"}
    for start, letter in starts.items():
        assert f"| {start} | {' | '.join(rows[f'pareco_exact {letter}'][1:7])} |" in text
    alone = [rows[f"us_net {letter}"][6].split()[0] for letter in "BAC"]
    assert "{} fresh, {} as they are, {} ordered".format(*alone) in " ".join(text.split())
    area = {row[0].text: row[2].text for row in differences.rows}["pareco_exact C"]
    mean, low, high = re.findall(r"[+-][0-9.]+", area)
    assert f"{mean} points more (95% interval {low} to {high}, 3 seeds)" in " ".join(text.split())


def test_what_is_said_of_the_convnext_is_what_its_records_say() -> None:
    told = " ".join((ROOT / "replications/cifar10_convnext/README.md").read_text().split())
    errors = comparison(read_records(RESULTS / "cifar10_convnext-cpu"), "pareco").errors
    areas = errors.values[AREA].groupby("method").mean()
    ours = "us_net is {us_net:.2f}%, of random_widths {random_widths:.2f}%, of pareco {pareco:.2f}%"
    assert ours.format(**areas) in told
    rows = errors.differences[errors.differences["measure"] == AREA].set_index("method")
    mean, low, high = (f"{rows.loc['us_net', name]:+.2f}" for name in ("mean", "low", "high"))
    assert f"us_net minus pareco {mean} points ({low} to {high})" in told


def test_what_is_said_of_the_scale_fast_is_what_the_records_say() -> None:
    told = " ".join((ROOT / "docs/processes.md").read_text().split())
    ran = [read_records(RESULTS / f"cifar10_vgg-wider{form}-cpu") for form in ("", "-fast")]
    _, differences = _compared(ran, "macs")
    mean, low, high = re.findall(r"[+-][0-9.]+", differences.rows[0][2].text)
    assert f"area {mean} points (95% interval {low} to {high})" in told


@pytest.mark.parametrize(
    ("experiment", "scale", "seed", "percents", "seeds"),
    [
        ("digits", "", 0, (20, 40, 60, 80), "five"),
        ("cifar10_vgg", "-cpu", 100, (20, 40, 60), "three"),
    ],
)
def test_what_is_said_of_networks_trained_alone_is_what_the_records_say(
    experiment: str, scale: str, seed: int, percents: Sequence[int], seeds: str
) -> None:
    """The found networks are those that the budgets select."""
    told = " ".join((ROOT / "docs/comparison.md").read_text().split())
    names = [f"{experiment}-alone-{kind}{scale}" for kind in ("uniform", "found")]
    ran = [read_records(RESULTS / name) for name in names]
    _, differences = _compared(ran, "macs")
    mean, _, interval = differences.rows[0][2].text.partition(" ")
    assert f"found less uniform is {mean} points of area {interval}, {seeds} seeds" in told
    front = read_records(RESULTS / f"{experiment}{scale}").fronts
    front = front[(front["method"] == "pareco_exact") & (front["seed"] == seed)]
    budgets = [percent * ran[0].experiment.full_cost / 100 for percent in percents]
    found = set(ran[1].configuration[COMMON]["training.alone"])
    chosen = staircase(front, "macs")
    assert found == {chosen["widths"][chosen["macs"] <= each].iloc[-1] for each in budgets}


def test_what_is_said_of_digits_trained_alone_can_be_given_again() -> None:
    told = " ".join((ROOT / "docs/comparison.md").read_text().split())
    ran = [read_records(RESULTS / f"digits-alone-{kind}") for kind in ("uniform", "found")]
    networks = [set(each.configuration[COMMON]["training.alone"]) for each in ran]
    assert all(f'"{each}"' in told for each in set.union(*networks))
    _, differences = _compared(ran, "macs")
    own = " ".join((ROOT / "replications/digits/README.md").read_text().split())
    mean = differences.rows[0][2].text.partition(" ")[0]
    assert f"have {mean[1:]} points less than uniform ones" in own


def test_what_is_said_of_the_vgg_trained_alone_stands_beside_shared_weights() -> None:
    told = " ".join((ROOT / "docs/comparison.md").read_text().split())
    errors = [
        read_records(RESULTS / f"cifar10_vgg-alone-{kind}-cpu")
        .fronts.groupby("macs")["test_top1_error"]
        .mean()
        for kind in ("uniform", "found")
    ]
    uniform, found = (", ".join(f"{each:.1f}" for each in kind) for kind in errors)
    assert f"{found}% error in place of {uniform}%" in told
    gained = errors[0].iloc[1] - errors[1].iloc[1]
    rows = comparison(read_records(RESULTS / "cifar10_vgg-cpu"), "pareco_exact").errors.differences
    shared = rows[rows["measure"] == "40%"].set_index("method").loc["us_net"]
    interval = f"({shared['low']:.2f} to {shared['high']:.2f}, {shared['n']} seeds)"
    said = f"`us_net` has {shared['mean']:.2f} {interval} more there than `pareco_exact`"
    assert f"At 40% that is {gained:.2f} points; with shared weights {said}" in told


def test_what_is_said_of_latency_is_what_the_records_say() -> None:
    told = " ".join((ROOT / "replications/digits_latency/README.md").read_text().split())
    ran = [read_records(RESULTS / f"digits_latency{twin}") for twin in ("-by-macs", "")]
    _, differences = _compared(ran, LATENCY)
    areas = {row[0].text: row[2].text for row in differences.rows}
    for method in ("pareco", "pareco_exact"):
        mean, _, interval = areas[f"{method} B"].partition(" ")
        assert f"{mean} points {interval} with `{method}`" in told


def test_what_is_said_of_the_first_replication_is_what_its_records_say() -> None:
    found = comparison(read_records(RESULTS / "digits"), "pareco_exact").errors.differences
    rows = found[found["measure"] == "area"].set_index("method")
    readme = " ".join((ROOT / "README.md").read_text().split())
    own = " ".join((ROOT / "replications/digits/README.md").read_text().split())
    us_net, s_net = rows.loc["us_net"], rows.loc["s_net"]
    low, high = f"{us_net['low']:.2f}", f"{us_net['high']:.2f}"
    assert f"{us_net['mean']:.2f} points less error than US-Net" in readme
    assert f"(95% interval {low} to {high}, {us_net['n']} seeds)" in readme
    assert f"us_net has {us_net['mean']:.2f} points more than pareco_exact ({low} to {high}" in own
    said = f"{s_net['mean']:.2f} more than pareco_exact ({s_net['low']:.2f} to {s_net['high']:.2f})"
    assert f"s_net {said}" in own
