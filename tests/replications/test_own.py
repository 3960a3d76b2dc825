"""The experiment on images of one's own: defaults from what the folder holds, names, refusals."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pareco import processes
from pareco.config import Experiment
from pareco.data.contents import Contents
from replications.__main__ import main
from replications.catalogue import data_set_name, experiment_named, name_at
from replications.own.experiment import EXPERIMENT, SCALES, fitted
from tests.data.pictures import CLASSES, written_folders, written_tars

NETWORK = ("--network.name", "cifar_resnet8", "--data.image-size", "16")


def seen(train: int, test: int = 0, classes: int = 10) -> Contents:
    """Return contents with so many images, of each class as many."""
    return Contents(
        layout="class folders",
        classes=tuple(map(str, range(classes))),
        train_counts=(train // classes,) * classes,
        test_counts=(test // classes,) * classes,
        opened=0,
        sizes={},
        modes={},
        unreadable=(),
        left_out=(),
    )


def widths_visited(experiment: Experiment) -> float:
    training, images = experiment.training, experiment.data.train_images or 0
    steps = images // training.batch_size * training.epochs
    return steps / training.ask_every_steps * training.sampled_per_step


@pytest.mark.parametrize(
    ("images", "epochs", "batch_size", "calibrated"),
    [(200, 89, 16, 192), (1_000, 40, 64, 512), (10_000, 13, 128, 512)],
)
def test_epochs_and_batches_scale_with_the_training_images(
    images: int, epochs: int, batch_size: int, calibrated: int
) -> None:
    """40 sqrt(1000 / n) epochs; an eighth of the images, as a power of two, in a batch."""
    search = min(images // 4, 1000)  # a fifth of all
    experiment = fitted(seen(images + search, test=100), "pets")
    assert experiment.data.train_images == images
    training = experiment.training
    assert (training.epochs, training.batch_size) == (epochs, batch_size)
    assert training.warmup_epochs == epochs / 20
    assert experiment.evaluation.calibration_images == calibrated
    assert experiment.scale == f"own: {epochs} epochs of {images:,} images"
    steps = images // batch_size * epochs
    assert widths_visited(experiment) == pytest.approx(min((12 * steps) ** 0.5, 1000), rel=0.1)


@pytest.mark.parametrize("classes", [2, 10, 200, 3000])
@pytest.mark.parametrize("each", [5, 6, 13, 60, 700])
@pytest.mark.parametrize("test", [0, 3])
@pytest.mark.parametrize("scale", ["paper", "short", "cpu"])
def test_any_number_of_images_gives_a_configuration_that_holds(
    classes: int, each: int, test: int, scale: str
) -> None:
    """Splits with every class, at least a batch, whole batches of calibration."""
    contents = seen(classes * each, classes * test, classes)
    experiment = fitted(contents, "pets")
    experiment = SCALES[scale](experiment) if scale in SCALES else experiment
    data = experiment.data
    train, held, tested = data.train_images or 0, data.search_images, data.test_images or 0
    assert min(train, held) >= classes
    assert tested >= classes
    assert train + held + (0 if test else tested) <= classes * each
    assert 2 <= experiment.training.batch_size <= train
    assert experiment.evaluation.calibration_images <= train
    assert widths_visited(experiment) > 0
    if scale == "paper":
        assert train + held + tested == classes * (each + test)


def test_the_experiment_as_it_stands_is_that_of_1000_images() -> None:
    contents = replace(seen(1_250, test=250), classes=tuple("0123456789"))
    assert replace(fitted(contents, "own"), name="own") == EXPERIMENT


def test_a_class_with_too_few_images_is_named() -> None:
    contents = replace(seen(100), train_counts=(10,) * 9 + (4,))
    with pytest.raises(ValueError, match="the class 9 has 4 training images, at least 5"):
        fitted(contents, "pets")


def test_each_folder_has_results_of_its_own(tmp_path: Path) -> None:
    one = str(written_folders(tmp_path / "My pets (2024)"))
    other = str(written_tars(tmp_path / "imagenet"))
    assert data_set_name(one) == "My-pets-2024"
    assert data_set_name(other) == "imagenet-images"  # which it is not
    assert data_set_name(str(tmp_path / "pets-cpu")) == "pets-cpu-images"  # pets, at a scale
    assert data_set_name("hfds/someone/flowers") == "flowers"
    with pytest.raises(ValueError, match=r"name this data set, --data\.name NAME"):
        data_set_name(str(tmp_path / "\u82b1"))
    experiments = [experiment_named("own", "short", each) for each in (one, other)]
    assert [each.name for each in experiments] == [
        "own-My-pets-2024-short",
        "own-imagenet-images-short",
    ]
    assert experiment_named("own", images=one, data_name="roses").name == "own-roses"
    assert experiment_named("own").name == name_at("own", "paper") == "own"


@pytest.fixture
def pets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    monkeypatch.chdir(tmp_path)
    return str(written_folders(tmp_path / "pets", train=12))


@pytest.mark.slow
def test_images_of_ones_own_are_trained_on_and_reported(
    pets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--training.epochs", "1", "--training.warmup-epochs", "0", "--decoding-workers", "0"]
    assert main(["run", "own", "--images", pets, *NETWORK, *short, "--methods", "us_net"]) == 0
    shown = capsys.readouterr().out
    assert "pets: 3 classes, 29 training images, 7 for the search, held out, 12 test" in shown
    config = json.loads(Path("runs/own-pets/us_net/seed0/config.json").read_text())
    assert (config["data.train_images"], config["training.batch_size"]) == (29, 16)
    result = json.loads(Path("runs/own-pets/us_net/seed0/result.json").read_text())
    counts = {"classes": 3, "train_images": 29, "held_out_images": 7, "test_images": 12}
    assert {name: result[name] for name in counts} == counts
    table = Path("results/own-pets/table.md").read_text()
    assert "pets: 3 classes, 29 training images" in table
    assert "published [" not in table
    page = Path("results/index.html").read_text()
    command = "make replicate-own IMAGES=FOLDER DATA_NAME=pets NETWORK=cifar_resnet8 SIZE=16"
    assert command in page
    assert "3 classes, 29 training images, 7 for the search, held out, 12 test images" in page


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["own"],
            "unknown data set 'own'. Known: digits, digits_rgb, cifar10, cifar100, imagenet; ",
        ),
        (
            ["own", "--scale", "smoke", "--images", "pets"],
            "images take --scale paper or fast or short or cpu",
        ),
        (
            ["imagenet_mbv2", "--scale", "smoke", "--images", "pets"],
            "brings its own data and takes",
        ),
        (["imagenet_mbv2", "--images", "pets"], "3 classes, imagenet has 1000; a data set of your"),
        (
            ["own", "--images", "pets", "--data.name", "cifar10"],
            "3 classes, cifar10 has 10; a data",
        ),
        (["digits", "--images", "pets"], "digits is embedded in scikit-learn: no --images"),
        (["own", "--images", "nowhere"], "--images nowhere: no such folder; meanwhile"),
        (["own", "--images", "pets/train/ant/000.png"], "is a file: give its folder; meanwhile"),
    ],
)
def test_what_is_asked_wrongly_is_refused_in_a_line(
    pets: str, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["run", *arguments]) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert {path.name for path in Path().iterdir()} == {Path(pets).name}


def test_ones_own_images_may_be_had_by_the_recipe_of_another_experiment(pets: str) -> None:
    sizes = ["--training.batch-size", "16", "--evaluation.batch-size", "8", "--data.search-images"]
    flags = [*NETWORK, *sizes, "6", "--evaluation.calibration-images", "16", "--methods", "us_net"]
    asked = ["run", "imagenet_mbv2", "--images", pets, "--data.name", "pets", *flags]
    assert main([*asked, "--check", "1"]) == 0


def test_what_is_seen_is_told_for_people_and_as_json(
    pets: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(pets) / "train" / "ant" / "notes.txt").write_text("left out")
    assert main(["data", pets]) == 0
    shown = capsys.readouterr().out
    for line in (
        "layout: class folders",
        "3 classes, in this order: ant, bee, cow",
        "training images: 36 (12 of a class)",
        "test images: 12 (4 of a class)",
        "48 of 48 images looked at",
        "  width x height: 16 x 16 (48)",
        "  modes: RGB (48)",
    ):
        assert line in shown.splitlines()
    assert ": train/ant/notes.txt" in shown
    assert main(["data", pets, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["classes"], told["train_images"], told["test_images"]) == (list(CLASSES), 36, 12)
    assert [each["name"] for each in told["left_out"]] == ["train/ant/notes.txt"]


@pytest.mark.slow
def test_speed_is_told_for_one_process_and_for_every_core(
    pets: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "usable_cores", lambda: 2)
    speed = ["--speed", "--size", "8", "--images", "64"]
    assert main(["data", pets, *speed]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-3] == "images decoded a second, as for training at 8 x 8 pixels:"
    said = [line.split(":") for line in lines[-2:]]
    assert [name for name, _ in said] == ["  1 process", "  2 processes"]
    for _, told in said:
        rate, seconds = re.fullmatch(r" ([0-9,]+), (\S+) s for a step of 256", told).groups()  # type: ignore[union-attr]
        assert float(rate.replace(",", "")) * float(seconds) == pytest.approx(256, rel=0.01)
    assert main(["data", pets, *speed, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images_per_second"].keys() == {"1", "2"}
    assert main(["data", pets, "--size", "2"]) == 2
    assert "size must be at least 8, got 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("folder", "message"),
    [
        ("nowhere", "--images nowhere: no such folder"),
        ("pets/train/ant/000.png", "is a file: give its folder"),
        ("pets/train/ant", "holds 000.png, 001.png, "),
        ("empty", "holds nothing, which is no data set. Known layouts: docs/data.md"),
        ("", "no such folder"),
    ],
)
def test_where_there_are_no_images_a_line_says_so(
    pets: str, folder: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    (Path(pets).parent / "empty").mkdir()
    assert main(["data", folder]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert message in said
    assert len(said.splitlines()) == 1
