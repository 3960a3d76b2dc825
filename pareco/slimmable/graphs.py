"""The graph of a network, traced in both modes, and what of it a graph cannot hold."""

from __future__ import annotations

import copy
import functools
import operator
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropBlock2d, DropPath
from timm.layers.drop import drop_path
from timm.models.vgg import ConvMlp
from torch import Tensor, fx, nn
from torchvision.ops import StochasticDepth, stochastic_depth

from pareco.randomness import global_streams_kept
from pareco.slimmable.effects import Memory, context, surroundings
from pareco.slimmable.forms import form_of
from pareco.slimmable.modes import (
    TENSOR,
    WHOLE_ADVICE,
    Mode,
    differing_modules,
    entered,
    left,
    modes_kept,
    returned,
    without_marks,
)
from pareco.slimmable.nodes import (
    ARITHMETIC,
    COMPARISONS,
    OR_WHOLE,
    TracingError,
    argument,
    measured_by,
    owner,
)

_LEAVES = (
    *(nn.Conv2d, nn.Linear, nn.modules.batchnorm._BatchNorm),
    *(DropBlock2d, DropPath, StochasticDepth),
)
_LEAF_SOURCES = ("timm.layers.activations", "timm.layers.pool2d_same")
_HOLDS = "holds"  # in a node's meta: whether a condition holds for the example
_UNTRACED = nn.Module.__call__, nn.Module.__getattr__
_OTHER = "it does other things in training than in evaluation, or with gradients than without"
_FUNCTION = "it calls torch.nn.functional.batch_norm, of which no width has statistics of its own"
_FUNCTION_ADVICE = "Make it a module, nn.BatchNorm1d, 2d or 3d, of the network"
_CONTEXT = "it changes gradients or number types (no_grad, autocast, an autograd.Function)"


class _Tracer(fx.Tracer):
    """Keeps whole what has a slicing rule of its own and the modules at the paths in `whole`.

    Marks in the graph where other modules begin and end. `lost` says of which of them the graph
    does not hold all that they do, and why; `failed_in` is where tracing stopped ("" is the
    network).
    """

    def __init__(self, whole: Collection[str], images: Tensor) -> None:
        super().__init__(autowrap_functions=(drop_path, stochastic_depth))
        self.whole, self.images = whole, images
        self.failed_in: str | None = None
        self.lost: dict[str, str] = {}
        self._open: list[tuple[str, object]] = []
        self._known: _Known | None = None

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        known = isinstance(m, _LEAVES) or type(m).__module__.startswith(_LEAF_SOURCES)
        known = known or form_of(m) is not None or module_qualified_name in self.whole
        return known or super().is_leaf_module(m, module_qualified_name)

    def create_node(self, *args: Any, **kwargs: Any) -> fx.Node:
        path, outside = self._open[-1]
        if context() != outside:
            self.lost.setdefault(path, _CONTEXT)
        return super().create_node(*args, **kwargs)

    def to_bool(self, obj: fx.Proxy) -> bool:
        """Return whether a condition holds for the example, if its shape alone decides.

        Of the batch, which has other sizes too, nothing may depend.
        """
        if not _of_shapes(obj.node):
            return super().to_bool(obj)
        if self._known is None:
            known = sharing_copy(self.root).eval()
            self._known = _Known(known, garbage_collect_values=False, graph=self.graph)
        with torch.no_grad(), global_streams_kept(), _untraced():
            obj.node.meta[_HOLDS] = bool(self._known.value(obj.node, self.images))
        return obj.node.meta[_HOLDS]

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


@contextmanager
def _untraced() -> Iterator[None]:
    """Run modules as they are inside the `with` block, while torch.fx traces their calls."""
    traced = nn.Module.__call__, nn.Module.__getattr__
    nn.Module.__call__, nn.Module.__getattr__ = _UNTRACED
    try:
        yield
    finally:
        nn.Module.__call__, nn.Module.__getattr__ = traced


class _Known(fx.Interpreter):
    """What is known of an unfinished graph for the example: runs each node once."""

    def value(self, node: fx.Node, images: Tensor) -> Any:
        """Return what a node is, from the nodes before it, of one image batch."""
        self.args_iter = iter([images])
        for each in node.graph.nodes:
            if each not in self.env:
                self.env[each] = self.run_node(each)
        return self.env[node]


