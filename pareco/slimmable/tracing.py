"""Tracing a network with torch.fx into the channel groups and layers of its slimmable form."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath
from timm.models.vgg import ConvMlp
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from pareco.cost import FeatureCount, Trace
from pareco.slimmable.channels import Variable
from pareco.slimmable.layers import ChannelPad
from pareco.slimmable.nodes import (
    TracingError,
    argument,
    positions_of,
    refuse,
    shape_of,
    source_of,
)
from pareco.slimmable.rules import Propagation
from pareco.widths import ChannelGroup

_LEAVES = (
    *(nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm),
    *(DropBlock2d, DropPath, StochasticDepth),
)
_DROPOUTS = {
    F.dropout: nn.Dropout,
    F.dropout1d: nn.Dropout1d,
    F.dropout2d: nn.Dropout2d,
    F.dropout3d: nn.Dropout3d,
    F.alpha_dropout: nn.AlphaDropout,
    F.feature_alpha_dropout: nn.FeatureAlphaDropout,
}
_INPUT_ADVICE = "Give an example input n x c x h x w of the size that the network is made for"
_BATCH_ADVICE = "Take the batch's size from the input, as in x.view(x.size(0), -1)"
_LEAF_SOURCES = ("timm.layers.activations", "timm.layers.pool2d_same")


class _Tracer(fx.Tracer):
    """Keeps whole what has a slicing rule of its own; remembers where tracing stopped."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=(stochastic_depth,))
        self.failed_in: str | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, _LEAVES) or type(m).__module__.startswith(_LEAF_SOURCES)
        return known or super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(m, ConvMlp):
            forward = functools.partial(_conv_mlp, m)
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            self.failed_in = self.failed_in or self.path_of_module(m)
            raise


