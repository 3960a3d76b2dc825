"""One run: an experiment, a method and a seed become a folder of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pareco.config import Experiment, as_json
from pareco.cost import COSTS
from pareco.data import Batch, TrainingLoader, load_data
from pareco.evaluation import Evaluator, SearchEvaluations, front
from pareco.methods import Method, Task
from pareco.models import create_model
from pareco.randomness import derived_generator, derived_seed
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.tracking import Tracker
from pareco.training.run_folder import RunFolder
from pareco.training.trainer import StepReport, Trainer
from pareco.widths import WidthSpace

PROJECT = "pareco"


def execute_run(
    experiment: Experiment,
    method: type[Method],
    seed: int,
    path: Path,
    on_step: Callable[[StepReport], None] = lambda report: None,
) -> None:
    """Train and measure one method with one seed in the folder `path`, or do what is left of it.

    A finished run is left alone. Raises `ValueError` for a configuration that cannot run,
    `RunError` if the folder is in use or holds a run of another configuration, `NonFiniteLoss` if
    training diverges.
    """
    folder = RunFolder(path=path, experiment=experiment, method=method.name, seed=seed)
    folder.check()
    if folder.done:
        return folder.tidy()
    torch.set_num_threads(experiment.training.cpu_threads)
    session = _Session(folder, experiment, method, seed, on_step)
    session.check()
    with folder.claimed(session.data):
        if not folder.done:  # another process may have ended it meanwhile
            session.execute()
    return None


def check_runnable(experiment: Experiment, method: type[Method]) -> None:
    """Raise `ValueError`, naming the field, if the configuration cannot run; nothing is written."""
    folder = RunFolder(path=Path(), experiment=experiment, method=method.name, seed=0)
    _Session(folder, experiment, method, 0, lambda report: None).check()


class _Session:
    """One go at a run, from its last checkpoint to its end."""

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        method: type[Method],
        seed: int,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self.folder, self.experiment, self.method, self.seed = folder, experiment, method, seed
        self.on_step = on_step
        self.data = load_data(experiment.data)
        self.sets_of_weights = 1

    def check(self) -> None:
        """Raise `ValueError` if network, batches, calibration or method cannot be had."""
        net = self.network()
        self.loader()
        self.evaluator(net)
        for space in self.method.spaces(net.space, self.experiment.training.sampled_per_step):
            self.method(self.task(net, space, SearchEvaluations())).switches()

    def execute(self) -> None:
        """Train every set of weights that is left, and write the result."""
        self.progress, self.tensors, self.trainer_state = self.folder.load()
        self.started = time.perf_counter() - self.progress.seconds
        net = self.network()
        spaces = self.method.spaces(net.space, self.experiment.training.sampled_per_step)
        self.sets_of_weights = len(spaces)
        steps_done = self.progress.gradient_steps + (self.trainer_state or {"step": 0})["step"]
        tracker = Tracker(
            self.folder.path,
            project=PROJECT,
            group=self.experiment.name,
            job_type=self.method.name,
            name=f"{self.method.name}-seed{self.seed}",
            config=as_json(self.experiment) | {"method": self.method.name, "seed": self.seed},
            resume_from=steps_done + 1 if steps_done else None,
        )
        with tracker:
            for space in spaces[self.progress.trained :]:
                self.train_and_measure(self.trainer(space, tracker))
        self.folder.finish(self.progress, net, budget_exempt=self.method.budget_exempt)

    def network(self) -> SlimmableNet:
        """Return the network with the initial weights of this seed, the same for every method."""
        config, data = self.experiment.network, self.data
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self.seed, "weights"))
            model = create_model(
                config.name,
                num_classes=data.num_classes,
                in_chans=data.in_chans,
                base_width=config.base_width,
            )
        size = self.experiment.data.image_size
        return make_slimmable(
            model,
            torch.zeros(1, data.in_chans, size, size),
            alpha_min=config.alpha_min,
            divisor=config.divisor,
            granularity=config.granularity,
            slim_head=config.slim_head,
        )

    def trainer(self, space: WidthSpace, tracker: Tracker) -> Trainer:
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
            on_step=lambda report: self.report(report, tracker),
            on_checkpoint=lambda: self.save(trainer),
        )
        if self.trainer_state is not None:
            trainer.load(self.tensors, self.trainer_state)
        self.trainer_state = None
        return trainer

    def loader(self) -> TrainingLoader:
        """Return the training batches of this seed, the same for every method."""
        config = self.experiment.data
        return TrainingLoader(
            images=self.data.train,
            batch_size=self.experiment.training.batch_size,
            seed=self.seed,
            crop_padding=config.crop_padding,
            flip=config.flip,
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
        return Evaluator(net, self.data.train, self.data.search, config, self.seed)

    def search_batch(self, step: int, training_batch: Batch) -> Batch:
        """Return the batch that search losses are measured on in this step."""
        if self.experiment.data.search_split == "batch":
            return training_batch
        generator = derived_generator(self.seed, "search", step)
        order = torch.randperm(len(self.data.search), generator=generator)
        return self.data.search.normalized(order[: self.experiment.training.batch_size])

    def report(self, report: StepReport, tracker: Tracker) -> None:
        """Log one step and tell the listener."""
        tracker.log(
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
        self.progress.seconds = time.perf_counter() - self.started
        self.folder.save(self.progress, trainer.tensors(), trainer.state())

    def train_and_measure(self, trainer: Trainer) -> None:
        """Train one set of weights, add its front to the progress, and save that."""
        trainer.train()
        self.save(trainer)
        done = self.progress
        done.rows += self.measured_front(trainer)
        done.trained += 1
        done.gradient_steps += trainer.step
        done.passes += trainer.passes
        done.search_evaluations += trainer.evaluations.count
        done.widths_visited += len(trainer.evaluations.visited)
        done.seconds = time.perf_counter() - self.started
        self.folder.save(done, {}, None)

    def measured_front(self, trainer: Trainer) -> list[dict[str, Any]]:
        """Return a row for every network on the front of search loss and cost.

        The test images are opened here, once the front is chosen.
        """
        net, evaluations, evaluator = trainer.net, trainer.evaluations, self.evaluator(trainer.net)
        evaluations.begin(evaluator.search_loss)
        ends = (net.space.largest, net.space.smallest)
        candidates = list(dict.fromkeys((*trainer.method.candidates(), *ends)))
        losses = evaluations(candidates).tolist()
        costs = net.cost.of(self.experiment.cost, candidates).tolist()
        rows = []
        for index in front(losses, costs):
            widths = candidates[index]
            test = evaluator.on(self.data.test, widths)
            rows.append(
                {
                    "experiment": self.experiment.name,
                    "method": self.method.name,
                    "seed": self.seed,
                    "widths": str(widths),
                    **{cost: int(net.cost.of(cost, widths)) for cost in COSTS},
                    "search_loss": f"{losses[index]:.6f}",
                    "test_top1_error": f"{test.top1_error:.4f}",
                    "test_top5_error": f"{test.top5_error:.4f}",
                    "calibration_images": self.experiment.evaluation.calibration_images,
                }
            )
        return rows
