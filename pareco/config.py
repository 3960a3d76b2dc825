"""The typed configuration of an experiment: every field is read, documented and overridable."""

from __future__ import annotations

import difflib
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from functools import cache
from typing import Any, Literal, get_args, get_type_hints

from pareco.search_config import SearchConfig as SearchConfig
from pareco.search_config import at_least, check_values, require

Granularity = Literal["network", "stage", "layer"]
Counted = Literal["macs", "params", "activations", "peak_activations"]
COSTS: tuple[Counted, ...] = get_args(Counted)
"""The costs that are counted on any network."""
Cost = Literal[Counted, "latency"]
ExportKind = Literal["onnx", "torch", "safetensors"]
EMBEDDED = ("digits", "digits_rgb")
"""The data sets that come with the installed packages."""
DATA_SETS = (*EMBEDDED, "cifar10", "cifar100", "imagenet")
"""The data sets that `pareco.data.load_data` has by name; any other name is a user's own."""

_PLACE = {"place": True}
"""Of a field that says where something lies: no part of a configuration that is stored."""
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


def _check_name(field_name: str, value: str) -> None:
    named = _NAME.fullmatch(value)
    require(bool(named), f"{field_name} must be letters, digits, '.', '_' and '-', got {value!r}")


def check_colours(mean: Sequence[float], std: Sequence[float]) -> None:
    """Raise `ValueError` for what looks as of colours from 0 to 1, where ours are up to 255."""
    of_one = bool(std) and all(value < 1 for value in std) and all(0 <= x <= 1 for x in mean)
    require(not of_one, "mean and std look as of colours from 0 to 1: multiply them by 255")


OF_SWEEP = ("methods", "seeds", "reference_methods", "reference_seeds")
"""The fields of an experiment that no run of it depends on: a sweep may grow."""


