"""What a model must not hold to be made slimmable, found before it is copied and traced."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Collection, Iterator

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from pareco.slimmable.layers import HOOKS
from pareco.slimmable.nodes import OR_WHOLE, TracingError
from pareco.slimmable.whole import check_whole

_TENSOR_HOOKS = ("_backward_hooks", "_post_accumulate_grad_hooks")
_REPARAMETRIZED = (
    (WeightNorm, "weight norm", "torch.nn.utils.remove_weight_norm(module)"),
    (SpectralNorm, "spectral norm", "torch.nn.utils.remove_spectral_norm(module)"),
    (prune.BasePruningMethod, "pruning", "torch.nn.utils.prune.remove(module, name)"),
)
_WRAPPED = {
    "DataParallel": "its attribute `module`",
    "DistributedDataParallel": "its attribute `module`",
    "FullyShardedDataParallel": "the module that it was made from",
    "OptimizedModule": "its attribute `_orig_mod`, and compile what make_slimmable returns",
}


def admitted_copy(model: nn.Module, whole: Collection[str] = ()) -> nn.Module:
    """Return a deep copy of the model; modules at the paths in `whole` keep their `train` methods.

    Raises `TypeError` for what is no module, and `TracingError`, which names the module and what
    helps, for what would get lost or go wrong in a slimmable network: wrappers, compiled code,
    reparametrized or quantized weights, hooks, `train` methods, memory that is shared.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    check_whole(model, whole)
    for name, module in model.named_modules():
        kept = any(f"{name}.".startswith(f"{path}.") for path in whole)
        for reason, advice in _objections(module, own_modes=kept):
            raise TracingError(name or type(model).__name__, reason, advice)
    for name in model._modules:
        if hasattr(fx.GraphModule, name):
            raise TracingError(name, "fx.GraphModule has an attribute of that name", "Rename it")
    _refuse_overlaps(model)
    try:
        return copy.deepcopy(model)
    except Exception as error:
        problem = str(error).partition("\n")[0]
        advice = "Remove from its attributes what cannot be copied, such as computed tensors"
        raise TracingError(_uncopied(model), f"copy.deepcopy fails ({problem})", advice) from error


def _objections(module: nn.Module, *, own_modes: bool) -> Iterator[tuple[str, str]]:
    """Yield reasons, with advice, not to slim a network that holds this module."""
    torchs = [each for each in type(module).__mro__ if each.__module__.startswith("torch.")]
    names = {each.__name__ for each in torchs}
    for wrapper in _WRAPPED.keys() & names:
        yield f"it wraps a network in {wrapper}", f"Pass the plain module: {_WRAPPED[wrapper]}"
    if isinstance(module, torch.jit.ScriptModule):
        yield "it is compiled (ScriptModule)", "Pass the plain module that it was made from"
    if module._compiled_call_impl is not None:
        yield "it is compiled", "Pass the module as it was before compile(), and compile the result"
    if any(is_lazy(tensor) for tensor in module._parameters.values() if tensor is not None):
        yield "its shapes are not known yet", "Run the model once on an example input"
    if type(module).__module__.startswith(("torch.ao.", "torchao.")):
        advice = "Pass the network in floating point, and quantize what extract returns"
        yield f"it is quantized ({type(module).__name__})", advice
    if parametrize.is_parametrized(module):
        call = "torch.nn.utils.parametrize.remove_parametrizations(module, name)"
        yield "it has a parametrization", f"Bake it in with {call}"
    held = [hook for kind in HOOKS for hook in getattr(module, kind).values()]
    for form, what, call in _REPARAMETRIZED:
        if any(isinstance(hook, form) for hook in held):
            yield f"its weight is computed by {what}", f"Bake it in with {call}"
    for tensor in module._parameters.values():
        if tensor is None:
            continue
        held += [hook for kind in _TENSOR_HOOKS for hook in getattr(tensor, kind) or ()]
    if held:
        advice = "Remove it, and register it on the same layer of the slimmable network"
        yield "it has a hook, which would get lost", advice
    told = "train" in module.__dict__ or type(module).train is not nn.Module.train
    if told and not own_modes:
        advice = f"Remove the method, and set the mode of the slimmable network's modules{OR_WHOLE}"
        yield "it has a train() of its own, which would get lost", advice


def _refuse_overlaps(model: nn.Module) -> None:
    """Raise `TracingError` where two parameters share memory: a copy would not."""
    by_storage: dict[int, list[tuple[str, nn.Parameter, int, int]]] = {}
    for name, tensor in model.named_parameters():
        if tensor.numel():
            first = int(tensor.storage_offset())
            held = by_storage.setdefault(tensor.untyped_storage()._cdata, [])
            held.append((name, tensor, first, first + _reach(tensor)))
    for held in by_storage.values():
        for before, after in itertools.combinations(held, 2):
            apart = before[3] < after[2] or after[3] < before[2]
            if not apart and torch.isin(_elements(before[1]), _elements(after[1])).any():
                reason = f"it shares memory with {before[0]}, but is another parameter"
                raise TracingError(after[0], reason, "Use one parameter in both places, or a copy")


def _reach(tensor: Tensor) -> int:
    """Return how far the last element lies behind the first one."""
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    return sum((size - 1) * step for size, step in steps)


def _elements(tensor: Tensor) -> Tensor:
    """Return where each element lies in the tensor's memory."""
    first = int(tensor.storage_offset())
    places = torch.arange(first, first + _reach(tensor) + 1, device="cpu")
    return places.as_strided(tensor.shape, tensor.stride())


def _uncopied(model: nn.Module) -> str:
    """Return the path of the first module of which something other than its parts fails to copy."""
    for name, module in model.named_modules():
        parts = {id(part): part for part in module._modules.values()}
        parts |= {id(part): part for part in module._parameters.values()}
        for value in module.__dict__.values():
            try:
                copy.deepcopy(value, dict(parts))
            except Exception:
                return name or type(model).__name__
    return type(model).__name__
