"""The images that a method's search losses are measured on while it trains."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pareco.config import Experiment, SearchConfig
from pareco.data import Batch, DataSet
from pareco.methods import Method
from pareco.processes import Share
from pareco.randomness import derived_generator


def takes_training_batch(experiment: Experiment, kind: type[Method]) -> bool:
    """Return whether search losses are measured on the batch that is trained on (paper)."""
    search: SearchConfig = experiment.search.resolved(kind.own_search)
    return search.refresh_images is None and experiment.data.search_split == "batch"


def search_batch_images(
    experiment: Experiment, kind: type[Method], train: int, search: int, processes: int = 1
) -> int:
    """Return how many images a method's search losses of one step in training are measured on.

    Of all processes together; `train` and `search` are the sizes of these splits. What is more than
    a training batch comes in whole ones, so that every number of processes has the same.
    """
    batch, there = experiment.training.batch_size, train
    if experiment.data.search_split == "holdout":
        there = search
    refreshed: SearchConfig = experiment.search.resolved(kind.own_search)
    count = min(there, refreshed.refresh_images or batch)
    return count // batch * batch if count > batch else count // processes * processes


@dataclass(frozen=True)
class SearchBatches:
    """The batch of every step for a method's search losses; a share gets its part of it."""

    experiment: Experiment
    kind: type[Method]
    data: DataSet
    seed: int
    share: Share

    @property
    def images(self) -> int:
        """How many images all shares have together in a step."""
        sizes = len(self.data.train), len(self.data.search)
        return search_batch_images(self.experiment, self.kind, *sizes, self.share.count)

    def at(self, step: int, training_batch: Batch) -> Batch:
        """Return this share's part: of the step's own training batch, or of a draw by the step."""
        if takes_training_batch(self.experiment, self.kind):
            return training_batch
        held_out = self.experiment.data.search_split == "holdout"
        images, share = self.data.search if held_out else self.data.train, self.share
        order = torch.randperm(len(images), generator=derived_generator(self.seed, "search", step))
        batches = order[: self.images].split(self.experiment.training.batch_size)
        own = torch.cat([each.tensor_split(share.count)[share.rank] for each in batches])
        return images.normalized(own)
