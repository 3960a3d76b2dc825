"""What a run needs before it begins: its initial network, and what plans it."""

from __future__ import annotations

import torch

from pareco.config import Experiment, Machine, check_location
from pareco.data.contents import contents_of
from pareco.data.loading import KNOWN_SIZES
from pareco.data.splits import split_sizes
from pareco.models import create_model
from pareco.randomness import seeded_globally
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.training.plan import Planner


def initial_network(experiment: Experiment, classes: int, channels: int, seed: int) -> SlimmableNet:
    """Return the network with the initial weights of this seed, on the CPU.

    For so many classes, and images of so many colour channels.
    """
    config, size = experiment.network, experiment.data.image_size
    with seeded_globally(seed, "weights", device=torch.device("cpu")):
        model = create_model(
            config.name,
            num_classes=classes,
            in_chans=channels,
            base_width=config.base_width,
        )
    return make_slimmable(
        model,
        torch.zeros(1, channels, size, size),
        alpha_min=config.alpha_min,
        divisor=config.divisor,
        granularity=config.granularity,
        slim_head=config.slim_head,
    )


def planner_of(experiment: Experiment, net: SlimmableNet, sizes: tuple[int, int, int]) -> Planner:
    """Return what plans runs on this network and so many images: train, search and test."""
    train, search, test = sizes
    return Planner(
        experiment=experiment,
        space=net.space,
        cost=net.cost,
        train_images=train,
        search_images=search,
        test_images=test,
        parameters=sum(each.numel() for each in net.parameters()),
    )


def planner_before(experiment: Experiment, machine: Machine = Machine()) -> Planner:
    """Return what plans runs of an experiment; no image is opened, nor need there be any.

    A data set that is known has its own size, unless images lie at the machine's location. Raises
    `ValueError`, naming the field, for images that do not suffice; `FileNotFoundError`.
    """
    data = experiment.data
    torch.set_num_threads(experiment.training.cpu_threads)
    check_location(data, machine.images)
    if machine.images is None:
        classes, channels, images, own_test = KNOWN_SIZES[data.name]
    else:
        found = contents_of(machine.images)
        classes, channels = len(found.classes), 3
        images, own_test = found.train_images, found.test_images
    sizes = split_sizes(images, own_test, data)
    if sizes[0] < experiment.training.batch_size:
        raise ValueError(
            f"training.batch_size {experiment.training.batch_size} exceeds the {max(sizes[0], 0)} "
            f"training images that are left of {images:,}"
        )
    return planner_of(experiment, initial_network(experiment, classes, channels, 0), sizes)
