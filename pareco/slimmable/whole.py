"""Modules that run as they are, with all their channels: what they cost, and the norms in them."""

from __future__ import annotations

import re
import weakref
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import BatchNormAct2d
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakIdKeyDictionary
from torchvision.ops import DeformConv2d

from pareco.cost import ONE, FeatureCount, Features, Site
from pareco.slimmable.nodes import TracingError

AUTO = "auto"
"""In place of paths: of whatever modules have no rule."""
NOT_CALLED = "it is not called in what is traced"
_COUNTED = (nn.modules.conv._ConvNd, nn.Linear)
_NOT_COUNTED = (nn.RNNBase, DeformConv2d)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, BatchNormAct2d)
_NAME_ADVICE = "Name modules as in model.named_modules(), by the first name of one that has several"
_TRIALS = 24
_Made = TypeVar("_Made")


def made_around(
    model: nn.Module, make: Callable[[Collection[str]], _Made], whole: Collection[str]
) -> _Made:
    """Return what `make` makes of modules that run whole: those in `whole`, and with `AUTO` more.

    Those are the module of each step that is refused or, where that cannot run whole, the one that
    it is a part of; and those of its type whose paths differ from its own in numbers alone. Raises
    a `TracingError` of the first node that is refused, where this does not help.
    """
    whole = (whole,) if isinstance(whole, str) else whole
    modules = dict(model.named_modules()) if AUTO in whole else {AUTO: model}
    if AUTO in modules:
        return make(whole)
    chosen = [path for path in whole if path != AUTO]
    check_whole(model, chosen)
    refused: list[TracingError] = []
    tried: list[Collection[str]] = []
    while len(tried) < _TRIALS and chosen not in tried:
        tried.append(chosen)
        try:
            return make(chosen)
        except TracingError as error:
            refused.append(error)
        path = refused[-1].node.rpartition(" in ")[2]
        if refused[-1].reason == NOT_CALLED:
            if path in whole:
                raise refused[-1]
            chosen = [each for each in chosen if each != path]
            continue
        while path in chosen:
            path = path.rpartition(".")[0]
        if not path or path not in modules:
            break
        named = {*chosen, *_alike(path, modules)}
        chosen = [each for each in modules if each in named and not _within(each, named)]
    first, last = refused[0], refused[-1]
    if first is last:
        raise first
    advice = f"With modules around it whole it cannot, either: at '{last.node}', {last.reason}"
    raise TracingError(first.node, first.reason, advice)


def _alike(path: str, modules: Mapping[str, nn.Module]) -> Iterator[str]:
    """Yield the paths of modules of one's type that differ from its own in numbers alone."""
    for name, each in modules.items():
        if pattern(name) == pattern(path) and type(each) is type(modules[path]):
            yield name


def pattern(path: str) -> str:
    """Return a path with # in the place of its numbers."""
    return re.sub(r"\d+", "#", path)


def _within(path: str, others: Collection[str]) -> bool:
    return any(path.startswith(f"{other}.") for other in others)


def check_whole(model: nn.Module, whole: Collection[str]) -> None:
    """Raise `TracingError` for a path that is no module's, or that lies in another one's."""
    names = {name for name, _ in model.named_modules() if name}
    for path in whole:
        if path not in names:
            raise TracingError(path or type(model).__name__, "it is no part", _NAME_ADVICE)
        outer = [other for other in whole if path.startswith(f"{other}.")]
        if outer:
            raise TracingError(path, f"it is a part of {outer[0]}, which is whole", "Name that")


class Spent(NamedTuple):
    """What a module's call takes, of one image, at every width.

    `macs` counts multiply-accumulates of convolutions and linear layers, as everywhere, by torch's
    flop counter; `put_out` the elements of their outputs; `held` the most elements that it holds
    at once, its output among them and its inputs not: of operations as they are written, and of
    attention taken apart into two products of matrices, on every device.
    """

    macs: int
    put_out: int
    held: int


