"""Claims: outcomes of records whose numbers are known, and what is printed of them."""

import dataclasses
import io
import json
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pareco.arguments import chosen_command
from pareco.reporting.claims import Verdict
from pareco.reporting.records import Records, write_records
from replications.__main__ import ListCommand, main
from replications.catalogue import experiment_named
from replications.claim_file import read_claims
from replications.run import RunCommand
from replications.verdicts import claim_outcomes, print_claims
from tests.replications.claims_text import GAIN, claims_of
from tests.reporting.claim_records import records_of

RESULTS = Path(__file__).parents[2] / "results"
BASELINE = [(200, 40.0), (600, 30.0), (1000, 25.0)]


def of_gain(
    gain: float,
    at: str = "paper",
    name: str = "imagenet_mbv2",
    seeds: int | None = 3,
    spread: float = 0.02,
    **changes: Any,
) -> Records:
    """Return records of an experiment in which PareCO's errors are lower by this at all costs.

    In the mean of the seeds, which are a spread apart. The experiment's own seeds for None.
    """
    config = experiment_named(name, at)
    fields = {
        "experiment": config.name,
        "network": config.network.name,
        "data": config.data.name,
        "image_size": config.data.image_size,
        "scale": config.scale,
        "cost": config.cost,
    }
    own = config.seeds if seeds is None else range(seeds)
    fronts = {("us_net", seed): BASELINE for seed in own}
    for place, seed in enumerate(own):
        lower = gain + spread * (place - (len(own) - 1) / 2)
        fronts["pareco", seed] = [(cost, error - lower) for cost, error in BASELINE]
    return records_of(fronts, **{**fields, **changes})


def of_cifar(gain: float, depth: int, **changes: Any) -> Records:
    return of_gain(gain, name=f"cifar10_resnet{depth}", **changes)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return a file with the claim of GAIN."""
    file = tmp_path / "claims.toml"
    file.write_text(GAIN)
    return file


def outcome(path: Path, *found: Records) -> Verdict:
    """Return the outcome of the file's only claim where these records are in the results."""
    results = path.parent / "results"
    shutil.rmtree(results, ignore_errors=True)
    for records in found:
        write_records(records, results / records.experiment.experiment)
    (only,) = claim_outcomes(results, path)
    return only


@pytest.mark.parametrize(
    ("gain", "expected", "size"),
    [  # three seeds 0.02 apart: by 7.6488 x 0.02 / sqrt(3) the intervals reach 0.072
        (1.65, "reproduced", "1.7 points lie within the interval at 25% and at 60%"),
        (1.75, "reproduced", "1.7 points lie within the interval at 25% and at 60%"),
        (2.5, "reproduced", "above 1.7 points at 25% and at 60%"),
        (1.6, "contradicted", "every interval lies below 1.7 points"),
    ],
)
def test_a_gain_up_to_a_number_is_judged_by_its_intervals(
    path: Path, gain: float, expected: str, size: str
) -> None:
    """By Student's table for 5% / 2 budgets and two degrees of freedom: 6.2053 x 0.01155."""
    found = outcome(path, of_gain(gain))
    assert found.outcome == expected
    interval = f"{gain:+.2f} [{gain - 0.07165:+.2f}, {gain + 0.07165:+.2f}]"
    assert found.ours == (
        "Claimed: up to 1.7 points, judged at 25, 60% of the full cost."
        f" Direction: better at 25% and at 60%. Size: {size}. imagenet_mbv2: points of error,"
        f" us_net minus pareco: {interval} at 25%, {interval} at 60%"
        " (3 seeds, 95% t intervals, adjusted for 2)"
    )
    assert found.experiments == ("imagenet_mbv2",)
    assert found.evidence == "imagenet_mbv2/records: commit 0123abc; seeds 0, 1, 2"


