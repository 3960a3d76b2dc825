"""Batch-norm re-calibration: statistics of one sub-network from training images."""

from __future__ import annotations

from collections.abc import Iterable

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
    arXiv 1903.05134, section 3.3.) The network itself is left as it was.

    Raises `ValueError` if there is no batch.
    """
    statistics = NormStatistics()
    training = net.training
    net.eval()
    try:
        with net.at(widths):
            _collect(net, batches, statistics)
    finally:
        net.train(training)
    if not statistics.batches:
        raise ValueError("calibration needs at least one batch of images")
    return statistics


def _collect(net: SlimmableNet, batches: Iterable[Tensor], statistics: NormStatistics) -> None:
    norms = net.norms()
    for layer in norms:
        layer.collecting = statistics
    try:
        for images in batches:
            statistics.batches += 1
            net(images)
    finally:
        for layer in norms:
            layer.collecting = None
