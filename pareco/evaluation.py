"""Measuring sub-networks: search losses, calibrated losses and errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from pareco.config import EvaluationConfig
from pareco.data import Batch, Images
from pareco.ledger import Ledger
from pareco.methods import Method, checked_widths
from pareco.processes import Processes
from pareco.randomness import derived_generator
from pareco.search import front
from pareco.slimmable import (
    NormStatistics,
    SlimmableNet,
    jointly_calibrated,
    normalized_by_batch,
)
from pareco.slimmable.modes import modes_kept
from pareco.widths import Widths

_CALIBRATED_AT_ONCE = 16


class OverBudget(RuntimeError):
    """A request for more search losses than the search budget pays."""


class SearchEvaluations:
    """The counted service that measures search losses for a method, and knows what they cost.

    The pipeline says with `begin` how sub-networks are measured: on the current batch in training,
    calibrated afterwards. `count` is how many were measured, `visited` which, `spent` the MACs of
    that. Until the next `begin`, a sub-network is measured once; with the final weights, once in
    all sessions of a run. `macs` returns those of one image.
    """

    def __init__(self, macs: Callable[[Widths], int]) -> None:
        """Start with nothing to measure on."""
        self.count = self.spent = 0
        self.visited: set[Widths] = set()
        self._macs, self._images, self._limit = macs, 0, math.inf
        self._source: Callable[[list[Widths]], Iterable[float]] | None = None
        self._losses: dict[Widths, float] = {}
        self._final: dict[Widths, float] = {}

    def begin(
        self,
        source: Callable[[list[Widths]], Iterable[float]] | None,
        *,
        images: int = 0,
        limit: float = math.inf,
        final: bool = False,
    ) -> None:
        """Measure with `source` from now on, on so many images each; None allows no evaluation.

        `limit` is what `spent` may come to. Where the weights are `final`, what is measured is a
        part of the state. If `source` ends with an error, what it yielded before is kept.
        """
        self._source, self._images, self._limit = source, images, limit
        self._losses = self._final if final else {}

    @property
    def left(self) -> float:
        """The MACs that may be spent now; infinite where nothing limits them."""
        return max(self._limit - self.spent, 0)

    def price(self, widths: Iterable[Widths]) -> int:
        """Return the MACs that the losses of these would take now: none for what is measured."""
        new = {each for each in widths if each not in self._losses}
        return self._images * sum(map(self._macs, new))

    def __call__(self, widths: Sequence[Widths]) -> Tensor:
        """Return the losses `n` (double, less is better) of `n` sub-networks.

        Raises `OverBudget`, and measures nothing, where they cost more than is left.
        """
        if self._source is None:
            raise RuntimeError("a method may evaluate only in widths_for_step and candidates")
        new = [each for each in dict.fromkeys(widths) if each not in self._losses]
        if (price := self.price(new)) > self.left:
            raise OverBudget(
                f"asked for the losses of {len(new)} networks on {self._images} images each, "
                f"{price} MACs, where {self.left:.0f} are left of the search budget"
            )
        for each, loss in zip(new, self._source(new) if new else (), strict=True):
            self._losses[each] = loss
            self.count += 1
            self.spent += self._images * self._macs(each)
            self.visited.add(each)
        return torch.tensor([self._losses[each] for each in widths], dtype=torch.double)

    def state(self) -> dict[str, Any]:
        """Return the counts and the losses with the final weights, ready for JSON."""
        return {
            "count": self.count,
            "spent": self.spent,
            "visited": sorted(self.visited),
            "final": [[each, loss] for each, loss in self._final.items()],
        }

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned; one of an earlier version has spent nothing."""
        self.count, self.spent = state["count"], state.get("spent", 0)
        self.visited = {Widths(counts) for counts in state["visited"]}
        self._final = {Widths(counts): loss for counts, loss in state.get("final", ())}


