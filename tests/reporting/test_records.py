"""Records and published numbers: written, read again, and refused by name where damaged."""

import csv
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from pareco.config import COSTS
from pareco.reporting.reading import InvalidRecord
from pareco.reporting.records import (
    COST_WORDS,
    LATENCY,
    Records,
    amount,
    published_for,
    read_published,
    read_records,
    write_records,
)
from pareco.schema import OBJECTIVES, PUBLISHED_TYPES
from replications.catalogue import experiment_named, experiment_names
from tests.reporting.conftest import FULL

FILES = (
    *("network.json", "fronts.csv", "curves.csv", "visits.csv"),
    *("environment.json", "latency.json", "config.json"),
)
ROOT = Path(__file__).parents[2]
REFERENCE = ROOT.parent / "shared" / "reference"
HOSTILE = 'a,"b"|<script>\'; & \\input{x} – 網'


@pytest.fixture
def folder(records: Records, tmp_path: Path) -> Path:
    """A folder of results with the records of `records`."""
    write_records(records, tmp_path / "digits")
    return tmp_path / "digits"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "records").iterdir()}


def test_records_are_read_as_they_were_written(records: Records, folder: Path) -> None:
    """Numbers to the 6 digits after the point that are written."""
    read = read_records(folder)
    assert set(contents(folder)) == set(FILES)
    assert read.experiment == records.experiment
    assert read.environment == records.environment
    assert read.latency == records.latency
    assert read.configuration == records.configuration
    assert read.configuration["common"]["training.epochs"] == 3
    assert read.runs == records.runs
    for name in ("fronts", "curves", "visits"):
        before, after = getattr(records, name), getattr(read, name)
        pd.testing.assert_frame_equal(after, before, rtol=0, atol=5.1e-7)


def test_earlier_records_lack_what_visits_were_last_gone_by(folder: Path) -> None:
    """Such columns are read with the types of those that are there, and written empty."""
    there = read_records(folder).visits
    assert there["gaps"].sum() > 0
    path = folder / "records" / "visits.csv"
    pd.read_csv(path).drop(columns=["asked_loss", "gaps"]).to_csv(path, index=False)
    for _ in range(2):
        read = read_records(folder)
        assert read.visits[["asked_loss", "gaps"]].isna().all(axis=None)
        assert (read.visits.dtypes == there.dtypes).all()  # so that both are written alike
        write_records(read, folder)


LOSSES = ["test_loss", "training_loss", "held_out_loss"]


def test_earlier_records_lack_the_losses_on_all_splits_but_one(folder: Path) -> None:
    """They are read as empty, and written so; where they are, they are numbers."""
    assert read_records(folder).fronts["held_out_loss"].notna().all()
    path = folder / "records" / "fronts.csv"
    table = pd.read_csv(path).drop(columns=LOSSES)
    table.to_csv(path, index=False)
    for _ in range(2):
        read = read_records(folder)
        assert read.fronts[LOSSES].isna().all(axis=None)
        assert read.experiment.search_split is None
        write_records(read, folder)
    assert path.read_text().splitlines()[0].count("held_out_loss") == 1
    path.write_text(path.read_text().replace("held_out_loss", "held_out_los"))
    assert read_records(folder).fronts["held_out_loss"].isna().all()
    path.write_text(path.read_text().replace(",512,", ",512,many"))
    with pytest.raises(InvalidRecord, match=r"fronts\.csv"):
        read_records(folder)


