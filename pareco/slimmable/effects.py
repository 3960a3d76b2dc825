"""What running a network does beside computing: the contexts it opens, what it remembers."""

from __future__ import annotations

import io
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

_DEVICES = ("cpu", "cuda")


def context() -> tuple[object, ...]:
    """Return whether gradients and autocast are on: what changes a computation from outside."""
    numbers = ((torch.is_autocast_enabled(d), torch.get_autocast_dtype(d)) for d in _DEVICES)
    return torch.is_grad_enabled(), torch.is_inference_mode_enabled(), *numbers


@contextmanager
def surroundings(*, training: bool) -> Iterator[None]:
    """Turn gradients on and autocast off for training; for evaluation, the other way round.

    A network that opens a context of its own is in another one than this, in one of the two.
    """
    before = [torch.is_autocast_enabled(device) for device in _DEVICES]
    try:
        for device in _DEVICES:
            torch.set_autocast_enabled(device, not training)
        with torch.inference_mode(False), torch.set_grad_enabled(training):
            yield
    finally:
        for device, enabled in zip(_DEVICES, before, strict=True):
            torch.set_autocast_enabled(device, enabled)


class Memory:
    """What the modules of a network remember: attributes, buffers, parameters, generators."""

    def __init__(self, model: nn.Module) -> None:
        self._held = [(path, module, _attributes(module)) for path, module in model.named_modules()]
        self._prints = [_prints(held) for *_, held in self._held]

    def changed(self) -> dict[str, str]:
        """Return the first attribute that has changed in each module, by the module's path."""
        found: dict[str, str] = {}
        for (path, module, _), before in zip(self._held, self._prints, strict=True):
            now = _prints(_attributes(module))
            for name in before | now:
                if before.get(name) != now.get(name):
                    found.setdefault(path, name)
        return found


def _attributes(module: nn.Module) -> dict[str, Any]:
    held = {**module.__dict__}
    for kind in ("_parameters", "_buffers", "_modules"):
        held |= held.pop(kind)
    constants = [name for name in held if name.startswith("_tensor_constant")]  # torch.fx's own
    return {name: value for name, value in held.items() if name not in constants}


def _prints(held: dict[str, Any]) -> dict[str, object]:
    return {name: _fingerprint(value) for name, value in held.items()}


def _fingerprint(value: object) -> object:
    """Return what differs once the value has been changed or replaced by another one."""
    file = io.BytesIO()
    try:
        _Fingerprint(file).dump(value)
    except Exception:  # what cannot be looked into
        return id(value)
    return file.getvalue()


class _Fingerprint(pickle.Pickler):
    """Writes tensors, modules and functions as themselves, all else as what it consists of."""

    def persistent_id(self, obj: Any) -> Any:
        if isinstance(obj, Tensor):
            return id(obj), None if obj.is_inference() else obj._version
        if isinstance(obj, torch.Generator):
            return bytes(obj.get_state().tolist())
        return id(obj) if callable(obj) else None
