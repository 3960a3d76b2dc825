"""Runs that start from full weights: the same for every method, known by what they are."""

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import pareco
from pareco.bundle.from_run import write_bundle
from pareco.config import Experiment
from pareco.models import create_model
from pareco.reporting.collection import collected_runs
from pareco.reporting.rendering import markdown
from pareco.reporting.tables import experiment_tables
from pareco.training import RunError, execute_run
from pareco.training import run as run_module
from pareco.training.preparation import initial_network, stored_experiment, untrained_network
from replications.__main__ import main
from replications.catalogue import method_named
from replications.reproducing import how_to_reproduce
from tests.experiments import TINY

ROOT = Path(__file__).parents[2]
STEPS = 14


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


@pytest.fixture
def full(tmp_path: Path) -> Path:
    """Return a file of full weights of the tiny network, with seven classes."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = create_model("cifar_resnet8", num_classes=7, in_chans=1, base_width=4)
    save_file(model.state_dict(), tmp_path / "full.safetensors")
    return tmp_path / "full.safetensors"


def starting(weights: Path | None, **changed: Any) -> Experiment:
    network = replace(TINY.network, weights=None if weights is None else str(weights), **changed)
    return replace(TINY, network=network)


def test_the_initial_network_has_the_files_weights_in_order_and_a_seeds_classifier(
    full: Path,
) -> None:
    ordered, plain = (
        initial_network(starting(full, order_channels=each), 10, 1, 3) for each in (True, False)
    )
    fresh, theirs = initial_network(TINY, 10, 1, 3), load_file(full)
    for name, tensor in plain.state_dict().items():
        expected = fresh.state_dict()[name] if name.startswith("fc.") else theirs[name]
        assert torch.equal(tensor, expected), name
    images = torch.randn(2, 1, 8, 8)
    for each in (ordered, plain):
        each.eval()
    # float32 sums of at most 144 products, in another order
    torch.testing.assert_close(ordered(images), plain(images), rtol=1e-4, atol=1e-5)
    kept, free = ordered.get_parameter("layer3.0.conv1.weight"), ordered.space.smallest
    filters = kept.detach().abs().sum((1, 2, 3))
    assert filters.tolist() == sorted(filters.tolist(), reverse=True)
    assert not torch.equal(kept, plain.get_parameter("layer3.0.conv1.weight"))
    assert untrained_network(starting(full), 10, 1).space.smallest == free


def test_every_method_and_every_set_of_weights_starts_from_them(
    full: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many channels as each network has, the first ones; `independent` has four networks."""
    given = initial_network(starting(full), 10, 1, 0).state_dict()
    first: list[tuple[tuple[int, ...], dict[str, Tensor]]] = []
    train = run_module.Trainer.train

    def watched(self: Any) -> None:
        state = {name: each.clone() for name, each in self.net.state_dict().items()}
        first.append((tuple(self.net.space.largest), state))
        train(self)

    monkeypatch.setattr(run_module.Trainer, "train", watched)
    for method in ("us_net", "independent"):
        execute_run(starting(full), method_named(method), 0, tmp_path / method)
    assert len({widths for widths, _ in first}) == 4
    assert len(first) == 5
    for _, state in first:
        assert state.keys() == given.keys()
        assert all(torch.equal(state[name], given[name]) for name in given)


def test_a_run_goes_on_wherever_its_weights_lie_and_with_no_others(
    full: Path, tmp_path: Path
) -> None:
    run, moved, other = tmp_path / "run", tmp_path / "moved.pt", tmp_path / "other.safetensors"

    def stop(report: Any) -> None:
        if report.step == 5:
            raise KeyboardInterrupt

    method = method_named("us_net")
    with pytest.raises(KeyboardInterrupt):
        execute_run(starting(full), method, 0, run, stop)
    config = json.loads((run / "config.json").read_text())
    known = config["network.started_from"]
    assert re.fullmatch("sha256:[0-9a-f]{64}", known)
    assert "network.weights" not in config
    assert str(full.parent) not in (run / "config.json").read_text()
    save_file({name: each + 1 for name, each in load_file(full).items()}, other)
    for weights, now in ((None, None), (other, "sha256:")):
        with pytest.raises(RunError, match=rf"network\.started_from: {known} there, {now}"):
            execute_run(starting(weights), method, 0, run)
    with pytest.raises(RunError, match=r"network\.order_channels: True there, False now"):
        execute_run(starting(full, order_channels=False), method, 0, run)
    with pytest.raises(ValueError, match="say where these weights are"):
        execute_run(stored_experiment(config), method, 0, run)
    moved.write_bytes(full.read_bytes())
    moved = moved.rename(tmp_path / "moved.safetensors")
    execute_run(starting(moved), method, 0, run)
    execute_run(starting(full), method, 0, tmp_path / "whole")
    ours, theirs = (load_file(each / "weights" / "0.safetensors")
                    for each in (run, tmp_path / "whole"))  # fmt: skip
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_results_and_bundles_say_what_they_started_from(full: Path, tmp_path: Path) -> None:
    run = tmp_path / "tiny" / "us_net" / "seed0"
    execute_run(starting(full), method_named("us_net"), 0, run)
    known = json.loads((run / "config.json").read_text())["network.started_from"]
    told = f"a file of SHA-256 {known[7:19]}..., channels ordered by importance"
    records, _ = collected_runs("tiny", tmp_path)
    assert records.experiment.started_from == told
    assert not records.experiment.published
    text = markdown(experiment_tables(records, records.fronts[:0].assign(source=""), "us_net"))
    assert f"**started from {told}; what these cost is not counted**" in text
    assert json.loads(records.experiment.to_json())["started_from"] == told
    assert "  # with --network.weights FILE" in how_to_reproduce(records)
    full.unlink()  # nothing that follows training needs it
    bundle = write_bundle(run, tmp_path / "tiny.pareco")
    assert bundle.origin["started_from"] == told
    assert pareco.load(tmp_path / "tiny.pareco").origin["started_from"] == told


def test_the_page_on_full_weights_runs_as_it_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = blocks_run("python", tmp_path, monkeypatch)
    assert names["same"]
    assert names["net"].get_parameter("conv_stem.weight").shape == (32, 3, 3, 3)


@pytest.mark.slow
def test_the_commands_on_full_weights_run_as_they_stand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    blocks_run("console", tmp_path, monkeypatch)
    told = "started from a file of SHA-256 "
    assert told in capsys.readouterr().out
    tables = {path.parent.name: path.read_text() for path in tmp_path.glob("results/*/table.md")}
    assert {name: told in text for name, text in tables.items()} == {
        "full-smoke": False,
        "scratch-smoke": False,
        "as-they-are-smoke": True,
        "ordered-smoke": True,
    }


def blocks_run(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run the blocks of docs/pretrained.md that are of a kind; return what they have named."""
    monkeypatch.chdir(folder)
    text, names = (ROOT / "docs" / "pretrained.md").read_text(), dict[str, Any]()
    assert len(text.splitlines()) <= 120
    blocks = re.findall(rf"^```{kind}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        if kind == "python":
            exec(block, names)
            continue
        for line in block.replace("\\\n", " ").splitlines():
            python, option, program, *arguments = shlex.split(line)
            assert (python, option, program) == ("python", "-m", "replications")
            assert main(arguments) == 0
    return names