def test_records_are_stable_to_the_byte(folder: Path, tmp_path: Path) -> None:
    write_records(read_records(folder), tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    for name, content in contents(folder).items():
        assert b"\r" not in content, name
        assert content.endswith(b"\n"), name


def test_a_damaged_configuration_is_refused_and_none_is_known_to_be_none(folder: Path) -> None:
    path = folder / "records" / "config.json"
    for text in ("[]", '{"pareco": {}}', '{"common": 3}', "{"):
        path.write_text(text)
        with pytest.raises(InvalidRecord, match=r"config\.json"):
            read_records(folder)
    path.unlink()
    read = read_records(folder)
    assert read.configuration == {}
    write_records(read, folder)
    assert not path.exists()


def test_records_know_no_latency_but_in_its_file(folder: Path) -> None:
    """Nor with one that lacks a network; the file goes where there is none any more."""
    for name, content in contents(folder).items():
        content = content.replace(b'"latency_from"', b"").replace(b'"latency_table"', b"")
        assert (b"latency" in content or b"milliseconds" in content) is (name == "latency.json")
    assert LATENCY in read_records(folder).fronts
    path = folder / "records" / "latency.json"
    path.write_text(path.read_text().replace(FULL, "1 1 1 1 1"))
    read = read_records(folder)
    assert read.latency is None
    assert LATENCY not in {*read.fronts, *read.experiment.full_costs}
    write_records(read, folder)
    assert set(contents(folder)) == {*FILES} - {"latency.json"}


def test_an_experiment_survives_its_file(records: Records, tmp_path: Path) -> None:
    changes = {"budget_exempt": ("independent",), "cost": "params", "scale": "half the classes"}
    changed = replace(records, experiment=replace(records.experiment, **changes))
    write_records(changed, tmp_path / "digits")
    assert read_records(tmp_path / "digits").experiment == changed.experiment


def test_hostile_names_are_text_and_stay_as_they_are(records: Records, tmp_path: Path) -> None:
    name = {"method": {"pareco": HOSTILE, "random": "NaN", "uniform": "="}}
    changed = replace(
        records,
        experiment=replace(records.experiment, network=HOSTILE, scale=HOSTILE),
        fronts=records.fronts.replace(name),
        curves=records.curves.replace(name),
        visits=records.visits.replace({**name, "origin": {"model": HOSTILE}}),
    )
    write_records(changed, tmp_path / "digits")
    read = read_records(tmp_path / "digits")
    assert [method for method, _ in read.runs] == [HOSTILE, HOSTILE, "NaN", "NaN", "=", "="]
    assert read.experiment.network == HOSTILE
    assert list(read.curves["method"].unique()) == [HOSTILE, "NaN", "="]
    assert set(read.visits["origin"]) == {"uniform", "largest", HOSTILE, "random"}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_missing_or_something_else_is_named(folder: Path, name: str) -> None:
    """The last is None as pickle writes it."""
    for content in (b"", b"[1, 2]", b"{", b"\xff\xfe\x00", b"\x80\x04N."):
        (folder / "records" / name).write_bytes(content)
        with pytest.raises(InvalidRecord, match=rf"records/{name}"):
            read_records(folder)
    (folder / "records" / name).unlink()
    if name not in ("latency.json", "config.json"):
        with pytest.raises(InvalidRecord, match=rf"records/{name}.*No such file"):
            read_records(folder)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        ("fronts.csv", "search_loss", "loss", "search_loss"),
        ("fronts.csv", "16 16 32 32 64", "16 16 32 32", "4 counts for 5 groups"),
        ("fronts.csv", "16 16 32 32 64", "16 16 33 32 64", "33 channels in group 'layer2.0' of 32"),
        ("fronts.csv", "16 16 32 32 64", "16 0 32 32 64", "0 channels in group 'layer1.0' of 16"),
        ("fronts.csv", "16 16 32 32 64", "16 x 32 32 64", "'x'"),
        ("fronts.csv", ",4120000,", ",4120001,", "macs outside 1 to 4120000, the full network's"),
        ("fronts.csv", ",4120000,", ",0,", "macs outside 1 to"),
        ("fronts.csv", ",4120000,", ",1.5,", "."),
        ("fronts.csv", ",512,", ",,", "."),
        ("fronts.csv", "digits,pareco,", "digits, ,", "line 2: method is ' ', not a text"),
        ("network.json", '"digits"', '"../digits"', "is that of '../digits', not of its folder"),
        ("network.json", '"scale": "paper"', '"scale": "a\\nb"', "is not one line of text"),
        ("network.json", '"params"', '"others"', "full_costs: .*lacks 'params'"),
        ("curves.csv", "loss_smallest", "loss", "loss_smallest"),
        ("curves.csv", "pareco,0,20,", "pareco,0,,", "."),
        ("curves.csv", "pareco,0,20,", "pareco,0,20,inf,1\npareco,0,20,", "line 2: loss_largest"),
        ("visits.csv", "pareco,0,", "pareco,,", "."),
        ("visits.csv", "origin", "source", "origin"),
        ("network.json", '"macs"', '"watts"', "cost: Input should be 'macs', 'params'"),
        ("network.json", '"scale": "paper"', '"scale": ""', "scale: .*'' is not one line"),
        ("network.json", '"image_size"', '"size"', "image_size: Field required"),
        ("latency.json", '"cpu_threads"', '"threads"', "cpu_threads: Field required"),
        ("latency.json", "2.6", "-2.6", f"milliseconds.{FULL}: .* greater than 0"),
        ("latency.json", "2.6", "NaN", f"milliseconds.{FULL}: .* finite"),
        ("latency.json", "2.6", "Infinity", "finite"),
        ("latency.json", "2.6", '"fast"', "valid number"),
        ("latency.json", '"milliseconds": {', '"milliseconds": [], "others": {', "milliseconds"),
        ("environment.json", '"environments"', '"others"', "environments: Field required"),
        ("environment.json", '"damaged_images"', '"damaged"', "pareco.seed0.damaged_images: Field"),
        ("environment.json", "    0\n", "    1\n", "names an environment that is not there"),
    ],
)
def test_damage_is_named_with_its_file(
    folder: Path, name: str, old: str, new: str, message: str
) -> None:
    path = folder / "records" / name
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(InvalidRecord, match=rf"records/{name}.*(?:{message})"):
        read_records(folder)