def _conv_mlp(head: Any, x: Any) -> Any:
    """Return the output of timm's VGG head without its branch for images that are too small.

    Adaptive pooling to the size that the features have leaves them as they are.
    """
    least = head.input_kernel_size
    sizes = torch.sym_max(x.shape[-2], least), torch.sym_max(x.shape[-1], least)
    x = head.drop(head.act1(head.fc1(F.adaptive_avg_pool2d(x, sizes))))
    return head.act2(head.fc2(x))


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor at its node."""

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
        return result


def trace(
    model: nn.Module, example_input: Tensor, *, slim_head: bool = False
) -> tuple[fx.GraphModule, Trace]:
    """Return the model's graph, with width-dependent functions made modules, and its trace.

    `example_input` is one image batch `n x c x h x w`; costs hold for its size. Unless
    `slim_head`, a pointwise convolution or linear layer that feeds only the classifier keeps its
    channels (US-Net's convention for the 1280 channels of MobileNets).

    Raises `TracingError` naming the node, the reason and what would help.
    """
    graph_module = _traced(model.eval())
    _modularize(graph_module)
    shapes = _Shapes(graph_module)
    propagation = Propagation(dict(graph_module.named_modules()))
    try:
        with torch.no_grad():
            shapes.run(_several(example_input))
    except Exception as error:
        for node in _run_before(shapes.current):
            propagation.visit(node)  # one of them may be the cause, and is refused then
        problem = str(error).partition("\n")[0]
        if len(example_input) == 1 and _runs(graph_module, example_input):
            refuse(shapes.current, f"it runs on one image alone: {problem}", _BATCH_ADVICE)
        refuse(shapes.current, f"it does not run on the example input: {problem}", _INPUT_ADVICE)
    for node in graph_module.graph.nodes:
        propagation.visit(node)
    graph_module.recompile()
    _fix_kept(propagation, slim_head)
    found = Trace(
        groups=_groups(propagation),
        sites=tuple(map(propagation.site, propagation.kinds)),
        live=_live(graph_module.graph, propagation),
    )
    return graph_module, found


def _runs(model: nn.Module, images: Tensor) -> bool:
    try:
        with torch.no_grad():
            model(images)
    except Exception:
        return False
    return True


def _run_before(failed: fx.Node) -> Iterator[fx.Node]:
    for node in failed.graph.nodes:
        if node is failed:
            return
        if node.op != "placeholder" or shape_of(node):
            yield node


def _several(images: Tensor) -> Tensor:
    """Return the images, one of them twice: a batch of one must not be taken for a single thing."""
    return images.repeat(2, *[1] * (images.dim() - 1)) if images.shape[:1] == (1,) else images


def _traced(model: nn.Module) -> fx.GraphModule:
    tracer = _Tracer()
    try:
        graph = tracer.trace(model)
    except Exception as error:
        where = tracer.failed_in or type(model).__name__
        raise TracingError(
            where,
            f"torch.fx cannot trace it ({error})",
            "Control flow that depends on tensors or their shapes must become a module of its "
            "own without it",
        ) from error
    return fx.GraphModule(model, graph)


def _modularize(graph_module: fx.GraphModule) -> None:
    """Replace functions that depend on the mode or the widths by modules, in place."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in _DROPOUTS:
            dropout = _DROPOUTS[node.target](float(argument(node, 1, "p", 0.5)))
            _replace(graph_module, node, dropout)
        elif node.target is stochastic_depth:
            rate, mode = argument(node, 1, "p"), argument(node, 2, "mode")
            _replace(graph_module, node, StochasticDepth(rate, mode))
        elif node.target is F.pad:
            padding = tuple(argument(node, 1, "pad"))
            if len(padding) == 6 and any(padding[4:]):
                _replace(graph_module, node, _channel_pad(node, padding))
    graph_module.recompile()


def _channel_pad(node: fx.Node, padding: tuple[Any, ...]) -> ChannelPad:
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    numbers = all(isinstance(part, int) for part in padding)
    if mode != "constant" or not numbers or min(padding) < 0:
        advice = "Pad by constants, by numbers of channels that do not depend on shapes"
        refuse(node, f"channel padding {padding} in mode {mode}", advice)
    return ChannelPad(padding[:4], padding[4], padding[5], float(value or 0.0))


def _replace(graph_module: fx.GraphModule, node: fx.Node, module: nn.Module) -> None:
    graph_module.add_submodule(node.name, module)
    with graph_module.graph.inserting_before(node):
        replacement = graph_module.graph.call_module(node.name, (argument(node, 0, "input"),))
    node.replace_all_uses_with(replacement)
    graph_module.graph.erase_node(node)


def _fix_kept(propagation: Propagation, slim_head: bool) -> None:
    """Fix what keeps its width: heads, squeeze bottlenecks, and what pads a fixed width."""
    kinds, tags = propagation.kinds, propagation.tags
    consumers: dict[Variable, list[fx.Node]] = {}
    for node, kind in kinds.items():
        if kind in ("convolution", "linear", "pad"):
            consumers.setdefault(propagation.input_of(node).variable.root, []).append(node)
    squeezes = _squeezes(propagation)
    classifiers = {node for node in kinds if tags[node].variable.root.fixed}
    for node, kind in kinds.items():
        if kind not in ("convolution", "linear"):
            continue
        variable = tags[node].variable.root
        users = consumers.get(variable, [])
        only_classifies = bool(users) and classifiers.issuperset(users)
        head = only_classifies and propagation.kernel_of(node) == 1 and variable.producers == 1
        if (head and not slim_head) or variable in squeezes:
            variable.fixed = True
    for narrow, wide in sorted(propagation.wider, key=lambda pair: pair[0].size):
        wide.root.fixed |= narrow.root.fixed


def _squeezes(propagation: Propagation) -> set[Variable]:
    """Return the channels of squeeze bottlenecks: all that puts them out works towards a gate."""
    produced: dict[Variable, list[fx.Node]] = {}
    for node, kind in propagation.kinds.items():
        if kind in ("convolution", "linear"):
            produced.setdefault(propagation.tags[node].variable.root, []).append(node)
    return {
        variable
        for variable, nodes in produced.items()
        if propagation.gating.issuperset([*nodes, *map(source_of, nodes)])
    }


def _groups(propagation: Propagation) -> tuple[ChannelGroup, ...]:
    """Number the free variables in the order of their first producers; return their groups."""
    names: dict[Variable, str] = {}
    for node in propagation.kinds:
        variable = propagation.tags[node].variable.root
        if not variable.fixed:
            names.setdefault(variable, str(node.target))
    for index, variable in enumerate(names):
        variable.group = index
    stages = sorted({variable.positions for variable in names}, reverse=True)
    return tuple(
        ChannelGroup(
            name=name,
            maximum=variable.size,
            stage=stages.index(variable.positions),
            at_least=tuple(dict.fromkeys(_narrower(variable, propagation.wider))),
        )
        for variable, name in names.items()
    )


def _narrower(variable: Variable, wider: Sequence[tuple[Variable, Variable]]) -> Iterator[int]:
    """Yield the groups that zero-padding makes this one of, directly or through others."""
    for narrow, wide in wider:
        if wide.root is variable and narrow.root.group is not None:
            yield narrow.root.group
            yield from _narrower(narrow.root, wider)


def _live(graph: fx.Graph, propagation: Propagation) -> tuple[tuple[FeatureCount, ...], ...]:
    """List what is held at each step: views share memory, in-place operations take it over."""
    nodes = [node for node in graph.nodes if node in propagation.tags]
    order = {node: index for index, node in enumerate(nodes)}
    needed_until: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        users = [user for user in node.users if user in order]
        uses = [needed_until[user] if user in propagation.views else order[user] for user in users]
        needed_until[node] = max([order[node], *uses])
    owners: dict[fx.Node, fx.Node] = {}
    held_until: dict[fx.Node, int] = {}
    for node in nodes:
        taken = [owners[source] for source in node.all_input_nodes if source in owners]
        if node not in propagation.views:
            dying = [owner for owner in taken if held_until[owner] == order[node]]
            fitting = [owner for owner in dying if _size(owner) == _size(node)]
            taken = fitting if node in propagation.in_place else []
        owners[node] = owner = taken[0] if taken else node
        held_until[owner] = max(held_until.get(owner, 0), needed_until[node])
    steps = []
    for now, node in enumerate(nodes):
        if owners[node] is node:
            alive = [n for n in nodes[: now + 1] if owners[n] is n and held_until[n] >= now]
            steps.append(tuple(propagation.tags[n].count(positions_of(n)) for n in alive))
    return tuple(steps)


def _size(node: fx.Node) -> int:
    return math.prod(shape_of(node)[1:])
