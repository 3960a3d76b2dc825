"""Signals after training: search, choice of the front and its test go on where they were."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from pareco.config import Machine
from pareco.evaluation import Counts, Evaluator
from pareco.search.solver import ScalarizationSolver
from pareco.slimmable import SlimmableNet
from pareco.training import RunFolder, execute_run
from pareco.training import trainer as trainer_module
from pareco.training.interruption import Interrupted
from pareco.widths import Widths
from replications.catalogue import method_named, method_names
from tests.conftest import tiny_net
from tests.experiments import TINY, quick
from tests.test_evaluation import ALONE, some_images
from tests.training.attempts import SELDOM
from tests.training.conftest import Whole
from tests.training.test_survival import STEPS, assert_results_same, ledger, lost

Runs = Callable[[str], Whole]


@pytest.fixture(autouse=True)
def _without_wandb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")


class Watch:
    """Counts calls once training has ended, and sends SIGTERM within one of each kind."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        """Watch what measures, asks and tests."""
        self.measured: list[Widths] = []
        self.asked = self.tested = self.steps = 0
        self.signal_at: tuple[str, int] = ("", 0)
        search_losses, count = Evaluator.search_losses, Evaluator._count
        minimize, step = ScalarizationSolver.minimize, trainer_module.accumulate_gradients
        watch = self

        def losses(self: Evaluator, widths: Any) -> Any:
            watch.heard("measured", len(watch.measured) + 1)
            result = search_losses(self, widths)
            watch.measured += widths
            return result

        def tested(self: Evaluator, counts: Any, batch: Any, calibrated: Any) -> None:
            if len(calibrated) > 1:
                watch.tested += 1
                watch.heard("tested", watch.tested)
            count(self, counts, batch, calibrated)

        def minimized(self: Any, weight: float) -> Any:
            watch.asked += 1
            watch.heard("asked", watch.asked)
            return minimize(self, weight)

        def stepped(*arguments: Any, **options: Any) -> Any:
            watch.steps += 1
            return step(*arguments, **options)

        patch.setattr(Evaluator, "search_losses", losses)
        patch.setattr(Evaluator, "_count", tested)
        patch.setattr(ScalarizationSolver, "minimize", minimized)
        patch.setattr(trainer_module, "accumulate_gradients", stepped)

    def heard(self, kind: str, number: int) -> None:
        if self.signal_at == (kind, number):
            os.kill(os.getpid(), signal.SIGTERM)


def begin(method: str, path: Path, machine: Machine = SELDOM) -> None:
    execute_run(TINY, method_named(method), 0, path, machine=machine)


def interrupted(watch: Watch, method: str, path: Path, kind: str, number: int) -> None:
    watch.signal_at = (kind, number)
    with pytest.raises(Interrupted):
        begin(method, path)
    assert not (path / "DONE").exists()


@pytest.mark.parametrize("method", quick(method_names(), "pareco_exact", "two_stage"))
def test_no_width_is_measured_twice(
    tmp_path: Path, method: str, whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But the one that the signal comes in; fronts, counts and weights are as without it."""
    watch, path = Watch(monkeypatch), tmp_path / method
    for number in (2, 4, 11):
        most = {"two_stage": 11, "random_widths": 11, "pareco_exact": 2}.get(method, 4)
        if number <= most:
            interrupted(watch, method, path, "measured", number)
            assert len(watch.measured) == number - 1  # within a width, not after all of them
    watch.signal_at = ("", 0)
    begin(method, path)
    sets = 4 if method_named(method).budget_exempt else 1
    assert len(watch.measured) == len({*watch.measured})
    assert watch.steps == sets * STEPS
    assert_results_same(path, whole(method).path)


