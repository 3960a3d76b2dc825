"""The file of claims: its faults, and what the shipped one holds."""

import math
from pathlib import Path

import pytest

from replications.catalogue import experiment_named
from replications.claim_file import PATH, GainClaim, GainUpTo, read_claims
from replications.verdicts import _traced, claim_outcomes
from tests.replications.claims_text import GAIN, claims_of


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Return where to write a file of claims."""
    return tmp_path / "claims.toml"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("gain_up_to", "greatest", r"claim.gain: .*'greatest'.*: 'gain_up_to', 'area_gain'"),
        ('["imagenet_mbv2"]', '["imagenet"]', r"replications.0: unknown 'imagenet'. Known: cifar"),
        ("number = 1.7", "", r"claim.gain.gain_up_to.number: Field required"),
        ("number = 1.7", 'number = "1.7"', r"claim.gain.gain_up_to.number: .* valid number"),
        ("number = 1.7", "number = true", r"claim.gain.gain_up_to.number: .* valid number"),
        ('source = "a table"', "source = 1", r"claim.gain.gain_up_to.source: .* valid string"),
        ('source = "a table"', 'source = ""', r"gain_up_to.source: .* at least 1 character"),
        ('["imagenet_mbv2"]', "[]", r"gain_up_to.replications: .* at least 1 item"),
        ('["imagenet_mbv2"]', '"imagenet_mbv2"', r"gain_up_to.replications: .* valid tuple"),
        ('"macs"', '"flops"', r"gain_up_to.cost: Input should be 'macs', "),
        ('"us_net"', '"usnet"', r"gain_up_to.baseline: unknown 'usnet'. Known: autoslim, "),
        ("number = 1.7", "number = 0", r"gain_up_to.number: .* greater than 0"),
        ("[25, 60]", "[]", r"gain_up_to.budgets: .* at least 1 item"),
        ("[25, 60]", "[60, 25]", r"gain_up_to: budgets must be in ascending order, each once"),
        ("[25, 60]", "[25, 25]", r"gain_up_to: budgets must be in ascending order, each once"),
        ("[25, 60]", "[0, 25]", r"gain_up_to.budgets.0: .* greater than 0"),
        ("[25, 60]", "[25, 101]", r"gain_up_to.budgets.1: .* less than or equal to 100"),
        ("[25, 60]", "[true]", r"gain_up_to.budgets.0: .* valid number"),
        ("number = 1.7", "number = 1.7\nless = 2", r"gain_up_to.less: Extra inputs"),
        ("imagenet_mbv2 = 400", "", r"gradient_steps lacks imagenet_mbv2, which claim 'gain'"),
        ("imagenet_mbv2 = 400", "imagenet_mbv2 = true", r"gradient_steps.imagenet_mbv2: Input sh"),
        ("imagenet_mbv2 = 400", "imagenet_mbv2 = 0", r"gradient_steps.imagenet_mbv2: .* greater"),
        ("[classes]", "cifar = 1\n[classes]", r"gradient_steps has cifar, which no claim needs"),
        ("[classes]", "[classes]\nmnist = 10", r"classes has mnist, which no claim needs"),
        ("[classes]", "[class]", r"classes: Field required"),
        ("number = 1.7", "number = inf", r"gain_up_to.number: .* finite number"),
        ("number = 1.7", "number = nan", r"gain_up_to.number: .* finite number"),
        ('"us_net"', '"pareco"', r"gain_up_to: method and baseline are both 'pareco'"),
        ('["imagenet_mbv2"]', '["imagenet_mbv2", "imagenet_mbv2"]', r"names imagenet_mbv2 more th"),
        ("[gradient_steps]", "[gradient_steps", r"claims.toml: .*line 2"),
        ("[claim.gain]", "[claims.gain]", r"claim: Field required"),
        ("[claim.gain]", "[claim.gain]\n[claim.gain]", r"line 6"),
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


@pytest.mark.parametrize(
    ("replications", "others"),
    [
        (["cifar10_resnet20"], ["cifar10_resnet20"]),
        (["cifar10_resnet20", "cifar100_resnet20"], ["cifar100_resnet20", "cifar10_resnet56"]),
        (["cifar10_resnet20", "cifar10_resnet32"], ["cifar10_resnet56", "cifar10_resnet56"]),
        (["cifar10_resnet20"] * 5, None),
    ],
)
def test_runs_count_once(path: Path, replications: list[str], others: list[str] | None) -> None:
    """Twice the same runs would pass for independent ones, and narrow the interval of a mean."""
    fields = {"more_than": 0.0} | ({"compared_with": others} if others else {})
    path.write_text(claims_of("area_gain", replications, **fields))
    with pytest.raises(ValueError, match=r"claim 'gain' names cifar10+_resnet[25][06] more than"):
        read_claims(path)


def test_a_number_that_is_none_is_refused(path: Path) -> None:
    for number in ("nan", "inf", "-inf"):
        text = claims_of("area_gain", ["cifar10_resnet20"], more_than=0.0)
        path.write_text(text.replace("more_than = 0.0", f"more_than = {number}"))
        with pytest.raises(ValueError, match=r"area_gain\.more_than: .* finite number"):
            read_claims(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [("rows = 27", "rows = 0"), ("decimals = 0", "decimals = -1"), ("divisor = 8", "divisor = 0")],
)
def test_counts_of_a_published_cost_are_positive(path: Path, old: str, new: str) -> None:
    path.write_text(PATH.read_text().replace(old, new, 1))
    field = old.partition(" ")[0]
    with pytest.raises(ValueError, match=rf"us-net-macs\.published_cost\.{field}: .* greater"):
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


def test_the_shipped_budgets_are_those_into_which_the_smallest_network_fits() -> None:
    """20, 40, 60 and 80%, from the least multiple of 5 on that leaves none of them empty."""
    claims = [each for each in read_claims().claim.values() if isinstance(each, GainUpTo)]
    assert len(claims) == 3
    for claim in claims:
        (name,) = claim.replications
        config = experiment_named(name)
        assert claim.cost == config.cost
        net = _traced(config.network.name, config.data.image_size, 1000)
        full, least = (net.cost.of(claim.cost, w) for w in (net.space.largest, net.space.smallest))
        first = max(20, 5 * math.ceil(20 * float(least) / float(full)))
        assert claim.budgets == (first, *(each for each in (40, 60, 80) if each > first))
