"""From what a bundle holds to networks that run: rebuilt by name, filled, and checked."""

from __future__ import annotations

import copy
import importlib
import warnings
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from pareco.bundle.sealed import Architecture, BundleError, Description, Shipped
from pareco.models import create_model, is_listed
from pareco.own_code import blaming, module_of
from pareco.randomness import seeded_globally
from pareco.slimmable import NormStatistics, SlimmableNet, make_slimmable
from pareco.slimmable.modes import modes_kept
from pareco.widths import Widths

Builder = Callable[[], nn.Module]


@dataclass(frozen=True, kw_only=True)
class SubNetwork:
    """A network of the front: where its weights are, its widths, and its own batch norm.

    `build` makes the plain network at full width, with other weights.
    """

    net: SlimmableNet
    widths: Widths
    statistics: NormStatistics
    build: Builder


def rebuilt(
    description: Description,
    tensors: Mapping[str, Tensor],
    given: nn.Module | str | Builder | None = None,
) -> list[SubNetwork]:
    """Return the networks of what `opened` returned; `given` is the caller's network or builder.

    Raises `BundleError` where the parts do not fit each other.
    """
    reading = description.reading
    sets = _Tensors(tensors)
    weights = [sets.below("weights", index) for index in range(sets.count("weights"))]
    build = _builder(description, given)
    with seeded_globally(0, "bundle", device=torch.device("cpu")):  # weights that are replaced
        if given is None:
            _check_weights(_without_memory(build), weights)
        model = _made(build)
    _check_weights(model, weights)
    example = torch.zeros(1, len(reading.mean), reading.image_size, reading.image_size)
    example = example.to(next((each.dtype for each in model.parameters()), example.dtype))
    try:
        first = make_slimmable(model, example, slim_head=True, whole=description.whole)
    except ValueError as error:
        raise BundleError(f"its network cannot be made slimmable: {error}") from error
    nets = [first, *(copy.deepcopy(first) for _ in weights[1:])]
    for index, (net, own) in enumerate(zip(nets, weights, strict=True)):
        with fitting(f"weights.{index}"):
            _load(net, own)
        net.requires_grad_(False).eval()
    check_scores(first, len(reading.classes))
    networks = []
    for index, shipped in enumerate(description.front):
        if shipped.weights >= len(nets):
            raise BundleError(f"front.{index} is on weights that it lacks")
        net = nets[shipped.weights]
        with fitting(f"front.{index}"):
            own = sets.below("front", index)
            widths, statistics = _own(net, shipped.widths, own)
        _warn_of_costs(net, widths, shipped)
        each = SubNetwork(net=net, widths=widths, statistics=statistics, build=build)
        networks.append(each)
    check_distinct([(id(each.net), each.widths) for each in networks])
    if left := sets.left():
        raise BundleError(f"it holds tensors that nothing uses: {left[0]}")
    return networks


def _load(net: SlimmableNet, state: Mapping[str, Tensor]) -> None:
    """Give a network these weights, and leave tied what is tied. Raises `ValueError` as `fitting`.

    They are taken in the type that they have.
    """
    named = [*net.named_parameters(remove_duplicate=False)]
    first: dict[int, str] = {}
    ties = {name: first.setdefault(id(each), name) for name, each in named}
    net.load_state_dict(state, assign=True)
    for name, other in ties.items():
        if name != other:
            if not torch.equal(state[name], state[other]):
                raise ValueError(f"{name} and {other} are one in the network, and two in the file")
            module, _, kind = name.rpartition(".")
            net.get_submodule(module)._parameters[kind] = net.get_parameter(other)