def test_a_worse_method_contradicts_and_says_so(path: Path) -> None:
    found = outcome(path, of_gain(-1.0))
    assert found.outcome == "contradicted"
    assert "Direction: worse at 25% and at 60%. Size: every interval lies below" in found.ours


def test_one_seed_is_inconclusive_and_the_command_for_two_more_is_printed(path: Path) -> None:
    """However large the gain: nothing says how sure that is. All that it settles are its runs."""
    for kind, fields in (("gain_up_to", {}), ("area_gain", {"more_than": 0.0})):
        if fields:
            path.write_text(claims_of(kind, ["imagenet_mbv2"], **fields))
        found = outcome(path, of_gain(9.0, seeds=None))
        assert found.outcome == "inconclusive"
        assert (
            "Inconclusive: one seed says nothing of the spread; 3 are the least. To run them,"
            " with the IMAGENET= or DATA= of before: make replicate-imagenet-mbv2"
            ' METHODS="pareco us_net" SEEDS="0 1 2". imagenet_mbv2: points of'
        ) in found.ours
        assert "Direction" not in found.ours


def test_two_seeds_have_no_direction_and_no_size(path: Path) -> None:
    """Though their intervals lie above zero and 1.7: 25.452 x 0.014 / 2 of Student's table."""
    found = outcome(path, of_gain(9.0, seeds=2))
    assert found.outcome == "inconclusive"
    assert "+9.00 [+8.75, +9.25] at 25%" in found.ours
    assert "Direction" not in found.ours
    assert "Size" not in found.ours
    assert "3 seeds of each experiment would decide it, as reproduced. To run" in found.ours


def test_the_command_that_is_printed_is_one(path: Path) -> None:
    """It is taken by the command line, for the folder of runs that the claim is settled by."""
    found = outcome(path, of_gain(9.0, seeds=None))
    command = found.ours.partition(" of before: make ")[2].partition(". ")[0]
    words = {name: value for name, _, value in (w.partition("=") for w in shlex.split(command))}
    assert "replicate-imagenet-mbv2" in words
    arguments = ["run", "imagenet_mbv2", "--methods", *words["METHODS"].split()]
    arguments += ["--seeds", *words["SEEDS"].split()]
    commands = {"run": RunCommand.defaults(arguments, "run"), "list": ListCommand()}
    parsed = chosen_command(commands, arguments, prog="x", description="y")
    experiment = parsed.configured()
    assert (experiment.name, experiment.scale) == ("imagenet_mbv2", "paper")
    assert experiment.seeds == (0, 1, 2)
    assert len(parsed.jobs()) == 2 * 3


@pytest.mark.parametrize(
    ("gain", "spread", "seeds", "expected", "ending"),
    [
        # Of deviation 1, 6.2053 / sqrt(3) = 3.58 is too much. Of five seeds 3.4954 / sqrt(5) =
        # 1.563 is below 1.75, of four 4.1765 / 2 = 2.088 not.
        (1.75, 1.0, 3, 'SEEDS="0 1 2 3 4"', "as reproduced"),
        (1.75, 1.0, 2, 'SEEDS="0 1 2 3"', "as reproduced"),  # of deviation 0.707
        # Of nine 2.7515 / 3 = 0.917 is below 1 and reaches 1.7, of eight 1.0045 not below 1.
        (1.0, 1.0, 3, 'SEEDS="0 1 2 3 4 5 6 7 8"', "as reproduced (and 1,000 as contradicted)"),
        # Of three 3.58 x 0.6 = 2.15 reaches 1.7 from -0.3, of four 2.088 x 0.6 = 1.25 not.
        (-0.3, 0.6, 3, 'SEEDS="0 1 2 3"', "as contradicted"),
        # 2.244 x 15 / sqrt(1000) = 1.06 is more than the distance to 0 and to 1.7.
        (0.85, 15.0, 3, "1,000 seeds with the same means and spread would not decide it", ""),
    ],
)
def test_the_number_of_seeds_that_would_decide_is_told(
    path: Path, gain: float, spread: float, seeds: int, expected: str, ending: str
) -> None:
    found = outcome(path, of_gain(gain, seeds=seeds, spread=spread))
    assert found.outcome == "inconclusive"
    assert ("Direction: open at every budget" in found.ours) == (seeds > 2)
    assert expected in found.ours
    if "SEEDS" in expected:
        count = len(expected.split())
        assert f"{count} seeds of each experiment would decide it, {ending}. To" in found.ours


