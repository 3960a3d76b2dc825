"""Making a convolutional network slimmable."""

from pareco.slimmable.layers import BatchParts, NormStatistics
from pareco.slimmable.network import (
    SlimmableNet,
    calibrated_statistics,
    jointly_calibrated,
    make_slimmable,
    normalized_by_batch,
)
from pareco.slimmable.nodes import TracingError

__all__ = [
    "BatchParts",
    "NormStatistics",
    "SlimmableNet",
    "TracingError",
    "calibrated_statistics",
    "jointly_calibrated",
    "make_slimmable",
    "normalized_by_batch",
]
