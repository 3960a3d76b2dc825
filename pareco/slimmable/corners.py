"""What is in use of parameters, whose gradients are added to the parameters' where these lie."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pareco.cost import Runs

Size = Sequence[int | Runs]
"""How many of the first entries of each dimension are in use, or in which runs of it they lie."""


def corner(tensor: Tensor, size: Size) -> Tensor:
    """Return the entries in use along the first dimensions of a tensor; itself if these are all.

    They are a view where they are the first.
    """
    for dimension, each in enumerate(size):
        if isinstance(each, int):
            if each != tensor.shape[dimension]:
                tensor = tensor.narrow(dimension, 0, each)
        else:
            runs = [tensor.narrow(dimension, first, stop - first) for first, stop in each]
            tensor = torch.cat(runs, dimension)
    return tensor


def corners(parameters: Sequence[Tensor], sizes: Sequence[Size]) -> tuple[Tensor, ...]:
    """Return `corner` of each parameter, as one differentiable operation.

    A slice's own gradient is one of the parameter's full size, filled with zeros; a narrow network
    has dozens. Where a backward pass only adds to gradients that are there, these corners' are
    added in place; otherwise (`torch.autograd.grad`, gradients of gradients, hooks of a parameter,
    a first gradient) they are padded with zeros.
    """
    return _Corners.apply(sizes, *parameters)  # type: ignore[return-value]


class _Corners(torch.autograd.Function):
    @staticmethod
    def forward(sizes: Sequence[Size], *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(corner, parameters, sizes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.sizes, *ctx.parameters = inputs
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        parameters: list[Tensor] = ctx.parameters
        edges = ctx.next_functions[-len(parameters) :]
        if torch.is_grad_enabled() or not all(map(_only_added_to, parameters, edges)):
            return None, *map(_padded, gradients, parameters, ctx.sizes)
        places = [
            pair
            for parameter, gradient, size in zip(parameters, gradients, ctx.sizes, strict=True)
            if gradient is not None
            for pair in _places(parameter.grad, gradient, size)  # type: ignore[arg-type]
        ]
        torch._foreach_add_(*zip(*places, strict=True))
        return (None,) * (1 + len(parameters))


def _places(whole: Tensor, part: Tensor, size: Size) -> list[tuple[Tensor, Tensor]]:
    """Return views of a tensor, and of what is in use of it, that are alike."""
    if all(isinstance(each, int) for each in size):
        return [(whole.as_strided(part.shape, whole.stride()), part)]
    pairs = [(whole, part)]
    for dimension, each in enumerate(size):
        runs = ((0, each),) if isinstance(each, int) else each
        lengths = [stop - first for first, stop in runs]
        held = list(zip(runs, lengths, itertools.accumulate(lengths, initial=0), strict=False))
        pairs = [
            (into.narrow(dimension, first, length), of.narrow(dimension, at, length))
            for into, of in pairs
            for (first, _), length, at in held
        ]
    return pairs


def _only_added_to(parameter: Tensor, edge: tuple[Any, int]) -> bool:
    """Return whether the pass adds to a gradient that the parameter has, and nobody hears of it.

    `edge` leads to what takes the gradient up.
    """
    if not parameter.is_leaf or parameter.grad is None:
        return False
    if parameter._backward_hooks or parameter._post_accumulate_grad_hooks:
        return False
    try:
        return torch._C._will_engine_execute_node(edge[0])
    except RuntimeError:  # in torch.autograd.grad
        return False


def _padded(gradient: Tensor | None, parameter: Tensor, size: Size) -> Tensor | None:
    """Return the gradient with zeros for what is not in use; None if there is none."""
    if gradient is None:
        return None
    for dimension, each in enumerate(size):
        if not isinstance(each, int):
            index = torch.cat([torch.arange(*run, device=gradient.device) for run in each])
            shape = [*gradient.shape]
            shape[dimension] = parameter.shape[dimension]
            gradient = gradient.new_zeros(shape).index_copy(dimension, index, gradient)
    missing = [have - got for have, got in zip(parameter.shape, gradient.shape, strict=True)]
    return F.pad(gradient, [part for each in reversed(missing) for part in (0, each)])