class _Tensors:
    """Tensors named `KIND/NUMBER/NAME`, and which of them were asked for."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors, self._used = tensors, set[str]()

    def count(self, kind: str) -> int:
        """Return how many numbers a kind has, from 0 on; `BundleError` if it has no such ones."""
        parts = [name.split("/", 2) for name in self._tensors]
        numbers = {each[1] for each in parts if each[0] == kind and len(each) == 3}
        if not numbers or numbers != set(map(str, range(len(numbers)))):
            raise BundleError(f"its tensors of {kind} are not numbered from 0")
        return len(numbers)

    def below(self, kind: str, number: int) -> dict[str, Tensor]:
        """Return the tensors of a number by their names."""
        prefix = f"{kind}/{number}/"
        own = {name: each for name, each in self._tensors.items() if name.startswith(prefix)}
        self._used |= own.keys()
        return {name.removeprefix(prefix): each for name, each in own.items()}

    def left(self) -> list[str]:
        """Return the names of tensors that nobody asked for."""
        return sorted(self._tensors.keys() - self._used)


def _builder(description: Description, given: nn.Module | str | Builder | None) -> Builder:
    """Return what makes the network: what the caller gave, or its name's."""
    if isinstance(given, nn.Module):
        return lambda: given
    if isinstance(given, str):
        return _builder_at(given)
    if given is not None:
        return given
    if description.architecture is None:
        raise BundleError(
            f"its network is made by {description.builder or 'code of its own'}, which is not run "
            "because a file says so: give load(path, builder=...) or load(path, model=...), "
            "commands --builder"
        )
    return partial(_of_name, description.architecture)


def _builder_at(place: str) -> Builder:
    """Return the function at FILE.py:FUNCTION or MODULE:FUNCTION; `ValueError` if none is there."""
    where, _, name = place.rpartition(":")
    if not where or not name:
        raise ValueError(f"builder must be MODULE:FUNCTION or FILE.py:FUNCTION, got {place!r}")
    with blaming(f"builder {place}"):
        of_file = where.endswith(".py")
        module = module_of(Path(where)) if of_file else importlib.import_module(where)
    found = vars(module).get(name)
    if not callable(found):
        raise ValueError(f"builder {place}: no function {name} is there")
    return cast("Builder", found)


def _of_name(architecture: Architecture) -> nn.Module:
    if not is_listed(architecture.name):
        raise BundleError(f"{architecture.name!r} is neither of timm.list_models() nor ours")
    return create_model(**architecture.model_dump())


def _made(build: Builder) -> nn.Module:
    try:
        built = build()
    except BundleError:
        raise
    except Exception as error:  # whatever a network's own code raises
        raise BundleError(f"its network cannot be built: {error}") from error
    if not isinstance(built, nn.Module):
        raise BundleError(f"its builder must return a module, and gave {type(built).__name__}")
    return built


def _without_memory(build: Builder) -> nn.Module:
    """Return the network without memory for weights, so that a file cannot ask for too much."""
    try:
        with torch.device("meta"):
            return build()
    except Exception:  # some networks of timm compute with numbers while they are built
        return _made(build)


def _check_weights(model: nn.Module, weights: Iterable[Mapping[str, Tensor]]) -> None:
    """Raise `BundleError` unless each set has the names and shapes of the model's state."""
    state = model.state_dict()
    for index, own in enumerate(weights):
        if names := sorted(state.keys() ^ own.keys()):
            where = "the file" if names[0] in state else "the network"
            raise BundleError(f"weights.{index}: {where} lacks {names[0]}")
        for name, tensor in sorted(own.items()):
            if tensor.shape != state[name].shape:
                there, wanted = list(tensor.shape), list(state[name].shape)
                raise BundleError(f"weights.{index}: {name} is {there}, the network has {wanted}")
            if tensor.is_floating_point() != state[name].is_floating_point():
                raise BundleError(f"weights.{index}: {name} is {tensor.dtype}")


@torch.no_grad()
def check_scores(net: SlimmableNet, classes: int) -> None:
    """Raise `BundleError` unless the network has a score of an image for each class."""
    image = next(net.parameters()).new_zeros(1, *net.image_shape)
    try:
        with modes_kept(net), net.at(Widths(net.space.maxima)):
            found = list(net.eval()(image).shape)
    except RuntimeError as error:  # such as numbers of several types
        raise BundleError(f"its network does not run on an image: {error}") from error
    if found != [1, classes]:
        raise BundleError(f"its network puts out {found} for an image, of {classes} classes")


