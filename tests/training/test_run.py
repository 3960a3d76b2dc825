"""Whole runs of a tiny experiment: identical pipelines, records, what is refused."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pareco.config import Machine
from pareco.data import load_data
from pareco.processes import joined_processes
from pareco.reporting.report import run_publication
from pareco.tracking import Publication
from pareco.training import NonFiniteLoss, RunError, StepReport, execute_run
from pareco.training import run as run_module
from pareco.training.trainer import Trainer, optimizer_of
from replications.catalogue import method_named, method_names
from tests.conftest import tiny_net
from tests.experiments import TINY
from tests.training.conftest import Spy, Whole

STEPS = 14  # 2 epochs of 700 images in batches of 100
UNMODELLED = replace(TINY, search=replace(TINY.search, initial_widths=100))  # no GP is ever fitted
Runs = Callable[[str], Whole]


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


def metrics(whole: Whole, name: str) -> list[float]:
    lines = (whole.path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line)[name] for line in lines]


def test_every_method_goes_through_the_same_pipeline(whole: Runs) -> None:
    reference = whole("us_net").spy
    rates = metrics(whole("us_net"), "learning_rate")
    assert reference.passes == [4] * STEPS
    assert len(set(reference.batches)) == STEPS
    assert len(reference.evaluated) == 3  # search images, as many training images, test images
    for name in method_names():
        spy = whole(name).spy
        sets_of_weights = len(spy.batches) // STEPS
        assert sets_of_weights == (4 if method_named(name).budget_exempt else 1)
        assert spy.batches == reference.batches * sets_of_weights
        assert metrics(whole(name), "learning_rate") == rates * sets_of_weights
        assert sum(spy.passes) == sum(reference.passes)
        assert spy.evaluated == reference.evaluated
        assert spy.calibrated == reference.calibrated
        if name != "s_net":  # which has batch-norm weights of its own beside the shared ones
            assert spy.initial == reference.initial


@pytest.mark.parametrize("method", method_names())
def test_the_ledger_of_every_phase_is_torchs_count(whole: Runs, method: str) -> None:
    """Of forward passes to the MAC, each phase told by what the pipeline called."""
    run = whole(method)
    result = json.loads((run.path / "result.json").read_text())
    ledger: dict[str, dict[str, float]] = result["ledger"]
    forward = {phase: 2 * each["forward_macs"] for phase, each in ledger.items()}
    assert {phase: flops for phase, flops in forward.items() if flops} == run.spy.flops
    assert ("search" in run.spy.flops) == (method == "pareco")
    backward = {phase: each["backward_macs"] for phase, each in ledger.items()}
    assert backward.pop("training") == forward["training"]
    assert not any(backward.values())
    assert not any(ledger["lost"].values())
    seconds = [each["seconds"] for each in ledger.values()]
    assert 0 < sum(seconds) < result["timing"]["seconds"] + 0.1  # which is rounded
    assert [each["device_seconds"] for each in ledger.values()] == seconds  # one process


def test_the_metrics_say_at_every_step_what_was_spent(whole: Runs) -> None:
    for method in ("us_net", "pareco"):
        run = whole(method)
        ledger = json.loads((run.path / "result.json").read_text())["ledger"]
        for name in ("forward_macs", "backward_macs"):
            spent = metrics(run, name)
            assert spent == sorted({*spent})
            assert spent[-1] == ledger["training"][name] + ledger["search"][name]


def test_a_finished_run_is_complete_and_left_alone(whole: Runs) -> None:
    folder = whole("pareco").path
    assert sorted(file.name for file in folder.iterdir()) == [
        *(".lock", "DONE", "config.json", "env.json", "front.csv"),
        *("metrics.jsonl", "result.json", "splits.json", "statistics", "visits.csv", "weights"),
    ]
    result = json.loads((folder / "result.json").read_text())
    assert result["budget"]["gradient_steps"] == STEPS
    assert result["budget"]["passes"] == 4 * STEPS
    assert result["budget"]["widths_visited"] >= 14
    timing = result["timing"]
    assert 0 < timing["seconds"] < 600
    assert 100 * STEPS / timing["seconds"] < timing["images_per_second"]
    assert 0 <= timing["data_waiting_percent"] <= 100
    splits = json.loads((folder / "splits.json").read_text())
    assert {name: sum(b - a for a, b in runs) for name, runs in splits.items()} == {
        "train": 700,
        "search": 100,
        "test": 997,
    }
    (session,) = json.loads((folder / "env.json").read_text())
    assert session["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == STEPS
    before = {file: file.stat().st_mtime_ns for file in folder.iterdir()}
    more_seeds = replace(TINY, seeds=(0, 1, 2))  # the sweep may grow
    execute_run(more_seeds, method_named("pareco"), 0, folder)
    assert {file: file.stat().st_mtime_ns for file in folder.iterdir()} == before


def test_a_run_is_published_before_its_tracker_closes_and_its_end_mark_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, made = tmp_path / "tiny" / "pareco" / "seed0", []
    closed: list[bool] = []

    class Spied(run_module.Tracker):
        def publish(self, make: Callable[[], Publication]) -> None:
            assert not closed
            assert not (folder / "DONE").exists()
            made.append(make())

        def close(self, *, failed: bool = False) -> None:
            closed.append(failed)
            super().close(failed=failed)

    monkeypatch.setattr(run_module, "Tracker", Spied)
    execute_run(UNMODELLED, method_named("pareco"), 0, folder, publication=run_publication)
    (publication,) = made
    assert closed == [False]
    front = (folder / "front.csv").read_text().splitlines()
    assert len(publication.front) == len(front) - 1
    assert publication.artifacts["model"] == [folder / "weights" / "0.safetensors"]
    assert {"error_vs_flops", "widths", "curves", "visits"} <= set(publication.figures)
    assert publication.summary["budget/gradient_steps"] == STEPS
    ledger = json.loads((folder / "result.json").read_text())["ledger"]
    macs = {phase: each["forward_macs"] + each["backward_macs"] for phase, each in ledger.items()}
    lost = macs.pop("lost")
    shown = {name: publication.summary[f"ledger/{name}_macs"] for name in (*macs, "lost", "total")}
    assert shown == {**macs, "lost": lost, "total": sum(macs.values())}
    seconds = [publication.summary[f"ledger/{name}"] for name in ("seconds", "device_seconds")]
    assert 0 < float(seconds[0] or 0) == seconds[1]
    assert all(file.exists() for files in publication.artifacts.values() for file in files)


def test_another_seed_is_another_run(tmp_path: Path, whole: Runs) -> None:
    execute_run(TINY, method_named("random_widths"), 1, tmp_path)
    for name in ("metrics.jsonl", "front.csv", "weights/0.safetensors"):
        first = whole("random_widths").path / name
        assert (tmp_path / name).read_bytes() != first.read_bytes(), name


def test_another_configuration_in_the_folder_is_refused(whole: Runs) -> None:
    other = replace(TINY, training=replace(TINY.training, epochs=3))
    with pytest.raises(RunError, match=r"training.epochs: 2 there, 3 now"):
        execute_run(other, method_named("us_net"), 0, whole("us_net").path)


def test_batch_norm_and_biases_do_not_decay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[Trainer] = []
    monkeypatch.setattr(Trainer, "train", lambda trainer: trained.append(trainer))
    decaying = replace(TINY, training=replace(TINY.training, weight_decay=0.3))
    execute_run(decaying, method_named("us_net"), 0, tmp_path)
    groups = trained[0].optimizer.param_groups
    decay = {id(each): group["weight_decay"] for group in groups for each in group["params"]}
    for name, parameter in trained[0].net.named_parameters():
        weights_of_layers = name.endswith("weight") and "bn" not in name
        assert decay[id(parameter)] == (0.3 if weights_of_layers else 0.0), name


@pytest.mark.parametrize(
    ("changes", "nesterov"),
    [({}, True), ({"nesterov": False}, False), ({"momentum": 0.0}, False)],  # as before the field
)
def test_nesterov_is_a_field_that_is_on_unless_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], nesterov: bool
) -> None:
    trained: list[Trainer] = []
    monkeypatch.setattr(Trainer, "train", lambda trainer: trained.append(trainer))
    experiment = replace(TINY, training=replace(TINY.training, **changes))
    execute_run(experiment, method_named("us_net"), 0, tmp_path)
    assert {group["nesterov"] for group in trained[0].optimizer.param_groups} == {nesterov}


def test_adamw_goes_on_exactly_and_learns_by_torchs_rule(tmp_path: Path) -> None:
    """AdamW's first step is the rate times the sign of the gradient, whatever its size."""
    rate = {"optimizer": "adamw", "nesterov": False, "lr_per_256": 0.02, "warmup_epochs": 0.0}
    experiment = replace(TINY, training=replace(TINY.training, **rate))
    method, machine = method_named("us_net"), Machine(checkpoint_minutes=0)
    execute_run(experiment, method, 0, tmp_path / "whole")

    def cut_off(report: StepReport) -> None:
        if report.step == 9:
            raise RuntimeError("cut off")

    with pytest.raises(RuntimeError, match="cut off"):
        execute_run(experiment, method, 0, tmp_path / "cut", cut_off, machine)
    tensors = load_file(max((tmp_path / "cut" / "checkpoints").glob("*.safetensors")))
    assert {"exp_avg.fc.weight", "exp_avg_sq.fc.weight", "step.fc.weight"} <= tensors.keys()
    execute_run(experiment, method, 0, tmp_path / "cut")
    for name in ("front.csv", "weights/0.safetensors"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()

    net = tiny_net()
    before = net.get_parameter("fc.weight").detach().clone()
    optimizer = optimizer_of(net, experiment.training, fused=False)
    net(torch.randn(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)))[:, 1].sum().backward()
    gradient = net.get_parameter("fc.weight").grad
    assert gradient is not None
    optimizer.step()
    decayed = before * (1 - 0.02 * experiment.training.weight_decay)
    expected = decayed - 0.02 * gradient.sign()
    # Adam divides by the gradient's size plus 1e-8.
    torch.testing.assert_close(net.get_parameter("fc.weight").detach(), expected, rtol=0, atol=1e-5)


