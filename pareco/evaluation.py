"""Measuring sub-networks: search losses, calibrated losses and errors, and choosing the front."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

from pareco.config import EvaluationConfig
from pareco.data import Batch, Images
from pareco.processes import Processes
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

    The pipeline says with `begin` how sub-networks are measured: on the current batch in training,
    calibrated afterwards. `count` is how many were measured, `visited` which. Until the next
    `begin`, a sub-network is measured once.
    """

    def __init__(self) -> None:
        """Start with nothing to measure on."""
        self.count = 0
        self.visited: set[Widths] = set()
        self._source: Callable[[list[Widths]], Sequence[float]] | None = None
        self._losses: dict[Widths, float] = {}

    def begin(self, source: Callable[[list[Widths]], Sequence[float]] | None) -> None:
        """Measure with `source` from now on; None allows no evaluation."""
        self._source, self._losses = source, {}

    def __call__(self, widths: Sequence[Widths]) -> Tensor:
        """Return the losses `n` (double, less is better) of `n` sub-networks."""
        if self._source is None:
            raise RuntimeError("a method may evaluate only in widths_for_step and candidates")
        new = [each for each in dict.fromkeys(widths) if each not in self._losses]
        if new:
            self._losses.update(zip(new, self._source(new), strict=True))
            self.count += len(new)
            self.visited.update(new)
        return torch.tensor([self._losses[each] for each in widths], dtype=torch.double)

    def state(self) -> dict[str, Any]:
        """Return the counts, ready for JSON."""
        return {"count": self.count, "visited": sorted(list(each) for each in self.visited)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self.count = state["count"]
        self.visited = {Widths(counts) for counts in state["visited"]}


@torch.no_grad()
def batch_losses(net: SlimmableNet, batch: Batch, widths: Sequence[Widths]) -> Tensor:
    """Return the mean cross-entropies `n` of sub-networks on one batch, batch norm by that batch.

    Leaves the network as it was. (How PareCO's search sees the weights in training.)
    """
    images, labels = batch
    losses = []
    for each in widths:
        with net.at(each), normalized_by_batch(net, NormStatistics(batches=1)):
            losses.append(F.cross_entropy(net(images), labels))
    return torch.stack(losses)


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy (nats) and top-1 and top-5 error (percent) over some images."""

    loss: float
    top1_error: float
    top5_error: float


def counted(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of losses, the numbers right at first and in five, and of images, `4`.

    `scores` is `n x classes`, `labels` `n`; in double precision, on the CPU.
    """
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(scores, labels, reduction="sum")
    images = loss.new_tensor(float(len(labels)))
    return torch.stack([loss, best[:, 0].sum(), best.sum(), images]).cpu().double()


class Evaluator:
    """Calibrates sub-networks of frozen weights and measures them; each is calibrated once.

    Every process takes its share of the batches, in the same calls; all get the same answers.
    """

    def __init__(
        self,
        net: SlimmableNet,
        train: Images,
        search: Images,
        config: EvaluationConfig,
        seed: int,
        processes: Processes,
    ) -> None:
        """Choose the calibration images: the same for every method and sub-network of a seed."""
        if config.calibration_images > len(train):
            raise ValueError(
                f"evaluation.calibration_images: {config.calibration_images} asked for, the "
                f"training split has {len(train)}"
            )
        generator = derived_generator(seed, "calibration")
        chosen = torch.randperm(len(train), generator=generator)[: config.calibration_images]
        self._calibration_images = train.subset(tuple(chosen.tolist()))
        self._search_images = search
        self._net, self._batch_size, self._processes = net, config.batch_size, processes
        self._statistics: dict[Widths, NormStatistics] = {}

    @cached_property
    def calibration(self) -> Images:
        """The calibration images of this process, held in memory."""
        return self._calibration_images.held(self._batch_size, self._processes.share)

    @cached_property
    def search(self) -> Images:
        """The search images of this process, held in memory."""
        return self._search_images.held(self._batch_size, self._processes.share)

    def search_losses(self, widths: Sequence[Widths]) -> list[float]:
        """Return the calibrated cross-entropies (nats) `n` on the search images."""
        batches = self.search.batches(self._batch_size)
        return [measured.loss for measured in self._measured(batches, widths)]

    def on(self, images: Images, widths: Sequence[Widths]) -> list[Measurement]:
        """Return calibrated losses and errors `n` of sub-networks on these images."""
        batches = images.batches(self._batch_size, self._processes.share)
        return self._measured(batches, widths)

    @torch.no_grad()
    def _measured(self, batches: Iterable[Batch], widths: Sequence[Widths]) -> list[Measurement]:
        """Return what is measured in evaluation mode; each batch is loaded once."""
        statistics = [self.statistics(each) for each in widths]
        counts = torch.zeros(len(widths), 4, dtype=torch.double)
        training = self._net.training
        self._net.eval()
        for images, labels in batches:
            for row, each, own in zip(counts, widths, statistics, strict=True):
                with self._net.at(each, own):
                    row += counted(self._net(images), labels)
        self._net.train(training)
        return [
            Measurement(loss / count, 100 * (1 - top1 / count), 100 * (1 - top5 / count))
            for loss, top1, top5, count in self._processes.total(counts).tolist()
        ]

    def statistics(self, widths: Widths) -> NormStatistics:
        """Return the batch-norm statistics of a sub-network over all calibration images."""
        if widths not in self._statistics:
            batches = (images for images, _ in self.calibration.batches(self._batch_size))
            if len(self.calibration):
                own = calibrated_statistics(self._net, widths, batches)
            else:  # there are fewer batches than processes
                own = self._no_statistics(widths)
            if self._processes.several:
                own = self._over_processes(own)
            self._statistics[widths] = own
        return self._statistics[widths]

    def _no_statistics(self, widths: Widths) -> NormStatistics:
        """Return zeros in the shape and order of a sub-network's statistics."""
        like = next(self._net.parameters())
        with self._net.at(widths):
            zeros = {layer.name: like.new_zeros(layer.used_outputs) for layer in self._net.norms()}
        return NormStatistics(zeros, {name: each.clone() for name, each in zeros.items()})

    def _over_processes(self, own: NormStatistics) -> NormStatistics:
        """Return the statistics over the batches of all processes, every batch alike."""
        names = sorted(own.means)
        tensors = [*(own.means[name] for name in names), *(own.variances[name] for name in names)]
        joined = torch.cat([tensor.cpu().double() for tensor in tensors]) * own.batches
        joined = torch.cat([joined, joined.new_tensor([own.batches])])
        total = self._processes.total(joined)
        count = int(total[-1])
        parts = (total[:-1] / count).to(tensors[0]).split([len(tensor) for tensor in tensors])
        means, variances = parts[: len(names)], parts[len(names) :]
        return NormStatistics(
            dict(zip(names, means, strict=True)), dict(zip(names, variances, strict=True)), count
        )


def front(losses: Sequence[float], costs: Sequence[float]) -> list[int]:
    """Return the indices of the non-dominated (loss, cost) pairs, cheapest first.

    Less is better in both; of equal pairs the first stands. NaN losses are never on the front.
    """
    pairs = torch.tensor([losses, costs], dtype=torch.double).T.reshape(-1, 2)
    known = torch.isfinite(pairs).all(1).nonzero().flatten()
    best = known[is_non_dominated(-pairs[known], deduplicate=True)]
    return sorted(best.tolist(), key=lambda index: costs[index])
