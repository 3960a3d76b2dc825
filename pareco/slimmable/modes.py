"""What a network does in training and in evaluation: two graphs compared, and where they differ."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath
from timm.layers.drop import drop_path
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth, stochastic_depth

from pareco.randomness import global_streams_kept, seed_global_streams
from pareco.slimmable.nodes import owner, refuse, shape_of

BY_MODE: dict[Any, Callable[..., nn.Module]] = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
    drop_path: DropPath,
    stochastic_depth: StochasticDepth,
}
"""Functions that do nothing unless told to be in training -> the module that acts by its mode."""
_ACTS = "acts"  # in a node's meta: what it is told in training, and what in evaluation
TENSOR = "tensor"  # in a node's meta: what it reads, whose name may be another one in each mode
WHOLE_ADVICE = (
    "Such a module is kept whole only if it has no parameters, keeps the shape of one tensor and "
    "treats each channel by itself; otherwise use nn.Dropout, timm's DropPath or functions that "
    "are told training=self.training, and freeze parameters by requires_grad_(False)"
)
_SEEDS = 8
_SAMPLES = 3


class Mode(int):
    """Whether a module is in training, as it is told to functions while a network is traced.

    `path` is that of the module.
    """

    path: str

    def __new__(cls, training: bool, path: str = "") -> Mode:
        """Return the mode of the module at this path."""
        mode = super().__new__(cls, training)
        mode.path = path
        return mode


def entered(path: str) -> None:
    """Mark in a graph where a module's own steps begin."""


def returned(value: Any) -> Any:
    """Mark in a graph what a module returns."""
    return value


def left(path: str) -> None:
    """Mark in a graph where a module's own steps end."""


def without_marks(graph: fx.Graph) -> fx.Graph:
    """Return the graph, from which the marks of modules were removed."""
    for node in reversed(graph.nodes):
        if node.target is returned:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        if node.target in (entered, returned, left):
            graph.erase_node(node)
    return graph


def differing_modules(training: fx.Graph, evaluation: fx.Graph) -> list[str]:
    """Return the paths of the modules whose own steps depend on the mode; "" is the network.

    Both graphs carry marks. Calls of functions in `BY_MODE` may differ in being active; what they
    do in each mode is noted at the nodes of `training`, for `module_by_mode`.
    """
    first, second = list(training.nodes), list(evaluation.nodes)
    twins: dict[Any, Any] = {}  # nodes of evaluation -> nodes of training
    passed: dict[Any, Any] = {}  # nodes that are in training alone -> what they pass on
    open_modules, found = [""], []
    i = j = 0
    while i < len(first):
        node, other = first[i], second[j]
        if _alike(node, other, twins, passed):
            twins[other] = node
            i, j = i + 1, j + 1
            if node.target is entered:
                open_modules.append(str(node.args[0]))
            elif node.target is left:
                open_modules.pop()
        elif node.target in BY_MODE and _told(node)[1]:  # a call inside `if self.training`
            options, training = _told(node)
            node.meta[_ACTS] = (training, False)
            source, *_ = options.values()
            passed[node] = passed.get(source, source)
            i += 1
        else:
            found.append(open_modules.pop())
            if not open_modules:
                break
            i, j = _end(first, i), _end(second, j)
            twins |= zip(_results(second, j), _results(first, i), strict=False)
    return list(dict.fromkeys(found))


def _alike(
    node: fx.Node,
    other: fx.Node,
    twins: dict[Any, Any],
    passed: dict[Any, Any],
) -> bool:
    """Return whether the two nodes do the same with the same, but for a mode that is told."""
    if node.op == other.op == "get_attr":
        return _equal(node.meta[TENSOR], other.meta[TENSOR])
    if (node.op, node.target) != (other.op, other.target):
        return False
    told = node.target in BY_MODE
    (mine, acts), (others, acts_too) = (
        _told(each) if told else ((each.args, each.kwargs), None) for each in (node, other)
    )
    mine = map_arg(mine, lambda each: passed.get(each, each))
    if mine != map_arg(others, lambda each: twins.get(each, each)):
        return False
    if told:
        node.meta[_ACTS] = acts, acts_too
        return bool(acts) or not acts_too
    return True


def _equal(first: Tensor, second: Tensor) -> bool:
    if first is second:
        return True
    known = not (first.is_meta or second.is_meta) and first.device == second.device
    return known and first.dtype == second.dtype and torch.equal(first, second)


