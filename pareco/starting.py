"""The weights that slimmable training starts from: fresh ones, timm's, or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from timm.models import load_state_dict
from torch import Tensor, nn

from pareco.config import NetworkConfig
from pareco.files import file_identity
from pareco.models import create_model, tagged_name

_NAMED = 4  # of the names that do not fit


def start_known(config: NetworkConfig) -> NetworkConfig:
    """Return the configuration with the name of the weights that it starts from, if any.

    Raises `ValueError` where they are others than it names, or lie nowhere.
    """
    if config.weights is not None:
        path = Path(config.weights).expanduser()
        try:
            found = file_identity(path)
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
        undone_strides=config.undone_strides,
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
    if unread := [name for name, each in found.items() if not _is_plain(each)]:
        raise ValueError(
            f"{about}: {unread[0]} is no tensor of plain numbers (quantized, sparse, complex, "
            "8-bit floats or on the meta device)"
        )
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
        "no floats has": [
            name
            for name, each in found.items()
            if name in own and own[name].is_floating_point() and not each.is_floating_point()
        ],
        "not finite is": [name for name, each in found.items() if not each.isfinite().all()],
    }
    return "; ".join(
        f"{what} {', '.join(names[:_NAMED])}" + f" and {len(names) - _NAMED} more" * more
        for what, names in faults.items()
        if names
        for more in (len(names) > _NAMED,)
    )


def _is_plain(tensor: Tensor) -> bool:
    """Return whether a tensor holds a real number at each place, to be taken as it is."""
    odd = tensor.is_meta or tensor.is_quantized or tensor.is_complex()
    byte = tensor.is_floating_point() and tensor.dtype.itemsize == 1
    return tensor.layout == torch.strided and not (odd or byte)


def _size(tensor: Tensor) -> str:
    return " x ".join(map(str, tensor.shape)) or "a number"
