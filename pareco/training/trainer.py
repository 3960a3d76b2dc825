"""The one training loop, for every method."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

from pareco.config import TrainingConfig
from pareco.data import Batch, TrainingLoader
from pareco.evaluation import SearchEvaluations, batch_losses
from pareco.ledger import Ledger
from pareco.methods import Method
from pareco.processes import Processes
from pareco.randomness import seeded_globally
from pareco.slimmable import SlimmableNet
from pareco.training.folder import RunState
from pareco.training.interruption import Interrupted, requested
from pareco.training.plan import Limits
from pareco.training.step import accumulate_gradients, learning_rate, sandwich_widths
from pareco.widths import Widths


class NonFiniteLoss(RuntimeError):
    """A loss that is NaN or infinite: names the step and the networks."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a training step tells: `step` counts from 1, losses in nats.

    `images_per_second` and `waiting_percent`, the part of the time spent waiting for images, are
    means over the last steps, over the same time as a `RunState`'s `training_seconds`.
    """

    step: int
    steps: int
    loss_largest: float
    loss_smallest: float
    learning_rate: float
    images_per_second: float
    waiting_percent: float


class StepClock:
    """Times the steps of training: in all, in the state of the run, and the last ones."""

    def __init__(self, spent: RunState) -> None:
        """Add to the images and seconds of this state."""
        self._spent = spent
        self._last: deque[tuple[int, float, float]] = deque(maxlen=20)
        self._begun = self._waited = 0.0

    def waited_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and note how long each is waited for."""
        self._begun = time.perf_counter()
        for batch in batches:
            self._waited = time.perf_counter() - self._begun
            yield batch
            self._begun = time.perf_counter()

    def step_done(self, images: int) -> tuple[float, float]:
        """Note the end of a step; return images a second and percent waited over the last steps."""
        seconds = time.perf_counter() - self._begun
        self._spent.images += images
        self._spent.training_seconds += seconds
        self._spent.waiting_seconds += self._waited
        self._last.append((images, seconds, self._waited))
        images_of_last, seconds_of_last, waited = map(sum, zip(*self._last, strict=True))
        return images_of_last / seconds_of_last, 100 * waited / seconds_of_last


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains one set of weights for one method; `step` is the number of steps done.

    `search_batch` turns the step and its training batch into the batch that the method's search
    losses are measured on, `search_images` of all processes together, as far as the `limits` let
    it. Images and seconds are added to `spent`; the phases of the `ledger`, which the network books
    its passes in, are training and search. In the main process `on_step` hears of every step, and
    `on_checkpoint` of the moments to save.
    """

    net: SlimmableNet
    method: Method
    loader: TrainingLoader
    evaluations: SearchEvaluations
    search_batch: Callable[[int, Batch], Batch]
    search_images: int
    limits: Limits
    config: TrainingConfig
    processes: Processes
    spent: RunState
    ledger: Ledger
    checkpoint_seconds: float
    on_step: Callable[[StepReport], None]
    on_checkpoint: Callable[[], None]

    def __post_init__(self) -> None:
        """Start at step 0."""
        config, self.clock = self.config, StepClock(self.spent)
        self.step = self.passes = 0
        self._held: tuple[Tensor, dict[str, Any]] | None = None
        self.nominal_steps = config.epochs * self.loader.batches_per_epoch
        groups = param_groups_weight_decay(self.net, config.weight_decay)
        self.optimizer = torch.optim.SGD(
            groups,
            lr=config.lr_per_256,
            momentum=config.momentum,
            nesterov=config.nesterov and config.momentum > 0,
        )
        scaled = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(self.processes.device.type, enabled=scaled)

    def train(self) -> None:
        """Do the steps that are left.

        Raises `NonFiniteLoss`, or `Interrupted` once a checkpoint is saved.
        """
        joint = self.processes.several and self.config.sync_batch_norm
        self.net.share_batches(self.processes.gathered if joint else None)
        self.net.train()
        with self.ledger.during("training"):
            self._steps()
        self.net.share_batches(None)
        self.evaluations.begin(None)
        self._check_agreement()

    def _steps(self) -> None:
        saved = time.perf_counter()
        for batch in self.clock.waited_for(self._batches()):
            widths = self._widths(batch)
            due = self.processes.main and time.perf_counter() - saved >= self.checkpoint_seconds
            largest, smallest, interrupted, save = self._gradients(batch, widths, due)
            rate = self._update()
            self.step += 1
            self.passes += len(widths)
            # Every process has an equal part of the batch of a step, and of that of its search.
            self.ledger.settle(self.processes.alike)
            speed, waiting = self.clock.step_done(len(batch[1]) * self.processes.share.count)
            if self.processes.main:
                self.on_step(
                    StepReport(
                        step=self.step,
                        steps=round(self.step / self.done),
                        loss_largest=largest,
                        loss_smallest=smallest,
                        learning_rate=rate,
                        images_per_second=speed,
                        waiting_percent=waiting,
                    )
                )
            if save:
                self._check_agreement()
                if self.processes.main:
                    self.on_checkpoint()
                saved = time.perf_counter()
            if interrupted:
                raise Interrupted(interrupted)

    def _check_agreement(self) -> None:
        self.processes.check_agreement(dict(self.net.named_parameters()))

    @property
    def done(self) -> float:
        """The part of training that is done: of its steps, or of the MACs that it may spend."""
        if self.limits.training is None:
            return self.step / self.nominal_steps
        return min(self._spent() / self.limits.training, 1.0)

    def _spent(self) -> int:
        """Return the MACs spent on this set of weights, which is the run's only one."""
        total = self.ledger.total()
        return total.forward_macs + total.backward_macs

    def _batches(self) -> Iterator[Batch]:
        """Yield this process's part of every training batch that is left."""
        per_epoch = self.loader.batches_per_epoch
        while self.done < 1:
            for batch in self.loader.epoch(self.step // per_epoch, start=self.step % per_epoch):
                yield batch
                if self.done >= 1:
                    return

    def _widths(self, batch: Batch) -> list[Widths]:
        """Return the widths of this step; the main process asks the method, all measure."""
        search_batch = cache(partial(self.search_batch, self.step, batch))

        def measure(widths: list[Widths]) -> list[float]:
            with self.processes.autocast(self.config.precision):
                at_once = self.config.batch_size // self.processes.share.count
                losses = batch_losses(self.net, search_batch(), widths, at_once)
            return (self.processes.total(losses) / self.processes.share.count).tolist()

        self.evaluations.begin(
            lambda widths: self.processes.together(measure, widths),
            images=self.search_images,
            limit=self.limits.at(self.done, self.nominal_steps),
        )
        with self.ledger.during("search"):
            between = self.processes.led(lambda: self.method.widths_for_step(self.step), measure)
        return sandwich_widths(self.net, between)

    def _gradients(
        self, batch: Batch, widths: Sequence[Widths], due: bool
    ) -> tuple[float, float, int, bool]:
        """Add up the gradients of a sandwich step, and average them over processes.

        Returns the mean losses of the largest and the smallest network, the signal that asks any
        process for an end, or 0, and whether to save after this step: then, or if that is `due` in
        any process. Raises `NonFiniteLoss`. Layers that draw by themselves, such as dropout, draw
        the same when a step is done again.
        """
        count, rank = self.processes.share.count, self.processes.share.rank
        purpose = ("layers", self.step, *([rank] if rank else []))
        with seeded_globally(self.loader.seed, *purpose, device=self.processes.device):
            losses = accumulate_gradients(
                self.net,
                *batch,
                widths,
                label_smoothing=self.config.label_smoothing,
                forward=lambda: self.processes.autocast(self.config.precision),
                backward=lambda loss: self.scaler.scale(loss).backward(),
            )
        gradients = [each.grad for each in self.net.parameters() if each.grad is not None]
        finite = losses.isfinite()
        store = self.loader.images.store
        flags = [float(not finite.all()), *losses[[0, -1]].tolist(), float(requested() or 0)]
        flags += [float(store.untold), float(due)]
        sums = self.processes.average_gradients(gradients, flags)
        failed, largest, smallest, signals, damaged, saves = sums
        if damaged:
            store.tell(self.processes)
        if failed:
            bad = [str(each) for each, well in zip(widths, finite, strict=True) if not well]
            where = f"the widths {'; '.join(bad)}" if bad else "some widths in another process"
            raise NonFiniteLoss(
                f"the loss is not finite at step {self.step}, at {where}. "
                "A lower training.lr_per_256 or a longer training.warmup_epochs may help"
            )
        signum = int(signals and (requested() or signal.SIGTERM))
        return largest / count, smallest / count, signum, bool(signum or saves)

    def _update(self) -> float:
        """Take one step of the optimizer and return the learning rate it took."""
        budgeted = self.limits.training is not None
        rate = learning_rate(
            self.done * self.nominal_steps if budgeted else self.step,
            steps=self.nominal_steps,
            warmup_steps=self.config.warmup_epochs * self.loader.batches_per_epoch,
            peak=self.config.lr_per_256 * self.loader.batch_size / 256,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def hold(self) -> None:
        """Let checkpoints keep the method as it is now, until this is called again.

        What the method does meanwhile is done again after an interruption.
        """
        self._held = deepcopy(self._method_state())

    def _method_state(self) -> tuple[Tensor, dict[str, Any]]:
        return self.method.task.generator.get_state(), self.method.state()

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Return what a checkpoint must keep: tensors, and what is ready for JSON."""
        generator, method = self._held or self._method_state()
        tensors = {f"net.{name}": value for name, value in self.net.state_dict().items()}
        for name, parameter in self.net.named_parameters():
            buffer = self.optimizer.state[parameter].get("momentum_buffer")
            if buffer is not None:
                tensors[f"momentum.{name}"] = buffer
        return tensors | {"generator": generator}, {
            "step": self.step,
            "passes": self.passes,
            "scaler": self.scaler.state_dict(),
            "method": method,
            "evaluations": self.evaluations.state(),
        }

    def load(self, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Take up what `state` returned."""
        self.net.load_state_dict(
            {name[4:]: value for name, value in tensors.items() if name.startswith("net.")}
        )
        for name, parameter in self.net.named_parameters():
            if f"momentum.{name}" in tensors:
                momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = momentum
        self.method.task.generator.set_state(tensors["generator"])
        self.step, self.passes = state["step"], state["passes"]
        self.scaler.load_state_dict(state["scaler"])
        self.method.load_state(state["method"])
        self.evaluations.load_state(state["evaluations"])