def _told(node: fx.Node) -> tuple[dict[str, Any], Any]:
    """Return the arguments of a function in `BY_MODE`, by name, and the mode that it is told."""
    bound = inspect.signature(node.target).bind(*node.args, **node.kwargs)  # type: ignore[arg-type]
    bound.apply_defaults()
    training = bound.arguments.pop("training")
    return bound.arguments, training


def _end(nodes: Sequence[fx.Node], index: int) -> int:
    """Return the index after the end of the module that the node at `index` is in."""
    depth = 0
    while depth or nodes[index].target is not left:
        depth += (nodes[index].target is entered) - (nodes[index].target is left)
        index += 1
    return index + 1


def _results(nodes: Sequence[fx.Node], end: int) -> list[fx.Node]:
    """Return what the module that ends before the index `end` returns."""
    first = end - 1
    while nodes[first - 1].target is returned:
        first -= 1
    return list(nodes[first : end - 1])


def module_by_mode(node: fx.Node) -> tuple[nn.Module | None, str]:
    """Return the module that does in each mode what this call does; None if that is nothing.

    With it comes the path of the module whose mode it follows. `node` calls a function of `BY_MODE`
    in a graph that `differing_modules` has seen. Raises `TracingError` for one that acts in
    evaluation too.
    """
    in_training, in_evaluation = node.meta[_ACTS]
    options, _ = _told(node)
    _, *others = options.items()
    if in_evaluation:
        advice = "Give it training=self.training, or use the module in place of the function"
        refuse(node, "it is told to act in evaluation too", advice)
    if any(isinstance(value, fx.Node) for _, value in others):
        refuse(node, "its rate depends on tensors or their shapes", "Use a number")
    paths = [mode.path for mode in node.meta[_ACTS] if isinstance(mode, Mode)]
    place = paths[0] if paths else owner(node)
    return BY_MODE[node.target](**dict(others)) if in_training else None, place


@contextmanager
def modes_kept(module: nn.Module) -> Iterator[None]:
    """Put all modules in it back into the mode that each is in, after the `with` block."""
    modes = [(each, each.training) for each in module.modules()]
    try:
        yield
    finally:
        for each, training in modes:
            each.training = training


def identity_in_evaluation(node: fx.Node, module: nn.Module) -> bool:
    """Return whether a module without parameters, which is kept whole, passes its input on.

    Raises `TracingError` unless it takes one tensor and maps each of its channels by itself,
    whatever their number and in both modes, by nothing that counts as multiply-accumulates. This
    is tried at the shape of the node, with the random numbers that it draws.
    """
    if len(node.all_input_nodes) != 1 or not shape_of(node):
        refuse(node, "it does not take one tensor and return one", WHOLE_ADVICE)
    _, channels, *positions = shape_of(node.all_input_nodes[0])
    generator = torch.Generator().manual_seed(0)
    with global_streams_kept():
        for count in dict.fromkeys((channels, -(-channels // 2), 1)):
            images = torch.rand(_SAMPLES, count, *positions, generator=generator)
            for seed in range(_SEEDS):
                for mode in (True, False):
                    problem = _problem(node, copy.deepcopy(module).train(mode), images, seed)
                    if problem:
                        refuse(node, f"with {count} channels {problem}", WHOLE_ADVICE)
        image = torch.zeros(1, channels, *positions)
        return _output(node, copy.deepcopy(module).eval(), image, 0) is image


def _problem(node: fx.Node, module: nn.Module, images: Tensor, seed: int) -> str:
    """Return what is wrong with the module's outputs; nothing if all is well."""
    channel = seed % images.shape[1]
    changed = images.clone()
    changed[:, channel] = -1 - changed[:, channel]
    try:
        with FlopCounterMode(display=False) as counter:
            first = _output(node, copy.deepcopy(module), images.clone(), seed)
        second = _output(node, module, changed, seed)
    except Exception as error:
        return f"it fails: {str(error).partition(chr(10))[0]}"
    if counter.get_total_flops():
        return "it multiplies matrices or convolves"
    if not isinstance(first, Tensor) or first.shape != images.shape or first.dtype != images.dtype:
        return "it does not keep the shape and type of its input"
    others = [index for index in range(images.shape[1]) if index != channel]
    if not torch.equal(first[:, others], second[:, others]):
        return "it mixes channels"
    return ""


def _output(node: fx.Node, module: nn.Module, images: Tensor, seed: int) -> Any:
    """Return what the node's module makes of other images, with the draws of this seed."""
    seed_global_streams(seed)
    args, kwargs = map_arg((node.args, node.kwargs), lambda _: images)
    with torch.no_grad():
        return module(*args, **kwargs)
