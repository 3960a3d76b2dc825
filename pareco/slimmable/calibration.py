"""Batch-norm re-calibration: statistics of one sub-network from training images."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from pareco.slimmable.layers import NormStatistics
from pareco.slimmable.network import SlimmableNet
from pareco.widths import Widths


@torch.no_grad()
def calibrated_statistics(
    net: SlimmableNet, widths: Widths, batches: Iterable[Tensor]
) -> NormStatistics:
    """Return the batch-norm statistics of a sub-network, averaged over image batches.

    Forwards each batch `n x c x h x w` with frozen weights and batch normalization by the batch,
    everything else in evaluation mode, and takes the cumulative average of means and (unbiased)
    variances, every batch alike: give batches of equal size. ("Post-statistics": Yu & Huang 2019,
    arXiv 1903.05134, section 3.3.) A layer that runs several times averages over its calls too.
    The network itself is left as it was.

    Raises `ValueError` if there is no batch.
    """
    statistics = NormStatistics()
    with net.at(widths), normalized_by_batch(net, statistics):
        for images in batches:
            statistics.batches += 1
            net(images)
    if not statistics.batches:
        raise ValueError("calibration needs at least one batch of images")
    return statistics


@contextmanager
def normalized_by_batch(net: SlimmableNet, statistics: NormStatistics) -> Iterator[None]:
    """Normalize by the batch inside the `with` block, everything else in evaluation mode.

    The statistics of what is forwarded are averaged in `statistics`, every call of a layer alike;
    those of the network stay as they are. Use it at one widths only.
    """
    modes = [(module, module.training) for module in net.modules()]
    norms = net.norms()
    net.eval()
    for layer in norms:
        layer.collecting, layer.collected = statistics, 0
    try:
        yield
    finally:
        for layer in norms:
            layer.collecting = None
        for module, training in modes:
            module.training = training
