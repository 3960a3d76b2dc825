"""Published numbers: read whole or refused, each with a source, each as in the reference."""

import csv
from collections.abc import Callable
from pathlib import Path

import pytest

from pareco.reporting.records import (
    PUBLISHED_TYPES,
    ExperimentRecord,
    InvalidRecord,
    published_for,
    read_published,
)
from replications.catalogue import experiment_named, experiment_names
from tests.reporting.conftest import FULL_COSTS

ROOT = Path(__file__).parents[2]
PUBLISHED = ROOT / "results" / "published"
REFERENCE = ROOT.parent / "shared" / "reference"
ROW = {
    "network": "resnet8",
    "data": "cifar10",
    "image_size": "32",
    "method": "uniform",
    "config": "width 1.0",
    "macs_millions": "4.1",
    "params_millions": "",
    "top1_error": "8.40",
    "source": "example.org, table 2",
    "note": "",
}

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Return a function that writes rows like ROW, each with changes, and returns the folder."""

    def write(*changes: dict[str, str]) -> Path:
        with (tmp_path / "some.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, PUBLISHED_TYPES)
            writer.writeheader()
            writer.writerows({**ROW, **change} for change in changes)
        return tmp_path

    return write


def experiment(**changes: object) -> ExperimentRecord:
    fields: dict = {
        "experiment": "e",
        "network": "resnet8",
        "data": "cifar10",
        "image_size": 32,
        "scale": "short: fewer epochs",
        "cost": "macs",
        "full_costs": FULL_COSTS,
        "groups": (),
    }
    return ExperimentRecord(**{**fields, **changes})


def test_rows_are_typed_and_a_missing_cost_is_nan(write: Write) -> None:
    table = read_published(write({}, {"macs_millions": "", "params_millions": "0.27"}))
    assert table["macs_millions"].tolist()[0] == 4.1
    assert table["macs_millions"].isna().tolist() == [False, True]
    assert table["params_millions"].tolist()[1] == 0.27
    assert table["image_size"].tolist() == [32, 32]
    assert table["top1_error"].tolist() == [8.4, 8.4]
    assert table["note"].tolist() == ["", ""]


def test_files_come_one_after_the_other(write: Write, tmp_path: Path) -> None:
    write({"method": "b"})
    (tmp_path / "some.csv").rename(tmp_path / "other.csv")
    table = read_published(write({"method": "a"}))
    assert table["method"].tolist() == ["b", "a"]


def test_without_files_there_is_an_empty_table(tmp_path: Path) -> None:
    table = read_published(tmp_path / "published")
    assert list(table.columns) == list(PUBLISHED_TYPES)
    assert published_for(experiment(), table).empty


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": " "}, r"some.csv, line 3: source is empty"),
        ({"network": ""}, r"line 3: network is empty"),
        ({"macs_millions": "0"}, r"line 3: macs_millions is no positive number: 0.0"),
        ({"params_millions": "inf"}, r"line 3: params_millions is no positive number: inf"),
        ({"top1_error": "101"}, r"line 3: top1_error is no percentage: 101"),
        ({"top1_error": "inf"}, r"line 3: top1_error is no percentage: inf"),
        ({"image_size": "0"}, r"line 3: image_size is 0"),
        ({"top1_error": "eight"}, r"some.csv: .*eight"),
        ({"top1_error": ""}, r"some.csv: "),
        ({"macs_millions": "many"}, r"some.csv: .*many"),
    ],
)
def test_damage_is_named(write: Write, change: dict[str, str], message: str) -> None:
    with pytest.raises(InvalidRecord, match=message):
        read_published(write({}, change))


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    (tmp_path / "some.csv").write_text("network,data\nresnet8,cifar10\n")
    with pytest.raises(InvalidRecord, match=r"some.csv: its columns are not network, data"):
        read_published(tmp_path)


def test_only_the_same_network_data_and_image_size_compare(write: Write) -> None:
    others = [{"network": "resnet9"}, {"data": "cifar100"}, {"image_size": "16"}]
    unknown = {"macs_millions": ""}
    published = read_published(write(*others, unknown, {"method": "this"}))
    assert published_for(experiment(), published)["method"].tolist() == ["this"]
    assert published_for(experiment(image_size=24), published).empty
    assert published_for(experiment(data="digits_rgb"), published).empty


def test_what_is_kept_here_is_of_networks_and_data_that_our_experiments_train() -> None:
    table = read_published(PUBLISHED)
    configs = [experiment_named(name) for name in experiment_names()]
    ours = {(c.network.name, c.data.name, c.data.image_size) for c in configs}
    kept = set(table[["network", "data", "image_size"]].itertuples(index=False, name=None))
    assert kept < ours
    assert {network for network, *_ in kept} == {each[0] for each in ours} - {"cifar_resnet8"}
    us_net = table[table["method"] == "us_net"]
    assert len(us_net) == 27
    assert us_net["macs_millions"].nunique() == 24


@pytest.mark.skipif(not REFERENCE.exists(), reason=f"published numbers not found at {REFERENCE}")
def test_what_is_kept_here_is_in_the_reference() -> None:
    known = {
        (
            *(row["config"], row["mflops"], row["params_m"]),
            *(f"{100 - float(row['top1_acc']):.2f}", row["source"]),
        )
        for path in REFERENCE.glob("*.csv")
        for row in csv.DictReader(path.read_text().splitlines())
        if row["top1_acc"]
    }
    names = ("config", "macs_millions", "params_millions", "top1_error", "source")
    for path in PUBLISHED.glob("*.csv"):
        for row in csv.DictReader(path.read_text().splitlines()):
            assert tuple(row[name] for name in names) in known, row
