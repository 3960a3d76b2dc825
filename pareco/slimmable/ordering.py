"""The channels of a traced network in the order of their importance, as an exact permutation.

A sub-network uses the first channels of every layer: those with the largest filters are to be the
ones that it keeps. (L1 norms: Li et al., arXiv 1608.08710, section 3.1. Once-for-all, arXiv
1908.09791, sorts channels before it trains narrower kernels.)
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from pareco.cost import Features, Trace
from pareco.slimmable.forms import SlicedTensor, form_of, norm_groups
from pareco.slimmable.layers import ChannelPad, ChannelSplit
from pareco.slimmable.nodes import TracingError

_PERMUTED = (
    *(nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm, nn.PReLU),
    *(ChannelPad, ChannelSplit, SlicedTensor),
)
"""Layers whose channels may be put in another order; of convolutions those without groups, and
depthwise ones. So may those of norms that see all channels alike."""

Slot = tuple[tuple[int, int], ...]
"""What stands and falls together: (group, channel), sorted; more than one where padding ties."""


@torch.no_grad()
def put_in_order(held: nn.Module, found: Trace) -> None:
    """Put the channels of every group in the order of falling importance, in place.

    `held` is what a traced network holds. The importance of a channel is the sum, over all layers
    that write into its group, of the absolute weights of its filter. Equal ones keep their order.
    All parameters and buffers that have the group's channels along a dimension are permuted alike,
    so that the full network computes what it did, but for the order of sums. Channels that
    zero-padding passes on from a narrower group stay the first of the wider one: they are ordered
    among themselves, by the sum over both. A group with a layer that knows its channels by their
    places, such as a convolution in groups, stays in the order it has.

    Raises `TracingError` for weights that are not there (on the meta device).
    """
    sites = [site for site in found.sites if site.name]
    layers = {site.name: held.get_submodule(site.name) for site in sites}
    for site in sites:
        if any(tensor.is_meta for tensor in _tensors(layers[site.name])):
            advice = "Give the model its weights, on a device that holds them"
            raise TracingError(site.name, "its channels cannot be ordered without weights", advice)
    orders = _orders(found, layers, _importance(found, layers))
    done: set[int] = set()
    for site in sites:
        layer, dimension = layers[site.name], 0
        tensors = _tensors(layer)
        if isinstance(layer, SlicedTensor):
            owner = held.get_submodule(site.name.rpartition(".")[0])
            tensors, dimension = [getattr(owner, layer.tensor)], layer.dimension
        for tensor in tensors if _is_permuted(layer) else ():
            if id(tensor) not in done:
                done.add(id(tensor))
                _permute(tensor, dimension, site.outputs, orders)
                if tensor is layer._parameters.get("weight") and _sums_inputs(layer):
                    _permute(tensor, 1, site.inputs, orders)


def _tensors(layer: nn.Module) -> Iterable[Tensor]:
    """Return the parameters and buffers of a layer."""
    held = (*layer._parameters.values(), *layer._buffers.values())
    return (each for each in held if each is not None)


def _sums_inputs(layer: nn.Module) -> bool:
    """Return whether every output channel of a layer is a sum over all of its input channels."""
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def _is_permuted(layer: nn.Module) -> bool:
    """Return whether a layer does the same to its channels in whatever order they are."""
    if isinstance(layer, nn.Conv2d):
        return layer.groups in (1, layer.out_channels)
    form = form_of(layer)
    norm = form is not None and form.kind == "norm" and norm_groups(layer) == 1
    return norm or isinstance(layer, _PERMUTED)


def _importance(found: Trace, layers: dict[str, nn.Module]) -> list[Tensor]:
    """Return the importance of each channel of each group, double."""
    importance = [torch.zeros(group.maximum, dtype=torch.double) for group in found.groups]
    seen: set[int] = set()
    for site in found.sites:
        layer = layers.get(site.name)
        if not isinstance(layer, (nn.Conv2d, nn.Linear)) or id(layer.weight) in seen:
            continue
        seen.add(id(layer.weight))
        filters = layer.weight.detach().cpu().double().abs().flatten(1).sum(1)
        parts = filters.split([part.full for part in site.outputs.parts])
        for part, own in zip(site.outputs.parts, parts, strict=True):
            if part.group is not None:
                importance[part.group] += own.view(part.maximum, -1).sum(1)
    return importance


def _orders(found: Trace, layers: dict[str, nn.Module], importance: list[Tensor]) -> list[Tensor]:
    """Return for each group which channel comes at each place."""
    orders = [torch.arange(group.maximum) for group in found.groups]
    kept = {
        part.group
        for site in found.sites
        if site.name and not _is_permuted(layers[site.name])
        for part in (*site.inputs.parts, *site.outputs.parts)
    }
    alike: dict[tuple[int, ...], list[Slot]] = defaultdict(list)
    for slot in _slots(found, layers):
        if kept.isdisjoint(group for group, _ in slot):
            alike[tuple(group for group, _ in slot)].append(slot)
    for slots in alike.values():
        values = [sum(float(importance[group][at]) for group, at in slot) for slot in slots]
        ranked = sorted(range(len(slots)), key=lambda index: -values[index])  # a stable sort
        for place, chosen in zip(slots, ranked, strict=True):
            for (group, at), (_, channel) in zip(place, slots[chosen], strict=True):
                orders[group][at] = channel
    return orders


def _slots(found: Trace, layers: dict[str, nn.Module]) -> list[Slot]:
    """Return what has to move together; a channel that is padded to a fixed place is in none."""
    parent = {
        (index, channel): (index, channel)
        for index, group in enumerate(found.groups)
        for channel in range(group.maximum)
    }

    def root(node: tuple[int, int]) -> tuple[int, int]:
        while parent[node] != node:
            node = parent[node]
        return node

    for site in found.sites:
        pad, inputs = layers.get(site.name), site.inputs.parts
        if isinstance(pad, ChannelPad) and len(inputs) == 1 and inputs[0].group is not None:
            for channel in range(inputs[0].maximum):
                wide = site.outputs.parts[0].column, pad.before + channel
                parent.setdefault(wide, wide)
                parent[root(wide)] = root((inputs[0].group, channel))
    slots: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    for node in sorted(parent):
        slots[root(node)].append(node)
    return [tuple(slot) for slot in slots.values() if slot[0][0] >= 0]


def _permute(tensor: Tensor, dimension: int, features: Features, orders: list[Tensor]) -> None:
    """Put the features along a dimension in the order of their groups; each has all its positions.

    A tensor without that dimension, such as a counter of batches, stays as it is.
    """
    if tensor.dim() <= dimension:
        return
    order, start = [], 0
    for part in features.parts:
        first = torch.arange(part.full).view(-1, part.factor)
        order.append(start + (first if part.group is None else first[orders[part.group]]).flatten())
        start += part.full
    tensor.copy_(tensor.index_select(dimension, torch.cat(order).to(tensor.device)))