@dataclass(frozen=True, kw_only=True)
class NetworkConfig:
    """Which network, and the space of its widths."""

    name: str
    """A model of timm, cifar_resnet<depth> (depth 6k + 2), or cifar_vgg<depth> (11, 13, 16, 19)."""

    base_width: int | None = None
    """Channels of the first stage of a cifar_resnet (None for 16), a cifar_vgg (None for 64) or a
    ConvNeXt of timm (None for its own); those of the other stages keep their ratio to it."""

    undone_strides: int = 0
    """How many of the first reductions of the resolution are undone, as small images need: the
    layers with a stride at the largest resolutions get one of 1."""

    alpha_min: float = 0.42
    """Least width multiplier: the smallest network has every multiplier there."""

    divisor: int = 1
    """Channel counts are multiples of this; 1 takes the floor, as the paper."""

    granularity: Granularity = "layer"
    """One multiplier per channel group, per stage, or for the whole network."""

    slim_head: bool = False
    """Whether what feeds only the classifier, pointwise or linear, is slimmed too."""

    whole: tuple[str, ...] = ()
    """Paths of modules that run as they are, with all their channels, such as attention; or auto:
    of those that have no rule."""

    pretrained: bool = False
    """Whether to start from the weights that timm has for a network of its own, of the tag in its
    name, such as resnet18.a1_in1k, or its first one."""

    weights: str | None = field(default=None, metadata=_PLACE)
    """A file of weights of the full network to start from: .safetensors, or a .pth or .pt that
    holds nothing but tensors. What is recorded is which they are, not where they lie."""

    started_from: str | None = None
    """Which weights these are, as runs record it: timm:NAME.TAG, or sha256:DIGEST of the file; None
    for what `pretrained` and `weights` give. Others than those that are named are refused."""

    order_channels: bool = True
    """Whether channels of such weights are put in the order of their importance, so that the first
    ones, which narrow networks keep, have the largest filters. Fresh weights stay as they are."""

    def __post_init__(self) -> None:
        check_values(self)
        require(0 < self.alpha_min < 1, f"alpha_min must be between 0 and 1, got {self.alpha_min}")
        at_least(1, self, "divisor", "base_width")
        at_least(0, self, "undone_strides")
        both = self.pretrained and self.weights is not None
        require(not both, "network.pretrained and network.weights: give one of them")
        require(
            self.order_channels or self.pretrained or bool(self.weights or self.started_from),
            "network.order_channels False is about weights to start from: give network.pretrained "
            "or network.weights",
        )

    @property
    def start(self) -> str | None:
        """The weights that training starts from, in a few words; None for fresh ones."""
        if self.started_from is None:
            return None
        kind, _, rest = self.started_from.partition(":")
        named = f"a file of SHA-256 {rest[:12]}..." if kind == "sha256" else f"{kind}'s {rest}"
        order = "ordered by importance" if self.order_channels else "in the order they have there"
        return f"{named}, channels {order}"


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Which images, how they are split, prepared and augmented; where they lie is `Machine`'s."""

    name: str
    """digits, digits_rgb, cifar10, cifar100, imagenet, or any name for images of your own."""

    image_size: int
    """Height and width in pixels."""

    mean: tuple[float, ...] = (123.675, 116.28, 103.53)
    """Mean of each colour channel on the 0-255 scale; ImageNet's unless set."""

    std: tuple[float, ...] = (58.395, 57.12, 57.375)
    """Standard deviation of each colour channel on the 0-255 scale; ImageNet's unless set."""

    in_memory: bool = True
    """Decoded once and held as bytes (small data sets), or decoded anew in every epoch."""

    train_images: int | None = None
    """Images of the training split, every class in proportion; None for all that are left."""

    search_split: Literal["batch", "holdout"] = "batch"
    """Where the search measures losses: the current training batch (paper), or held-out images."""

    search_images: int = 256
    """Images that the final search loss is measured on: held out, or a part of the training set."""

    test_images: int | None = None
    """Images of the test split; None for all of the data set's own."""

    split_seed: int = 0
    """Seed of the splits; the same for every method and training seed."""

    central_crop: float = 1.0
    """Side of the central crop in evaluation, as a fraction of the resized image's shorter side."""

    crop_scale: float | None = None
    """Least area of a random resized crop, as a fraction of the image; None for no such crop."""

    colour_jitter: float = 0.0
    """Most relative change of brightness, contrast and saturation, in random order."""

    crop_padding: int = 0
    """Pixels of padding around a random crop of the image's size."""

    crop_padding_mode: Literal["constant", "replicate"] = "constant"
    """What a padding shows: black (as torchvision's random crop), or the image's edge."""

    flip: bool = False
    """Whether training images are mirrored at random."""

    lighting: float = 0.0
    """Standard deviation of the PCA lighting noise (Krizhevsky et al. 2012, section 4.1)."""

    def __post_init__(self) -> None:
        check_values(self)
        _check_name("data.name", self.name)
        at_least(8, self, "image_size")
        at_least(1, self, "search_images", "test_images", "train_images")
        at_least(0, self, "crop_padding", "lighting", "split_seed")
        require(self.split_seed < 2**32, f"split_seed must be below 2^32, got {self.split_seed}")
        require(0 < self.central_crop <= 1, "central_crop must be in (0, 1]")
        scale = self.crop_scale
        require(scale is None or 0 < scale <= 1, f"crop_scale must be in (0, 1], got {scale}")
        require(0 <= self.colour_jitter <= 1, "colour_jitter must be in [0, 1]")
        require(len(self.mean) == len(self.std), "mean and std must have the same length")
        require(all(map(math.isfinite, (*self.mean, *self.std))), "mean and std must be finite")
        require(all(value > 0 for value in self.std), "std must be positive")
        require(math.isfinite(self.lighting), f"lighting must be finite, got {self.lighting}")
        decoded_anew = scale is not None or self.colour_jitter > 0
        require(
            not (self.in_memory and decoded_anew),
            "crop_scale and colour_jitter work on images as they are decoded: set in_memory=False",
        )


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

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """adamw is as ConvNeXts are trained (arXiv 2201.03545), with a second beta of 0.999."""

    momentum: float = 0.9
    """Momentum of SGD, or the first beta of adamw; 0 for none."""

    nesterov: bool = True
    """Whether the momentum of SGD, where there is any, is Nesterov's; adamw has none such, and
    refuses it."""

    weight_decay: float = 4e-5
    """Weight decay; none on normalization and biases."""

    label_smoothing: float = 0.1
    """Smoothing of the labels that the largest network learns from."""

    sampled_per_step: int = 2
    """Sub-networks trained in each step beside the largest and the smallest (M)."""

    alone: tuple[str, ...] = ()
    """Sub-networks that `independent`, or any method that trains each alone, trains: by channel
    counts, as the column `widths` of a front has them; none for those that it takes itself."""

    ask_every_steps: int = 625
    """Steps between two requests for new widths (tau), M each time."""

    macs: int | None = None
    """MACs that a run spends before the test: it trains until only the choice of its front is left
    to pay, and the learning rate follows what is spent. None for `epochs` of every method."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """Arithmetic of the forward passes; weights and their sums stay in fp32."""

    tf32: bool = True
    """Whether convolutions and matrix products in fp32 may round their factors to ten bits (TF32)
    on GPUs that can: several times faster there. Elsewhere it changes nothing."""

    channels_last: bool = False
    """Whether images and weights lie in memory with the channel last (faster on GPUs)."""

    cuda_graphs: bool = False
    """Whether the passes at widths that stay for more than three steps, always the largest and the
    smallest, are recorded as CUDA graphs and replayed (faster where a GPU waits for its CPU)."""

    sync_batch_norm: bool = True
    """Whether batch norm takes its statistics over all processes: results do not depend on them."""

    cpu_threads: int = 1
    """CPU threads of one run; fixed, as sums in another order give other floats."""

    def __post_init__(self) -> None:
        check_values(self)
        at_least(1, self, "epochs", "batch_size", "ask_every_steps", "macs", "cpu_threads")
        at_least(0, self, "sampled_per_step", "weight_decay")
        require(self.lr_per_256 > 0, f"lr_per_256 must be positive, got {self.lr_per_256}")
        for name in ("lr_per_256", "weight_decay"):
            require(math.isfinite(getattr(self, name)), f"{name} must be finite")
        require(0 <= self.label_smoothing < 1, "label_smoothing must be in [0, 1)")
        require(0 <= self.momentum < 1, "momentum must be in [0, 1)")
        require(
            self.optimizer == "sgd" or not self.nesterov,
            f"training.nesterov is of sgd alone: with training.optimizer {self.optimizer}, set it "
            "to False (--training.no-nesterov)",
        )
        require(
            0 <= self.warmup_epochs < self.epochs,
            f"training.warmup_epochs must be from 0 to below training.epochs {self.epochs}, got "
            f"{self.warmup_epochs}: it does not follow the epochs, set it too",
        )


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """How sub-networks are measured, alike for every method."""

    calibration_images: int
    """Training images that re-calibrate the batch norm of each sub-network."""

    batch_size: int = 256
    """Images per forward pass; calibration takes whole batches."""

    def __post_init__(self) -> None:
        check_values(self)
        at_least(2, self, "batch_size")
        whole = self.calibration_images >= 1 and self.calibration_images % self.batch_size == 0
        require(whole, "calibration_images must be a positive multiple of evaluation.batch_size")


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """One replication: everything that its numbers depend on."""

    name: str
    """The folder under runs/ and results/."""

    scale: str = "paper"
    """Which fraction of the published experiment this is; tables and figures say it."""

    network: NetworkConfig
    data: DataConfig
    training: TrainingConfig
    evaluation: EvaluationConfig
    search: SearchConfig = field(default_factory=SearchConfig)

    cost: Cost = "macs"
    """The objective beside the loss: the search's, the front's, and the axis of plots."""

    latency_table: str | None = field(default=None, metadata=_PLACE)
    """A file that pareco latency wrote for this network, for the cost latency; where there is none,
    runs measure one. What is recorded is which table it is, not where it lies."""

    latency_from: str | None = None
    """Which table this is, as runs record it: sha256:DIGEST of the file; None for the one that is
    given. Another one than is named is refused."""

    methods: tuple[str, ...]
    """The methods that are compared."""

    seeds: tuple[int, ...] = (0,)
    """Each method runs once with each; it sets weights, batches and search."""

    reference_methods: tuple[str, ...] = ()
    """Methods that show where others are, by fewer seeds; of those that are compared."""

    reference_seeds: int = 1
    """How many of the seeds, from the first on, they run with."""

    def __post_init__(self) -> None:
        check_values(self)
        _check_name("name", self.name)
        at_least(1, self, "reference_seeds")
        for field_name in ("methods", "seeds", "reference_methods"):
            values = getattr(self, field_name)
            optional = field_name == "reference_methods"
            require(bool(values) or optional, f"{field_name} must name at least one")
            again = ", ".join(str(each) for each, times in Counter(values).items() if times > 1)
            require(not again, f"{field_name} must name none twice, and they do {again}")
        require(all(seed >= 0 for seed in self.seeds), "seeds must not be negative")
        tables = self.latency_table or self.latency_from
        require(
            tables is None or self.cost not in COSTS,
            f"latency_table is for cost latency, and cost is {self.cost}: leave one of them out",
        )
        most = max(self.seeds)
        require(most < 2**63, f"seeds must be below 2^63, as records hold them, got {most}")

    def seeds_of(self, method: str) -> tuple[int, ...]:
        """Return the seeds that a method runs with."""
        reference = method in self.reference_methods
        return self.seeds[: self.reference_seeds] if reference else self.seeds


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What may differ from session to session of one run, as it changes no number."""

    images: str | None = None
    """Where the data set lies: a folder, or a name of timm such as hfds/NAME; None for its own."""

    device: Literal["auto", "cpu"] = "auto"
    """auto: an accelerator where there is one. (On another kind of device floats differ.)"""

    decoding_workers: int | None = None
    """Processes of each run that decode images; 0 decodes between the steps. None for as many as
    there are cores for this process, divided among the runs and processes beside it."""

    checkpoint_minutes: float = 10.0
    """Most minutes of training that an interruption can cost; 0 saves after every step
    (of several processes: whenever losses are read)."""

    read_every_steps: int | None = None
    """Steps after which their losses are read, so that an accelerator is seldom waited for; several
    processes also heed signals and the clock then. None for 1 on a CPU, 20 on an accelerator."""

    claim_seconds: float = 0.0
    """Seconds to wait for a run's folder that another process holds, before it is refused: file
    systems may take that long to notice that a machine which held it is gone."""

    def __post_init__(self) -> None:
        check_values(self)
        at_least(0, self, "decoding_workers", "checkpoint_minutes", "claim_seconds")
        at_least(1, self, "read_every_steps")


