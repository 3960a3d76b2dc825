"""Data sets by name, split into training, search and test images."""

from pareco.data.images import Batch, DamagedImages, Images, MemoryStore
from pareco.data.loading import DataSet, TrainingLoader, load_data
from pareco.data.splits import Splits

__all__ = [
    "Batch",
    "DamagedImages",
    "DataSet",
    "Images",
    "MemoryStore",
    "Splits",
    "TrainingLoader",
    "load_data",
]