@pytest.mark.parametrize("gain", [5.0, 0.0, -5.0])
@pytest.mark.parametrize(("seeds", "command"), [(2, "0 1 2"), (3, "0 1 2 3"), (4, "0 1 2 3 4")])
def test_seeds_that_agree_say_nothing_of_size_or_spread(
    path: Path, gain: float, seeds: int, command: str
) -> None:
    """Whether above or below the claimed 1.7, no interval lies anywhere; one more seed may tell."""
    found = outcome(path, of_gain(gain, seeds=seeds, spread=0.0))
    assert found.outcome == "inconclusive"
    assert found.ours.startswith(
        "Claimed: up to 1.7 points, judged at 25, 60% of the full cost. Inconclusive: all seeds of"
        " imagenet_mbv2 agree at 25% and at 60%, so nothing is known of their spread; one more may"
        " tell. To run them, with the IMAGENET= or DATA= of before: make replicate-imagenet-mbv2"
        f' METHODS="pareco us_net" SEEDS="{command}". imagenet_mbv2: points of error'
    )


def test_seeds_that_agree_at_one_budget_are_named(path: Path) -> None:
    """At 60% the intervals are below 1.7, of any number of seeds; at 25% there is none."""
    found = of_gain(1.0)
    fronts = found.fronts.copy()
    fronts.loc[(fronts["method"] == "pareco") & (fronts["macs"] == 200), "test_top1_error"] = 30.0
    verdict = outcome(path, dataclasses.replace(found, fronts=fronts))
    assert verdict.outcome == "inconclusive"
    assert "Direction: better at 60%. Size: each known interval lies below 1.7" in verdict.ours
    assert "Inconclusive: all seeds of imagenet_mbv2 agree at 25%, so" in verdict.ours
    assert 'SEEDS="0 1 2 3"' in verdict.ours


def test_only_the_experiment_whose_seeds_agree_needs_another(path: Path) -> None:
    names = ["cifar10_resnet20", "cifar10_resnet32"]
    path.write_text(claims_of("area_gain", names, more_than=0.0))
    found = outcome(path, of_cifar(1.0, 20), of_cifar(1.0, 32, spread=0.0))
    assert found.outcome == "inconclusive"
    assert "Inconclusive: all seeds of cifar10_resnet32 agree, so nothing is" in found.ours
    assert "make replicate-cifar10-resnet32" in found.ours
    assert "make replicate-cifar10-resnet20" not in found.ours


def test_a_number_of_seeds_that_nobody_types_has_no_command(path: Path) -> None:
    """Of 1 and deviation 5 the interval is above 0 from 128 seeds on: 2.2685 x 5 / sqrt(128)."""
    found = outcome(path, of_gain(1.0, spread=5.0))
    assert "SEEDS" not in found.ours
    (needed,) = re.findall(r"spread ([0-9,]+) seeds", found.ours)
    assert 30 < int(needed) < 1000


def without(method: str, records: Records) -> Records:
    fronts = records.fronts
    return dataclasses.replace(records, fronts=fronts[fronts["method"] != method])


