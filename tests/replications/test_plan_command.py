"""`plan`, the page of costs, and `--equal compute`; no network runs."""

import hashlib
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

import replications
from pareco.config import Experiment
from pareco.models import create_model
from pareco.reporting.records import COST_WORDS
from pareco.training.preparation import planner_before
from replications import run as run_module
from replications.__main__ import main
from replications.catalogue import (
    experiment_named,
    experiment_names,
    method_named,
)
from replications.claim_file import AreaGain, GainUpTo, read_claims
from replications.plan_command import PlanCommand, fast_row, planned_names, section
from replications.run import RunCommand
from replications.site import SHEETS
from tests.experiments import TINY, quick

ROOT = Path(run_module.__file__).parent.parent
GAINS = (GainUpTo, AreaGain)


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    folders = [*replications.__path__, str(Path(__file__).parent)]
    monkeypatch.setattr(replications, "__path__", folders)
    monkeypatch.chdir(tmp_path)


def test_a_plan_says_what_runs_take(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--seeds", "0", "1"]) == 0
    title, scale, images, _, header, *rows = capsys.readouterr().out.splitlines()
    assert title == "tiny: cifar_resnet8 on digits, 8 x 8 pixels"
    assert scale == "scale: paper"
    assert images.startswith("700 training images, 100 for the search, 997 test images; 2 epochs")
    assert header.split()[:5] == ["method", "runs", "steps", "training", "search"]
    assert [row.split()[:3] for row in rows[:2]] == [["pareco", "2", "14"], ["us_net", "2", "14"]]
    assert rows[1].split()[-7] == "100"  # percent of US-Net's: before two words for each of three
    assert "% of us_net" in header
    assert main(["plan", "tiny", "--method", "pareco"]) == 0
    assert "% of pareco" in capsys.readouterr().out  # where us_net is not planned
    assert rows[2].split()[:4] == ["all", "runs", "4", "56"]
    assert list(tmp_path.iterdir()) == []  # nothing is written


def test_a_plan_says_what_weights_runs_start_from(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4)
    save_file(model.state_dict(), tmp_path / "a.safetensors")
    assert main(["plan", "tiny", "--network.weights", "a.safetensors"]) == 0
    _, scale, *_ = capsys.readouterr().out.splitlines()
    digest = hashlib.sha256((tmp_path / "a.safetensors").read_bytes()).hexdigest()
    assert scale == (
        f"scale: paper, from given weights; started from a file of SHA-256 {digest[:12]}..., "
        "channels ordered by importance, not counted"
    )
    known = ["--network.started-from", f"sha256:{digest}", "--network.no-order-channels"]
    assert main(["plan", "tiny", *known, "--json"]) == 0  # which does not need the file
    plan = json.loads(capsys.readouterr().out)
    assert plan["scale"] == "paper, from given weights"
    assert plan["started_from"].endswith(f"{digest[:12]}..., channels in the order they have there")


def test_a_plan_in_json_has_each_run_to_the_mac(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "tiny", "--json", "--method", "us_net", "--training.epochs", "3"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["scale"] == "paper, changed: training.epochs 3"
    (run,) = plan["runs"]
    assert (run["method"], run["seed"], run["gradient_steps"]) == ("us_net", 0, 21)
    assert (run["images"], run["images_decoded"]) == (2100, 700 + 100 + 997)
    training = run["macs"]["training"]
    assert training["backward_macs"] == 2 * training["forward_macs"] > 0
    net = planner_before(experiment_named("tiny"))
    weights = 4 * net.parameters
    assert (
        weights < run["disk_bytes"]["kept"] < run["disk_bytes"]["while_running"] - 6 * weights + 1
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["plan"], "plan needs the name of an experiment first; known: cifar100_resnet20"),
        (["plan", "tinny"], "unknown experiment 'tinny'"),
        (["plan", "tiny", "--method", "us_ned"], "unknown method 'us_ned'"),
        (
            ["plan", "tiny", "--training.batch-size", "900"],
            "training.batch_size 900 exceeds the 700",
        ),
        (["plan", "tiny", "--search.budget", "-1"], "budget must not be negative, got -1.0"),
        (["plan", "tiny", "--search.budget", "nan"], "budget must"),
        (["plan", "tiny", "--training.macs", "0"], "macs must be at least 1, got 0"),
        (["plan", "tiny", "--training.macs", "7"], "training.macs 7: choosing the front of pareco"),
        (["plan", "own"], "one of your own needs --images FOLDER"),
        (["plan", "imagenet_mbv2", "--images", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def configured(*arguments: str) -> Experiment:
    from pareco.arguments import chosen_command

    commands = {
        "run": RunCommand.defaults([*arguments], "run"),
        "plan": PlanCommand.defaults([], "plan"),
    }
    return chosen_command(commands, arguments, prog="x", description="y").configured()


def test_equal_compute_is_another_experiment_with_the_first_methods_macs() -> None:
    experiment = configured("run", "tiny", "--equal", "compute")
    macs = planner_before(TINY).plan(method_named("pareco"), 0).before_test
    assert (experiment.name, experiment.training.macs) == ("tiny-compute", macs)
    assert experiment.scale == f"paper, equal compute: {macs:,} MACs before the test"
    later = configured("run", "tiny", "--equal", "compute", "--seeds", "3", "4")
    assert later.training.macs == macs  # so that they can be added
    given = configured("run", "tiny", "--equal", "compute", "--training.macs", "900000000")
    assert (given.name, given.training.macs) == ("tiny-compute", 900_000_000)
    assert configured("run", "tiny").training.macs is None
    named = configured("run", "tiny", "--equal", "compute", "--name", "tiny-compute")
    assert named.name == "tiny-compute"
    smoke = configured("run", "tiny", "--equal", "compute", "--scale", "smoke")
    assert smoke.name == "tiny-compute-smoke"
    first = configured("run", "tiny", "--equal", "compute", "--methods", "us_net", "pareco")
    assert first.training.macs == planner_before(TINY).plan(method_named("us_net"), 0).before_test


def rows_of(text: str) -> list[list[str]]:
    """Return the cells of all tables of a page, without marks of code."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip(" `") for cell in line.strip("| ").split("|")] for line in lines]


def test_the_page_of_the_paper_has_the_cost_and_the_state_of_each_piece() -> None:
    """Operations as the page of costs has them, and as its state what stands in results/."""
    claims, docs = read_claims(), ROOT / "docs"
    sections = (docs / "cost-of-the-paper.md").read_text().split("\n## ")[1:-1]
    costs = {text.partition(":")[0]: rows_of(text)[-1][-1].split() for text in sections}
    planned = {
        name: float(costs[name][0]) * {"E": 1e18, "P": 1e15}[costs[name][1]]
        for name in claims.gradient_steps
    }
    ran = {name for name in planned if (ROOT / "results" / name / "records").exists()}
    rows = rows_of((docs / "paper.md").read_text())
    for name, operations in planned.items():
        ((_, command, cost, figure, state),) = [row for row in rows if row[0] == name]
        assert float(cost) == pytest.approx(operations)
        assert command == f"make replicate-{name.replace('_', '-')}"
        assert figure == f"{COST_WORDS[experiment_named(name).cost].figure}.png"
        assert (state == "not run") is (name not in ran)
    gains = {key: each for key, each in claims.claim.items() if isinstance(each, GAINS)}
    pieces = {key: claim.experiments for key, claim in gains.items()}
    pieces |= {f"{family}-paper.png": names for family, names in SHEETS.items()}
    for key, names in pieces.items():
        (row,) = [row for row in rows if key in (row[0].partition("`")[0], row[-2])]
        assert float(row[2]) == pytest.approx(sum(map(planned.__getitem__, names)), rel=0.005)
        assert row[3] == ("make results" if key.endswith(".png") else "make claims")
        assert (row[5] == "not run") is ran.isdisjoint(names)


@pytest.mark.parametrize("name", quick(["digits", "cifar10_resnet20"], "digits"))
def test_the_page_of_costs_is_what_the_code_says(name: str) -> None:
    """To plan an experiment again takes seconds, and all of them minutes."""
    page = (ROOT / "docs" / "cost-of-the-paper.md").read_text()
    assert section(name) in page
    assert f"\n{fast_row(name)}\n" in page
    for name in experiment_names():
        planned = name in planned_names() and name != "tiny"
        assert (f"\n## {name}: " in page) is (f"\n| {name} | " in page) is planned
