"""What stands side by side: at which scales, from how many experiments, and what is said of it."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from matplotlib.figure import Figure

from pareco.reporting.records import Records
from replications import site
from replications.catalogue import experiment_named
from replications.claim_file import AreaGain, read_claims
from tests.reporting.claim_records import records_of

CPU = experiment_named("cifar10_resnet20", "cpu").scale


def record(experiment: str, scale: str = "paper", **changes: Any) -> Records:
    return records_of({("pareco", 0): [(200, 40.0)]}, experiment=experiment, scale=scale, **changes)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> Mock:
    """Return what takes the place of the figure, and hears of what would be drawn."""
    figure = Mock(return_value=Figure())
    monkeypatch.setattr(site, "side_by_side_figure", figure)
    monkeypatch.setattr(site, "write_figure", lambda figure, path: path.touch())
    return figure


def panels(drawn: Mock) -> tuple[list[str], Sequence[str]]:
    """Return the experiments that were drawn last, and those that are named as absent."""
    found, absent, *_ = drawn.call_args.args
    return [each.experiment.experiment for each in found], absent


def test_the_papers_sheets_are_drawn_from_one_experiment_on(tmp_path: Path, drawn: Mock) -> None:
    """Those of its claim on layer-wise widths: by FLOPs, no network of ours."""
    claim = read_claims().claim["layer-wise-widths"]
    assert isinstance(claim, AreaGain)
    published = {name for names in site.SHEETS.values() for name in names}
    assert published == set(claim.replications)
    others = [record("imagenet_mbv2_memory", cost="peak_activations"), record("cifar10_vgg")]
    assert site._write_sheets(others, tmp_path) == []
    assert site._write_sheets([*others, record("imagenet_mbv3")], tmp_path) == ["imagenet-paper"]
    assert panels(drawn) == (["imagenet_mbv3"], ["imagenet_mbv2", "imagenet_resnet18"])
    assert [path.name for path in sorted(tmp_path.iterdir())] == [
        "imagenet-paper.png",
        "imagenet-paper.svg",
    ]
    assert site._write_sheets([record("cifar10_resnet20")], tmp_path) == ["cifar-paper"]
    assert len(panels(drawn)[1]) == 7
    assert not (tmp_path / "imagenet-paper.png").exists()  # of what is no longer there


def test_a_sheet_of_another_scale_has_two_and_others_of_the_family(
    tmp_path: Path, drawn: Mock
) -> None:
    memory = record("imagenet_mbv2_memory-fast", cost="peak_activations")
    (tmp_path / "imagenet-fast.png").touch()
    assert site._write_sheets([record("imagenet_mbv2-fast"), memory], tmp_path) == []
    assert list(tmp_path.iterdir()) == []
    two = [record("cifar10_resnet20-cpu", CPU), record("cifar10_vgg-cpu", CPU)]
    assert site._write_sheets(two, tmp_path) == ["cifar-cpu"]
    assert panels(drawn)[0] == ["cifar10_resnet20-cpu", "cifar10_vgg-cpu"]


@pytest.mark.parametrize(
    ("scale", "said"),
    [
        (CPU, ""),
        (f"{CPU}, changed: training.epochs 3", "changed: training.epochs 3"),
        (f"{CPU}; batch norm in each of 8 processes", "batch norm in each of 8 processes"),
        (f"{CPU}, from given weights", "from given weights"),
        ("cpu: 4 epochs of 10 images", "cpu: 4 epochs of 10 images"),
    ],
    ids=["as planned", "changed", "apart", "weights", "of an earlier version"],
)
def test_what_a_scale_of_that_name_does_not_have_is_said(
    tmp_path: Path, drawn: Mock, scale: str, said: str
) -> None:
    """Under a scale's own name the configuration may be another."""
    equal = f"{scale}, equal compute: 7,000 MACs before the test"
    compute = record("cifar10_resnet20-compute-cpu", equal, equal_macs=7_000)
    site._write_sheets([record("cifar10_resnet20-cpu", scale), compute], tmp_path)
    departures = drawn.call_args.args[-1]
    assert departures == {"cifar10_resnet20-cpu": said, "cifar10_resnet20-compute-cpu": said}