@pytest.mark.parametrize(
    ("records", "reason"),
    [
        *(
            (of_gain(gain, at), f"imagenet_mbv2-{at} (does not count: scale {at}")
            for at in ("short", "cpu", "smoke")
            for gain in (1.7, 0.1)
        ),
        (of_gain(1.7, steps=40), "40 gradient steps, not 400): points of error, us_net minus"),
        (of_gain(1.7, data="digits_rgb"), "made with digits_rgb, not imagenet"),
        (of_gain(1.7, image_size=32), "made with 32, not 224"),
        (of_gain(1.7, network="resnet18"), "made with resnet18, not mobilenetv2_100"),
        (of_gain(1.7, scale="quick"), "scale quick"),
        (without("us_net", of_gain(1.7)), "not run: us_net seed 0): nothing to compare"),
    ],
)
def test_smaller_and_other_runs_settle_no_claim(path: Path, records: Records, reason: str) -> None:
    found = outcome(path, records)
    assert found.outcome == "not run at that scale"
    assert found.ours.startswith("0 of 1 comparisons have run at full scale. ")
    assert "does not count" in found.ours
    assert reason in found.ours


def test_every_seed_of_the_experiment_must_have_run(path: Path) -> None:
    path.write_text(claims_of("area_gain", ["cifar10_resnet20"], more_than=0.0))
    found = outcome(path, of_cifar(1.7, 20, seeds=2))
    assert found.outcome == "not run at that scale"
    assert "(does not count: not run: pareco seed 2, us_net seed 2): points of" in found.ours


def test_without_records_nothing_has_run(path: Path) -> None:
    found = outcome(path)
    assert (found.outcome, found.evidence) == ("not run at that scale", "no records")


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [(2.0, 1.5, "reproduced"), (1.0, 1.5, "contradicted"), (1.5, 1.5, "inconclusive")],
)
def test_gains_of_two_networks_are_compared(
    path: Path, small: float, large: float, expected: str
) -> None:
    """As the shipped claim of less over-parameterized networks: ResNet-20 minus ResNet-56."""
    others = {"compared_with": ["cifar10_resnet56"], "more_than": 0.0}
    path.write_text(claims_of("area_gain", ["cifar10_resnet20"], **others))
    found = outcome(path, of_cifar(small, 20), of_cifar(large, 56))
    assert found.outcome == expected
    assert "cifar10_resnet20 against cifar10_resnet56: points of area" in found.ours
    assert f"first less the second: {small - large:+.2f} [" in found.ours
    only = outcome(path, of_cifar(small, 20))
    assert only.outcome == "not run at that scale"
    shipped = read_claims().claim["less-over-parameterized"]
    assert shipped.cases == (
        ("cifar10_resnet20", "cifar10_resnet56"),
        ("cifar100_resnet20", "cifar100_resnet56"),
    )


@pytest.mark.parametrize(
    ("gains", "spreads", "expected"),
    [
        ((0.5, 0.7), (0.02, 0.02), "reproduced"),
        ((0.9, -0.1), (0.02, 0.02), "reproduced"),  # though one alone would contradict
        ((0.1, -0.9), (0.02, 0.02), "contradicted"),
        ((0.5, 0.5), (0.4, 0.4), "reproduced"),  # though neither alone would
        ((0.5, 0.5), (9.0, 0.02), "inconclusive"),
    ],
)
def test_several_experiments_are_judged_by_the_mean_of_their_differences(
    path: Path, gains: tuple[float, float], spreads: tuple[float, float], expected: str
) -> None:
    names = ("cifar10_resnet20", "cifar10_resnet32")
    path.write_text(claims_of("area_gain", names, more_than=0.0))
    both = [of_cifar(g, d, spread=s) for g, d, s in zip(gains, (20, 32), spreads, strict=True)]
    found = outcome(path, *both)
    assert found.outcome == expected
    of = "points of area under the front, us_net minus pareco"
    assert f"Mean of 2 comparisons: {of}: {sum(gains) / 2:+.2f} [" in found.ours
    for name, gain in zip(names, gains, strict=True):
        assert f". {name}: {of}: {gain:+.2f} [" in found.ours
    partly = outcome(path, both[0])
    assert partly.outcome == "not run at that scale"
    assert "1 of 2 comparisons have run at full scale" in partly.ours


