"""The metrics file of a run (`metrics.jsonl`), its mirror in Weights & Biases, and their sync."""

from pareco.tracking.mirror import Publication
from pareco.tracking.tracker import Tracker

__all__ = ["Publication", "Tracker"]
