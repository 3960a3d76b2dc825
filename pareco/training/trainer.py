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
from pareco.methods import Method, checked_widths
from pareco.processes import Processes
from pareco.randomness import seeded_globally
from pareco.slimmable import SlimmableNet
from pareco.training.folder import RunState
from pareco.training.interruption import Interrupted, requested
from pareco.training.outcomes import Outcome, Outcomes, StepReport
from pareco.training.plan import Limits
from pareco.training.replay import passes_of
from pareco.training.search_batches import SearchBatches
from pareco.training.step import (
    StepLosses,
    accumulate_gradients,
    learning_rate,
    sandwich_widths,
)
from pareco.widths import Widths


def optimizer_of(
    net: SlimmableNet, config: TrainingConfig, *, fused: bool
) -> torch.optim.Optimizer:
    """Return the optimizer of a network; no weight decay on normalization and biases."""
    groups = param_groups_weight_decay(net, config.weight_decay)
    if config.optimizer == "adamw":
        betas = config.momentum, 0.999
        return torch.optim.AdamW(groups, lr=config.lr_per_256, betas=betas, fused=fused or None)
    optimizer = torch.optim.SGD(
        groups,
        lr=config.lr_per_256,
        momentum=config.momentum,
        nesterov=config.nesterov and config.momentum > 0,
        fused=fused or None,
    )
    if fused and config.momentum:
        # torch begins with unset memory, and keeps it where a scaler leaves the first step out.
        for parameter in (each for group in optimizer.param_groups for each in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


_STORED = {"momentum_buffer": "momentum"}
"""What checkpoints call a part of an optimizer's state, where it is not torch's name."""


class StepClock:
    """Times the steps of training: in all, in the state of the run, and the last ones."""

    def __init__(self, spent: RunState, read_every_steps: int) -> None:
        """Add to the images and seconds of this state; the last steps have some that wait."""
        self._spent = spent
        self._last: deque[tuple[int, float]] = deque(maxlen=max(20, read_every_steps))
        self._begun = self._waited = 0.0

    def waited_for(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches, and note how long each is waited for."""
        self._begun = time.perf_counter()
        for batch in batches:
            self._waited = time.perf_counter() - self._begun
            yield batch
            self._begun = time.perf_counter()

    def step_done(self, images: int) -> float:
        """Note the end of a step; return images a second over the last steps."""
        seconds = time.perf_counter() - self._begun
        self._spent.images += images
        self._spent.training_seconds += seconds
        self._spent.waiting_seconds += self._waited
        self._last.append((images, seconds))
        images_of_last, seconds_of_last = map(sum, zip(*self._last, strict=True))
        return images_of_last / seconds_of_last


@dataclass(kw_only=True, eq=False)
class Trainer:
    """Trains one set of weights for one method; `step` is the number of steps done.

    The losses of the search are measured on `search_batches`, as far as `limits` let it. Images and
    seconds are added to `spent`; the phases of the `ledger`, which the network books
    its passes in, are training and search. In the main process `on_step` hears of every step, and
    `on_checkpoint` of the moments to save.
    """

    net: SlimmableNet
    method: Method
    loader: TrainingLoader
    evaluations: SearchEvaluations
    search_batches: SearchBatches
    limits: Limits
    config: TrainingConfig
    processes: Processes
    spent: RunState
    ledger: Ledger
    checkpoint_seconds: float
    read_every_steps: int | None
    on_step: Callable[[StepReport], None]
    on_checkpoint: Callable[[], None]

    def __post_init__(self) -> None:
        """Start at step 0."""
        config, device = self.config, self.processes.device.type
        self.step = self.passes = 0
        every = self.read_every_steps or (1 if device == "cpu" else 20)
        self._every: int = self.processes.led(lambda: every)
        self.clock = StepClock(self.spent, self._every)
        self._listens = type(self.method).hear is not Method.hear
        self.outcomes = Outcomes(self.processes, label_losses=self._listens)
        self._held: tuple[Tensor, dict[str, Any]] | None = None
        self.nominal_steps = config.epochs * self.loader.batches_per_epoch
        scaled = config.precision == "fp16"
        # A scaler waits for its device, unless the optimizer is fused.
        self.optimizer = optimizer_of(self.net, config, fused=scaled and device != "cpu")
        self.scaler = torch.amp.GradScaler(device, enabled=scaled)
        self._passes = passes_of(self.net, config, self.processes.device)

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
        self._saved = time.perf_counter()
        for batch in self.clock.waited_for(self._batches()):
            self._step(batch)
            wishes, read = self._wishes(), None
            if self._reads(wishes):
                wishes, read = self._read(wishes)
            speed = self.clock.step_done(len(batch[1]) * self.processes.share.count)
            if read is not None:
                self._tell(read, speed)
                self._grant(wishes)

    def _step(self, batch: Batch) -> None:
        """Do one step, and wait for nothing of what it comes to."""
        widths = self._widths(batch)
        losses = self._gradients(batch, widths)
        rate = self._update()
        self.step += 1
        self.passes += len(widths)
        # Every process has an equal part of the batch of a step, and of that of its search.
        self.ledger.settle(self.processes.alike)
        spent = self.ledger.total()
        outcome = Outcome(
            step=self.step,
            steps=round(self.step / self.done),
            widths=widths,
            learning_rate=rate,
            forward_macs=spent.forward_macs,
            backward_macs=spent.backward_macs,
        )
        self.outcomes.add(outcome, losses)

    def _wishes(self) -> list[float]:
        """Return what this process knows of: a signal, damaged images, and whether to save."""
        due = time.perf_counter() - self._saved >= self.checkpoint_seconds
        untold = self.loader.images.store.untold
        return [float(requested() or 0), float(untold), float(due and self.processes.main)]

    def _reads(self, wishes: list[float]) -> bool:
        """Return whether to read after this step what steps came to: the same in all processes."""
        asks_next = self.step % self.method.task.ask_every_steps == 0
        granted_at_once = any(wishes) and not self.processes.several
        full = len(self.outcomes) >= self._every
        return full or asks_next or granted_at_once or self.done >= 1

    def _read(self, wishes: list[float]) -> tuple[list[float], list[Outcome]]:
        """Return the sums of the wishes of all processes, and the outcomes since the last time."""
        wishes = self.processes.total(torch.tensor(wishes)).tolist()
        if wishes[1]:
            self.loader.images.store.tell(self.processes)
        return wishes, self.outcomes.read()

    def _tell(self, outcomes: Sequence[Outcome], images_per_second: float) -> None:
        """Tell of steps, in order; raise `NonFiniteLoss`, in all processes, at the first such."""
        for each in outcomes:
            each.check()
            if self.processes.main:
                self.on_step(each.report(images_per_second))
        if not self._listens:
            return

        def hear() -> None:
            for each in outcomes:
                self.method.hear(each.step - 1, each.widths, each.on_labels)

        with self.ledger.during("search"):
            self.processes.led(hear)

    def _grant(self, wishes: list[float]) -> None:
        """Save where any process wishes it or has got a signal; then end by `Interrupted`."""
        signals, _, saves = wishes
        if signals or saves:
            self._check_agreement()
            if self.processes.main:
                self.on_checkpoint()
            self._saved = time.perf_counter()
        if signals:
            raise Interrupted(requested() or signal.SIGTERM)

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
        search_batch = cache(partial(self.search_batches.at, self.step, batch))

        def measure(widths: list[Widths]) -> list[float]:
            with self.processes.autocast(self.config.precision):
                at_once = self.config.batch_size // self.processes.share.count
                losses = batch_losses(self.net, search_batch(), widths, at_once)
            return (self.processes.total(losses) / self.processes.share.count).tolist()

        self.evaluations.begin(
            lambda widths: self.processes.together(measure, widths),
            images=self.search_batches.images,
            limit=self.limits.at(self.done, self.nominal_steps),
        )
        with self.ledger.during("search"):
            between = self.processes.led(self._between, measure)
        return sandwich_widths(self.net, between)

    def _between(self) -> list[Widths]:
        given = self.method.widths_for_step(self.step)
        return checked_widths(self.method, given, "widths_for_step")

    def _gradients(self, batch: Batch, widths: Sequence[Widths]) -> StepLosses:
        """Add up the gradients of a sandwich step, average them over processes; return the losses.

        Layers that draw by themselves, such as dropout, draw the same when a step is done again.
        """
        rank = self.processes.share.rank
        purpose = ("layers", self.step, *([rank] if rank else []))
        drawing = seeded_globally(self.loader.seed, *purpose, device=self.processes.device)
        with drawing, self._passes.step():
            losses = accumulate_gradients(
                self.net,
                *batch,
                widths,
                label_smoothing=self.config.label_smoothing,
                forward=lambda: self.processes.autocast(self.config.precision),
                backward=lambda loss: self.scaler.scale(loss).backward(),
                run=self._passes.run,
            )
        gradients = [each.grad for each in self.net.parameters() if each.grad is not None]
        begun = time.perf_counter()
        self.processes.average_gradients(gradients)
        self.spent.reduction_seconds += time.perf_counter() - begun
        return losses

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
        self._passes.clear()
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
            for kind, value in self.optimizer.state[parameter].items():
                if value is not None:
                    tensors[f"{_STORED.get(kind, kind)}.{name}"] = value
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
        parameters = dict(self.net.named_parameters())
        kinds = {stored: kind for kind, stored in _STORED.items()}
        for key, value in tensors.items():
            stored, _, name = key.partition(".")
            if name in parameters and stored != "net":
                like = parameters[name]
                if stored == "step":  # a number, which a fused optimizer alone has on the device
                    fused = self.optimizer.defaults.get("fused")
                    like = value.to(like.device) if fused else value
                own = self.optimizer.state[parameters[name]]
                own[kinds.get(stored, stored)] = torch.empty_like(like).copy_(value)
        self.method.task.generator.set_state(tensors["generator"])
        self.step, self.passes = state["step"], state["passes"]
        self.scaler.load_state_dict(state["scaler"])
        self.method.load_state(state["method"])
        self.evaluations.load_state(state["evaluations"])
