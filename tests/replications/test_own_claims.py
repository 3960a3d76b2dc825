"""Claims of this project: judged at their scale, once every seed has run."""

from pathlib import Path
from typing import Any

import pytest

from pareco.reporting.claims import Verdict
from pareco.reporting.records import Records, write_records
from replications.catalogue import experiment_named
from replications.claim_file import read_claims
from replications.verdicts import claim_outcomes
from tests.replications.claims_text import claims_of
from tests.replications.test_claims import of_gain, outcome

VGG = experiment_named("cifar10_vgg", "cpu")
RECIPE: dict[str, Any] = {
    "data": "cifar10-jpeg",
    "scale": f"{VGG.scale}, changed: data.name cifar10-jpeg",
}
OWN: dict[str, Any] = {"scale": "cpu", "data": "cifar10-jpeg", "equal": "passes"}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where the file of claims lies."""
    return tmp_path / "claims.toml"


def judged(path: Path, *records: Records, **changes: Any) -> Verdict:
    """Return the verdict on a claim that PareCO's area is smaller than US-Net's on the VGG."""
    text = claims_of("own_gain", ["cifar10_vgg"], **OWN | changes)
    path.write_text(text.replace("cifar10_vgg = 400", ""))
    return outcome(path, *records)


def of_vgg(gain: float, **changes: Any) -> Records:
    """Return records of all ten seeds; their areas differ by this, and are 0.02 apart."""
    return of_gain(gain, at="cpu", name="cifar10_vgg", **{"seeds": None, **RECIPE, **changes})


def test_ten_seeds_settle_it_by_their_interval(path: Path) -> None:
    """0.02 apart: a deviation of 0.0606, and 2.2622 x 0.0606 / sqrt(10) = 0.0433 each way."""
    found = judged(path, of_vgg(0.05))
    assert (found.outcome, found.about) == ("reproduced", "ours")
    assert "us_net minus pareco: +0.05 [+0.01, +0.09] (10 seeds" in found.ours
    assert judged(path, of_vgg(-0.05)).outcome == "contradicted"
    open_one = judged(path, of_vgg(0.03))
    assert open_one.outcome == "inconclusive"
    # The least n with t(n - 1) x 0.0606 / sqrt(n) < 0.03: 18 (2.1098 x 0.0143 = 0.0301), then 19.
    assert "with the same mean and spread 19 seeds would decide it" in open_one.ours


def test_before_all_seeds_have_run_nothing_is_settled(path: Path) -> None:
    found = judged(path, of_gain(1.0, at="cpu", name="cifar10_vgg", seeds=3, **RECIPE))
    assert found.outcome == "not run at that scale"
    assert found.ours.startswith("3 of 10 seeds of both have run, so far: points of area")
    assert judged(path).ours == "0 of 10 seeds have run"


@pytest.mark.parametrize(
    "changes", [{"data": "cifar10"}, {"scale": "paper"}, {"scale": f"{RECIPE['scale']}, seeds 2"}]
)
def test_another_recipe_does_not_count(path: Path, changes: dict[str, Any]) -> None:
    found = judged(path, of_vgg(1.0, **changes))
    assert found.outcome == "not run at that scale"
    assert found.ours.startswith("made with another recipe")


def test_equal_compute_has_results_of_its_own(path: Path) -> None:
    scale = f"{RECIPE['scale']}, equal compute: 7 MACs before the test"
    records = of_vgg(1.0, experiment="cifar10_vgg-compute-cpu", scale=scale, equal_macs=7)
    assert judged(path, records, equal="compute").outcome == "reproduced"
    assert judged(path, of_vgg(1.0), equal="compute").ours == "0 of 10 seeds have run"


def test_one_of_a_family_is_corrected_for_those_still_to_come(path: Path) -> None:
    """A mean of 0.05 with a deviation of 0.0606: t = 2.61, p = 0.0282 alone, 0.0564 as of two."""
    text = claims_of("own_gain", ["cifar10_vgg"], **OWN, family="second").replace("400", "1")
    claim = text[text.index("[claim.gain]") :]
    text += claim.replace("claim.gain", "claim.other").replace('"us_net"', '"s_net"')
    path.write_text(text.replace("cifar10_vgg = 1", ""))
    write_records(of_vgg(0.05), path.parent / "results" / VGG.name)
    found, other = claim_outcomes(path.parent / "results", path)
    assert (found.outcome, other.outcome) == ("inconclusive", "not run at that scale")
    assert "p 0.028, with Holm's correction for 2 0.056; with the same mean" in found.ours
    # The least n with t(n - 1) at 0.025 / 2 x 0.0606 / sqrt(n) < 0.05: 11, 0.0481.
    assert found.ours.endswith(" 11 seeds would decide it, whatever the others come to")
    write_records(of_vgg(0.06), path.parent / "results" / VGG.name)  # t = 3.13, p = 0.0121
    assert claim_outcomes(path.parent / "results", path)[0].outcome == "reproduced"


def test_s_net_is_compared_at_its_own_costs(path: Path) -> None:
    """Whose networks cost 200, 600 and 1000; at each one PareCO's error is lower by 0.05."""
    found = judged(path, of_vgg(0.05), at="costs of the baseline")
    assert found.outcome == "reproduced"
    assert "error at us_net's 3 costs (20, 60, 100%), us_net minus pareco: +0.05" in found.ours


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scale": "tiny"}, "cifar10_vgg has no scale 'tiny'"),
        ({"equal": "time"}, "equal: Input should be 'passes' or 'compute'"),
        ({"baseline": "pareco"}, "method and baseline are both 'pareco'"),
    ],
)
def test_a_fault_is_named(path: Path, changes: dict[str, Any], message: str) -> None:
    text = claims_of("own_gain", ["cifar10_vgg"], **OWN | changes)
    if "baseline" in changes:
        text = text.replace('baseline = "us_net"\n', "", 1)
    path.write_text(text.replace("cifar10_vgg = 400", ""))
    with pytest.raises(ValueError, match=message):
        read_claims(path)
