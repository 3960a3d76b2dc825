"""One run: an experiment, a method and a seed become a folder of results."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pareco.config import Experiment, as_json
from pareco.data import Batch, DataSet, TrainingLoader, load_data
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

    A finished run is left alone. Raises `RunError` if the folder holds a run of another
    configuration, `NonFiniteLoss` if training diverges.
    """
    folder = RunFolder(path=path, experiment=experiment, method=method.name, seed=seed)
    folder.claim()
    if folder.done:
        return
    torch.set_num_threads(experiment.training.cpu_threads)
    data = load_data(experiment.data)
    folder.describe(data)
    _Session(folder, experiment, method, seed, data, on_step).execute()


class _Session:
    """One go at a run, from its last checkpoint to its end."""

    def __init__(
        self,
        folder: RunFolder,
        experiment: Experiment,
        method: type[Method],
        seed: int,
        data: DataSet,
        on_step: Callable[[StepReport], None],
    ) -> None:
        self.folder, self.experiment, self.method, self.seed = folder, experiment, method, seed
        self.data, self.on_step = data, on_step
        self.progress, self.tensors, self.trainer_state = folder.load()
        self.started = time.perf_counter() - self.progress.seconds
        self.sets_of_weights = 1

    def execute(self) -> None:
        """Train every set of weights that is left, and write the result."""
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
        net, config, data = self.network(), self.experiment.training, self.experiment.data
        net.space = space
        loader = TrainingLoader(
            images=self.data.train,
            batch_size=config.batch_size,
            seed=self.seed,
            crop_padding=data.crop_padding,
            flip=data.flip,
        )
        evaluations = SearchEvaluations()
        steps = config.epochs * loader.batches_per_epoch
        asks = -(-steps // config.ask_every_steps)
        task = Task(
            space=space,
            cost=net.cost,
            generator=derived_generator(self.seed, "method", self.progress.trained),
            evaluate=evaluations,
            sampled_per_step=config.sampled_per_step,
            ask_every_steps=config.ask_every_steps,
            widths_budget=max(asks * config.sampled_per_step, 1),
            search=self.experiment.search,
        )
        method = self.method(task)
        net.privatize_norm(method.switches())
        trainer = Trainer(
            net=net,
            method=method,
            loader=loader,
            evaluations=evaluations,
            search_batch=self.search_batch,
            config=config,
            seed=self.seed,
            on_step=lambda report: self.report(report, tracker),
            on_checkpoint=lambda: self.save(trainer),
        )
        if self.trainer_state is not None:
            trainer.load(self.tensors, self.trainer_state)
        self.trainer_state = None
        return trainer

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
        """Return a row for every network on the front of search loss and MACs.

        The test images are opened here, once the front is chosen.
        """
        net, evaluations, config = trainer.net, trainer.evaluations, self.experiment.evaluation
        evaluator = Evaluator(net, self.data.train, self.data.search, config, self.seed)
        evaluations.begin(evaluator.search_loss)
        ends = (net.space.largest, net.space.smallest)
        candidates = list(dict.fromkeys((*trainer.method.candidates(), *ends)))
        losses = evaluations(candidates).tolist()
        costs = net.cost.macs(candidates).tolist()
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
                    "macs": int(costs[index]),
                    "params": int(net.cost.params(widths)),
                    "search_loss": f"{losses[index]:.6f}",
                    "test_top1_error": f"{test.top1_error:.4f}",
                    "test_top5_error": f"{test.top5_error:.4f}",
                    "calibration_images": config.calibration_images,
                }
            )
        return rows
