"""Whole runs of a tiny experiment: identical pipelines, exact resume, records."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pareco.config import Experiment, Machine
from pareco.data.loading import TrainingLoader, load_data
from pareco.methods import Method
from pareco.models import create_model
from pareco.processes import Processes
from pareco.slimmable import make_slimmable
from pareco.training import NonFiniteLoss, RunError, RunFolder, StepReport, execute_run
from pareco.training import run as runner_module
from pareco.training import trainer as trainer_module
from pareco.training.trainer import Trainer
from replications.catalogue import method_named, method_names
from tests.experiments import TINY

STEPS = 14  # 2 epochs of 700 images in batches of 100
SAVING = Machine(checkpoint_minutes=0)


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def digest(*tensors: torch.Tensor) -> str:
    content = b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


def records(folder: Path) -> dict[str, str]:
    """Return what a finished run must repeat exactly."""
    files = ("front.csv", "visits.csv", "metrics.jsonl")
    weights = {file.name: file.read_bytes().hex() for file in sorted(folder.glob("weights/*"))}
    return {name: (folder / name).read_text() for name in files} | weights


class Spy:
    """Notes what every gradient step, learning rate and evaluation of a run was given."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.batches: list[str] = []
        self.passes: list[int] = []
        self.rates: list[float] = []
        self.initial: list[str] = []
        self.evaluated: set[str] = set()
        self.calibrated: set[str] = set()
        step, evaluator = trainer_module.accumulate_gradients, runner_module.Evaluator

        def spied_step(net: Any, images: Any, labels: Any, widths: Any, **options: Any) -> Any:
            if not self.batches:
                self.initial.append(digest(*(p.detach() for p in net.parameters())))
            self.batches.append(digest(images, labels))
            self.passes.append(len(widths))
            return step(net, images, labels, widths, **options)

        spy = self

        class SpiedEvaluator(evaluator):
            def on(self, images: Any, widths: Any) -> Any:
                spy.evaluated.add(digest(images.indices))
                return super().on(images, widths)

            def search_losses(self, widths: Any) -> Any:
                spy.calibrated.add(digest(self.calibration.indices))
                spy.evaluated.add(digest(self.search.indices))
                return super().search_losses(widths)

        monkeypatch.setattr(trainer_module, "accumulate_gradients", spied_step)
        monkeypatch.setattr(runner_module, "Evaluator", SpiedEvaluator)

    def note_rate(self, report: StepReport) -> None:
        self.rates.append(report.learning_rate)


def test_every_method_goes_through_the_same_pipeline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Spy] = {}
    for name in method_names():
        method = method_named(name)
        with monkeypatch.context() as patch:
            seen[name] = Spy(patch)
            execute_run(TINY, method, 0, tmp_path / name, seen[name].note_rate)
    reference = seen["us_net"]
    assert reference.passes == [4] * STEPS
    assert len(set(reference.batches)) == STEPS
    assert len(reference.evaluated) == 2  # the search images and the test images
    for name, spy in seen.items():
        sets_of_weights = len(spy.batches) // STEPS
        assert sets_of_weights == (4 if method_named(name).budget_exempt else 1)
        assert spy.batches == reference.batches * sets_of_weights
        assert spy.rates == reference.rates * sets_of_weights
        assert sum(spy.passes) == sum(reference.passes)
        assert spy.evaluated == reference.evaluated
        assert spy.calibrated == reference.calibrated
        if name != "s_net":  # which has batch-norm weights of its own beside the shared ones
            assert spy.initial == reference.initial


