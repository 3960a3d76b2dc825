"""The one training loop, for every method."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

from pareco.config import TrainingConfig
from pareco.data import Batch, TrainingLoader
from pareco.evaluation import SearchEvaluations, batch_loss
from pareco.methods import Method
from pareco.randomness import derived_seed
from pareco.slimmable import SlimmableNet
from pareco.training.sandwich import accumulate_gradients, sandwich_widths
from pareco.training.schedule import learning_rate
from pareco.widths import Widths


class NonFiniteLoss(RuntimeError):
    """A loss that is NaN or infinite: names the step and the networks."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a training step tells: `step` counts from 1, losses in nats."""

    step: int
    steps: int
    loss_largest: float
    loss_smallest: float
    learning_rate: float
    images_per_second: float


class Trainer:
    """Trains one set of weights for one method; `step` is the number of steps done.

    `search_batch` turns the step and its training batch into the batch that the method's search
    losses are measured on. `on_step` hears of every step, `on_checkpoint` of every due checkpoint.
    """

    def __init__(
        self,
        *,
        net: SlimmableNet,
        method: Method,
        loader: TrainingLoader,
        evaluations: SearchEvaluations,
        search_batch: Callable[[int, Batch], Batch],
        config: TrainingConfig,
        seed: int,
        on_step: Callable[[StepReport], None],
        on_checkpoint: Callable[[], None],
    ) -> None:
        """Start at step 0."""
        self.net, self.method, self.loader = net, method, loader
        self.evaluations, self.search_batch = evaluations, search_batch
        self.config, self.seed = config, seed
        self.on_step, self.on_checkpoint = on_step, on_checkpoint
        self.step = self.passes = 0
        self.steps = config.epochs * loader.batches_per_epoch
        groups = param_groups_weight_decay(net, config.weight_decay)
        self.optimizer = torch.optim.SGD(
            groups, lr=config.lr_per_256, momentum=config.momentum, nesterov=config.momentum > 0
        )

    def train(self) -> None:
        """Do the steps that are left. Raises `NonFiniteLoss`."""
        per_epoch = self.loader.batches_per_epoch
        self.net.train()
        for epoch in range(self.step // per_epoch, self.config.epochs):
            for batch in self.loader.epoch(epoch, start=self.step % per_epoch):
                started = time.perf_counter()
                self._train_on(batch, started)
            if (epoch + 1) % self.config.checkpoint_every_epochs == 0:
                self.on_checkpoint()
        self.evaluations.begin(None)

    def _train_on(self, batch: Batch, started: float) -> None:
        images, labels = batch
        search_batch = cache(partial(self.search_batch, self.step, batch))
        self.evaluations.begin(lambda widths: batch_loss(self.net, search_batch(), widths))
        widths = sandwich_widths(self.net, self.method.widths_for_step(self.step))
        smoothing = self.config.label_smoothing
        with torch.random.fork_rng(devices=[]):  # for layers that draw, such as dropout
            torch.manual_seed(derived_seed(self.seed, "layers", self.step))
            losses = accumulate_gradients(
                self.net, images, labels, widths, label_smoothing=smoothing
            )
        self._check(losses, widths)
        rate = self._update()
        self.step += 1
        self.passes += len(widths)
        self.on_step(
            StepReport(
                step=self.step,
                steps=self.steps,
                loss_largest=float(losses[0]),
                loss_smallest=float(losses[-1]),
                learning_rate=rate,
                images_per_second=len(labels) / (time.perf_counter() - started),
            )
        )

    def _update(self) -> float:
        """Take one step of the optimizer and return the learning rate it took."""
        rate = learning_rate(
            self.step,
            steps=self.steps,
            warmup_steps=self.config.warmup_epochs * self.loader.batches_per_epoch,
            peak=self.config.lr_per_256 * self.loader.batch_size / 256,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _check(self, losses: Tensor, widths: Sequence[Widths]) -> None:
        bad = [str(each) for each, loss in zip(widths, losses, strict=True) if not loss.isfinite()]
        if bad:
            raise NonFiniteLoss(
                f"the loss is not finite at step {self.step}, at the widths {'; '.join(bad)}. "
                "A lower training.lr_per_256 or a longer training.warmup_epochs may help"
            )

    def tensors(self) -> dict[str, Tensor]:
        """Return weights, momentum and the method's generator, for a checkpoint."""
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        return tensors | {"generator": self.method.task.generator.get_state()}

    def state(self) -> dict[str, Any]:
        """Return the counters and the method's state, ready for JSON."""
        return {
            "step": self.step,
            "passes": self.passes,
            "method": self.method.state(),
            "evaluations": self.evaluations.state(),
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up what `tensors` and `state` returned."""
        self.net.load_state_dict(
            {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
        )
        for name, parameter in self.net.named_parameters():
            if f"momentum.{name}" in tensors:
                self.optimizer.state[parameter]["momentum_buffer"] = tensors[f"momentum.{name}"]
        self.method.task.generator.set_state(tensors["generator"])
        self.step, self.passes = state["step"], state["passes"]
        self.method.load_state(state["method"])
        self.evaluations.load_state(state["evaluations"])