@torch.no_grad()
def batch_losses(
    net: SlimmableNet, batch: Batch, widths: Sequence[Widths], at_once: int | None = None
) -> Tensor:
    """Return the mean cross-entropies `n` of sub-networks on one batch, batch norm by that batch.

    Or by its equal parts, of as many images as are had `at_once`, or fewer. Leaves the network as
    it was. (How PareCO's search sees the weights in training.)
    """
    count = len(batch[1])
    number = -(-count // (at_once or count))
    parts = list(zip(*(each.tensor_split(number) for each in batch), strict=True))
    losses = []
    with normalized_by_batch(net):
        for each in widths:
            with net.at(each):
                own = [F.cross_entropy(exact(net(images)), labels) for images, labels in parts]
            sizes = [len(labels) / count for _, labels in parts]
            losses.append(sum(each * size for each, size in zip(own, sizes, strict=True)))
    return torch.stack(losses)


@dataclass(frozen=True)
class Measurement:
    """Mean cross-entropy (nats) and top-1 and top-5 error (percent) over some images."""

    loss: float
    top1_error: float
    top5_error: float


def exact(scores: Tensor) -> Tensor:
    """Return scores of mixed precision in float32, for losses; others as they are."""
    return scores.to(torch.promote_types(scores.dtype, torch.float32))


def counted(scores: Tensor, labels: Tensor) -> Tensor:
    """Return the sum of losses, the numbers right at first and in five, and of images, `4`.

    `scores` is `n x classes`, `labels` `n`; in float32 at least, where they are.
    """
    scores = exact(scores)
    best = scores.topk(min(5, scores.shape[1]), dim=1).indices == labels[:, None]
    loss = F.cross_entropy(scores, labels, reduction="sum")
    images = loss.new_tensor(float(len(labels)))
    return torch.stack([loss, best[:, 0].sum(), best.sum(), images])


def calibration_images(config: EvaluationConfig, net: SlimmableNet) -> int:
    """Return on how many images each sub-network is calibrated: none without batch norm."""
    return config.calibration_images if net.norms() else 0


@dataclass(frozen=True)
class Counts:
    """A measurement, whole or under way: how many images are done, a row of `counted` a widths."""

    images: int = 0
    rows: list[list[float]] = field(default_factory=list)

    @property
    def measurements(self) -> list[Measurement]:
        """What the rows come to."""
        return [
            Measurement(loss / count, 100 * (1 - top1 / count), 100 * (1 - top5 / count))
            for loss, top1, top5, count in self.rows
        ]


@dataclass(eq=False)
class Evaluator:
    """Calibrates sub-networks of frozen weights and measures them; each is calibrated once.

    A network without batch norm needs no calibration, and no images for it.
    They compute in this `precision`.
    Every process takes its share of the batches, in the same calls; all get the same answers.
    What the network does is settled in the `ledger` when it is complete. The networks that
    `counts_on` is given were calibrated once by `search_losses`: what is left to calibrate there
    was, before an interruption, and is booked as lost.
    `check`, called between the batches of a process that is alone, may raise; `due` is asked in the
    main process, between the batches of a long measurement, whether what is counted is to be kept;
    `tell` is called by all processes, alike, before what is counted is kept.
    """

    net: SlimmableNet
    training_images: Images
    search_images: Images
    config: EvaluationConfig
    seed: int
    processes: Processes
    check: Callable[[], None] = lambda: None
    due: Callable[[], bool] = lambda: False
    tell: Callable[[], None] = lambda: None
    ledger: Ledger = field(default_factory=Ledger)
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"

    def __post_init__(self) -> None:
        """Check that there are enough images to calibrate with."""
        wanted, there = calibration_images(self.config, self.net), len(self.training_images)
        if wanted > there:
            raise ValueError(
                f"evaluation.calibration_images: {wanted} asked for, the training split has {there}"
            )
        self._statistics: dict[Widths, NormStatistics] = {}

    @cached_property
    def calibration(self) -> Images:
        """The calibration images of this process, held in memory.

        They are the same for every method and sub-network of a seed.
        """
        generator = derived_generator(self.seed, "calibration")
        order = torch.randperm(len(self.training_images), generator=generator)
        chosen = self.training_images.subset(order[: self.config.calibration_images])
        return chosen.held(self.config.batch_size, self.processes.share)

    @cached_property
    def search(self) -> Images:
        """The search images of this process, held in memory."""
        return self.search_images.held(self.config.batch_size, self.processes.share)

    def search_losses(self, widths: Sequence[Widths]) -> list[float]:
        """Return the calibrated cross-entropies (nats) `n` on the search images."""
        self._calibrate(widths)
        calibrated = [(each, self.statistics(each)) for each in widths]
        counts = torch.zeros(len(widths), 4, dtype=torch.double)
        for batch in self._watched(self.search.batches(self.config.batch_size)):
            self._count(counts, batch, calibrated)
        rows = self.processes.total(counts).tolist()
        self._share()
        return [each.loss for each in Counts(len(self.search), rows).measurements]

    def counts_on(
        self,
        images: Images,
        widths: Sequence[Widths],
        before: Counts,
        keep: Callable[[Counts], None],
    ) -> Counts:
        """Return what is counted of `n` sub-networks on these images.

        Each batch is loaded once. `before` is what was counted of them already; where `due` says
        so in the main process, it hands what is counted to `keep`, which may raise.
        """
        missing = [each for each in widths if each not in self._statistics]
        for first in range(0, len(missing), _CALIBRATED_AT_ONCE):
            if self.processes.led(self.due):
                self._share()
                self.processes.led(lambda: keep(before))
            with self.ledger.during("lost"):
                self._calibrate(missing[first : first + _CALIBRATED_AT_ONCE])
        calibrated = [(each, self.statistics(each)) for each in widths]
        size, share = self.config.batch_size, self.processes.share
        counts = torch.zeros(len(widths), 4, dtype=torch.double)
        if before.images and self.processes.main:
            counts += torch.tensor(before.rows, dtype=torch.double)
        batches = images.subset(range(before.images, len(images))).batches(size, share)
        for first in range(before.images, len(images), size * share.count):
            if self.processes.led(self.due):
                so_far = Counts(first, self.processes.total(counts).tolist())
                self._share()
                self.processes.led(lambda: keep(so_far))  # noqa: B023
            if first + share.rank * size < len(images):
                self._count(counts, next(batches), calibrated)
        self._share()
        return Counts(len(images), self.processes.total(counts).tolist())

    def _share(self) -> None:
        """Let all processes, which call this alike, know what each of them has met with."""
        self.tell()
        self.ledger.settle(self.processes.everyones)

    @torch.no_grad()
    def _count(
        self, counts: Tensor, batch: Batch, calibrated: Sequence[tuple[Widths, NormStatistics]]
    ) -> None:
        """Add to `counts`, a row for each sub-network, what `counted` says in evaluation mode.

        What a device has counted is waited for once a batch.
        """
        images, labels = batch
        rows = []
        with modes_kept(self.net):
            self.net.eval()
            for each, statistics in calibrated:
                with self.net.at(each, statistics), self.processes.autocast(self.precision):
                    scores = self.net(images)
                rows.append(counted(scores, labels))
        counts += torch.stack(rows).cpu().double()

    def _watched(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches; between them a process that is alone may be asked for an end."""
        for batch in batches:
            if not self.processes.several:
                self.check()
            yield batch

    def statistics(self, widths: Widths) -> NormStatistics:
        """Return the batch-norm statistics of a sub-network over all calibration images."""
        self._calibrate([widths])
        return self._statistics[widths]

    def own_norm(self, widths: Widths) -> dict[str, Tensor]:
        """Return the batch norm that a sub-network has of its own: statistics, private weights.

        By the names that they have in the plain network's state dict.
        """
        return {**self.statistics(widths).by_name, **self.net.private_weights(widths)}

    def _calibrate(self, widths: Sequence[Widths]) -> None:
        """Calibrate those that have not been yet, in one pass through the calibration images."""
        new = [each for each in dict.fromkeys(widths) if each not in self._statistics]
        found = [NormStatistics(widths=each) for each in new]
        needed = new and self.net.norms()
        if needed and len(self.calibration):  # else there are fewer batches than processes
            batches = self._watched(self.calibration.batches(self.config.batch_size))
            with self.processes.autocast(self.precision):
                found = jointly_calibrated(self.net, new, (images for images, _ in batches))
        for each, own in zip(new, found, strict=True):
            several = self.processes.several
            self._statistics[each] = self._over_processes(each, own) if several and needed else own

    def _over_processes(self, widths: Widths, own: NormStatistics) -> NormStatistics:
        """Return the statistics over the batches of all processes, every batch alike."""
        with self.net.at(widths):
            channels = {layer.name: layer.used_outputs for layer in self.net.norms()}
        sizes = [*channels.values()] * 2
        sums = torch.zeros(sum(sizes) + 1, dtype=torch.double)
        if own.batches:
            kinds = (own.means, own.variances)
            tensors = [kind[name].cpu().double() for kind in kinds for name in channels]
            sums = torch.cat([*tensors, sums.new_ones(1)]) * own.batches
        total = self.processes.total(sums)
        parts = (total[:-1] / total[-1]).to(next(self.net.parameters())).split(sizes)
        means, variances = parts[: len(channels)], parts[len(channels) :]
        return NormStatistics(
            dict(zip(channels, means, strict=True)),
            dict(zip(channels, variances, strict=True)),
            int(total[-1]),
            widths=widths,
        )


def chosen_front(
    candidates: Iterable[Widths],
    losses_of: Callable[[Sequence[Widths]], Tensor],
    costs_of: Callable[[Sequence[Widths]], Tensor],
) -> list[tuple[Widths, float]]:
    """Return the candidates that none beats in both search loss and cost, with their losses.

    Cheapest first; of candidates that are equal in both the first stands.
    """
    distinct = list(dict.fromkeys(candidates))
    losses = losses_of(distinct)
    return [(distinct[at], float(losses[at])) for at in front(losses, costs_of(distinct))]


def final_front(
    method: Method, evaluations: SearchEvaluations, hold: Callable[[], None]
) -> list[tuple[Widths, float]]:
    """Return the front of a method whose training has ended, after the search that follows it.

    Of its candidates and of the largest and the smallest network, which are measured first. `hold`
    is called where an interrupted search may go on from.
    """
    space, task = method.task.space, method.task
    ends = (space.largest, space.smallest)
    evaluations(ends)
    hold()
    while method.search_on():
        hold()
    candidates = checked_widths(method, method.candidates(), "candidates")
    return chosen_front((*candidates, *ends), evaluations, task.costs)