def test_adamw_takes_the_momentum_and_refuses_nesterovs() -> None:
    """By the first moment: one minus the momentum of the first gradient."""
    with pytest.raises(ValueError, match=r"^training\.nesterov is of sgd alone"):
        replace(TINY.training, optimizer="adamw")
    for momentum in (0.9, 0.5, 0.0):
        changes: dict[str, Any] = {"optimizer": "adamw", "nesterov": False, "momentum": momentum}
        net = tiny_net()
        optimizer = optimizer_of(net, replace(TINY.training, **changes), fused=False)
        net(torch.ones(2, 1, 8, 8))[:, 1].sum().backward()
        bias = net.get_parameter("fc.bias")
        assert bias.grad is not None
        optimizer.step()
        expected = (1 - momentum) * bias.grad  # one product of float32 against another
        torch.testing.assert_close(optimizer.state[bias]["exp_avg"], expected, rtol=1e-6, atol=0)


def test_a_diverging_run_names_the_step_and_the_widths(tmp_path: Path) -> None:
    hot = replace(TINY, training=replace(TINY.training, lr_per_256=1e20, warmup_epochs=0))
    with pytest.raises(NonFiniteLoss, match=r"at step \d+, at the widths .*lr_per_256"):
        execute_run(hot, method_named("us_net"), 0, tmp_path / "run")
    assert not (tmp_path / "run" / "DONE").exists()