def _of_shapes(node: Any) -> bool:
    """Return whether a number is computed from shapes alone, and not from the batch's size."""
    if node.target == "dim":
        return True
    if node.target == "size":
        return argument(node, 1, "dim") not in (None, 0)
    if node.target is operator.getitem:
        sizes, index = node.args
        measured = sizes.target == "size" or (sizes.target, sizes.args[1:]) == (getattr, ("shape",))
        return measured and type(index) is int and index != 0
    numbers = node.op == "call_function" and node.target in (*ARITHMETIC, *COMPARISONS)
    return numbers and bool(node.all_input_nodes) and all(map(_of_shapes, node.all_input_nodes))


def _conv_mlp(head: Any, x: Any) -> Any:
    """Return the output of timm's VGG head without its branch for images that are too small.

    Adaptive pooling to the size that the features have leaves them as they are.
    """
    least = head.input_kernel_size
    sizes = torch.sym_max(x.shape[-2], least), torch.sym_max(x.shape[-1], least)
    x = head.drop(head.act1(head.fc1(F.adaptive_avg_pool2d(x, sizes))))
    return head.act2(head.fc2(x))


def graph_in_both_modes(
    model: nn.Module, images: Tensor, kept: Collection[str] = ()
) -> tuple[nn.Module, fx.Graph, frozenset[str]]:
    """Return a copy of the model, its graph for both modes, and the paths that it keeps whole.

    Those are `kept` and modules without parameters that do different things by mode, or things that
    a graph does not hold. Tensors are those of the model, conditions on shapes as for the images.
    """
    whole: set[str] = set(kept)
    while True:
        differing: dict[str, str] = {}
        evaluation, training = _Tracer(whole, images), _Tracer(whole, images)
        graph = other = _marked_graph(evaluation, model, training=False)
        try:
            graph = _marked_graph(training, model, training=True)
        except TracingError as error:
            differing[training.failed_in or ""] = f"in training, {error.reason}"
        else:
            found = differing_modules(graph, other)
            differing |= dict.fromkeys(found, _OTHER)
        differing |= evaluation.lost | training.lost
        if not differing:
            graph._tracer_cls = None  # or pickles of extracted networks would name ours
            return training.root, without_marks(graph), frozenset(whole)
        for path, reason in differing.items():
            module = model.get_submodule(path)
            if not path or any(True for _ in (*module.parameters(), *module.buffers())):
                if reason is _OTHER and any(node.target is F.batch_norm for node in graph.nodes):
                    raise TracingError(path or type(model).__name__, _FUNCTION, _FUNCTION_ADVICE)
                raise TracingError(path or type(model).__name__, reason, WHOLE_ADVICE + OR_WHOLE)
        whole |= differing.keys()


def guard_conditions(graph: fx.Graph) -> None:
    """Let a traced network fail on images for whose size a condition is not as for the example.

    Those on channels are as in the full network at every width.
    """
    for node in list(graph.nodes):
        if _HOLDS not in node.meta or measured_by(node) & {0, 1}:
            continue
        holds = node.meta[_HOLDS]
        said = f"images of another size than the example's: '{node.name}' is no longer {holds}"
        place = f" in '{owner(node)}'" if owner(node) else ""
        with graph.inserting_before(node.next):
            kept = node if holds else graph.call_function(operator.eq, (node, False))
            graph.call_function(torch._assert, (kept, f"{said}{place}; trace the network for them"))


def sharing_copy(model: Any) -> Any:
    """Return a copy with the same parameters and buffers: to run it changes nothing else."""
    return copy.deepcopy(
        model, {id(each): each for each in (*model.parameters(), *model.buffers())}
    )


def _marked_graph(tracer: _Tracer, model: nn.Module, *, training: bool) -> fx.Graph:
    root = sharing_copy(model)
    try:
        with surroundings(training=training), modes_kept(root), tracer.noting(""):
            for path, module in root.named_modules():
                module.training = Mode(training, path)  # type: ignore[assignment]
            memory = Memory(root)
            graph = tracer.trace(root)
            changed = memory.changed()
            for node in graph.nodes:
                if node.op == "get_attr":
                    node.meta[TENSOR] = functools.reduce(getattr, node.target.split("."), root)
    except Exception as error:
        raise TracingError(
            tracer.failed_in or type(model).__name__,
            f"torch.fx cannot trace it ({error})",
            "Control flow that depends on tensors' values or on the batch must become a module of "
            f"its own without it{OR_WHOLE}",
        ) from error
    for path, name in changed.items():
        tracer.lost.setdefault(path, f"it changes its attribute '{name}' when it runs")
    return graph
