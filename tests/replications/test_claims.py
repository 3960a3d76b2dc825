"""Claims: the file, its faults, and outcomes of records whose numbers are known."""

import dataclasses
import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pareco.reporting.claims import Verdict
from pareco.reporting.records import Records, write_records
from replications.__main__ import main
from replications.catalogue import experiment_named
from replications.verdicts import PATH, GainClaim, claim_outcomes, print_claims, read_claims
from tests.reporting.claim_records import records_of

RESULTS = Path(__file__).parents[2] / "results"
BASELINE = [(200, 40.0), (600, 30.0), (1000, 25.0)]


def claims_of(kind: str, replications: Sequence[str], **fields: object) -> str:
    """The text of a file with one claim of this kind about these replications."""
    steps = "\n".join(f"{name} = 400" for name in replications)
    others = "\n".join(f"{name} = {json.dumps(value)}" for name, value in fields.items())
    return f"""
[gradient_steps]
{steps}
cifar10_resnet56 = 400
[classes]
imagenet = 1000
[claim.gain]
statement = "a gain of \\"1.7\\" [points]"
source = "a table"
kind = "{kind}"
replications = {json.dumps(replications)}
cost = "macs"
method = "pareco"
baseline = "us_net"
why = "noise"
{others}
"""


GAIN = claims_of("largest_gain", ["imagenet_mbv2"], number=1.7, tolerance=0.6)


def of_gain(gain: float, at: str = "paper", name: str = "imagenet_mbv2", **changes: Any) -> Records:
    """Return records of an experiment in which PareCO's errors are lower by this at all costs."""
    config = experiment_named(name, at)
    fields = {
        "experiment": config.name,
        "network": config.network.name,
        "data": config.data.name,
        "image_size": config.data.image_size,
        "scale": config.scale,
        "cost": config.cost,
    }
    lower = [(cost, error - gain) for cost, error in BASELINE]
    fronts = {("us_net", seed): BASELINE for seed in config.seeds}
    fronts |= {("pareco", seed): lower for seed in config.seeds}
    return records_of(fronts, **{**fields, **changes})


def of_cifar(gain: float, depth: int) -> Records:
    return of_gain(gain, name=f"cifar10_resnet{depth}")


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
    ("gain", "expected"),
    [
        *((gain, "reproduced") for gain in (1.2, 1.7, 2.2)),
        *((gain, "not reproduced") for gain in (1.0, 2.5)),
    ],
)
def test_a_claim_is_reproduced_within_its_tolerance(path: Path, gain: float, expected: str) -> None:
    found = outcome(path, of_gain(gain))
    assert found.outcome == expected
    text = f"imagenet_mbv2: +{gain:.2f} points of error, us_net minus pareco (one seed"
    assert text in found.ours
    assert found.ours.startswith("Claimed: 1.7 points, give or take 0.6. ")
    assert found.experiments == ("imagenet_mbv2",)
    assert found.evidence == "imagenet_mbv2/records: commit 0123abc; seed 0"


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
        (of_gain(1.7, steps=40), "40 gradient steps, not 400): +1.70 points"),
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


def test_one_seed_settles_no_direction(path: Path) -> None:
    """However large the area it gains: nothing says how sure that is."""
    path.write_text(claims_of("area_gain", ["imagenet_mbv2"], more_than=0.0))
    found = outcome(path, of_gain(9.0))
    assert found.outcome == "not run at that scale"
    assert "too few seeds for an interval, so for a direction" in found.ours


def test_without_records_nothing_has_run(path: Path) -> None:
    found = outcome(path)
    assert (found.outcome, found.evidence) == ("not run at that scale", "no records")


@pytest.mark.parametrize(
    ("small", "large", "expected"),
    [(2.0, 1.5, "reproduced"), (1.0, 1.5, "not reproduced"), (1.5, 1.5, "not reproduced")],
)
def test_gains_of_two_networks_are_compared(
    path: Path, small: float, large: float, expected: str
) -> None:
    others = {"compared_with": ["cifar10_resnet56"], "more_than": 0.0}
    path.write_text(claims_of("area_gain", ["cifar10_resnet20"], **others))
    found = outcome(path, of_cifar(small, 20), of_cifar(large, 56))
    assert found.outcome == expected
    assert f"cifar10_resnet20 against cifar10_resnet56: {small - large:+.2f} points" in found.ours
    only = outcome(path, of_cifar(small, 20))
    assert only.outcome == "not run at that scale"


