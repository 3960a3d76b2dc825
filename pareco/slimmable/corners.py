"""The first entries of parameters, whose gradients are added to the parameters' where these lie."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def corner(tensor: Tensor, size: Sequence[int]) -> Tensor:
    """Return the first entries of a tensor along its first dimensions; itself if these are all."""
    held = tensor.shape
    if len(size) == 2 and size[1] != held[1]:
        return tensor[: size[0], : size[1]]
    if len(size) > 2:
        return tensor[tuple(map(slice, size))]
    return tensor if size[0] == held[0] else tensor[: size[0]]


def corners(parameters: Sequence[Tensor], sizes: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
    """Return `corner` of each parameter, as one differentiable operation.

    A slice's own gradient is one of the parameter's full size, filled with zeros; a narrow network
    has dozens. Where a backward pass only adds to gradients that are there, these corners' are
    added in place; otherwise (`torch.autograd.grad`, gradients of gradients, hooks of a parameter,
    a first gradient) they are padded with zeros.
    """
    return _Corners.apply(sizes, *parameters)  # type: ignore[return-value]


class _Corners(torch.autograd.Function):
    @staticmethod
    def forward(sizes: Sequence[Sequence[int]], *parameters: Tensor) -> tuple[Tensor, ...]:
        return tuple(map(corner, parameters, sizes))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, *ctx.parameters = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        parameters: list[Tensor] = ctx.parameters
        edges = ctx.next_functions[-len(parameters) :]
        if torch.is_grad_enabled() or not all(map(_only_added_to, parameters, edges)):
            return None, *map(_padded, gradients, parameters)
        places = [
            each.grad.as_strided(gradient.shape, each.grad.stride())  # type: ignore[union-attr]
            for each, gradient in zip(parameters, gradients, strict=True)
        ]
        torch._foreach_add_(places, gradients)
        return (None,) * (1 + len(parameters))


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


def _padded(gradient: Tensor, parameter: Tensor) -> Tensor:
    """Return the gradient with zeros for what is not in the corner."""
    missing = [have - got for have, got in zip(parameter.shape, gradient.shape, strict=True)]
    return F.pad(gradient, [part for each in reversed(missing) for part in (0, each)])