def test_a_method_never_meets_the_test_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test images are opened only after the front is chosen."""
    spy = Spy()
    spy.watch(monkeypatch)

    def reach(value: Any, depth: int = 4) -> bool:
        """Return whether 997 images hang off an object's attributes."""
        if isinstance(value, torch.Tensor):
            return len(value.shape) > 0 and value.shape[0] == 997
        held = vars(value).values() if hasattr(value, "__dict__") else ()
        return depth > 0 and any(reach(each, depth - 1) for each in held)

    class Curious(method_named("us_net")):  # type: ignore[misc]
        name = "curious"

        def candidates(self) -> Any:
            assert not reach(self)
            found = super().candidates()
            self.task.evaluate(found)
            assert set(spy.opened) == {100}
            return found

    execute_run(TINY, Curious, 0, tmp_path / "run")
    assert spy.opened[-1] == 997
    assert set(spy.opened[:-1]) == {100}


def test_the_search_sees_the_current_training_batch_or_held_out_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: Runs
) -> None:
    held_out, paper = whole("pareco").spy, Spy()
    assert len(held_out.searched) > 1
    assert not held_out.searched & set(held_out.batches)
    paper.watch(monkeypatch)
    experiment = replace(UNMODELLED, data=replace(TINY.data, search_split="batch"))
    execute_run(experiment, method_named("pareco"), 0, tmp_path)
    assert paper.searched
    assert paper.searched <= set(paper.batches)


