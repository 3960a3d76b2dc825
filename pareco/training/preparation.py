"""What a run needs before it begins: its initial network, what plans it; its stored experiment."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch
from torch import nn

from pareco.config import DataConfig, Experiment, Machine, check_location, completed
from pareco.data.contents import contents_of
from pareco.data.loading import KNOWN_SIZES
from pareco.data.splits import split_sizes
from pareco.evaluation import calibration_images
from pareco.files import file_identity
from pareco.latency_table import check_table, read_latency_table
from pareco.processes import set_arithmetic
from pareco.randomness import seeded_globally
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.slimmable.whole import AUTO
from pareco.starting import start_known, started_model
from pareco.training.plan import Planner

_LOGGER = logging.getLogger("pareco.training")
_ANY_CLASSES, _ANY_CHANNELS = 2, 3  # what runs whole depends on neither


def settled(experiment: Experiment) -> Experiment:
    """Return the experiment with what its files are, and which modules run whole, in place of auto.

    Files of weights to start from, and a latency table. So runs record them. Raises `ValueError`,
    naming the field, where a file lies nowhere or is another than the experiment names.
    """
    if AUTO in experiment.network.whole:
        whole = untrained_network(experiment, _ANY_CLASSES, _ANY_CHANNELS).whole
        experiment = replace(experiment, network=replace(experiment.network, whole=whole))
    network, named = start_known(experiment.network), experiment.latency_from
    if experiment.latency_table is None:
        return replace(experiment, network=network)
    path = Path(experiment.latency_table).expanduser()
    try:
        found = file_identity(path)
    except OSError as error:
        raise ValueError(f"latency_table {path}: {error.strerror}") from error
    if named not in (None, found):
        raise ValueError(
            f"latency_table {path}: this is {found}, and not {named}, which latency_from names"
        )
    return replace(experiment, network=network, latency_from=found)


def initial_network(experiment: Experiment, classes: int, channels: int, seed: int) -> SlimmableNet:
    """Return the network with the initial weights of this seed, on the CPU.

    For so many classes, and images of so many colour channels. Fresh weights are the seed's; where
    the configuration names others to start from, only a classifier of other classes is. Raises
    `ValueError`, naming the field, where these are not to be had or do not fit.
    """
    config, size = experiment.network, experiment.data.image_size
    model, remark = initial_model(experiment, classes, channels, seed)
    if remark is not None:
        _LOGGER.info("%s", remark)
    net = make_slimmable(
        model,
        torch.zeros(1, channels, size, size),
        alpha_min=config.alpha_min,
        divisor=config.divisor,
        granularity=config.granularity,
        slim_head=config.slim_head,
        whole=config.whole,
        order_channels=config.order_channels and remark is not None,
    )
    if experiment.latency_table is not None:
        table = read_latency_table(experiment.latency_table)
        check_table(table, net.space, net.cost.full_costs, size)
        net.cost = net.cost.with_latency(table.milliseconds)
    return net


def initial_model(
    experiment: Experiment, classes: int, channels: int, seed: int
) -> tuple[nn.Module, str | None]:
    """Return the plain network of `initial_network`, its channels not yet in order, and a remark.

    It says what weights are started from; None where they are fresh.
    """
    with seeded_globally(seed, "weights", device=torch.device("cpu")):
        return started_model(experiment.network, classes, channels)


def untrained_network(experiment: Experiment, classes: int, channels: int) -> SlimmableNet:
    """Return the network with any weights, for its structure or for weights that are loaded next.

    What others a run started from is not needed, nor where it lies.
    """
    fresh = {"pretrained": False, "weights": None, "started_from": None, "order_channels": True}
    network = replace(experiment.network, **fresh)
    return initial_network(replace(experiment, network=network), classes, channels, 0)


def stored_experiment(configuration: Mapping[str, Any]) -> Experiment:
    """Return the experiment of a run whose `config.json` holds this, with its method alone."""
    stored = completed(configuration) | {"methods": [configuration["method"]]}
    return _stored(Experiment, stored, "")


def _stored(kind: type, flat: Mapping[str, Any], prefix: str) -> Any:
    """Return the configuration that `pareco.config.as_json` made this of."""
    values: dict[str, Any] = {}
    hints = get_type_hints(kind)
    for each in fields(kind):
        nested, name = hints[each.name], f"{prefix}{each.name}"
        if is_dataclass(nested):
            values[each.name] = _stored(nested, flat, f"{name}.")  # type: ignore[arg-type]
        elif name in flat:
            value = flat[name]
            values[each.name] = tuple(value) if isinstance(value, list) else value
    return kind(**values)


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
        calibration_images=calibration_images(experiment.evaluation, net),
    )


def sizes_before(data: DataConfig, machine: Machine) -> tuple[int, int, int, int]:
    """Return classes, colour channels, and how many images there are to learn from and to test on.

    No image is opened.
    """
    check_location(data, machine.images)
    if machine.images is None:
        return KNOWN_SIZES[data.name]
    found = contents_of(machine.images)
    return len(found.classes), 3, found.train_images, found.test_images


def planner_before(experiment: Experiment, machine: Machine = Machine()) -> Planner:
    """Return what plans runs of an experiment; no image is opened, nor need there be any.

    A data set that is known has its own size, unless images lie at the machine's location. Raises
    `ValueError`, naming the field, for images that do not suffice; `FileNotFoundError`.
    """
    data = experiment.data
    set_arithmetic(experiment.training)
    classes, channels, images, own_test = sizes_before(data, machine)
    sizes = split_sizes(images, own_test, data)
    if sizes[0] < experiment.training.batch_size:
        raise ValueError(
            f"training.batch_size {experiment.training.batch_size} exceeds the {max(sizes[0], 0)} "
            f"training images that are left of {images:,}"
        )
    return planner_of(experiment, untrained_network(experiment, classes, channels), sizes)
