"""Whether batches can be shared by the processes that train together: known before training."""

from __future__ import annotations

import torch

from pareco.config import Experiment
from pareco.data import DataSet
from pareco.evaluation import batch_losses
from pareco.methods import Method
from pareco.slimmable import SlimmableNet


def check_parts(
    experiment: Experiment,
    kind: type[Method],
    data: DataSet,
    net: SlimmableNet,
    processes: int,
) -> None:
    """Raise `ValueError`, naming the field, unless batches can be shared by so many processes.

    Alone with one image, batch norm has nothing to normalize by where the network has come down to
    one position: a network with such a layer is refused.
    """
    batch_size = experiment.training.batch_size
    sizes = {"training.batch_size": batch_size}
    if experiment.data.search_split == "holdout":
        sizes["data.search_images"] = min(len(data.search), batch_size)
    if (refreshed := experiment.search.resolved(kind.own_search).refresh_images) is not None:
        sizes["search.refresh_images"] = min(refreshed, batch_size)
    joint = processes > 1 and experiment.training.sync_batch_norm
    for field, size in sizes.items():
        if size < processes or batch_size % processes:
            raise ValueError(f"{field} {size} cannot be shared by {processes} processes")
        if size // processes == 1 and not joint and not _takes_one_image(experiment, data, net):
            raise ValueError(
                f"{field} {size} is one image for each process, of which {experiment.network.name} "
                f"leaves batch norm one position at data.image_size {experiment.data.image_size}, "
                f"nothing to normalize by: take at least {2 * processes}, or larger images"
            )


def _takes_one_image(experiment: Experiment, data: DataSet, net: SlimmableNet) -> bool:
    """Return whether the network can normalize a batch of a single image."""
    size, device = experiment.data.image_size, next(net.parameters()).device
    image = torch.zeros(1, data.in_chans, size, size, device=device)
    label = torch.zeros(1, dtype=torch.int64, device=device)
    try:
        batch_losses(net, (image, label), [net.space.smallest])
    except ValueError:
        return False
    return True