def check_distinct(networks: Collection[Hashable]) -> None:
    """Raise `BundleError` if one is there twice."""
    if len({*networks}) < len(networks):
        raise BundleError("it holds a network of the front twice")


def _warn_of_costs(net: SlimmableNet, widths: Widths, shipped: Shipped) -> None:
    """Warn of a network that is said to cost what it does not."""
    if (macs := net.cost.macs_at(widths)) != shipped.macs:
        size = net.image_shape[-1]
        warnings.warn(
            f"a network of the bundle takes {macs:,} MACs at {size} x {size} pixels, and "
            f"{shipped.macs:,} are said, which budgets go by: they are of another image size, or "
            "were counted by an earlier version",
            stacklevel=5,  # whoever called load
        )


@contextmanager
def fitting(about: str) -> Iterator[None]:
    """Raise `BundleError`, with what it is about, in place of `ValueError`."""
    try:
        yield
    except ValueError as error:
        raise BundleError(f"{about}: {error}") from error


def _own(
    net: SlimmableNet, counts: Mapping[str, int], own: Mapping[str, Tensor]
) -> tuple[Widths, NormStatistics]:
    """Return what a network of the front has of its own; private weights are given to `net`.

    Raises `ValueError` as `checked_own` does.
    """
    widths, layers = checked_own(net, counts, own)
    statistics = {f"{name}.{kind}" for name in layers for kind in ("running_mean", "running_var")}
    if private := own.keys() - statistics:
        net.privatize_norm([widths])
        if private != net.private_weights(widths).keys():
            raise ValueError("the full network has no batch-norm weights of its own")
        with torch.no_grad():
            for name, parameter in net.private_weights(widths).items():
                parameter.copy_(own[name]).requires_grad_(False)
    means = {name: own[f"{name}.running_mean"] for name in layers}
    variances = {name: own[f"{name}.running_var"] for name in layers}
    return widths, NormStatistics(means, variances, batches=1, widths=widths)


def checked_own(
    net: SlimmableNet, counts: Mapping[str, int], own: Mapping[str, Tensor]
) -> tuple[Widths, list[str]]:
    """Return the widths of a network of the front, and the names of its batch-norm layers.

    Raises `ValueError` if groups, channels or tensors are not those of the network.
    """
    space = net.space
    if unknown := sorted(counts.keys() - set(space.names)):
        raise ValueError(f"the network has no channel group {unknown[0]!r}")
    full = dict(zip(space.names, space.maxima, strict=True))
    widths = Widths({**full, **counts}[name] for name in space.names)
    space.check(widths)
    with net.at(widths):
        channels = {layer.name: layer.used_outputs for layer in net.norms()}
        types = {x.name: x.running_mean.dtype for x in net.norms() if x.running_mean is not None}
        affine = {
            f"{layer.name}.{kind}"
            for layer in net.norms()
            for kind in ("weight", "bias")
            if layer.parameter_in_use(kind) is not None
        }
    statistics = {f"{name}.{kind}" for name in channels for kind in ("running_mean", "running_var")}
    private = own.keys() - statistics
    if wrong := sorted(statistics - own.keys()) or (sorted(private ^ affine) if private else []):
        raise ValueError(f"its batch norm does not fit the network at {wrong[0]}")
    for name, tensor in sorted(own.items()):
        layer, _, kind = name.rpartition(".")
        whole = tensor.is_floating_point() and bool(tensor.isfinite().all())
        if tensor.shape != (channels[layer],) or not whole:
            raise ValueError(f"{name} is not {channels[layer]} finite numbers")
        own_type = types.get(layer, tensor.dtype)
        if tensor.dtype not in (own_type, torch.promote_types(own_type, torch.float32)):
            raise ValueError(f"{name} is {tensor.dtype}, the full network has {types[layer]}")
        if kind == "running_var" and bool((tensor < 0).any()):
            raise ValueError(f"{name} is negative")
    return widths, [*channels]