def test_runs_without_a_network_to_compare_have_run_but_settle_nothing(path: Path) -> None:
    """One seed of the method has no network below 90%, where the area begins at 20%."""
    path.write_text(claims_of("area_gain", ["imagenet_mbv2"], more_than=0.0))
    found = of_gain(1.7)
    fronts = found.fronts.query("method != 'pareco' or seed != 1 or macs >= 900")
    verdict = outcome(path, dataclasses.replace(found, fronts=fronts))
    assert verdict.outcome == "inconclusive"
    assert "Inconclusive: in some seed no network fits" in verdict.ours
    assert "nothing to compare" in verdict.ours


def test_each_experiment_with_too_few_seeds_has_its_command(path: Path) -> None:
    names = ("cifar10_resnet20", "imagenet_mbv2")
    path.write_text(claims_of("area_gain", names, more_than=0.0))
    found = outcome(path, of_cifar(0.5, 20), of_gain(0.5, seeds=None))
    assert found.outcome == "inconclusive"
    assert "make replicate-imagenet-mbv2" in found.ours
    assert "make replicate-cifar10" not in found.ours


def test_published_costs_are_reproduced_with_nothing_trained() -> None:
    found = {each.id: each for each in claim_outcomes(RESULTS)}
    for name, rows in {
        "us-net-macs": 27,
        "torchvision-macs": 3,
        "cifar-resnet-parameters": 4,
        "cifar-resnet-macs": 8,
    }.items():
        assert found[name].outcome == "reproduced"
        assert found[name].ours.startswith(f"{rows} of {rows} published counts agree")
    assert found["mobilenetv2-flops"].statement.startswith('"improvements up to 1.7%')


def test_a_published_cost_that_differs_or_lacks_is_said(tmp_path: Path) -> None:
    (tmp_path / "none" / "published").mkdir(parents=True)
    none = [each for each in claim_outcomes(tmp_path / "none") if each.about == "costs"]
    assert {(each.outcome, each.ours[:8]) for each in none} == {
        ("not run at that scale", "0 of the")
    }
    shutil.copytree(RESULTS / "published", tmp_path / "published")
    table = tmp_path / "published" / "imagenet.csv"
    text = table.read_text()
    assert "width 0.5,97.0" in text
    table.write_text(text.replace("width 0.5,97.0", "width 0.5,98.0"))
    found = {each.id: each for each in claim_outcomes(tmp_path)}["us-net-macs"]
    assert found.outcome == "contradicted"
    assert "26 of 27" in found.ours
    assert "not imagenet_mbv2 width 0.5: 97, published 98" in found.ours
    table.write_text("".join(x for x in text.splitlines(True) if "width 0.5,97.0" not in x))
    found = {each.id: each for each in claim_outcomes(tmp_path)}["us-net-macs"]
    assert found.outcome == "not run at that scale"
    assert "26 of the 27 published rows are there" in found.ours


def test_the_command_shows_a_table_and_json(path: Path) -> None:
    outcome(path, of_gain(1.7))
    results = path.parent / "results"
    narrow = Console(width=80, record=True, file=io.StringIO())
    assert print_claims(results, path, False, narrow) == 0
    text = narrow.export_text()
    assert max(map(len, text.splitlines())) <= 80
    for part in ('a gain of "1.7" [points]', "reproduced", "+1.70", "0123abc", "a table"):
        assert part in text
    plain = Console(width=80, record=True, file=io.StringIO())
    assert print_claims(results, path, True, plain) == 0
    (found,) = json.loads(plain.export_text())
    assert found["outcome"] == "reproduced"
    assert set(found) == {field.name for field in dataclasses.fields(Verdict)}


def test_bad_input_is_named_with_status_2(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(GAIN.replace("number = 1.7", ""))
    assert main(["claims", "--file", str(path)]) == 2
    assert "claim.gain.gain_up_to.number: Field required" in " ".join(
        capsys.readouterr().err.split()
    )
