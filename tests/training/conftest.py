"""One run of each method that nothing befalls; all others are compared with it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from pareco.data import Images
from pareco.slimmable import SlimmableNet
from pareco.training import run as run_module
from pareco.training import trainer as trainer_module
from tests.training.attempts import attempt


def digest(*tensors: torch.Tensor) -> str:
    content = b"".join(tensor.detach().contiguous().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


@dataclass
class Spy:
    """Notes, as digests, what every gradient step and evaluation of a run was given."""

    batches: list[str] = field(default_factory=list)
    passes: list[int] = field(default_factory=list)
    initial: str = ""
    searched: set[str] = field(default_factory=set)
    evaluated: set[str] = field(default_factory=set)
    opened: list[int] = field(default_factory=list)  # how many images each evaluation was on
    calibrated: set[str] = field(default_factory=set)
    phase: str = ""  # what it is doing, by what was called
    flops: dict[str, int] = field(default_factory=dict)  # of forward passes, by torch's counter

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        spy, evaluator = self, run_module.Evaluator
        step, losses = trainer_module.accumulate_gradients, trainer_module.batch_losses

        def spied_step(net: Any, images: Any, labels: Any, widths: Any, **options: Any) -> Any:
            self.initial = self.initial or digest(*net.parameters())
            self.batches.append(digest(images, labels))
            self.passes.append(len(widths))
            self.phase = "training"
            return step(net, images, labels, widths, **options)

        def spied_losses(net: Any, batch: Any, widths: Any, *at_once: Any) -> Any:
            self.searched.add(digest(*batch))
            self.phase = "search"
            return losses(net, batch, widths, *at_once)

        def note(images: Images, phase: str) -> None:
            self.evaluated.add(digest(images.indices))
            self.opened.append(len(images))
            self.phase = phase

        class SpiedEvaluator(evaluator):
            def counts_on(self, images: Any, widths: Any, *others: Any, **named: Any) -> Any:
                note(images, "test")
                return super().counts_on(images, widths, *others, **named)

            def search_losses(self, widths: Any) -> Any:
                spy.calibrated.add(digest(self.calibration.indices))
                note(self.search, "choice")
                return super().search_losses(widths)

        forward, known = SlimmableNet.forward, {}

        def counted_forward(net: SlimmableNet, images: torch.Tensor) -> torch.Tensor:
            kind = net.widths, images.shape
            with FlopCounterMode(display=False) if kind not in known else nullcontext() as counter:
                scores = forward(net, images)
            if counter is not None:
                known[kind] = counter.get_total_flops()
            self.flops[self.phase] = self.flops.get(self.phase, 0) + known[kind]
            return scores

        patch.setattr(SlimmableNet, "forward", counted_forward)
        patch.setattr(trainer_module, "accumulate_gradients", spied_step)
        patch.setattr(trainer_module, "batch_losses", spied_losses)
        patch.setattr(run_module, "Evaluator", SpiedEvaluator)


@dataclass(frozen=True)
class Whole:
    """A finished run and what it was given; its folder is not to be changed."""

    path: Path
    spy: Spy


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Whole]:
    """Return a function that does the run of a method once, saving after every step."""

    @cache
    def run(method: str) -> Whole:
        path, spy = tmp_path_factory.mktemp("whole") / method, Spy()
        with pytest.MonkeyPatch.context() as patch:
            spy.watch(patch)
            assert attempt(path, method) == 0
        return Whole(path, spy)

    return run
