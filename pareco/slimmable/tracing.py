"""Tracing a network with torch.fx into the channel groups and layers of its slimmable form."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath
from timm.layers.drop import drop_path
from timm.models.vgg import ConvMlp
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from pareco.cost import FeatureCount, Trace
from pareco.randomness import global_streams_kept
from pareco.slimmable.channels import Variable
from pareco.slimmable.effects import Memory, context, surroundings
from pareco.slimmable.layers import ChannelPad
from pareco.slimmable.modes import (
    BY_MODE,
    WHOLE_ADVICE,
    differing_modules,
    entered,
    identity_in_evaluation,
    left,
    modes_kept,
    module_by_mode,
    returned,
    without_marks,
)
from pareco.slimmable.nodes import (
    TracingError,
    argument,
    owner,
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
_INPUT_ADVICE = "Give an example input n x c x h x w of the size that the network is made for"
_BATCH_ADVICE = "Take the batch's size from the input, as in x.view(x.size(0), -1)"
_CONTEXT = "it changes gradients or number types (no_grad, autocast, an autograd.Function)"
_LEAF_SOURCES = ("timm.layers.activations", "timm.layers.pool2d_same")


class _Tracer(fx.Tracer):
    """Keeps whole what has a slicing rule of its own and the modules at the paths in `whole`.

    Marks in the graph where other modules begin and end. `lost` says of which of them the graph
    does not hold all that they do, and why; `failed_in` is where tracing stopped ("" is the
    network).
    """

    def __init__(self, whole: Collection[str]) -> None:
        super().__init__(autowrap_functions=(drop_path, stochastic_depth))
        self.whole = whole
        self.failed_in: str | None = None
        self.lost: dict[str, str] = {}
        self._open: list[tuple[str, object]] = []

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, _LEAVES) or type(m).__module__.startswith(_LEAF_SOURCES)
        known = known or module_qualified_name in self.whole
        return known or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        path, outside = self._open[-1]
        if context() != outside:
            self.lost.setdefault(path, _CONTEXT)
        return super().create_node(*args, **kwargs)

    def call_module(self, m: nn.Module, forward: Any, args: Any, kwargs: Any) -> Any:
        if isinstance(m, ConvMlp):
            forward = functools.partial(_conv_mlp, m)
        path = self.path_of_module(m)
        if self.is_leaf_module(m, path):
            return super().call_module(m, forward, args, kwargs)

        def marked(*args: Any, **kwargs: Any) -> Any:
            self.create_proxy("call_function", entered, (path,), {})
            with self.noting(path):
                result = forward(*args, **kwargs)
            result = self._marked(result)
            self.create_proxy("call_function", left, (path,), {})
            return result

        return super().call_module(m, marked, args, kwargs)

    def _marked(self, value: Any) -> Any:
        if type(value) is tuple:
            return tuple(map(self._marked, value))
        if isinstance(value, fx.Proxy):
            return self.create_proxy("call_function", returned, (value,), {})
        return value

    @contextmanager
    def noting(self, path: str) -> Iterator[None]:
        """Note whether the module at this path fails or does what the graph does not hold."""
        self._open.append((path, context()))
        with global_streams_kept() as drawn:
            try:
                yield
            except Exception:
                self.failed_in = path if self.failed_in is None else self.failed_in
                raise
            finally:
                self._open.pop()
            if drawn():
                self.lost.setdefault(path, "it draws random numbers while it is traced")


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
    model, graph, whole = _graph(model)
    graph_module = assembled(model, graph)
    _modularize(graph_module, model)
    tried = _sharing_copy(graph_module)
    shapes = _Shapes(tried, graph=graph_module.graph)
    propagation = Propagation(dict(graph_module.named_modules()))

    def visit(node: fx.Node) -> None:
        if node.op == "call_module" and node.target in whole:
            module = graph_module.get_submodule(str(node.target))
            propagation.pass_through(node, view=identity_in_evaluation(node, module))
        else:
            propagation.visit(node)

    with torch.no_grad(), global_streams_kept():
        tried.eval()
        try:
            shapes.run(_several(example_input))
        except Exception as error:
            for node in _run_before(shapes.current):
                visit(node)  # one of them may be the cause, and is refused then
            problem = str(error).partition("\n")[0]
            if len(example_input) == 1 and _runs(tried, example_input):
                refuse(shapes.current, f"it runs on one image alone: {problem}", _BATCH_ADVICE)
            reason = f"it does not run on the example input: {problem}"
            refuse(shapes.current, reason, _INPUT_ADVICE)
    for node in graph_module.graph.nodes:
        visit(node)
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


def assembled(root: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """Return the graph with the modules of `root` that it uses, under all their names, as a module.

    Each module keeps its mode.
    """
    graph_module = fx.GraphModule(root, graph)
    names, used = {name for name, _ in graph_module.named_modules()}, set(graph_module.modules())
    for name, module in root.named_modules(remove_duplicate=False):
        if module in used and name not in names:
            graph_module.add_submodule(name, module)
    for name, module in graph_module.named_modules():
        module.training = root.get_submodule(name).training
    return graph_module


def _graph(model: nn.Module) -> tuple[nn.Module, fx.Graph, frozenset[str]]:
    """Return a copy of the model, its graph for both modes, and the paths that it keeps whole.

    Those are modules without parameters that do different things by mode, or things that a graph
    does not hold. Tensors are those of the model.
    """
    whole: set[str] = set()
    while True:
        differing: dict[str, str] = {}
        evaluation, training = _Tracer(whole), _Tracer(whole)
        graph = other = _marked_graph(evaluation, model, training=False)
        try:
            graph = _marked_graph(training, model, training=True)
        except TracingError as error:
            differing[training.failed_in or ""] = f"in training, {error.reason}"
        else:
            found = differing_modules(graph, other)
            differing |= dict.fromkeys(found, "it does other things in training than in evaluation")
        differing |= evaluation.lost | training.lost
        if not differing:
            graph._tracer_cls = None  # or pickles of extracted networks would name ours
            return training.root, without_marks(graph), frozenset(whole)
        for path, reason in differing.items():
            module = model.get_submodule(path)
            if not path or any(True for _ in (*module.parameters(), *module.buffers())):
                raise TracingError(path or type(model).__name__, reason, WHOLE_ADVICE)
        whole |= differing.keys()


def _sharing_copy(model: Any) -> Any:
    """Return a copy with the same parameters and buffers: to run it changes nothing else."""
    return copy.deepcopy(
        model, {id(each): each for each in (*model.parameters(), *model.buffers())}
    )


def _marked_graph(tracer: _Tracer, model: nn.Module, *, training: bool) -> fx.Graph:
    root = _sharing_copy(model)
    memory = Memory(root)
    try:
        with surroundings(training=training), modes_kept(root), tracer.noting(""):
            graph = tracer.trace(root.train(training))
    except Exception as error:
        raise TracingError(
            tracer.failed_in or type(model).__name__,
            f"torch.fx cannot trace it ({error})",
            "Control flow that depends on tensors or their shapes must become a module of its "
            "own without it",
        ) from error
    for path, name in memory.changed().items():
        tracer.lost.setdefault(path, f"it changes its attribute '{name}' when it runs")
    return graph


def _modularize(graph_module: fx.GraphModule, model: nn.Module) -> None:
    """Replace functions that depend on the mode or the widths by modules, in place."""
    for node in list(graph_module.graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in BY_MODE:
            _replace(graph_module, node, module_by_mode(node), model)
        elif node.target is F.pad:
            padding = tuple(argument(node, 1, "pad"))
            if len(padding) == 6 and any(padding[4:]):
                _replace(graph_module, node, _channel_pad(node, padding), model)
    graph_module.recompile()


def _channel_pad(node: fx.Node, padding: tuple[Any, ...]) -> ChannelPad:
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    numbers = all(isinstance(part, int) for part in padding)
    if mode != "constant" or not numbers or min(padding) < 0:
        advice = "Pad by constants, by numbers of channels that do not depend on shapes"
        refuse(node, f"channel padding {padding} in mode {mode}", advice)
    return ChannelPad(padding[:4], padding[4], padding[5], float(value or 0.0))


def _replace(
    graph_module: fx.GraphModule, node: fx.Node, module: nn.Module | None, model: nn.Module
) -> None:
    """Put a module, under a free name, in the place of a function's node; None: nothing."""
    (replacement,) = node.all_input_nodes[:1]
    if module is not None:
        name, number = node.name, 0
        while hasattr(model, name) or hasattr(graph_module, name):
            number += 1
            name = f"{node.name}_{number}"
        graph_module.add_submodule(name, module.train(model.get_submodule(owner(node)).training))
        with graph_module.graph.inserting_before(node):
            replacement = graph_module.graph.call_module(name, (replacement,))
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
