"""The record of a run's scalars (`metrics.jsonl`) and its mirror in Weights & Biases."""

from pareco.tracking.mirror import Publication
from pareco.tracking.tracker import Tracker

__all__ = ["Publication", "Tracker"]
