"""Networks by name, ours for CIFAR and everything of timm, and the weights that they start from."""

from __future__ import annotations

import difflib
import hashlib
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, ClassVar

import timm
import torch.nn.functional as F
from timm.models import get_pretrained_cfg, load_state_dict
from torch import Tensor, nn

from pareco.config import NetworkConfig

_OURS_CFG = MappingProxyType({"classifier": "fc"})
"""What a network of timm says of itself, as far as it holds for ours."""
_NAMED = 4  # of the names that do not fit


class ZeroPadShortcut(nn.Module):
    """Every other pixel, with zeros for the new channels: He et al.'s option A, no weights."""

    def __init__(self, added_channels: int) -> None:
        super().__init__()
        self.added_channels = added_channels

    def forward(self, images: Tensor) -> Tensor:
        """Return `n x (c + added) x h/2 x w/2` of `n x c x h x w`."""
        return F.pad(images[:, :, ::2, ::2], (0, 0, 0, 0, 0, self.added_channels))


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut; halves the resolution where the channels increase."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = 1 if inputs == outputs else 2
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.shortcut = nn.Identity() if stride == 1 else ZeroPadShortcut(outputs - inputs)

    def forward(self, images: Tensor) -> Tensor:
        """Return the block's features."""
        features = self.relu(self.bn1(self.conv1(images)))
        return self.relu(self.bn2(self.conv2(features)) + self.shortcut(images))


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
    pretrained: bool = False,
) -> nn.Module:
    """Return a freshly initialized network or, where `pretrained`, one with timm's weights.

    `name` is `cifar_resnet<depth>` (depth 6k + 2, `base_width` 16 unless given), `cifar_vgg<depth>`
    (depth 11, 13, 16 or 19, 64 unless given) or a model of timm, which may have a tag. Timm's
    weights are adapted to `in_chans`; a classifier of another number of classes stays fresh. Raises
    `ValueError` naming the nearest known names for an unknown one, or saying what helps where
    weights are not to be had.
    """
    match = _OURS.fullmatch(name)
    if match and not pretrained:
        family = FAMILIES[match[1]]
        width = {} if base_width is None else {"base_width": base_width}
        return family(int(match[2]), num_classes=num_classes, in_chans=in_chans, **width)
    if not match and not timm.is_model(name):
        known = [*CIFAR_RESNETS, *CIFAR_VGGS, *timm.list_models()]
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
        raise ValueError(f"unknown network {name!r}; nearest: {', '.join(near) or 'none'}")
    if base_width is not None:
        families = "cifar_resnet<depth> and cifar_vgg<depth>"
        raise ValueError(f"base_width is for {families}; {name} comes from timm as it is")
    if not pretrained:
        return timm.create_model(name, num_classes=num_classes, in_chans=in_chans)
    tagged = tagged_name(name)
    try:
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


def start_known(config: NetworkConfig) -> NetworkConfig:
    """Return the configuration with the name of the weights that it starts from, if any.

    Raises `ValueError` where they are others than it names, or lie nowhere.
    """
    if config.weights is not None:
        path = Path(config.weights).expanduser()
        try:
            with path.open("rb") as file:
                found = f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"
        except OSError as error:
            raise ValueError(f"network.weights {path}: {error.strerror}") from error
    elif config.pretrained:
        found = f"timm:{tagged_name(config.name)}"
    else:
        return config
    if config.started_from not in (None, found):
        raise ValueError(
            f"network.{'pretrained' if config.pretrained else f'weights {config.weights}'}: these "
            f"are {found}, and not {config.started_from}, which network.started_from names"
        )
    return replace(config, started_from=found)


def started_model(
    config: NetworkConfig, num_classes: int, in_chans: int
) -> tuple[nn.Module, str | None]:
    """Return the network with the weights that training starts from, and a remark on these.

    None where they are fresh. Weights of a file must be all those of the network, by name and
    shape; only a classifier of another number of classes stays fresh. Raises `ValueError` where
    they are not there, are others than the configuration names, or do not fit.
    """
    config = start_known(config)
    if config.started_from is not None and config.weights is None and not config.pretrained:
        raise ValueError(
            f"network.started_from {config.started_from}: say where these weights are, with "
            "network.weights FILE or network.pretrained"
        )
    model = create_model(
        config.name,
        num_classes=num_classes,
        in_chans=in_chans,
        base_width=config.base_width,
        pretrained=config.pretrained,
    )
    if config.start is None:
        return model, None
    theirs = getattr(model, "pretrained_cfg", {}).get("num_classes", num_classes)
    if config.weights is not None:
        theirs = _load(model, Path(config.weights).expanduser()) or num_classes
    remark = f"started from {config.start}"
    if theirs != num_classes:
        remark += f"; its classifier is fresh: {theirs:,} classes there, {num_classes:,} here"
    return model, remark


def _load(model: nn.Module, path: Path) -> int:
    """Load the weights in a file; return their classes if these are others than the model's, or 0.

    The classifier stays as it is then.
    """
    about = f"network.weights {path}"
    try:
        found: dict[str, Any] = load_state_dict(str(path))
    except Exception as error:  # readers raise anything on a file that is none of theirs
        raise ValueError(
            f"{about} is no safetensors file, and none of torch.save that holds tensors alone "
            f"({type(error).__name__}): write it by safetensors.torch.save_file(model.state_dict(),"
            " FILE)"
        ) from error
    if others := [name for name, each in found.items() if not isinstance(each, Tensor)]:
        raise ValueError(f"{about}: {others[0]} is no tensor; it must hold a state dict alone")
    own = model.state_dict()
    heads = [name for name in own if name.rpartition(".")[0] in _classifiers(model)]
    of_others = bool(heads) and all(name in found for name in heads)
    for name in heads if of_others else ():
        ours, theirs = own[name].shape, found[name].shape
        of_others &= len(ours) == len(theirs) and ours[1:] == theirs[1:] and ours != theirs
    state = found | {name: own[name] for name in heads if of_others}
    if faults := _misfits(own, state):
        raise ValueError(f"{about} does not fit the network: {faults}")
    model.load_state_dict(own | state)
    return len(found[heads[0]]) if of_others else 0


def _classifiers(model: nn.Module) -> tuple[str, ...]:
    """Return the paths of the layers that put out class scores."""
    named = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    return (named,) if isinstance(named, str) else tuple(named)


def _misfits(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """Return what of a state dict is not as the network's own, by name; "" if all is."""
    counters = {name for name in own if name.endswith(".num_batches_tracked")}  # older files: none
    faults = {
        "it lacks": [name for name in own if name not in found and name not in counters],
        "the network lacks": [name for name in found if name not in own],
        "another shape has": [
            f"{name} ({_size(found[name])} there, {_size(own[name])} here)"
            for name in own
            if name in found and own[name].shape != found[name].shape
        ],
        "not finite is": [name for name, each in found.items() if not each.isfinite().all()],
    }
    return "; ".join(
        f"{what} {', '.join(names[:_NAMED])}" + f" and {len(names) - _NAMED} more" * more
        for what, names in faults.items()
        if names
        for more in (len(names) > _NAMED,)
    )


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
