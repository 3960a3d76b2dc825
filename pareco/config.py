"""The typed configuration of an experiment: every field is read, documented and overridable."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from pareco.search import SearchConfig
from pareco.widths import Granularity


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network, and the space of its widths."""

    name: str
    """A model of timm, or cifar_resnet<depth> with depth 6k + 2."""

    base_width: int | None = None
    """Channels of the first stage of a cifar_resnet; None for 16."""

    alpha_min: float = 0.42
    """Least width multiplier: the smallest network has every multiplier there."""

    divisor: int = 1
    """Channel counts are multiples of this; 1 takes the floor, as the paper."""

    granularity: Granularity = "layer"
    """One multiplier per channel group, per stage, or for the whole network."""

    slim_head: bool = False
    """Whether the final head convolution may be slimmed too."""

    def __post_init__(self) -> None:
        """Check the fields."""
        _require(0 < self.alpha_min < 1, f"alpha_min must be between 0 and 1, got {self.alpha_min}")
        _require(self.divisor >= 1, f"divisor must be at least 1, got {self.divisor}")
        width = self.base_width
        _require(width is None or width >= 1, f"base_width must be at least 1, got {width}")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split and augmented."""

    name: str
    """The data set: digits."""

    image_size: int
    """Height and width in pixels."""

    search_split: Literal["batch", "holdout"] = "batch"
    """Where the search measures losses: the current training batch (paper), or held-out images."""

    search_images: int = 256
    """Images that the final search loss is measured on: held out, or a part of the training set."""

    test_images: int | None = None
    """Images of the test split; None where the data set brings its own."""

    split_seed: int = 0
    """Seed of the splits; the same for every method and training seed."""

    crop_padding: int = 0
    """Pixels of padding around a random crop of the image's size."""

    flip: bool = False
    """Whether training images are mirrored at random."""

    def __post_init__(self) -> None:
        """Check the fields."""
        _require(self.image_size >= 8, f"image_size must be at least 8, got {self.image_size}")
        _require(self.search_images >= 1, "search_images must be at least 1")
        _require(self.test_images is None or self.test_images >= 1, "test_images must be positive")
        _require(self.crop_padding >= 0, "crop_padding must not be negative")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """The recipe that all methods share."""

    epochs: int
    """Passes over the training split."""

    batch_size: int = 128
    """Images per gradient step."""

    lr_per_256: float = 0.125
    """Peak learning rate for a batch of 256 images; scales with the batch size."""

    warmup_epochs: float = 5.0
    """Epochs of linear warm-up; after it the rate falls linearly to zero."""

    momentum: float = 0.9
    """Nesterov momentum of SGD."""

    weight_decay: float = 4e-5
    """Weight decay; none on batch norm and biases."""

    label_smoothing: float = 0.1
    """Smoothing of the labels that the largest network learns from."""

    sampled_per_step: int = 2
    """Sub-networks trained in each step beside the largest and the smallest (M)."""

    ask_every_steps: int = 625
    """Steps between two requests for new widths (tau), M each time; sets every search budget."""

    checkpoint_every_epochs: int = 1
    """Epochs between two checkpoints."""

    cpu_threads: int = 1
    """CPU threads of one run; fixed, as sums in another order give other floats."""

    def __post_init__(self) -> None:
        """Check the fields."""
        for name in ("epochs", "batch_size", "ask_every_steps", "checkpoint_every_epochs"):
            _require(getattr(self, name) >= 1, f"{name} must be at least 1")
        _require(self.cpu_threads >= 1, "cpu_threads must be at least 1")
        _require(self.sampled_per_step >= 0, "sampled_per_step must not be negative")
        _require(self.lr_per_256 > 0, f"lr_per_256 must be positive, got {self.lr_per_256}")
        _require(0 <= self.label_smoothing < 1, "label_smoothing must be in [0, 1)")
        _require(0 <= self.momentum < 1, "momentum must be in [0, 1)")
        _require(self.weight_decay >= 0, "weight_decay must not be negative")
        _require(0 <= self.warmup_epochs < self.epochs, "warmup_epochs must be below epochs")


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How sub-networks are measured, alike for every method."""

    calibration_images: int
    """Training images that re-calibrate the batch norm of each sub-network."""

    batch_size: int = 256
    """Images per forward pass; calibration takes whole batches."""

    def __post_init__(self) -> None:
        """Check the fields."""
        _require(self.batch_size >= 2, "batch_size must be at least 2")
        whole = self.calibration_images >= 1 and self.calibration_images % self.batch_size == 0
        _require(whole, "calibration_images must be a positive multiple of evaluation.batch_size")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One replication: everything that its numbers depend on."""

    name: str
    """The folder under runs/ and results/."""

    network: NetworkConfig
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    search: SearchConfig = field(default_factory=SearchConfig)

    methods: tuple[str, ...]
    """The methods that are compared."""

    seeds: tuple[int, ...] = (0,)
    """Each method runs once with each; it sets weights, batches and search."""

    def __post_init__(self) -> None:
        """Check the fields."""
        named = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]*", self.name)
        _require(bool(named), f"name must be letters, digits, '.', '_' and '-', got {self.name!r}")
        for field_name in ("methods", "seeds"):
            values = getattr(self, field_name)
            _require(bool(values), f"{field_name} must name at least one")
            _require(len(set(values)) == len(values), f"{field_name} must name none twice")
        _require(all(seed >= 0 for seed in self.seeds), "seeds must not be negative")


def as_json(config: Any) -> dict[str, Any]:
    """Return a configuration as JSON-ready nested dictionaries (tuples as lists)."""
    return {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in _flat(asdict(config)).items()
    }


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat
