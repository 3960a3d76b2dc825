"""One training step of a slimmable network: the sandwich rule with inplace distillation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from pareco.evaluation import exact
from pareco.slimmable import SlimmableNet
from pareco.widths import Widths


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


def accumulate_gradients(
    net: SlimmableNet,
    images: Tensor,
    labels: Tensor,
    widths: Sequence[Widths],
    *,
    label_smoothing: float,
    forward: Callable[[], AbstractContextManager[Any]] = nullcontext,
    backward: Callable[[Tensor], None] = Tensor.backward,
) -> StepLosses:
    """Return the losses of `k` sub-networks, and add their gradients up.

    `images` is `n x c x h x w`, `labels` `n`; losses are computed inside `forward` contexts, for
    mixed precision, and differentiated by `backward`. The first network learns from the labels with
    smoothing, every other one from the first one's soft output, detached (Yu & Huang 2019,
    arXiv 1903.05134, Algorithm 1).
    """
    largest, *others = widths
    with net.at(largest):
        with forward():
            scores = net(images)
            loss = F.cross_entropy(exact(scores), labels, label_smoothing=label_smoothing)
        backward(loss)
    learned, soft_labels = [loss.detach()], exact(scores.detach()).softmax(1)
    on_labels = [_label_loss(scores, labels)]
    for each in others:
        with net.at(each):
            with forward():
                scores = net(images)
                loss = F.cross_entropy(exact(scores), soft_labels)
            backward(loss)
        learned.append(loss.detach())
        on_labels.append(_label_loss(scores, labels))
    return StepLosses(torch.stack(learned), torch.stack(on_labels))


def _label_loss(scores: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(exact(scores.detach()), labels)