def test_a_finished_run_is_complete_and_left_alone(tmp_path: Path) -> None:
    folder = tmp_path / "runs"
    execute_run(TINY, method_named("pareco"), 0, folder)
    assert sorted(file.name for file in folder.iterdir()) == [
        *(".lock", "DONE", "config.json", "env.json", "front.csv"),
        *("metrics.jsonl", "result.json", "splits.json", "visits.csv", "weights"),
    ]
    result = json.loads((folder / "result.json").read_text())
    assert result["budget"]["gradient_steps"] == STEPS
    assert result["budget"]["passes"] == 4 * STEPS
    assert result["budget"]["widths_visited"] >= 14
    splits = json.loads((folder / "splits.json").read_text())
    assert {name: sum(b - a for a, b in runs) for name, runs in splits.items()} == {
        "train": 700,
        "search": 100,
        "test": 997,
    }
    session = json.loads((folder / "env.json").read_text())[0]
    assert session["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    execute_run(TINY, method_named("pareco"), 0, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_run_is_published_before_its_tracker_closes_and_its_end_mark_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = tmp_path / "tiny" / "pareco" / "seed0", []

    class Spied(runner_module.Tracker):
        def publish(self, make: Any) -> None:
            assert not self._record.closed
            assert not (folder / "DONE").exists()
            made.append(make())

    monkeypatch.setattr(runner_module, "Tracker", Spied)
    execute_run(TINY, method_named("pareco"), 0, folder)
    (publication,) = made
    front = (folder / "front.csv").read_text().splitlines()
    assert len(publication.front) == len(front) - 1
    assert publication.artifacts["model"] == [folder / "weights" / "0.safetensors"]
    assert {"error_vs_flops", "widths", "curves", "visits"} <= set(publication.figures)
    assert publication.summary["budget/gradient_steps"] == STEPS
    assert all(file.exists() for files in publication.artifacts.values() for file in files)


class _Killed(BaseException):
    """Stands for the end of the process: nothing in the project catches it."""


@pytest.mark.parametrize("name", method_names())
def test_an_interrupted_run_resumes_exactly(tmp_path: Path, name: str) -> None:
    """Weights decide every metric and error, so equal records mean equal weights."""
    method = method_named(name)
    execute_run(TINY, method, 0, tmp_path / "whole")

    stops = [3, 9, STEPS, *([STEPS + 2, 3 * STEPS + 9] if method.budget_exempt else [])]
    for stop in stops:

        def kill(report: StepReport, stop: int = stop) -> None:
            if report.step == stop:
                raise _Killed

        with pytest.raises(_Killed):
            execute_run(TINY, method, 0, tmp_path / "killed", kill, SAVING)
    execute_run(TINY, method, 0, tmp_path / "killed")
    assert records(tmp_path / "killed") == records(tmp_path / "whole")
    sessions = json.loads((tmp_path / "killed" / "env.json").read_text())
    assert len(sessions) == len(stops) + 1


def test_seeds_differ_and_repeat(tmp_path: Path) -> None:
    method = method_named("random_widths")
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        execute_run(TINY, method, seed, tmp_path / folder)
    assert records(tmp_path / "a") == records(tmp_path / "b")
    assert records(tmp_path / "a") != records(tmp_path / "c")


def test_another_configuration_in_the_folder_is_refused(tmp_path: Path) -> None:
    method = method_named("us_net")
    execute_run(TINY, method, 0, tmp_path / "run")
    other = replace(TINY, training=replace(TINY.training, epochs=3))
    with pytest.raises(RunError, match=r"training.epochs: 2 there, 3 now"):
        execute_run(other, method, 0, tmp_path / "run")
    more_seeds = replace(TINY, seeds=(0, 1, 2))
    execute_run(more_seeds, method, 0, tmp_path / "run")  # the sweep may grow


def test_other_data_in_the_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def kill(report: StepReport) -> None:
        raise _Killed

    method = method_named("us_net")
    with pytest.raises(_Killed):
        execute_run(TINY, method, 0, tmp_path / "run", kill)
    sessions = json.loads((tmp_path / "run" / "env.json").read_text())
    sessions[0]["data_fingerprint"] = "another"
    (tmp_path / "run" / "env.json").write_text(json.dumps(sessions))
    with pytest.raises(RunError, match="begun on other data"):
        execute_run(TINY, method, 0, tmp_path / "run")


def test_changed_splits_are_refused(tmp_path: Path) -> None:
    """The fingerprint covers the indices: another split would train on test images."""
    data = load_data(TINY.data)
    other = load_data(replace(TINY.data, split_seed=1))
    assert data.fingerprint != other.fingerprint
    folder = RunFolder(path=tmp_path / "run", experiment=TINY, method="us_net", seed=0)
    with folder.claimed(data, Processes(torch.device("cpu"))):
        before = (folder.path / "splits.json").read_text()
    with (
        pytest.raises(RunError, match="begun on other data"),
        folder.claimed(other, Processes(torch.device("cpu"))),
    ):
        pass
    assert (folder.path / "splits.json").read_text() == before


@pytest.mark.parametrize("name", ["config.json", "env.json"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str) -> None:
    def kill(report: StepReport) -> None:
        if report.step == 9:
            raise _Killed

    method = method_named("us_net")
    with pytest.raises(_Killed):
        execute_run(TINY, method, 0, tmp_path / "run", kill, SAVING)
    damaged = tmp_path / "run" / name
    damaged.write_bytes(damaged.read_bytes()[:-20])
    with pytest.raises(RunError, match=f"{name} .*start"):
        execute_run(TINY, method, 0, tmp_path / "run")


def test_batch_norm_and_biases_do_not_decay(tmp_path: Path) -> None:
    model = create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4)
    net = make_slimmable(model, torch.zeros(1, 1, 8, 8))
    config = replace(TINY.training, weight_decay=0.3)
    nothing: Any = None
    trainer = Trainer(
        net=net,
        method=nothing,
        loader=TrainingLoader(images=load_data(TINY.data).train, batch_size=100, seed=0),
        evaluations=nothing,
        search_batch=nothing,
        config=config,
        seed=0,
        processes=Processes(torch.device("cpu")),
        checkpoint_seconds=0,
        on_step=nothing,
        on_checkpoint=nothing,
    )
    decay = {
        id(parameter): group["weight_decay"]
        for group in trainer.optimizer.param_groups
        for parameter in group["params"]
    }
    for name, parameter in net.named_parameters():
        weights_of_layers = name.endswith("weight") and "bn" not in name
        assert decay[id(parameter)] == (0.3 if weights_of_layers else 0.0), name


def test_a_diverging_run_names_the_step_and_the_widths(tmp_path: Path) -> None:
    hot = replace(TINY, training=replace(TINY.training, lr_per_256=1e20, warmup_epochs=0))
    with pytest.raises(NonFiniteLoss, match=r"at step \d+, at the widths .*lr_per_256"):
        execute_run(hot, method_named("us_net"), 0, tmp_path / "run")
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_method_never_meets_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images are opened only after the front is chosen."""
    opened: list[str] = []
    evaluator = runner_module.Evaluator

    class Watched(evaluator):
        def on(self, images: Any, widths: Any) -> Any:
            assert len(images) == 997
            opened.append("test")
            return super().on(images, widths)

        def search_losses(self, widths: Any) -> Any:
            opened.append("search")
            return super().search_losses(widths)

    monkeypatch.setattr(runner_module, "Evaluator", Watched)

    def reach(value: Any, depth: int = 4) -> bool:
        """Return whether 997 images hang off an object's attributes."""
        if isinstance(value, torch.Tensor):
            return len(value.shape) > 0 and value.shape[0] == 997
        held = vars(value).values() if hasattr(value, "__dict__") else ()
        return depth > 0 and any(reach(each, depth - 1) for each in held)

    class Curious(method_named("two_stage")):  # type: ignore[misc]
        name = "curious"

        def candidates(self) -> Any:
            assert not reach(self)
            assert "test" not in opened
            return super().candidates()

    execute_run(TINY, Curious, 0, tmp_path / "run")
    assert opened.count("test") == 1
    assert "search" not in opened[opened.index("test") :]


def paper_mode(experiment: Experiment) -> Experiment:
    return replace(experiment, data=replace(experiment.data, search_split="batch"))


def test_the_search_sees_the_current_training_batch_or_held_out_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    searched: list[str] = []
    trained: list[str] = []
    loss, step = trainer_module.batch_losses, trainer_module.accumulate_gradients

    def spied_loss(net: Any, batch: Any, widths: Any) -> Any:
        searched.append(digest(*batch))
        return loss(net, batch, widths)

    def spied_step(net: Any, images: Any, labels: Any, widths: Any, **options: Any) -> Any:
        trained.append(digest(images, labels))
        return step(net, images, labels, widths, **options)

    monkeypatch.setattr(trainer_module, "batch_losses", spied_loss)
    monkeypatch.setattr(trainer_module, "accumulate_gradients", spied_step)
    method: type[Method] = method_named("pareco")
    execute_run(paper_mode(TINY), method, 0, tmp_path / "batch")
    assert searched
    assert set(searched) <= set(trained)
    searched.clear()
    trained.clear()
    execute_run(TINY, method, 0, tmp_path / "holdout")
    assert len(set(searched)) > 1
    assert not set(searched) & set(trained)


def test_ten_golden_steps(tmp_path: Path) -> None:
    """Guards refactors: the same losses, or the change says why (torch 2.15)."""
    execute_run(TINY, method_named("us_net"), 0, tmp_path / "run")
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()[:10]
    steps = [json.loads(line) for line in lines]
    found = [step["loss_largest"] for step in steps] + [step["loss_smallest"] for step in steps]
    golden = [2.397839, 2.646239, 2.434464, 2.37473, 2.395843]
    golden += [2.321454, 2.300359, 2.292661, 2.225684, 2.270979]
    golden += [2.203924, 2.206037, 2.213759, 2.225974, 2.240426]
    golden += [2.262535, 2.284878, 2.296362, 2.3014, 2.293145]
    # AVX2 in place of AVX-512 gives the same, no vector instructions at all differ by 1.2e-4.
    assert found == pytest.approx(golden, rel=1e-3)
