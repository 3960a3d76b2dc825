"""What gradient steps came to: read together, so that no step waits for its device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from pareco.processes import Processes
from pareco.training.step import StepLosses
from pareco.widths import Widths


class NonFiniteLoss(RuntimeError):
    """A loss that is NaN or infinite: names the step and the networks."""


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a training step tells: `step` counts from 1, losses in nats, MACs are those so far.

    `images_per_second` is a mean over the last steps, over the same time as a `RunState`'s
    `training_seconds`.
    """

    step: int
    steps: int
    loss_largest: float
    loss_smallest: float
    learning_rate: float
    forward_macs: int
    backward_macs: int
    images_per_second: float


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a gradient step came to: `step` counts from 1, `widths` are those of its networks.

    Once they are read, the losses that these `learned` from and those `on_labels` (see
    `StepLosses`) are the means over processes; before, and where nobody wants them, there are none.
    """

    step: int
    steps: int
    widths: Sequence[Widths]
    learning_rate: float
    forward_macs: int
    backward_macs: int
    learned: Sequence[float] = ()
    on_labels: Sequence[float] = ()

    def check(self) -> None:
        """Raise `NonFiniteLoss` unless the losses, which are read, are finite."""
        losses = zip(self.widths, self.learned, strict=True)
        bad = [str(widths) for widths, loss in losses if not math.isfinite(loss)]
        if bad:
            raise NonFiniteLoss(
                f"the loss is not finite at step {self.step - 1}, at the widths {'; '.join(bad)}. "
                "A lower training.lr_per_256 or a longer training.warmup_epochs may help"
            )

    def report(self, images_per_second: float) -> StepReport:
        """Return what to tell of the step, whose losses are read, at this speed."""
        return StepReport(
            step=self.step,
            steps=self.steps,
            loss_largest=self.learned[0],
            loss_smallest=self.learned[-1],
            learning_rate=self.learning_rate,
            forward_macs=self.forward_macs,
            backward_macs=self.backward_macs,
            images_per_second=images_per_second,
        )


class Outcomes:
    """The outcomes of steps whose losses nobody has read yet."""

    def __init__(self, processes: Processes, *, label_losses: bool) -> None:
        """Start with none; the losses on labels are read only where they are wanted."""
        self._processes, self._label_losses = processes, label_losses
        self._unread: list[tuple[Outcome, StepLosses]] = []

    def __len__(self) -> int:
        """Return the number of steps."""
        return len(self._unread)

    def add(self, outcome: Outcome, losses: StepLosses) -> None:
        """Keep the outcome of a step, with its losses in this process, where they are."""
        if not self._label_losses:
            losses = losses._replace(on_labels=losses.on_labels[:0])
        self._unread.append((outcome, losses))

    def read(self) -> list[Outcome]:
        """Return the outcomes since the last time, in order, with their losses.

        Waits for the device, once, and for the other processes, which call this alike.
        """
        unread, self._unread = self._unread, []
        if not unread:
            return []
        tensors = [each for _, losses in unread for each in losses]
        joined = torch.cat(tensors)
        sums = self._processes.total(joined).to(joined.dtype).double()  # no more digits than theirs
        parts = (sums / self._processes.share.count).split([len(each) for each in tensors])
        means = iter([part.tolist() for part in parts])
        return [replace(each, learned=next(means), on_labels=next(means)) for each, _ in unread]
