"""Networks by name: ResNets and VGGs for CIFAR, as plain modules, and everything that timm has."""

from __future__ import annotations

import copy
import difflib
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from types import MappingProxyType
from typing import Any, ClassVar

import timm
import torch
import torch.nn.functional as F
from huggingface_hub import constants
from huggingface_hub.utils import get_session
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

_OURS_CFG = MappingProxyType({"classifier": "fc"})
"""What a network of timm says of itself, as far as it holds for ours."""


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the resolution where the channels increase.

    There the shortcut is He et al.'s option A, without weights.
    """

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's features."""
        features = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(features)) + self.shortcut(images))

    def shortcut(self, images: Tensor) -> Tensor:
        """Return the images or, halved, every other pixel with zeros for the new channels."""
        if self.conv1.stride == (1, 1):
            return images
        added = self.conv2.out_channels - self.conv1.in_channels
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, added))


class CifarResNet(nn.Module):
    """A ResNet with 6k + 2 layers: three stages of k blocks at widths w, 2w and 4w."""

    pretrained_cfg: ClassVar[Mapping[str, Any]] = _OURS_CFG

    def __init__(
        self, depth: int, *, num_classes: int = 10, in_chans: int = 3, base_width: int = 16
    ) -> None:
        """Build and initialize (He et al., fan out). Raises `ValueError` unless depth is 6k + 2."""
        super().__init__()
        blocks, remainder = divmod(depth - 2, 6)
        if blocks < 1 or remainder:
            raise ValueError(f"depth must be 6k + 2 (8, 20, 32, 44, 56, ...), got {depth}")
        _check_width(base_width)
        self.conv1 = nn.Conv2d(in_chans, base_width, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(base_width)
        self.relu = nn.ReLU(inplace=True)
        channels = base_width
        for stage in range(3):
            layers = []
            for _ in range(blocks):
                layers.append(BasicBlock(channels, base_width * 2**stage))
                channels = base_width * 2**stage
            self.add_module(f"layer{stage + 1}", nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores `n x num_classes`."""
        features = self.relu(self.bn1(self.conv1(images)))
        features = self.get_submodule("layer1")(features)
        features = self.get_submodule("layer2")(features)
        features = self.get_submodule("layer3")(features)
        return self.fc(self.pool(features).flatten(1))


class CifarVgg(nn.Module):
    """A VGG with batch norm, one linear layer, and five stages at widths w, 2w, 4w, 8w and 8w.

    Max pooling halves the resolution between the first four stages, whatever the images' size: the
    last six convolutions of a VGG-16 see 4 x 4 positions of 32 x 32 pixels, and 2 x 2 of 16 x 16.
    Simonyan and Zisserman (arXiv 1409.1556, table 1); for CIFAR, and with one pooling more, Liu et
    al. (arXiv 1708.06519).
    """

    pretrained_cfg: ClassVar[Mapping[str, Any]] = _OURS_CFG

    def __init__(
        self, depth: int, *, num_classes: int = 10, in_chans: int = 3, base_width: int = 64
    ) -> None:
        """Build and initialize (He et al., fan out). Raises `ValueError` for an unknown depth."""
        super().__init__()
        if depth not in VGG_STAGES:
            known = ", ".join(map(str, VGG_STAGES))
            raise ValueError(f"depth of a VGG must be one of {known}, got {depth}")
        _check_width(base_width)
        channels = in_chans
        for stage, convolutions in enumerate(VGG_STAGES[depth]):
            layers: list[nn.Module] = [nn.MaxPool2d(2)] if 1 <= stage <= 3 else []
            for _ in range(convolutions):
                outputs = base_width * min(2**stage, 8)
                layers.append(nn.Conv2d(channels, outputs, 3, 1, 1, bias=False))
                layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
                channels = outputs
            self.add_module(f"stage{stage + 1}", nn.Sequential(*layers))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(channels, num_classes)
        _initialize(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores `n x num_classes`."""
        features = images
        for stage in range(5):
            features = self.get_submodule(f"stage{stage + 1}")(features)
        return self.fc(self.pool(features).flatten(1))


def _check_width(base_width: int) -> None:
    if base_width < 1:
        raise ValueError(f"base_width must be at least 1, got {base_width}")


def _initialize(network: nn.Module) -> None:
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


VGG_STAGES = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}
"""The convolutions of each stage by depth."""
FAMILIES = {"cifar_resnet": CifarResNet, "cifar_vgg": CifarVgg}
_HUB_SECONDS = 5.0  # for its first answer
_SIDE = 256  # pixels, at which each reduction of the resolution has one of its own
_OURS = re.compile(r"(cifar_resnet|cifar_vgg)([0-9]{1,4})")
CIFAR_RESNETS = tuple(f"cifar_resnet{depth}" for depth in (8, 20, 32, 44, 56))
CIFAR_VGGS = tuple(f"cifar_vgg{depth}" for depth in VGG_STAGES)


def is_listed(name: str) -> bool:
    """Return whether a network is ours or, by the very name, one of `timm.list_models()`.

    Tags, and names that timm would follow to a place such as `hf-hub:`, are in no list.
    """
    return _OURS.fullmatch(name) is not None or name in timm.list_models()


def create_model(
    name: str,
    *,
    num_classes: int,
    in_chans: int = 3,
    base_width: int | None = None,
    undone_strides: int = 0,
    pretrained: bool = False,
) -> nn.Module:
    """Return a freshly initialized network or, where `pretrained`, one with timm's weights.

    `name` is `cifar_resnet<depth>` (depth 6k + 2, `base_width` 16 unless given), `cifar_vgg<depth>`
    (depth 11, 13, 16 or 19, 64 unless given) or a model of timm, which may have a tag; of a
    ConvNeXt, `base_width` is that of the first stage, and the others keep their ratios. Timm's
    weights are adapted to `in_chans`; a classifier of another number of classes stays fresh. So
    many of the first reductions of the resolution are undone: the layers at the largest resolutions
    get a stride of 1, as small images need. Raises `ValueError` naming the nearest known names for
    an unknown one, the layer whose stride is not what reduces, or what helps where weights are not
    to be had.
    """
    network = _as_it_is(name, num_classes, in_chans, base_width, pretrained)
    if undone_strides:
        _undo_strides(network, undone_strides, in_chans, name)
    return network


def _as_it_is(
    name: str, num_classes: int, in_chans: int, base_width: int | None, pretrained: bool
) -> nn.Module:
    match = _OURS.fullmatch(name)
    if match and not pretrained:
        family = FAMILIES[match[1]]
        width = {} if base_width is None else {"base_width": base_width}
        return family(int(match[2]), num_classes=num_classes, in_chans=in_chans, **width)
    if not match and not timm.is_model(name):
        known = [*CIFAR_RESNETS, *CIFAR_VGGS, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"unknown network {name!r}; nearest: {', '.join(near) or 'none'}")
    if base_width is not None and pretrained:
        raise ValueError(f"network.pretrained: timm's weights of {name} are of its own base_width")
    widths: dict[str, Any] = {}
    if base_width is not None:
        widths["dims"] = _stage_widths(name, base_width)
    if not pretrained:
        try:
            return timm.create_model(name, num_classes=num_classes, in_chans=in_chans, **widths)
        except RuntimeError as error:
            if "pretrained tag" not in str(error):
                raise
            raise ValueError(f"unknown network {name!r}: {error}") from error
    tagged = tagged_name(name)
    try:
        with _hub_within_reach():
            return timm.create_model(
                tagged, pretrained=True, num_classes=num_classes, in_chans=in_chans
            )
    except Exception as error:  # whatever a hub's client raises
        why = re.split(r"\n|\. ", str(error))[0]
        raise ValueError(
            f"network.pretrained: timm's weights {tagged} cannot be had here "
            f"({type(error).__name__}: {why}). Run this once where there is a network, bring "
            "the cache of Hugging Face along, or give a file with network.weights"
        ) from error


def _stage_widths(name: str, base_width: int) -> tuple[int, ...]:
    """Return the channels of the stages of a ConvNeXt of timm whose first has so many."""
    if timm.model_entrypoint(name).__module__ != "timm.models.convnext":
        families = "cifar_resnet<depth>, cifar_vgg<depth> and timm's ConvNeXts"
        raise ValueError(f"base_width is for {families}; {name} comes from timm as it is")
    _check_width(base_width)
    with torch.device("meta"):
        model: Any = timm.create_model(name)
    stages = [int(stage["num_chs"]) for stage in model.feature_info]
    return tuple(width * base_width // stages[0] for width in stages)


@contextmanager
def _hub_within_reach() -> Iterator[None]:
    """Let Hugging Face's client look in its cache alone, inside the block, if its hub is silent.

    By itself it would try again for a minute; it has no other setting for that.
    """
    before = constants.HF_HUB_OFFLINE
    try:
        get_session().head(constants.ENDPOINT, timeout=_HUB_SECONDS)
    except Exception:  # whatever the client of today raises
        constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def tagged_name(name: str) -> str:
    """Return a network's name with the tag of the weights that timm has for it.

    Raises `ValueError`, with those that it has, where there are none.
    """
    known = None
    with suppress(RuntimeError):  # another tag
        known = get_pretrained_cfg(name)
    if known is not None and known.has_weights:
        return f"{known.architecture}.{known.tag}" if known.tag else str(known.architecture)
    tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
    having = f"; there are {', '.join(tagged)}" if tagged else ""
    raise ValueError(
        f"network.pretrained: timm has no weights of {name}{having}. Give a file with "
        "network.weights"
    )


def _undo_strides(network: nn.Module, count: int, in_chans: int, name: str) -> None:
    """Set the stride of all layers at the `count` largest resolutions at which there are any."""
    if count < 0:
        raise ValueError(f"undone_strides must be at least 0, got {count}")
    sizes = _strided(network, in_chans)
    largest = sorted({before for before, _ in sizes.values()}, reverse=True)
    if count > len(largest):
        raise ValueError(
            f"{name} reduces the resolution by strides {len(largest)} times: undone_strides must be"
            f" at most {len(largest)}, got {count}"
        )
    undone = [layer for layer, (before, _) in sizes.items() if before in largest[:count]]
    for layer in undone:
        network.get_submodule(layer).stride = (1, 1)  # type: ignore[assignment]
    refused = f"{name} cannot have undone_strides {count}: with a stride of 1"
    try:
        changed = _strided(network, in_chans, undone)
    except RuntimeError as error:
        raise ValueError(f"{refused} its parts do not fit each other's resolutions") from error
    for layer, (before, after) in changed.items():
        if before != after:
            raise ValueError(f"{refused} {layer} makes {after} x {after} of {before} x {before}")


def _strided(
    network: nn.Module, in_chans: int, layers: Collection[str] | None = None
) -> dict[str, tuple[int, int]]:
    """Return the resolutions before and after each layer with a stride, or of these layers.

    Of an image of 256 x 256 pixels; nothing is computed.
    """
    found: dict[str, tuple[int, int]] = {}
    copied = copy.deepcopy(network).to("meta").eval()
    for name, module in copied.named_modules():
        if not isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
            continue
        if (name in layers) if layers is not None else module.stride not in (1, (1, 1)):

            def note(_: Any, inputs: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
                found[name] = (inputs[0].shape[-1], output.shape[-1])

            module.register_forward_hook(note)
    with torch.no_grad():
        copied(torch.zeros(1, in_chans, _SIDE, _SIDE, device="meta"))
    return found
