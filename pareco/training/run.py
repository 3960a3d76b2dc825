"""One run: an experiment, a method and a seed become a folder of results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from math import isfinite
from pathlib import Path

import torch

from pareco.config import Experiment, Machine, as_json
from pareco.data import Images, TrainingLoader, load_data
from pareco.evaluation import (
    Counts,
    Evaluator,
    Measurement,
    OverBudget,
    SearchEvaluations,
    final_front,
)
from pareco.ledger import Ledger
from pareco.methods import Method, Task, blaming_own, checked_widths
from pareco.processes import Processes, joined_processes, set_arithmetic
from pareco.randomness import derived_generator
from pareco.schema import SPLIT_LOSSES, VISIT_NUMBERS
from pareco.slimmable import SlimmableNet
from pareco.tracking import Publication, Tracker
from pareco.training.batch_parts import check_parts
from pareco.training.folder import Row, RunFolder
from pareco.training.interruption import (
    Interrupted,
    RunError,
    check,
    explained,
    interruptible,
    requested,
)
from pareco.training.outcomes import StepReport
from pareco.training.plan import Limits, Planner, method_task
from pareco.training.preparation import initial_network, planner_of, settled
from pareco.training.replay import check_replay
from pareco.training.search_batches import SearchBatches
from pareco.training.trainer import Trainer
from pareco.widths import Widths, WidthSpace

PROJECT = "pareco"
_TRIALS = 3


def execute_run(
    experiment: Experiment,
    method: type[Method],
    seed: int,
    path: Path,
    on_step: Callable[[StepReport], None] = lambda report: None,
    machine: Machine = Machine(),
    *,
    publication: Callable[[Path], Publication] | None = None,
) -> None:
    """Train and measure one method with one seed in the folder `path`, or do what is left of it.

    All processes that train together call it alike; the main one writes. A finished run is left
    alone. Where `publication` is given, what it makes of the folder is shown in the mirror of the
    metrics file. Raises `ValueError` for a configuration that cannot run, `RunError` if the folder
    is in use, cannot be written, or holds a run of another configuration, or memory runs out,
    `NonFiniteLoss` if training diverges, `Interrupted` once a signal's checkpoint is saved.
    """
    processes = joined_processes(machine.device)
    experiment = settled(experiment)
    folder = RunFolder(path=path, experiment=experiment, method=method.name, seed=seed)
    folder = folder.of_method(method)
    if processes.led(folder.finished):
        return
    check_replay(experiment.training, processes.device, processes.share.count)
    set_arithmetic(experiment.training)
    with explained(path), interruptible(), ExitStack() as held:
        session = _Session(folder, method, machine, processes, on_step)
        held.callback(session.data.close)
        session.check_same_images()

        def left_to_do() -> bool:
            held.enter_context(folder.claimed(session.data, processes, machine.claim_seconds))
            return not folder.done  # another process may have ended it meanwhile

        if processes.led(left_to_do):
            session.execute(publication)


def check_runnable(
    experiment: Experiment,
    method: type[Method],
    machine: Machine = Machine(),
    *,
    processes: int | None = None,
) -> int:
    """Return how many distinct networks the method is sure to train in a step; nothing is written.

    Where there is one process, it opens no GPU. Raises `ValueError`, naming the field, if the
    configuration cannot run, by so many processes on one network (as many as there are, unless
    given).
    """
    experiment = settled(experiment)
    folder = RunFolder(path=Path(), experiment=experiment, method=method.name, seed=0)
    joined = joined_processes(machine.device)
    parts = processes or joined.share.count
    check_replay(experiment.training, joined.device, parts)
    session = _Session(folder, method, machine, joined.beforehand, lambda report: None)
    check_parts(experiment, method, session.data, session.net, parts)
    session.planner.plan(method, folder.seed)
    return session.networks_per_step()


@dataclass(eq=False)
class _Session:
    """One go at a run, from its last checkpoint to its end."""

    folder: RunFolder
    method: type[Method]
    machine: Machine
    processes: Processes
    on_step: Callable[[StepReport], None]

    def __post_init__(self) -> None:
        """Raise `ValueError` if network, batches, calibration or method cannot be had."""
        self.experiment, self.seed = self.folder.experiment, self.folder.seed
        self.pausing, self.saved = False, time.perf_counter()
        self.ledger = Ledger()
        config, processes = self.experiment, self.processes
        self.data = load_data(config.data, self.machine, processes.device)
        if not processes.several:  # one of several must not leave the others alone
            self.data.store.pause = check  # nothing is lost of what is decoded before training
        self.net = self.network()
        self.loader = TrainingLoader(
            images=self.data.train,
            batch_size=config.training.batch_size,
            seed=self.seed,
            share=processes.share,
        )
        self.evaluator(self.net)
        check_parts(config, self.method, self.data, self.net, processes.share.count)
        with blaming_own(self.method):
            try:
                self.spaces = self.method.spaces_to_train(self.net.space, config.training)
                for space in self.spaces:
                    evaluations = SearchEvaluations(self.net.cost.macs_at)
                    self.method(self.task(space, evaluations)).switches()
            except ValueError as error:
                raise ValueError(f"method {self.method.name}: {error}") from error

    def networks_per_step(self) -> int:
        """Return how many distinct networks the method is sure to train in a step.

        It is asked for the first step a few times over, each loss being the same, and may draw less
        often than in training: what it finds here it will find in every step there.
        """
        evaluations, counts = SearchEvaluations(self.net.cost.macs_at), []
        evaluations.begin(lambda widths: [0.0] * len(widths))
        for space in self.spaces:
            for trial in range(_TRIALS):
                generator = derived_generator(self.seed, "trial", trial)
                method = self.method(replace(self.task(space, evaluations), generator=generator))
                method.draws = method.draws // 100
                between = checked_widths(method, method.widths_for_step(0), "widths_for_step")
                counts.append(len({space.largest, *between, space.smallest}))
        return min(counts)

    def check_same_images(self) -> None:
        """Raise `RunError`, in all processes, unless they have the same images in each split."""
        own, processes = self.data.fingerprint, self.processes
        theirs = processes.led(lambda: own)
        others = int(processes.total(torch.tensor(own != theirs)))
        if others:
            raise RunError(
                f"{others} of {processes.share.count} processes have other images, classes or "
                "splits than the first: give all of them the same --images, on every machine"
            )

    def execute(self, publication: Callable[[Path], Publication] | None) -> None:
        """Train and measure every set of weights that is left, and write the result."""
        self.done, tensors, under_way = self.processes.led(self.folder.load)
        done, main = self.done, self.processes.main
        self.data.store.learn({int(each): why for each, why in done.damaged.items()})
        self.started = time.perf_counter() - done.seconds
        self.ledger = Ledger(done.ledger)
        if done.limits is None:
            limits = self.processes.led(lambda: self.planner.limits(self.method, self.seed))
            done.limits = asdict(limits)
        self.limits = Limits(**done.limits)
        with ExitStack() as held:
            if main:
                steps = done.gradient_steps + (under_way["step"] if under_way else 0)
                self.ledger.lose_up_to(**self.folder.macs_beyond(steps))
                self.tracker = held.enter_context(self.tracker_after(steps))
            # What is held in memory is decoded before the clock runs.
            self.data.train.normalized(torch.zeros(1, dtype=torch.int64))
            for space in self.spaces[done.trained :]:
                trainer = self.trainer(space)
                if under_way is not None:
                    trainer.load(tensors, under_way)
                    under_way = None
                try:
                    trainer.train()
                    if main:
                        self.save(trainer)
                    self.add_front(trainer)
                except OverBudget as error:
                    raise RunError(f"method {self.method.name} {error}") from error
                self.data.store.tell(self.processes)
                if main:
                    self.folder.save_weights(done.trained - 1, trainer.net.state_dict())
                    self.save(None)
            self.ledger.settle(self.processes.alike)  # what time is left
            if main:
                self.keep_ledger()
                exempt = self.method.budget_exempt
                self.folder.write_result(done, self.net, self.data, budget_exempt=exempt)
                if publication is not None:
                    self.tracker.publish(lambda: publication(self.folder.path))
        if main:
            self.folder.finish(done)

    def tracker_after(self, steps: int) -> Tracker:
        """Return the tracker of this run, continued after so many steps."""
        return Tracker(
            self.folder.path,
            project=PROJECT,
            config=as_json(self.experiment) | self.folder.own,
            resume_from=steps + 1 if steps else None,
        )

    def network(self) -> SlimmableNet:
        """Return the network with the initial weights of this seed, the same for every method."""
        data = self.data
        net = initial_network(self.experiment, data.num_classes, data.in_chans, self.seed)
        net.to(self.processes.device)
        if self.experiment.training.channels_last:
            net.keep_channels_last()
        return net

    def task(self, space: WidthSpace, evaluations: SearchEvaluations) -> Task:
        """Return what the method is given for one set of weights."""
        planner = self.planner
        return method_task(
            *(self.experiment, space, self.net.cost, evaluations, self.seed, planner.steps),
            pause=self.pause,
        )

    @cached_property
    def planner(self) -> Planner:
        """What plans this run, and its search budget."""
        data = self.data
        sizes = (len(data.train), len(data.search), len(data.test))
        return planner_of(self.experiment, self.net, sizes)

    def trainer(self, space: WidthSpace) -> Trainer:
        """Return a trainer for one set of weights, at its beginning."""
        net, evaluations = self.network(), SearchEvaluations(self.net.cost.macs_at)
        net.space = space
        net.book_in(self.ledger)
        method = self.method(self.task(space, evaluations))
        net.privatize_norm(method.switches())
        trainer = Trainer(
            net=net,
            method=method,
            loader=self.loader,
            evaluations=evaluations,
            search_batches=SearchBatches(
                self.experiment, self.method, self.data, self.seed, self.processes.share
            ),
            limits=self.limits,
            config=self.experiment.training,
            processes=self.processes,
            spent=self.done,
            ledger=self.ledger,
            checkpoint_seconds=60 * self.machine.checkpoint_minutes,
            read_every_steps=self.machine.read_every_steps,
            on_step=self.report,
            on_checkpoint=lambda: self.save(trainer),
        )
        return trainer

    def report(self, report: StepReport) -> None:
        """Log one step and tell the listener, counted over all sets of weights."""
        step = self.done.gradient_steps + report.step
        self.tracker.log(
            step,
            forward_macs=report.forward_macs,
            backward_macs=report.backward_macs,
            loss_largest=report.loss_largest,
            loss_smallest=report.loss_smallest,
            learning_rate=report.learning_rate,
        )
        self.on_step(replace(report, step=step, steps=report.steps * len(self.spaces)))

    def save(self, trainer: Trainer | None) -> None:
        """Write a checkpoint of a trainer under way, or between two sets of weights."""
        self.done.seconds = time.perf_counter() - self.started
        self.keep_ledger()
        self.done.damaged = {str(each): why for each, why in self.data.store.reasons.items()}
        self.folder.save(self.done, *(({}, None) if trainer is None else trainer.state()))
        self.saved = time.perf_counter()

    def keep_ledger(self) -> None:
        """Let the run's state have what is settled, unless it was begun without a ledger."""
        if self.done.ledger is not None:
            self.done.ledger = self.ledger.state()

    def evaluator(self, net: SlimmableNet) -> Evaluator:
        """Return what measures sub-networks once training has ended."""
        config = self.experiment.evaluation
        train, search = self.data.train, self.data.search
        return Evaluator(
            *(net, train, search, config, self.seed, self.processes),
            check=check,
            due=self.due,
            tell=lambda: self.data.store.tell(self.processes),
            ledger=self.ledger,
            precision=self.experiment.training.precision,
        )

    def due(self) -> bool:
        """Return whether to save: at a signal, and by the clock."""
        waited = time.perf_counter() - self.saved
        return requested() is not None or waited >= 60 * self.machine.checkpoint_minutes

    def add_front(self, trainer: Trainer) -> None:
        """Add a set of weights that is trained, its front and what its search has visited."""
        done, evaluations = self.done, trainer.evaluations
        done.rows += self.front_rows(trainer)
        for visit in trainer.method.visits():
            numbers = {name: getattr(visit, name) for name in VISIT_NUMBERS}
            done.visits.append(
                {
                    **self.row(visit.widths),
                    "visit": len(done.visits),
                    "step": visit.step,
                    "origin": visit.origin,
                    **{k: f"{x:{VISIT_NUMBERS[k]}}" for k, x in numbers.items() if x is not None},
                }
            )
        done.trained += 1
        done.gradient_steps += trainer.step
        done.passes += trainer.passes
        done.search_evaluations += evaluations.count
        done.widths_visited += len(evaluations.visited)

    @contextmanager
    def saving_when_interrupted(self, trainer: Trainer) -> Iterator[None]:
        """Let what a method computes end at a signal inside the block, and a checkpoint be kept."""
        self.pausing = True
        try:
            yield
        except Interrupted:
            self.ledger.lose()  # of several processes none has anything but time that is unsettled
            self.ledger.settle(self.processes.alike)
            if self.processes.main:
                self.save(trainer)
            raise
        finally:
            self.pausing = False

    def pause(self) -> None:
        """Raise `Interrupted` if a signal has come and training, which answers it, has ended."""
        if self.pausing:
            check()

    def front_rows(self, trainer: Trainer) -> list[Row]:
        """Return a row for every network on the front of search loss and cost."""
        evaluations, evaluator = trainer.evaluations, self.evaluator(trainer.net)

        def measure(widths: list[Widths]) -> Iterator[float]:
            for each in widths:
                check()
                if self.due():
                    self.save(trainer)
                yield from self.processes.together(evaluator.search_losses, [each])

        def chosen() -> list[tuple[Widths, float]]:
            images = self.planner.calibration_images + len(self.data.search)
            searched = int(self.ledger.state()["search"]["forward_macs"])
            limit = self.limits.after(searched)
            evaluations.begin(measure, images=images, limit=limit, final=True)
            return final_front(trainer.method, evaluations, trainer.hold)

        def measured(images: Images, name: str) -> list[Measurement]:
            """Measure the front on these images, from where that was on."""

            def keep(so_far: Counts) -> None:
                self.done.counts[name] = asdict(so_far)
                check()
                self.save(trainer)

            before = Counts(**self.processes.led(lambda: self.done.counts.get(name, {})))
            found = evaluator.counts_on(images, [widths for widths, _ in best], before, keep)
            self.done.counts[name] = asdict(found)
            return found.measurements

        with self.saving_when_interrupted(trainer):
            with self.ledger.during("choice"):
                best = self.processes.led(chosen, evaluator.search_losses)
            with self.ledger.during("test"):
                # The test images are opened here, once the front is chosen.
                losses = self.split_losses(best, measured)
                tests = measured(self.data.test, "test")
        self.done.counts.clear()
        if self.processes.main:
            own = [(widths, evaluator.own_norm(widths)) for widths, _ in best]
            self.folder.save_statistics(self.done.trained, own)
        return [
            {
                **self.row(widths),
                "search_loss": f"{loss:.6f}",
                "test_top1_error": f"{test.top1_error:.4f}",
                "test_top5_error": f"{test.top5_error:.4f}",
                "test_loss": finite_text(test.loss),
                "calibration_images": self.planner.calibration_images,
                **{name: finite_text(each[index]) for name, each in losses.items()},
            }
            for index, ((widths, loss), test) in enumerate(zip(best, tests, strict=True))
        ]

    def split_losses(
        self,
        best: Sequence[tuple[Widths, float]],
        measured: Callable[[Images, str], list[Measurement]],
    ) -> dict[str, list[float]]:
        """Return the losses of the front's networks by column: those that it was chosen by.

        Where it was chosen on held-out images, also those on as many training images, the same for
        every method and seed: what the paper's choice sees.
        """
        data = self.experiment.data
        losses = {SPLIT_LOSSES[data.search_split]: [loss for _, loss in best]}
        if data.search_split == "holdout":
            drawn = derived_generator(data.split_seed, "training loss")
            order = torch.randperm(len(self.data.train), generator=drawn)
            some = self.data.train.subset(order[: data.search_images].sort().values)
            name = SPLIT_LOSSES["batch"]
            losses[name] = [each.loss for each in measured(some, name)]
        return losses

    def row(self, widths: Widths) -> Row:
        """Return what the rows of a front and of visits share: the run, widths and costs."""
        costs = {name: int(self.net.cost.of(name, widths)) for name in self.net.cost.names}
        return {**self.folder.identity, "widths": str(widths), **costs}


def finite_text(number: float) -> str:
    """Return a number with six digits after the point; nothing where it is not finite."""
    return f"{number:.6f}" if isfinite(number) else ""
