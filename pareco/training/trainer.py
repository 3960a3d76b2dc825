"""The one training loop, for every method."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from timm.optim import param_groups_weight_decay
from torch import Tensor

from pareco.config import TrainingConfig
from pareco.data import Batch, TrainingLoader
from pareco.evaluation import SearchEvaluations, batch_losses
from pareco.methods import Method
from pareco.processes import Processes
from pareco.randomness import derived_seed
from pareco.slimmable import SlimmableNet
from pareco.training.interruption import Interrupted, requested
from pareco.training.step import accumulate_gradients, learning_rate, sandwich_widths
from pareco.widths import Widths

_T = TypeVar("_T")
_LAST_STEPS = 20


class StepClock:
    """Times the steps of training: in all (`seconds`, `waiting_seconds`, `images`) and the last."""

    def __init__(self) -> None:
        """Start at nothing."""
        self.images = 0
        self.seconds = self.waiting_seconds = 0.0
        self._last: deque[tuple[int, float, float]] = deque(maxlen=_LAST_STEPS)
        self._begun = self._waited = 0.0

    def waited_for(self, batches: Iterable[_T]) -> Iterator[_T]:
        """Yield the batches, and note how long each is waited for."""
        iterator, end = iter(batches), object()
        while True:
            self._begun = time.perf_counter()
            batch = next(iterator, end)
            self._waited = time.perf_counter() - self._begun
            if batch is end:
                return
            yield batch  # type: ignore[misc]

    def step_done(self, images: int) -> None:
        """Note that a step with so many images has ended."""
        seconds = time.perf_counter() - self._begun
        self.images += images
        self.seconds += seconds
        self.waiting_seconds += self._waited
        self._last.append((images, seconds, self._waited))

    @property
    def images_per_second(self) -> float:
        """Images a second over the last steps, waiting included."""
        images, seconds, _ = map(sum, zip(*self._last, strict=True))
        return images / seconds

    @property
    def waiting_percent(self) -> float:
        """The part of the last steps, in percent, that was spent waiting for images."""
        _, seconds, waited = map(sum, zip(*self._last, strict=True))
        return 100 * waited / seconds


class NonFiniteLoss(RuntimeError):
    """A loss that is NaN or infinite: names the step and the networks."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a training step tells: `step` counts from 1, losses in nats.

    `images_per_second` and `waiting_percent`, the part of the time spent waiting for images, are
    means over the last steps.
    """

    step: int
    steps: int
    loss_largest: float
    loss_smallest: float
    learning_rate: float
    images_per_second: float
    waiting_percent: float


class Trainer:
    """Trains one set of weights for one method; `step` is the number of steps done.

    `search_batch` turns the step and its training batch into the batch that the method's search
    losses are measured on. `on_step` hears of every step; `on_checkpoint` of the moments to save,
    in the main process.
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
        processes: Processes,
        checkpoint_seconds: float,
        on_step: Callable[[StepReport], None],
        on_checkpoint: Callable[[], None],
    ) -> None:
        """Start at step 0."""
        self.net, self.method, self.loader = net, method, loader
        self.evaluations, self.search_batch = evaluations, search_batch
        self.config, self.seed, self.processes = config, seed, processes
        self.checkpoint_seconds = checkpoint_seconds
        self.on_step, self.on_checkpoint = on_step, on_checkpoint
        self.step = self.passes = 0
        self.steps = config.epochs * loader.batches_per_epoch
        self.clock = StepClock()
        groups = param_groups_weight_decay(net, config.weight_decay)
        self.optimizer = torch.optim.SGD(
            groups, lr=config.lr_per_256, momentum=config.momentum, nesterov=config.momentum > 0
        )
        scaled = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=scaled)

    def train(self) -> None:
        """Do the steps that are left.

        Raises `NonFiniteLoss`, or `Interrupted` once a checkpoint is saved.
        """
        per_epoch = self.loader.batches_per_epoch
        joint = self.processes.several and self.config.sync_batch_norm
        self.net.share_batches(self.processes.gathered if joint else None)
        self.net.train()
        saved = time.perf_counter()
        for epoch in range(self.step // per_epoch, self.config.epochs):
            batches = self.loader.epoch(epoch, start=self.step % per_epoch)
            for batch in self.clock.waited_for(batches):
                interrupted = self._train_on(batch)
                due = time.perf_counter() - saved >= self.checkpoint_seconds
                if self.processes.main and (due or interrupted):
                    self.on_checkpoint()
                    saved = time.perf_counter()
                if interrupted:
                    raise Interrupted(interrupted)
        self.net.share_batches(None)
        self.evaluations.begin(None)
        self.processes.check_agreement(list(self.net.parameters()))

    def _train_on(self, batch: Batch) -> int:
        """Take one step; return the signal that asks for an end, or 0."""
        images, labels = batch
        widths = self._widths(batch)
        smoothing, precision = self.config.label_smoothing, self.config.precision
        with self._seeded_layers():
            losses = accumulate_gradients(
                self.net,
                images,
                labels,
                widths,
                label_smoothing=smoothing,
                forward=lambda: self.processes.autocast(precision),
                backward=lambda loss: self.scaler.scale(loss).backward(),
            )
        parameters = self.net.parameters()
        gradients = [each.grad for each in parameters if each.grad is not None]
        finite = bool(losses.isfinite().all())
        flags = [float(not finite), *losses[[0, -1]].tolist(), float(requested() or 0)]
        failed, *ends, signals = self.processes.average_gradients(gradients, flags)
        if failed:
            self._raise_non_finite(losses, widths)
        rate = self._update()
        self.step += 1
        self.passes += len(widths)
        self.clock.step_done(len(labels) * self.processes.share.count)
        self.on_step(
            StepReport(
                step=self.step,
                steps=self.steps,
                loss_largest=ends[0] / self.processes.share.count,
                loss_smallest=ends[1] / self.processes.share.count,
                learning_rate=rate,
                images_per_second=self.clock.images_per_second,
                waiting_percent=self.clock.waiting_percent,
            )
        )
        return int(signals and (requested() or signal.SIGTERM))

    def _widths(self, batch: Batch) -> list[Widths]:
        """Return the widths of this step; the main process asks the method, all measure."""
        search_batch = cache(partial(self.search_batch, self.step, batch))

        def measure(widths: list[Widths]) -> list[float]:
            with self.processes.autocast(self.config.precision):
                losses = batch_losses(self.net, search_batch(), widths)
            return (self.processes.total(losses) / self.processes.share.count).tolist()

        self.evaluations.begin(lambda widths: self.processes.together(measure, widths))
        between = self.processes.led(lambda: self.method.widths_for_step(self.step), measure)
        return sandwich_widths(self.net, between)

    @contextmanager
    def _seeded_layers(self) -> Iterator[None]:
        """Seed, in the block, what layers that draw by themselves use, such as dropout."""
        device, rank = self.processes.device, self.processes.share.rank
        purpose = ("layers", self.step, *([rank] if rank else []))
        accelerators = [] if device.type == "cpu" else [device]
        kind = "cuda" if device.type == "cpu" else device.type
        with torch.random.fork_rng(devices=accelerators, device_type=kind):
            torch.manual_seed(derived_seed(self.seed, *purpose))
            yield

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
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return rate

    def _raise_non_finite(self, losses: Tensor, widths: Sequence[Widths]) -> None:
        bad = [str(each) for each, loss in zip(widths, losses, strict=True) if not loss.isfinite()]
        where = f"the widths {'; '.join(bad)}" if bad else "some widths in another process"
        raise NonFiniteLoss(
            f"the loss is not finite at step {self.step}, at {where}. "
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
            "scaler": self.scaler.state_dict(),
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
                momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{name}"])
                self.optimizer.state[parameter]["momentum_buffer"] = momentum
        self.method.task.generator.set_state(tensors["generator"])
        self.step, self.passes = state["step"], state["passes"]
        self.scaler.load_state_dict(state["scaler"])
        self.method.load_state(state["method"])
        self.evaluations.load_state(state["evaluations"])