def test_all_replications_must_hold(path: Path) -> None:
    names = ("cifar10_resnet20", "cifar10_resnet32")
    path.write_text(claims_of("area_gain", names, more_than=0.0))
    both = [of_cifar(0.5, 20), of_cifar(0.5, 32)]
    assert outcome(path, *both).outcome == "reproduced"
    assert outcome(path, both[0], of_cifar(-0.5, 32)).outcome == "not reproduced"
    partly = outcome(path, both[0])
    assert partly.outcome == "not run at that scale"
    assert "1 of 2 comparisons have run at full scale" in partly.ours


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("largest_gain", "greatest", r"claim.gain: .*'greatest'.*: 'largest_gain', 'area_gain'"),
        ('["imagenet_mbv2"]', '["imagenet"]', r"replications.0: unknown 'imagenet'. Known: cifar"),
        ("number = 1.7", "", r"claim.gain.largest_gain.number: Field required"),
        ("number = 1.7", 'number = "1.7"', r"claim.gain.largest_gain.number: .* valid number"),
        ("number = 1.7", "number = true", r"claim.gain.largest_gain.number: .* valid number"),
        ('source = "a table"', "source = 1", r"claim.gain.largest_gain.source: .* valid string"),
        ('source = "a table"', 'source = ""', r"largest_gain.source: .* at least 1 character"),
        ('["imagenet_mbv2"]', "[]", r"largest_gain.replications: .* at least 1 item"),
        ('["imagenet_mbv2"]', '"imagenet_mbv2"', r"largest_gain.replications: .* valid tuple"),
        ('"macs"', '"flops"', r"largest_gain.cost: Input should be 'macs', "),
        ('"us_net"', '"usnet"', r"largest_gain.baseline: unknown 'usnet'. Known: autoslim, "),
        ("number = 1.7", "number = 1.7\nless = 2", r"largest_gain.less: Extra inputs"),
        ("imagenet_mbv2 = 400", "", r"gradient_steps lacks imagenet_mbv2, which claim 'gain'"),
        ("imagenet_mbv2 = 400", "imagenet_mbv2 = true", r"gradient_steps.imagenet_mbv2: Input sh"),
        ("[classes]", "[class]", r"classes: Field required"),
        ("[gradient_steps]", "[gradient_steps", r"claims.toml: .*line 2"),
        ("[claim.gain]", "[claims.gain]", r"claim: Field required"),
        ("[claim.gain]", "[claim.gain]\n[claim.gain]", r"line 8"),
    ],
)
def test_a_fault_of_the_file_is_named(path: Path, old: str, new: str, message: str) -> None:
    assert old in GAIN
    path.write_text(GAIN.replace(old, new))
    with pytest.raises(ValueError, match=message) as caught:
        claim_outcomes(path.parent, path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "Value error" not in text


def test_a_difference_needs_pairs(path: Path) -> None:
    others = {"compared_with": ["imagenet_mbv2", "imagenet_mbv3"]}
    path.write_text(claims_of("area_gain", ["imagenet_mbv2"], more_than=0.0, **others))
    with pytest.raises(ValueError, match="area_gain: compared_with must be as long as repl"):
        read_claims(path)


def test_classes_that_a_published_cost_needs_are_asked_for(path: Path) -> None:
    path.write_text(PATH.read_text().replace("imagenet = 1000", ""))
    with pytest.raises(ValueError, match="classes lacks imagenet, which claim 'us-net-macs'"):
        read_claims(path)


def test_the_shipped_claims_name_the_published_schedules() -> None:
    """Of 1,281,167 and 50,000 training images, in whole batches."""
    file = read_claims()
    images = {"imagenet": 1_281_167, "cifar10": 50_000, "cifar100": 50_000}
    for name, steps in file.gradient_steps.items():
        config = experiment_named(name)
        assert config.data.search_split == "batch"
        assert config.data.train_images is None
        batches = images[config.data.name] // config.training.batch_size
        assert steps == config.training.epochs * batches, name
    for claim in file.claim.values():
        for name in claim.replications:
            assert set(experiment_named(name).methods) >= (
                {claim.method, claim.baseline} if isinstance(claim, GainClaim) else set()
            )


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
    assert found.outcome == "not reproduced"
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
    assert "claim.gain.largest_gain.number: Field required" in " ".join(
        capsys.readouterr().err.split()
    )
