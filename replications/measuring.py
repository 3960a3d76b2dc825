"""What short pieces of planned runs take on this machine: steps, losses, asks, and decoding.

Seconds of a piece are taken to be a sum: so much for each step or batch, each network in it, and
each MAC.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import pairwise

import numpy as np
import torch
from scipy.optimize import nnls

from pareco.config import EvaluationConfig, Experiment, Machine, SearchConfig
from pareco.data import DataSet, Images, MemoryStore, Splits, TrainingLoader
from pareco.data.loading import decoding_speed, decoding_workers
from pareco.data.transforms import Preparation
from pareco.evaluation import Counts, Evaluator, SearchEvaluations
from pareco.ledger import Ledger
from pareco.methods import Method, Task
from pareco.processes import Processes, joined_processes
from pareco.slimmable import SlimmableNet
from pareco.training.folder import RunState
from pareco.training.outcomes import StepReport
from pareco.training.plan import Limits, Planner, RunPlan, method_task
from pareco.training.preparation import sizes_before, untrained_network
from pareco.training.search_batches import SearchBatches
from pareco.training.trainer import Trainer
from pareco.widths import Widths
from replications.bench_search import history, searcher

_BLOCK = 2  # steps of one kind, one after the other
_LEAST_SECONDS, _ROUNDS = 5.0, (3, 12)  # the first of them warms up
_SIZES = (0.25, 0.5, 1.0)  # of the longest history that is asked, timed
_DECODED = 512
_DRAWN = 60  # of which the three smallest networks and the three largest are taken


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What was timed here, for runs of an experiment by so many processes on one network."""

    device: str
    processes: int
    decoding_processes: int
    """Of each run; 0 where it decodes between its steps."""
    runs_on_a_device: float
    images_per_second: float | None
    """That one process decodes; None where no images were given."""
    step: Sequence[float]
    """Seconds of a gradient step, of each of its networks, of each MAC of theirs, and of each that
    has not been trained before; of each network whose loss the search measures on a batch, and of
    each MAC of that."""
    after: Sequence[float]
    """Seconds of each batch, and of each MAC, in calibration; of each in evaluation; of each
    network that has not been calibrated before."""
    asks: Mapping[tuple[SearchConfig, int], Sequence[tuple[int, float]]]
    """By search and by how many it asks for: entries of the history, and seconds of an ask."""


