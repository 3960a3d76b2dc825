"""One run: an experiment, a method and a seed become a folder of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pareco.config import Experiment, Machine, as_json
from pareco.data import Batch, DataSet, TrainingLoader, load_data
from pareco.evaluation import Evaluator, SearchEvaluations, front
from pareco.methods import Method, Task
from pareco.models import create_model
from pareco.processes import Processes, joined_processes
from pareco.randomness import derived_generator, derived_seed
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.tracking import Publication, Tracker
from pareco.training.folder import RunFolder, RunState, front_rows, visit_rows
from pareco.training.interruption import check, explained, interruptible
from pareco.training.trainer import StepReport, Trainer
from pareco.widths import Widths, WidthSpace


def initial_network(experiment: Experiment, data: DataSet, seed: int) -> SlimmableNet:
    """Return the network with the initial weights of this seed, on the CPU."""
    config = experiment.network
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed(seed, "weights"))
        model = create_model(
            config.name,
            num_classes=data.num_classes,
            in_chans=data.in_chans,
            base_width=config.base_width,
        )
    size = experiment.data.image_size
    return make_slimmable(
        model,
        torch.zeros(1, data.in_chans, size, size),
        alpha_min=config.alpha_min,
        divisor=config.divisor,
        granularity=config.granularity,
        slim_head=config.slim_head,
    )


PROJECT = "pareco"


def execute_run(
    experiment: Experiment,
    method: type[Method],
    seed: int,
    path: Path,
    on_step: Callable[[StepReport], None] = lambda report: None,
    machine: Machine = Machine(),
) -> None:
    """Train and measure one method with one seed in the folder `path`, or do what is left of it.

    All processes that train together call it alike; the main one writes. A finished run is left
    alone. Raises `ValueError` for a configuration that cannot run, `RunError` if the folder is in
    use, cannot be written, or holds a run of another configuration, or memory runs out,
    `NonFiniteLoss` if training diverges, `Interrupted` once a signal's checkpoint is saved.
    """
    processes = joined_processes(machine.device)
    folder = RunFolder(path=path, experiment=experiment, method=method.name, seed=seed)

    def finished() -> bool:
        folder.check()
        if folder.done:
            folder.tidy()
        return folder.done

    if processes.led(finished):
        return
    torch.set_num_threads(experiment.training.cpu_threads)
    with explained(path), interruptible(), ExitStack() as held:
        session = _Session(folder, experiment, method, seed, machine, processes, on_step)
        session.check()

        def left_to_do() -> bool:
            held.enter_context(folder.claimed(session.data, processes))
            return not folder.done  # another process may have ended it meanwhile

        if processes.led(left_to_do):
            session.execute()


def check_runnable(
    experiment: Experiment, method: type[Method], machine: Machine = Machine()
) -> None:
    """Raise `ValueError`, naming the field, if the configuration cannot run; nothing is written."""
    folder = RunFolder(path=Path(), experiment=experiment, method=method.name, seed=0)
    processes = joined_processes(machine.device)
    _Session(folder, experiment, method, 0, machine, processes, lambda report: None).check()


class _Session:
    """One go at a run, from its last checkpoint to its end."""

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        method: type[Method],
        seed: int,
        machine: Machine,
        processes: Processes,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self.folder, self.experiment, self.method, self.seed = folder, experiment, method, seed
        self.machine, self.processes, self.on_step = machine, processes, on_step
        self.data = load_data(experiment.data, machine, processes.device)
        self.sets_of_weights = 1
        self.tracker: Tracker | None = None

    def check(self) -> None:
        """Raise `ValueError` if network, batches, calibration or method cannot be had."""
        net = self.network()
        self.loader()
        self.evaluator(net)
        for space in self.method.spaces(net.space, self.experiment.training.sampled_per_step):
            self.method(self.task(net, space, SearchEvaluations())).switches()

    def execute(self) -> None:
        """Train every set of weights that is left, and write the result."""
        loaded = self.processes.led(self.folder.load)
        self.progress, self.tensors, self.trainer_state = loaded
        self.started = time.perf_counter() - self.progress.seconds
        net = self.network()
        spaces = self.method.spaces(net.space, self.experiment.training.sampled_per_step)
        self.sets_of_weights = len(spaces)
        with ExitStack() as held:
            if self.processes.main:
                self.tracker = held.enter_context(self.new_tracker())
            # What is held in memory is decoded before the clock runs.
            self.data.train.normalized(torch.zeros(1, dtype=torch.int64))
            for space in spaces[self.progress.trained :]:
                self.train_and_measure(self.trainer(space))
            if self.processes.main:
                exempt = self.method.budget_exempt
                self.folder.write_result(self.progress, net, budget_exempt=exempt)
                self.publish()
        if self.processes.main:
            self.folder.finish(self.progress)

    def publish(self) -> None:
        """Show the result in the mirror of the record, where there is one."""
        assert self.tracker is not None

        def publication() -> Publication:
            # The libraries for figures are needed by a mirror alone.
            from pareco.reporting.report import run_publication

            return run_publication(self.folder.path)

        self.tracker.publish(publication)

    def new_tracker(self) -> Tracker:
        """Return the record of this run, continued from the last checkpoint."""
        steps_done = self.progress.gradient_steps + (self.trainer_state or {"step": 0})["step"]
        return Tracker(
            self.folder.path,
            project=PROJECT,
            group=self.experiment.name,
            job_type=self.method.name,
            name=f"{self.method.name}-seed{self.seed}",
            config=as_json(self.experiment) | {"method": self.method.name, "seed": self.seed},
            resume_from=steps_done + 1 if steps_done else None,
        )

    def network(self) -> SlimmableNet:
        """Return the network with the initial weights of this seed, the same for every method."""
        net = initial_network(self.experiment, self.data, self.seed)
        net.to(self.processes.device)
        if self.experiment.training.channels_last:
            net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return net

    def trainer(self, space: WidthSpace) -> Trainer:
        """Return a trainer for one set of weights, where the last checkpoint left it."""
        net, evaluations = self.network(), SearchEvaluations()
        net.space = space
        method = self.method(self.task(net, space, evaluations))
        net.privatize_norm(method.switches())
        trainer = Trainer(
            net=net,
            method=method,
            loader=self.loader(),
            evaluations=evaluations,
            search_batch=self.search_batch,
            config=self.experiment.training,
            seed=self.seed,
            processes=self.processes,
            checkpoint_seconds=60 * self.machine.checkpoint_minutes,
            on_step=self.report,
            on_checkpoint=lambda: self.save(trainer),
        )
        if self.trainer_state is not None:
            trainer.load(self.tensors, self.trainer_state)
        self.trainer_state = None
        return trainer

    def loader(self) -> TrainingLoader:
        """Return this process's share of the training batches, the same for every method."""
        batch_size, share = self.experiment.training.batch_size, self.processes.share
        return TrainingLoader(
            images=self.data.train, batch_size=batch_size, seed=self.seed, share=share
        )

    def task(self, net: SlimmableNet, space: WidthSpace, evaluations: SearchEvaluations) -> Task:
        """Return what the method is given for one set of weights."""
        config = self.experiment.training
        steps = config.epochs * self.loader().batches_per_epoch
        asks = -(-steps // config.ask_every_steps)
        return Task(
            space=space,
            cost=net.cost,
            objective=self.experiment.cost,
            generator=derived_generator(self.seed, "method", *space.only or ()),
            evaluate=evaluations,
            sampled_per_step=config.sampled_per_step,
            ask_every_steps=config.ask_every_steps,
            widths_budget=max(asks * config.sampled_per_step, 1),
            search=self.experiment.search,
        )

    def evaluator(self, net: SlimmableNet) -> Evaluator:
        """Return what measures sub-networks once training has ended."""
        config = self.experiment.evaluation
        train, search = self.data.train, self.data.search
        return Evaluator(net, train, search, config, self.seed, self.processes)

    def search_batch(self, step: int, training_batch: Batch) -> Batch:
        """Return this process's part of the batch that search losses are measured on in a step."""
        if self.experiment.data.search_split == "batch":
            return training_batch
        generator = derived_generator(self.seed, "search", step)
        order = torch.randperm(len(self.data.search), generator=generator)
        share = self.processes.share
        count = min(len(order), self.experiment.training.batch_size) // share.count
        own = order[share.rank * count : (share.rank + 1) * count]
        return self.data.search.normalized(own)

    def report(self, report: StepReport) -> None:
        """Log one step and tell the listener; the main process's work."""
        if self.tracker is None:
            return
        self.tracker.log(
            self.progress.gradient_steps + report.step,
            loss_largest=report.loss_largest,
            loss_smallest=report.loss_smallest,
            learning_rate=report.learning_rate,
        )
        done = self.progress
        self.on_step(
            replace(
                report,
                step=done.gradient_steps + report.step,
                steps=report.steps * self.sets_of_weights,
            )
        )

    def save(self, trainer: Trainer) -> None:
        """Write a checkpoint of a trainer under way."""
        now = replace(self.progress, seconds=time.perf_counter() - self.started)
        self.folder.save(self.with_clock(now, trainer), trainer.tensors(), trainer.state())

    def with_clock(self, progress: RunState, trainer: Trainer) -> RunState:
        """Return the progress with what a trainer has spent since it was made or loaded."""
        clock = trainer.clock
        return replace(
            progress,
            images=self.progress.images + clock.images,
            training_seconds=self.progress.training_seconds + clock.seconds,
            waiting_seconds=self.progress.waiting_seconds + clock.waiting_seconds,
            damaged_images=len(self.data.damaged),
        )

    def train_and_measure(self, trainer: Trainer) -> None:
        """Train one set of weights, add its front to the progress, and save that."""
        trainer.train()
        if self.processes.main:
            self.save(trainer)
        rows, done = self.measured_front(trainer), self.progress
        if not self.processes.main:
            return
        self.folder.save_weights(done.trained, trainer.net.state_dict())
        evaluations = trainer.evaluations
        self.progress = replace(
            self.with_clock(done, trainer),
            rows=done.rows + rows,
            visits=done.visits + self.visited(trainer),
            trained=done.trained + 1,
            gradient_steps=done.gradient_steps + trainer.step,
            passes=done.passes + trainer.passes,
            search_evaluations=done.search_evaluations + evaluations.count,
            widths_visited=done.widths_visited + len(evaluations.visited),
            seconds=time.perf_counter() - self.started,
        )
        self.folder.save(self.progress, {}, None)

    def measured_front(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Return a row for every network on the front of search loss and cost.

        The test images are opened here, once the front is chosen.
        """
        evaluator = self.evaluator(trainer.net)
        chosen = self.processes.led(
            lambda: self.chosen_front(trainer, evaluator), evaluator.search_losses
        )
        self.processes.led(check)
        tests = evaluator.on(self.data.test, [widths for widths, _ in chosen])
        images = self.experiment.evaluation.calibration_images
        return front_rows(self.identity, trainer.net.cost, chosen, tests, images)

    def visited(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Return a row for everything that the method's search has visited, in order."""
        first = len(self.progress.visits)
        return visit_rows(self.identity, trainer.net.cost, trainer.method.visits(), first)

    @property
    def identity(self) -> dict[str, Any]:
        """What every row of this run begins with."""
        return {
            "experiment": self.experiment.name,
            "method": self.method.name,
            "seed": self.seed,
        }

    def chosen_front(self, trainer: Trainer, evaluator: Evaluator) -> list[tuple[Widths, float]]:
        """Return the widths on the front of search loss and cost, with their search losses."""
        net, evaluations = trainer.net, trainer.evaluations

        def measure(widths: list[Widths]) -> list[float]:
            check()
            return self.processes.together(evaluator.search_losses, widths)

        evaluations.begin(measure)
        ends = (net.space.largest, net.space.smallest)
        candidates = list(dict.fromkeys((*trainer.method.candidates(), *ends)))
        losses = evaluations(candidates).tolist()
        costs = net.cost.of(self.experiment.cost, candidates).tolist()
        return [(candidates[index], losses[index]) for index in front(losses, costs)]