def test_a_folder_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    elsewhere = folder.rename(tmp_path / "elsewhere")
    folder.symlink_to(elsewhere)
    assert read_records(folder).experiment.experiment == folder.name
    folder.unlink()
    elsewhere.rename(folder)
    elsewhere.symlink_to(folder)
    assert read_records(elsewhere).experiment.experiment == folder.name


@pytest.mark.parametrize("name", ["fronts", "curves", "visits"])
def test_records_may_have_no_curve_and_no_visit_but_have_networks(folder: Path, name: str) -> None:
    path = folder / "records" / f"{name}.csv"
    path.write_text(path.read_text().splitlines()[0] + "\n")
    if name == "fronts":
        with pytest.raises(InvalidRecord, match=r"fronts.csv: there is no network in it"):
            read_records(folder)
    else:
        assert getattr(read_records(folder), name).empty


ROW = {
    "network": "resnet8",
    "data": "cifar10",
    "image_size": "32",
    "classes": "10",
    "train_images": "50000",
    "test_images": "10000",
    "method": "uniform",
    "config": "width 1.0",
    "macs_millions": "4.1",
    "params_millions": "",
    "top1_error": "8.40",
    "source": "example.org, table 2",
    "note": "",
}


def published(folder: Path, *changes: dict[str, str], name: str = "some.csv") -> Path:
    """The results folder, with a published file of rows like ROW, each with changes."""
    (folder / "published").mkdir(exist_ok=True)
    with (folder / "published" / name).open("w", newline="") as file:
        writer = csv.DictWriter(file, PUBLISHED_TYPES)
        writer.writeheader()
        writer.writerows({**ROW, **change} for change in changes)
    return folder


def test_published_rows_are_typed_and_a_missing_cost_is_nan(tmp_path: Path) -> None:
    folder = published(tmp_path, {}, {"macs_millions": "", "params_millions": "0.27"})
    table = read_published(folder)
    assert table["macs_millions"].tolist()[0] == 4.1
    assert table["macs_millions"].isna().tolist() == [False, True]
    assert table["params_millions"].tolist()[1] == 0.27
    assert table["image_size"].tolist() == [32, 32]
    assert table["top1_error"].tolist() == [8.4, 8.4]
    assert table["note"].tolist() == ["", ""]


