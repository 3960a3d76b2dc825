"""The network that a run begins with."""

from __future__ import annotations

import torch

from pareco.config import Experiment
from pareco.data import DataSet
from pareco.models import create_model
from pareco.randomness import derived_seed
from pareco.slimmable import SlimmableNet, make_slimmable


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