def test_an_ask_under_way_is_given_up_and_done_again(
    tmp_path: Path, whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, path = Watch(monkeypatch), tmp_path / "run"
    interrupted(watch, "two_stage", path, "asked", 8)
    assert watch.asked == 8  # no trial after the signal's
    measured, last = len(watch.measured), watch.asked
    _, _, trainer = RunFolder(path=path, experiment=TINY, method="two_stage", seed=0).load()
    assert trainer is not None
    assert len(trainer["evaluations"]["final"]) == measured > len(trainer["method"]["visits"]) > 4
    watch.signal_at = ("", 0)
    begin("two_stage", path)
    assert watch.asked > last
    assert len(watch.measured) == len({*watch.measured})
    assert_results_same(path, whole("two_stage").path)


def test_a_test_of_the_front_under_way_goes_on(
    tmp_path: Path, whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ten batches of test images and one of training images: none is taken twice."""
    watch, path = Watch(monkeypatch), tmp_path / "run"
    for number in (1, 5, 10):
        interrupted(watch, "us_net", path, "tested", number)
        assert watch.tested == number
    state, _, _ = RunFolder(path=path, experiment=TINY, method="us_net", seed=0).load()
    assert {name: each["images"] for name, each in state.counts.items()} == {
        "training_loss": 100,
        "test": 900,
    }
    watch.signal_at = ("", 0)
    begin("us_net", path)
    assert watch.tested == 11
    assert_results_same(path, whole("us_net").path)
    front = pd.read_csv(path / "front.csv")["macs"]
    again = 3 * TINY.evaluation.calibration_images * front.sum()  # calibrated in each session
    assert lost(path) == (again, 0)


def test_what_a_signal_cuts_off_is_lost(
    tmp_path: Path, whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within the second network's calibration, two batches long, before it is measured."""
    watch, path, forward = Watch(monkeypatch), tmp_path / "run", SlimmableNet.forward
    passes: list[int] = []

    def heard(net: SlimmableNet, images: torch.Tensor) -> torch.Tensor:
        if watch.steps and not torch.is_grad_enabled():
            passes.append(int(net.cost.macs(net.widths)) * len(images))
            watch.heard("passed", len(passes))
        return forward(net, images)

    monkeypatch.setattr(SlimmableNet, "forward", heard)
    interrupted(watch, "us_net", path, "passed", 5)
    assert len(watch.measured) == 1
    assert len(passes) == 5
    watch.signal_at = ("", 0)
    begin("us_net", path)
    assert_results_same(path, whole("us_net").path)
    front = set(pd.read_csv(path / "front.csv")["widths"])
    again = sum(passes[:2]) if str(watch.measured[0]) in front else 0
    assert lost(path) == (passes[3] + passes[4] + again, 0)
    assert ledger(path)["lost"]["seconds"] > 0


def test_a_kill_costs_what_the_clock_has_not_saved(
    tmp_path: Path, whole: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error stands for it here, as nothing answers it; each measured width was saved."""
    watch, path = Watch(monkeypatch), tmp_path / "run"
    measure = Evaluator.search_losses

    def fails(self: Evaluator, widths: Any) -> Any:
        if len(watch.measured) == 5:
            raise KeyboardInterrupt
        return measure(self, widths)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "search_losses", fails)
        with pytest.raises(KeyboardInterrupt):
            begin("random_widths", path, Machine(checkpoint_minutes=0, device="cpu"))
    begin("random_widths", path)
    assert len(watch.measured) == len(set(watch.measured))
    assert watch.steps == STEPS
    assert_results_same(path, whole("random_widths").path)


def test_a_test_in_parts_is_that_of_the_whole() -> None:
    """The counts are whole numbers; the loss is a sum in another order."""
    net = tiny_net()
    images, widths = some_images(250, 3), [net.space.largest, net.space.smallest]
    config = TINY.evaluation
    due = [False]
    evaluator = Evaluator(net, images, images, config, 0, ALONE, due=lambda: due[0])
    kept: list[Counts] = []
    expected = evaluator.counts_on(images, widths, Counts(), kept.append).measurements
    due[0] = True
    whole = evaluator.counts_on(images, widths, Counts(), kept.append)
    assert (whole.images, whole.measurements) == (250, expected)
    assert [each.images for each in kept] == [0, 100, 200]
    due[0] = False
    for so_far in (*kept, whole):
        stored = Counts(**json.loads(json.dumps(vars(so_far))))
        found_all = evaluator.counts_on(images, widths, stored, kept.append).measurements
        for found, known in zip(found_all, expected, strict=True):
            assert (found.top1_error, found.top5_error) == (known.top1_error, known.top5_error)
            assert found.loss == pytest.approx(known.loss, rel=1e-12)