def test_published_files_come_one_after_the_other_and_ours_where_there_are_none(
    tmp_path: Path,
) -> None:
    pd.testing.assert_frame_equal(read_published(tmp_path), read_published(ROOT / "results"))
    published(tmp_path, {"method": "a"})
    table = read_published(published(tmp_path, {"method": "b"}, name="other.csv"))
    assert table["method"].tolist() == ["b", "a"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"source": " "}, "some.csv: line 3: source is ' ', not a text"),
        ({"network": ""}, "line 3: network is ''"),
        ({"macs_millions": "0"}, r"line 3: macs_millions is 0.0, not a number from 1e-06"),
        ({"params_millions": "inf"}, "line 3: params_millions is inf"),
        ({"top1_error": "101"}, "line 3: top1_error is 101.0, not a number from 0 to 100"),
        ({"top1_error": "inf"}, "line 3: top1_error is inf"),
        ({"image_size": "0"}, "line 3: image_size is 0"),
        ({"test_images": "0"}, "line 3: test_images is 0"),
        ({"classes": ""}, "some.csv: "),
        ({"top1_error": "eight"}, "some.csv: .*eight"),
        ({"top1_error": ""}, "some.csv: "),
        ({"macs_millions": "many"}, "some.csv: .*many"),
    ],
)
def test_damage_of_published_numbers_is_named(
    tmp_path: Path, change: dict[str, str], message: str
) -> None:
    with pytest.raises(InvalidRecord, match=message):
        read_published(published(tmp_path, {}, change))
    (tmp_path / "published" / "some.csv").write_text("network,data\nresnet8,cifar10\n")
    with pytest.raises(InvalidRecord, match=r"some.csv: .*'image_size'"):
        read_published(tmp_path)


def test_only_the_same_network_data_image_size_and_cost_compare(
    records: Records, tmp_path: Path
) -> None:
    others = [{"network": "resnet9"}, {"data": "cifar100"}, {"image_size": "16"}]
    table = read_published(published(tmp_path, *others, {"macs_millions": ""}, {"method": "this"}))
    counts = {"classes": 10, "train_images": 50_000, "held_out_images": 0, "test_images": 10_000}
    ours = replace(records.experiment, **counts)
    assert published_for(ours, table)["method"].tolist() == ["this"]
    held_out = replace(ours, train_images=45_000, held_out_images=5_000)
    assert published_for(held_out, table)["method"].tolist() == ["this"]
    for other in ({"classes": 9}, {"train_images": 45_000}, {"test_images": 9_999}):
        assert published_for(replace(ours, **other), table).empty
        assert published_for(replace(ours, **dict.fromkeys(other)), table).empty
    assert published_for(replace(ours, image_size=24), table).empty
    assert published_for(replace(ours, data="digits_rgb"), table).empty
    assert published_for(replace(ours, cost="activations"), table).empty


def test_what_is_kept_here_is_of_networks_and_data_that_our_experiments_train() -> None:
    table = read_published(ROOT / "results")
    configs = [experiment_named(name) for name in experiment_names()]
    ours = {(c.network.name, c.data.name, c.data.image_size) for c in configs}
    kept = set(table[["network", "data", "image_size"]].itertuples(index=False, name=None))
    assert kept < ours
    unpublished = {"cifar_resnet8", "cifar_vgg11", "cifar_vgg16", "lcnet_050"}
    unpublished |= {"mobilenetv2_050", "mobilenetv3_small_050", "convnext_atto"}
    assert {network for network, *_ in kept} == {each[0] for each in ours} - unpublished
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
    for path in (ROOT / "results" / "published").glob("*.csv"):
        for row in csv.DictReader(path.read_text().splitlines()):
            assert tuple(row[name] for name in names) in known, row


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (999, "999"),
        (16_300, "16.3 k"),
        (300_774_272, "301 M"),
        (999_700_000, "1 G"),
        (4_089_184_256, "4.09 G"),
    ],
)
def test_amounts_have_three_digits(count: int, text: str) -> None:
    assert amount(count) == text
    assert COST_WORDS["macs"].full(count) == f"{text} MACs"


def test_a_cost_with_a_unit_is_no_count() -> None:
    assert COST_WORDS[LATENCY].amount(3.2149) == "3.21 ms"
    latency = COST_WORDS[LATENCY].full(0.0123456)
    assert latency == "0.0123 ms latency (measured, of one image)"


def test_every_cost_has_words_and_a_plot_of_its_own() -> None:
    assert tuple(COST_WORDS) == (*COSTS, *OBJECTIVES, LATENCY)
    figures = [words.figure for words in COST_WORDS.values()]
    assert figures[0] == "error_vs_flops"
    assert figures[-1] == "error_vs_latency"
    assert figures[1:-2] == [f"error_vs_{cost}" for cost in COSTS[1:]]
    assert len({*figures}) == len(figures)