class _Paced(Method):
    """Trains and measures networks: two steps of each kind of work, in turns.

    They are the same in all rounds, but for those of the last kind, which nothing has seen.
    """

    name = "paced"

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        spread, count = list(task.space.spread(100)), task.sampled_per_step
        few = spread[1 : 1 + count], spread[-1 - count : -1]
        many = spread[: count + 2], spread[-count - 2 :]
        self.kinds: list[tuple[list[Widths], list[Widths]]] = [
            ([], []),
            *((each, []) for each in few),
            *(([], each) for each in many),
        ]
        self.fresh: list[list[Widths]] = []

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return some of the largest or of the smallest widths, or none, or new; measure such."""
        kind = step // _BLOCK % (len(self.kinds) + 1)
        if kind == len(self.kinds):
            task = self.task
            drawn = [task.space.sample(task.generator) for _ in range(task.sampled_per_step)]
            self.fresh.append(drawn)
            return drawn
        trained, measured = self.kinds[kind]
        if measured:
            self.task.evaluate(measured)
        return trained

    def work(self, batch: int) -> list[list[float]]:
        """Return, for each kind of steps, of what `Measured.step` has seconds there is how much."""
        space, macs = self.task.space, self.task.cost.macs_at

        def of(trained: Sequence[Widths], measured: Sequence[Widths], new: int) -> list[float]:
            networks = list(dict.fromkeys((space.largest, *trained, space.smallest)))
            return [
                1,
                len(networks),
                3 * batch * sum(map(macs, networks)),
                new,
                len(measured),
                batch * sum(map(macs, measured)),
            ]

        fresh = [of(each, [], len(each)) for each in self.fresh]
        mean = np.mean(fresh, axis=0).tolist()
        return [*(of(trained, measured, 0) for trained, measured in self.kinds), mean]


@dataclass(frozen=True, kw_only=True)
class Stopwatch:
    """Times pieces of an experiment's runs on images that are made up."""

    planner: Planner
    machine: Machine
    clock: Callable[[], float] = time.perf_counter

    @property
    def experiment(self) -> Experiment:
        """What is planned."""
        return self.planner.experiment

    @cached_property
    def processes(self) -> Processes:
        """Those that train one network."""
        return joined_processes(self.machine.device)

    def measured(
        self,
        plans: Mapping[str, RunPlan],
        methods: Mapping[str, type[Method]],
        runs: int,
        devices: int,
    ) -> Measured:
        """Return what is timed for these plans, by method, with so many runs at a time on devices.

        All processes call it alike. It trains a throwaway network, and writes nothing.
        """
        location, data = self.machine.images, self.experiment.data
        speed = None
        if location is not None and self.processes.main:
            speed = decoding_speed(location, 1, data.image_size, _DECODED, data)
        return Measured(
            device=self.processes.device.type,
            processes=self.processes.share.count,
            decoding_processes=decoding_workers(self.machine, runs),
            runs_on_a_device=max(1.0, runs / devices),
            images_per_second=speed,
            step=self._step(),
            after=self._after(),
            asks=self._asks(plans, methods) if self.processes.main else {},
        )

    @cached_property
    def _images(self) -> Images:
        """As many images of noise as two batches of each kind take."""
        config, generator = self.experiment, torch.Generator().manual_seed(0)
        classes, channels, *_ = sizes_before(config.data, self.machine)
        evaluated = config.evaluation.batch_size * self.processes.share.count
        count = 2 * max(config.training.batch_size, evaluated)
        shape = (count, channels, *2 * (config.data.image_size,))
        pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
        labels = torch.randint(0, classes, (count,), generator=generator)
        names = tuple(map(str, range(classes)))
        store = MemoryStore(pixels.to(self.processes.device), labels, names)
        return Images(store, torch.arange(count), Preparation(config.data))

    @cached_property
    def _net(self) -> SlimmableNet:
        store = self._images.store
        net = untrained_network(self.experiment, len(store.classes), store.channels)
        net.to(self.processes.device)
        if self.experiment.training.channels_last:
            net.keep_channels_last()
        return net

    def _step(self) -> list[float]:
        """Return `Measured.step`: some gradient steps are done, by the trainer itself."""
        batch = self.experiment.training.batch_size
        begun, seconds = time.perf_counter(), list[list[float]]()
        work: list[list[list[float]]] = []

        def goes_on() -> bool:
            least, most = _ROUNDS
            short = time.perf_counter() - begun < _LEAST_SECONDS
            return len(seconds) < least or (short and len(seconds) < most)

        while self.processes.led(goes_on):
            paced, taken = self._round(len(seconds))
            seconds.append(taken)
            work.append(paced.work(batch))
        if not self.processes.main:
            return []
        return fitted_warm(work, seconds)

    def _round(self, number: int) -> tuple[_Paced, list[float]]:
        """Return what was done, in a block of steps of each kind, and what a step of each took.

        Each round, by its number, draws networks of its own where they are to be new.
        """
        moments: list[float] = []

        def on_step(report: StepReport) -> None:
            if report.step % _BLOCK == 0:
                moments.append(self.clock())

        trainer = self._trainer(on_step, number)
        trainer.train()
        method = trainer.method
        assert isinstance(method, _Paced)
        taken = [(end - begin) / _BLOCK for begin, end in pairwise(moments)]
        return method, [*taken[-1:], *taken[:-1]]  # the first kind again, once it is warm

    def _trainer(self, on_step: Callable[[StepReport], None], number: int) -> Trainer:
        """Return a trainer that does a block of each kind of steps, and one more of the first.

        Weights hardly move: a high learning rate without a warm-up might not stay finite.
        """
        images, batch = self._images, self.experiment.training.batch_size
        images = images.subset(range(2 * batch))
        processes, net, ledger = self.processes, self._net, Ledger()
        blocks = 7  # six kinds, and the first again
        short = replace(
            self.experiment,
            data=replace(self.experiment.data, search_split="batch"),
            search=replace(self.experiment.search, refresh_images=None),
            training=replace(
                self.experiment.training,
                epochs=blocks * _BLOCK // 2,
                warmup_epochs=0,
                lr_per_256=1e-6,
                ask_every_steps=2**40,
                macs=None,
            ),
        )
        net.book_in(ledger)
        evaluations = SearchEvaluations(net.cost.macs_at)
        steps = blocks * _BLOCK
        method = _Paced(method_task(short, net.space, net.cost, evaluations, number, steps))
        order = np.arange(len(images))
        data = DataSet(
            train=images,
            search=images,
            test=images,
            splits=Splits(train=order, search=order, test=order),
            fingerprint="",
        )
        return Trainer(
            net=net,
            method=method,
            loader=TrainingLoader(images=images, batch_size=batch, seed=0, share=processes.share),
            evaluations=evaluations,
            search_batches=SearchBatches(short, _Paced, data, 0, processes.share),
            limits=Limits(),
            config=short.training,
            processes=processes,
            spent=RunState(),
            ledger=ledger,
            checkpoint_seconds=float("inf"),
            read_every_steps=1 if processes.device.type == "cpu" else _BLOCK,
            on_step=on_step,
            on_checkpoint=lambda: None,
        )

    def _after(self) -> list[float]:
        """Return `Measured.after`: small and large networks are calibrated, and evaluated.

        They are drawn anew in each round, so that they are new, as in a run.
        """
        share, net = self.processes.share, self._net
        size = self.experiment.evaluation.batch_size
        images = self._images.subset(range(size * share.count))
        config = EvaluationConfig(calibration_images=len(images), batch_size=size)
        generator, macs_of = torch.Generator().manual_seed(0), net.cost.macs_at
        precision = self.experiment.training.precision
        work: list[list[Sequence[float]]] = []
        seconds: list[list[float]] = []
        ledger = Ledger()
        net.book_in(ledger)
        with ledger.during("choice"):
            for _ in range(_ROUNDS[0]):
                seconds.append([])
                work.append([])
                drawn = sorted((net.space.sample(generator) for _ in range(_DRAWN)), key=macs_of)
                for some in (drawn[:3], drawn[-3:]):
                    macs = len(images) * sum(map(macs_of, some))
                    for new in (len(some), 0):
                        evaluator = Evaluator(
                            *(net, images, images, config, 0, self.processes), precision=precision
                        )
                        begun = self.clock()
                        for each in some:
                            evaluator.search_losses([each])
                        seconds[-1].append(self.clock() - begun)
                        work[-1].append([len(some), macs, len(some), macs, new])
                    begun = self.clock()
                    evaluator.counts_on(images, some, Counts(), lambda counts: None)
                    seconds[-1].append(self.clock() - begun)
                    work[-1].append([0, 0, len(some), macs, 0])
        return fitted_warm(work, seconds)

    def _asks(
        self, plans: Mapping[str, RunPlan], methods: Mapping[str, type[Method]]
    ) -> dict[tuple[SearchConfig, int], list[tuple[int, float]]]:
        """Return `Measured.asks`: each search is asked at three sizes of the longest history."""
        longest: dict[tuple[SearchConfig, int], int] = {}
        for name, plan in plans.items():
            config = resolved(self.experiment, methods[name])
            for entries, count in plan.asks:
                longest[config, count] = max(longest.get((config, count), 0), entries)
        return {
            (config, count): [
                (entries, self._ask(config, count, entries))
                for entries in sorted({max(3, round(part * most)) for part in _SIZES})
            ]
            for (config, count), most in longest.items()
        }

    def _ask(self, config: SearchConfig, count: int, entries: int) -> float:
        """Return the mean seconds of asks for so many, over several fits of the model."""
        mobo = searcher(self.planner, config)
        mobo.tell(*history(self.planner, entries))
        mobo.ask(count)
        asks = 2 * max(config.fit_every or 1, 2)
        begun = self.clock()
        for _ in range(asks):
            mobo.ask(count)
        return (self.clock() - begun) / asks


def resolved(experiment: Experiment, kind: type[Method]) -> SearchConfig:
    """Return the search of a method."""
    return experiment.search.resolved(kind.own_search)


def fitted_warm(
    work: Sequence[Sequence[Sequence[float]]], seconds: Sequence[Sequence[float]]
) -> list[float]:
    """Return `fitted` of the means of all rounds but the first, which warms up."""
    return fitted(np.mean(work[1:], axis=0).tolist(), np.mean(seconds[1:], axis=0).tolist())


def fitted(work: Sequence[Sequence[float]], seconds: Sequence[float]) -> list[float]:
    """Return what each kind of work (a column) takes, none less than nothing (least squares).

    In relative terms, so that the cheaper pieces count too.
    """
    rows = np.array(work, dtype=float) / np.array(seconds)[:, None]
    scales = np.maximum(np.abs(rows).max(axis=0), np.finfo(float).tiny)
    found, _ = nnls(rows / scales, np.ones(len(rows)))
    return (found / scales).tolist()
