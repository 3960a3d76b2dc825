"""One training step of a slimmable network: the sandwich rule with inplace distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pareco.evaluation import exact
from pareco.slimmable import SlimmableNet
from pareco.widths import Widths

Outputs = tuple[Tensor, ...]
"""What a pass gives: its loss, its loss on the labels, its scores; all detached."""


class StepLosses(NamedTuple):
    """The losses (nats, detached) of the `k` networks of a step: largest first, smallest last."""

    learned: Tensor
    """Those that they learned from: the labels with smoothing, or the largest one's soft output."""
    on_labels: Tensor
    """Their plain cross-entropies on the labels, of the same scores."""


def learning_rate(step: float, *, steps: int, warmup_steps: float, peak: float) -> float:
    """Return the rate of `step` (from 0): linear warm-up to `peak`, then linear decay to zero.

    The first step of the warm-up already moves, and the last step still does. Where steps are not
    counted, `step` is the part of the training that is done times `steps`.
    """
    if step < warmup_steps:
        return peak * min((step + 1) / warmup_steps, 1.0)
    return peak * (steps - step) / (steps - warmup_steps)


def sandwich_widths(net: SlimmableNet, between: Sequence[Widths]) -> list[Widths]:
    """Return the widths of a step: the largest, those between, the smallest, none twice."""
    return list(dict.fromkeys((net.space.largest, *between, net.space.smallest)))


def at_once(widths: Widths, work: Callable[..., Outputs], *inputs: Tensor) -> Outputs:
    """Return what the work of a pass does with its inputs."""
    return work(*inputs)


def accumulate_gradients(
    net: SlimmableNet,
    images: Tensor,
    labels: Tensor,
    widths: Sequence[Widths],
    *,
    label_smoothing: float,
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
    backward: Callable[[Tensor], None] = Tensor.backward,
    run: Callable[..., Outputs] = at_once,
) -> StepLosses:
    """Return the losses of `k` sub-networks, and add their gradients up.

    `images` is `n x c x h x w`, `labels` `n`; losses are computed inside `forward` contexts, for
    mixed precision, and differentiated by `backward`. The first network learns from the labels with
    smoothing, every other one from the first one's soft output, detached (Yu & Huang 2019,
    arXiv 1903.05134, Algorithm 1). Each pass is `run`, which may replay it: its work knows nothing
    of the step but its inputs.
    """

    def passed(smoothing: float, images: Tensor, labels: Tensor, taught: Tensor) -> Outputs:
        with forward():
            scores = net(images)
            loss = F.cross_entropy(exact(scores), taught, label_smoothing=smoothing)
        backward(loss)
        scores = exact(scores.detach())
        return loss.detach(), F.cross_entropy(scores, labels), scores

    largest, *others = widths
    with net.at(largest):
        work = partial(passed, label_smoothing)
        *losses, scores = run(largest, work, images, labels, labels)
    soft_labels, every = scores.softmax(1), [losses]
    for each in others:
        with net.at(each):
            *losses, _ = run(each, partial(passed, 0.0), images, labels, soft_labels)
        every.append(losses)
    return StepLosses(*map(torch.stack, zip(*every, strict=True)))