def spent_by(call: Callable[[], Any], module: nn.Module) -> Spent:
    """Return what a call of this module takes."""
    put_out: list[int] = []
    hooks = [
        each.register_forward_hook(lambda *told: put_out.append(told[2].numel()))
        for each in module.modules()
        if isinstance(each, _COUNTED)
    ]
    try:
        with (
            torch.no_grad(),
            taken_apart(),
            FlopCounterMode(display=False) as counter,
            _Held() as held,
        ):
            call()
    finally:
        for hook in hooks:
            hook.remove()
    return Spent(counter.get_total_flops() // 2, sum(put_out), held.most)


@contextmanager
def taken_apart() -> Iterator[None]:
    """Have attention run as the products that the flop counter knows."""
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


class _Held(TorchDispatchMode):
    """Counts the elements of the tensors that operations put out, while something holds them.

    Views and in-place operations hold nothing more, nor do tensors that were there before: inputs
    and weights are operands before they are anything's output.
    """

    def __init__(self) -> None:
        super().__init__()
        self.most = self._now = 0
        self._known: WeakIdKeyDictionary = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        for tensor in filter(_is_tensor, tree_leaves((args, kwargs))):
            self._known[tensor.untyped_storage()] = True
        result = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(result)):
            storage = tensor.untyped_storage()
            if storage not in self._known:
                self._known[storage] = True
                elements = storage.nbytes() // tensor.element_size()
                self._now += elements
                weakref.finalize(storage, self._let_go, elements)
        self.most = max(self.most, self._now)
        return result

    def _let_go(self, elements: int) -> None:
        self._now -= elements


def _is_tensor(value: Any) -> bool:
    return isinstance(value, Tensor)


def restored(module: nn.Module, before: Mapping[str, Tensor]) -> str | None:
    """Return a buffer of a module that is no longer as it was before, and is so again; or None."""
    changed = None
    for name, buffer in module.named_buffers():
        then = before.get(name)
        if then is None or buffer.shape != then.shape or buffer.is_meta:
            continue
        if not torch.equal(buffer, then):
            buffer.copy_(then)
            changed = name
    return changed


def first_image(arguments: Any, images: int) -> Any:
    """Return the arguments of a call for the first image of so many alone."""

    def first(value: Any) -> Any:
        of_all = isinstance(value, Tensor) and value.shape[:1] == (images,)
        return value[:1] if of_all else value

    return map_aggregate(arguments, first)


def whole_site(spent: Spent) -> Site:
    """Return what a call costs at every width."""
    return Site(
        name="",
        kind="whole",
        inputs=ONE,
        outputs=ONE,
        positions=spent.put_out,
        kernel=1,
        vectors=0,
        repeated=True,
        applied=spent.macs,
    )


def norm_sites(modules: Mapping[str, nn.Module], outside: Collection[nn.Module]) -> Iterator[Site]:
    """Yield the batch norms in modules that run whole: each network has statistics of its own.

    Each once, by its first name. Raises `TracingError` for one of a kind that has no rule, and for
    a layer that torch's flop counter does not know, or that has a batch norm of those `outside`.
    """
    seen: set[nn.Module] = set()
    named = (each for path, x in modules.items() for each in x.named_modules(seen, path))
    for name, norm in named:
        _check_known(norm, name)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
            continue
        if norm in outside:
            raise TracingError(
                name, "it is called outside of what is whole, too", "Give each its own"
            )
        channels = Features((FeatureCount(None, norm.num_features),))
        yield Site(
            name=name,
            kind="norm",
            inputs=channels,
            outputs=channels,
            positions=0,
            kernel=1,
            vectors=sum(each is not None for each in norm._parameters.values()),
            repeated=True,
        )


def _check_known(module: nn.Module, name: str) -> None:
    """Raise `TracingError` for a norm that has no rule, and for a layer that nothing counts."""
    kind = type(module).__name__
    norm = isinstance(module, nn.modules.batchnorm._BatchNorm) or _has_statistics(module)
    if norm and type(module) not in _NORMS:
        raise TracingError(name, f"no rule for the norm {kind}", _NAME_ADVICE)
    if isinstance(module, _NOT_COUNTED):
        raise TracingError(name, f"nothing counts what {kind} takes", _NAME_ADVICE)


def _has_statistics(module: nn.Module) -> bool:
    """Return whether a module has running statistics, which are of one network."""
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


def parameters_of(
    modules: Mapping[str, nn.Module], sliced: Mapping[Any, fx.Node]
) -> dict[int, nn.Parameter]:
    """Return the parameters of modules that run whole but for those of their batch norms, by ids.

    `sliced` has those of which layers take a part, by ids; a shared one is refused.
    """
    found: dict[int, nn.Parameter] = {}
    for path, module in modules.items():
        for part in module.modules():
            norm = isinstance(part, nn.modules.batchnorm._BatchNorm)
            for parameter in part._parameters.values():
                if parameter is None:
                    continue
                if id(parameter) in sliced:
                    reason = f"a parameter of it is '{sliced[id(parameter)].target}''s, too"
                    raise TracingError(path, reason, "Give each its own")
                if not norm:
                    found[id(parameter)] = parameter
    return found