def check_location(data: DataConfig, images: str | None) -> None:
    """Raise `ValueError` if images lie nowhere that are no known data set, or of an embedded one.

    It names the nearest data set that is known. Nor may mean and deviation be of other colours.
    """
    check_colours(data.mean, data.std)
    embedded, known = data.name in EMBEDDED, data.name in DATA_SETS
    require(images is None or not embedded, f"{data.name} is embedded in scikit-learn: no --images")
    near = difflib.get_close_matches(data.name, DATA_SETS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    require(
        images is not None or known,
        f"data.name: unknown data set {data.name!r}.{hint} Known: {', '.join(DATA_SETS)}; one of "
        "your own needs --images FOLDER",
    )


def as_json(config: Any, prefix: str = "") -> dict[str, Any]:
    """Return a configuration as one flat, JSON-ready dictionary.

    The names of nested fields are joined by dots and begin with `prefix`; tuples become lists.
    Where something lies on a machine is left out.
    """
    flat: dict[str, Any] = {}
    for each in fields(config):
        name, value = f"{prefix}{each.name}", getattr(config, each.name)
        if is_dataclass(value):
            flat |= as_json(value, f"{name}.")
        elif not _is_place(each):
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat


def _is_place(each: Field[Any]) -> bool:
    return each.metadata == _PLACE


def value_text(value: Any) -> str:
    """Return a field's value, as `as_json` gives it, for people; of texts, each as it is."""
    if value == []:
        return "none"
    texts = isinstance(value, list) and all(isinstance(each, str) for each in value)
    return "; ".join(value) if texts else str(value)


def completed(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return an experiment that `as_json` gave, with the fields that it lacks at their defaults.

    A field's default is what the code did before it was a field, so that what was stored by an
    earlier version keeps its meaning.
    """
    return {**_defaults(Experiment), **stored}


@cache
def _defaults(kind: type, prefix: str = "") -> Mapping[str, Any]:
    """Return the defaults of a configuration's fields, named and made as by `as_json`."""
    flat: dict[str, Any] = {}
    types = get_type_hints(kind)
    for each in fields(kind):
        nested = types[each.name]
        if is_dataclass(nested):
            flat |= _defaults(nested, f"{prefix}{each.name}.")  # type: ignore[arg-type]
        elif each.default is not MISSING and not _is_place(each):
            value = each.default
            flat[f"{prefix}{each.name}"] = list(value) if isinstance(value, tuple) else value
    return flat