def split_losses(folder: Path) -> list[tuple[str, str, str]]:
    with (folder / "front.csv").open(newline="") as file:
        names = ("search_loss", "training_loss", "held_out_loss")
        return [tuple(row[name] for name in names) for row in csv.DictReader(file)]  # type: ignore


def test_a_front_has_its_losses_on_training_and_test_images_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """These are known from the weights that were kept, measured again by torch alone."""
    measured: list[tuple[torch.Tensor, int]] = []

    class Spied(run_module.Evaluator):
        def counts_on(self, images: Any, widths: Any, *others: Any, **named: Any) -> Any:
            measured.append((images.indices, len(widths)))
            return super().counts_on(images, widths, *others, **named)

    monkeypatch.setattr(run_module, "Evaluator", Spied)
    execute_run(TINY, method_named("us_net"), 0, tmp_path)
    losses = split_losses(tmp_path)
    assert all(search == held_out != training for search, training, held_out in losses)
    data = load_data(TINY.data)
    (some, count), (tested, _) = measured  # one pass for all networks
    assert (len(some.unique()), count) == (100, len(losses))
    assert set(some.tolist()) <= set(data.train.indices.tolist())
    assert torch.equal(tested, data.test.indices)
    net = run_module.initial_network(TINY, data.num_classes, data.in_chans, 0)
    net.load_state_dict(load_file(tmp_path / "weights" / "0.safetensors"))
    evaluator = run_module.Evaluator(
        net, data.train, data.search, TINY.evaluation, 0, joined_processes("cpu")
    )
    widths = net.space.smallest
    plain = net.extract(widths, evaluator.statistics(widths)).eval()
    with (tmp_path / "front.csv").open(newline="") as file:
        tests = [row["test_loss"] for row in csv.DictReader(file)]
    for seen, recorded in (
        (replace(data.train, indices=some), losses[0][1]),
        (data.test, tests[0]),
    ):
        images, labels = seen.normalized(torch.arange(len(seen)))
        with torch.no_grad():
            loss = float(torch.nn.functional.cross_entropy(plain(images), labels))
        assert float(recorded) == pytest.approx(loss, abs=1e-5)  # written to 6 digits


def test_a_front_chosen_on_training_images_has_no_other_loss(tmp_path: Path) -> None:
    paper = replace(UNMODELLED, data=replace(TINY.data, search_split="batch"))
    execute_run(paper, method_named("us_net"), 0, tmp_path)
    assert all(
        search == training and not held_out for search, training, held_out in split_losses(tmp_path)
    )
    result = json.loads((tmp_path / "result.json").read_text())
    assert (result["held_out_images"], result["search_images"]) == (0, 100)


def test_ten_golden_steps(whole: Runs) -> None:
    """Guards refactors: the same losses, or the change says why (torch 2.15)."""
    found = [
        loss
        for name in ("largest", "smallest")
        for loss in metrics(whole("us_net"), f"loss_{name}")[:10]
    ]
    golden = [2.397839, 2.646239, 2.434464, 2.37473, 2.395843]
    golden += [2.321454, 2.300359, 2.292661, 2.225684, 2.270979]
    golden += [2.203924, 2.206037, 2.213759, 2.225974, 2.240426]
    golden += [2.262535, 2.284878, 2.296362, 2.3014, 2.293145]
    # AVX2 in place of AVX-512 gives the same, no vector instructions at all differ by 1.2e-4.
    assert found == pytest.approx(golden, rel=1e-3)


def test_what_is_not_finite_is_written_as_not_known() -> None:
    assert [run_module.finite_text(each) for each in (0.25, nan, inf, -inf)] == [
        "0.250000",
        "",
        "",
        "",
    ]
