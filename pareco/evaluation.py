"""Measuring sub-networks: search losses, calibrated losses and errors, and choosing the front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

from pareco.config import EvaluationConfig
from pareco.data import Batch, Images
from pareco.randomness import derived_generator
from pareco.slimmable import (
    NormStatistics,
    SlimmableNet,
    calibrated_statistics,
    normalized_by_batch,
)
from pareco.widths import Widths


class SearchEvaluations:
    """The counted service that measures search losses for a method.

    The pipeline says with `begin` how one sub-network is measured: on the current batch in
    training, calibrated afterwards. `count` is how many were measured, `visited` which. Until
    the next `begin`, a sub-network is measured once.
    """

    def __init__(self) -> None:
        """Start with nothing to measure on."""
        self.count = 0
        self.visited: set[Widths] = set()
        self._source: Callable[[Widths], float] | None = None
        self._losses: dict[Widths, float] = {}

    def begin(self, source: Callable[[Widths], float] | None) -> None:
        """Measure with `source` from now on; None allows no evaluation."""
        self._source, self._losses = source, {}

    def __call__(self, widths: Sequence[Widths]) -> Tensor:
        """Return the losses `n` (double, less is better) of `n` sub-networks."""
        if self._source is None:
            raise RuntimeError("a method may evaluate only in widths_for_step and candidates")
        for each in widths:
            if each not in self._losses:
                self._losses[each] = self._source(each)
                self.count += 1
                self.visited.add(each)
        return torch.tensor([self._losses[each] for each in widths], dtype=torch.double)

    def state(self) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        return {"count": self.count, "visited": sorted(list(each) for each in self.visited)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self.count = state["count"]
        self.visited = {Widths(counts) for counts in state["visited"]}


@torch.no_grad()
def batch_loss(net: SlimmableNet, batch: Batch, widths: Widths) -> float:
    """Return the mean cross-entropy of a sub-network on one batch, batch norm by that batch.

    Leaves the network as it was. (How PareCO's search sees the weights in training.)
    """
    images, labels = batch
    with net.at(widths), normalized_by_batch(net, NormStatistics(batches=1)):
        return float(F.cross_entropy(net(images), labels))


@dataclass(frozen=True)
class Measured:
    """Mean cross-entropy (nats) and top-1 and top-5 error (percent) over some images."""

    loss: float
    top1_error: float
    top5_error: float


@torch.no_grad()
def measured(net: SlimmableNet, batches: Iterable[Batch]) -> Measured:
    """Return loss and errors at the current widths, in evaluation mode."""
    training = net.training
    net.eval()
    loss = top1 = top5 = 0.0
    count = 0
    for images, labels in batches:
        scores = net(images)
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
        best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
        top1 += int(best[:, 0].sum())
        top5 += int(best.sum())
        count += len(labels)
    net.train(training)
    return Measured(loss / count, 100 * (1 - top1 / count), 100 * (1 - top5 / count))


class Evaluator:
    """Calibrates sub-networks of frozen weights and measures them; each is calibrated once."""

    def __init__(
        self, net: SlimmableNet, train: Images, search: Images, config: EvaluationConfig, seed: int
    ) -> None:
        """Choose the calibration images: the same for every method and sub-network of a seed."""
        if config.calibration_images > len(train):
            raise ValueError(
                f"evaluation.calibration_images: {config.calibration_images} asked for, the "
                f"training split has {len(train)}"
            )
        generator = derived_generator(seed, "calibration")
        chosen = torch.randperm(len(train), generator=generator)[: config.calibration_images]
        self.calibration = train.subset(tuple(chosen.tolist()))
        self._net, self._search, self._batch_size = net, search, config.batch_size
        self._statistics: dict[Widths, NormStatistics] = {}

    def search_loss(self, widths: Widths) -> float:
        """Return the calibrated cross-entropy (nats) on the search images."""
        return self.on(self._search, widths).loss

    def on(self, images: Images, widths: Widths) -> Measured:
        """Return calibrated loss and errors of a sub-network on these images."""
        if widths not in self._statistics:
            batches = (images for images, _ in self.calibration.batches(self._batch_size))
            self._statistics[widths] = calibrated_statistics(self._net, widths, batches)
        with self._net.at(widths, self._statistics[widths]):
            return measured(self._net, images.batches(self._batch_size))


def front(losses: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Return the indices of the non-dominated (loss, cost) pairs, cheapest first.

    Less is better in both; of equal pairs the first stands. NaN losses are never on the front.
    """
    pairs = torch.tensor([losses, costs], dtype=torch.double).T.reshape(-1, 2)
    known = torch.isfinite(pairs).all(1).nonzero().flatten()
    best = known[is_non_dominated(-pairs[known], deduplicate=True)]
    return sorted(best.tolist(), key=lambda index: costs[index])
