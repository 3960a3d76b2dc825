"""From the graph of a network to the channel groups and layers of its slimmable form."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn

from pareco.cost import FeatureCount, Site, Trace
from pareco.randomness import global_streams_kept
from pareco.slimmable.channels import Tag, Variable
from pareco.slimmable.forms import SlicedTensor
from pareco.slimmable.graphs import graph_in_both_modes, guard_conditions, sharing_copy
from pareco.slimmable.layers import ChannelPad, ChannelSplit
from pareco.slimmable.modes import BY_MODE, identity_in_evaluation, module_by_mode
from pareco.slimmable.nodes import (
    PIECES,
    VALUE,
    TracingError,
    argument,
    owner,
    positions_of,
    refuse,
    shape_of,
    source_of,
)
from pareco.slimmable.rules import Propagation
from pareco.slimmable.whole import (
    NOT_CALLED,
    first_image,
    norm_sites,
    restored,
    spent_by,
    whole_site,
)
from pareco.widths import ChannelGroup

_SPENT, _CHANGES = "spent", "changes"  # in a node's meta: what `spent_by` and `restored` return
_COPIES = "copies"  # whether what it puts out is none of its inputs' memory
HELD = ("_parameters", "_buffers", "_non_persistent_buffers_set", "_modules")
"""The attributes in which a module keeps what it holds."""
_INPUT_ADVICE = "Give an example input n x c x h x w of the size that the network is made for"
_NONE_ADVICE = (
    "Give it a hidden layer that does not feed the classifier alone; slim_head=True frees a "
    "pointwise convolution or linear layer that does"
)
_KEPT_ADVICE = "Let it do so in training alone"
_OWN_MODE_ADVICE = "Give it training=self.training, of a module that runs the function"
_BATCH_ADVICE = "Take the batch's size from the input, as in x.view(x.size(0), -1)"


class _Shapes(fx.Interpreter):
    """Runs a graph and notes the shape of every tensor at its node, and the value of numbers.

    At the calls of modules in `whole` it notes what they spend on one image, of so many `images`.
    """

    def __init__(self, module: nn.Module, graph: fx.Graph, whole: Collection[str], images: int):
        super().__init__(module, graph=graph)
        self.whole, self.images = whole, images

    def run_node(self, n: fx.Node) -> Any:
        self.current = n
        if n.op == "call_module" and n.target in self.whole:
            result = self._run_whole(n)
        else:
            result = super().run_node(n)
        if isinstance(result, Tensor):
            n.meta["shape"] = tuple(result.shape)
            inputs = [self.env[each] for each in n.all_input_nodes]
            storages = [x.untyped_storage() for x in inputs if isinstance(x, Tensor)]
            n.meta[_COPIES] = not any(result.untyped_storage() is each for each in storages)
        elif isinstance(result, (tuple, list)) and all(isinstance(x, Tensor) for x in result):
            n.meta[PIECES] = [tuple(each.shape) for each in result]
        elif type(result) is int:
            n.meta[VALUE] = result
        return result

    def _run_whole(self, n: fx.Node) -> Any:
        """Return what the module puts out, and note what it spends."""
        called, own = self.fetch_attr(str(n.target)), self.fetch_args_kwargs_from_env(n)
        before = {name: buffer.clone() for name, buffer in called.named_buffers()}
        result = super().run_node(n)
        args, kwargs = first_image(own, self.images)
        n.meta[_SPENT] = spent_by(partial(called, *args, **kwargs), called)
        n.meta[_CHANGES] = restored(called, before)
        return result


def trace(
    model: nn.Module,
    example_input: Tensor,
    *,
    slim_head: bool = False,
    whole: Collection[str] = (),
) -> tuple[nn.Module, fx.Graph, Trace]:
    """Return what the model holds, its graph, and its trace.

    What it holds are all its parameters, buffers and modules, in their order, whether they run or
    not; and modules that stand for functions that depend on the mode or on widths.
    `example_input` is one image batch `n x c x h x w`; costs hold for its size. Unless
    `slim_head`, a pointwise convolution or linear layer that feeds only the classifier keeps its
    channels (US-Net's convention for the 1280 channels of MobileNets). `whole` has the paths of
    modules that run as they are, with all their channels.

    Raises `TracingError` naming the node, the reason and what would help; `TypeError` for an
    example that is no tensor.
    """
    _check_example(example_input)
    name = type(model).__name__
    images = _several(example_input)
    model, graph, untraced = graph_in_both_modes(model, images, whole)
    held = _held(model, {model.get_submodule(path) for path in _called(graph)}, {})
    _modularize(held, graph, model)
    tried = sharing_copy(held)
    shapes = _Shapes(tried, graph, whole, len(images))
    propagation = Propagation(held, whole)

    def visit(node: fx.Node) -> None:
        if node.op == "call_module" and node.target in whole:
            if changed := node.meta.get(_CHANGES):
                refuse(
                    node, f"it changes its buffer {changed} in evaluation", _KEPT_ADVICE, more=""
                )
            propagation.keep_whole(node)
        elif node.op == "call_module" and node.target in untraced:
            module = held.get_submodule(str(node.target))
            propagation.pass_through(node, view=identity_in_evaluation(node, module))
        else:
            propagation.visit(node)

    with torch.no_grad(), global_streams_kept():
        tried.eval()
        try:
            shapes.run(images)
        except Exception as error:
            for node in _run_before(shapes.current):
                visit(node)  # one of them may be the cause, and is refused then
            problem = str(error).partition("\n")[0]
            if len(example_input) == 1 and _runs(tried, graph, example_input):
                refuse(
                    shapes.current, f"it runs on one image alone: {problem}", _BATCH_ADVICE, more=""
                )
            reason = f"it does not run on the example input: {problem}"
            refuse(shapes.current, reason, _INPUT_ADVICE, more="")
    for node in graph.nodes:
        visit(node)
    called = {node.target for node in propagation.whole_calls}
    for path in whole:
        if path not in called:
            raise TracingError(path, NOT_CALLED, "Name modules that the network calls")
    outside = {held.get_submodule(path) for path in {*_called(graph)} - called}
    _fix_kept(propagation, slim_head)
    groups = _groups(propagation)
    if not groups:
        raise TracingError(name, "no free channel group: all channels must stay", _NONE_ADVICE)
    guard_conditions(graph)
    live = _live(graph, propagation)
    tensors = tuple(_slice_tensors(held, graph, propagation, model))
    found = Trace(
        groups=groups,
        sites=(
            *map(propagation.site, propagation.kinds),
            *map(propagation.product_site, propagation.products),
            *tensors,
            *_split_channels(held, graph, propagation, model),
            *(whole_site(node.meta[_SPENT]) for node in propagation.whole_calls),
            *norm_sites({path: held.get_submodule(path) for path in whole}, outside),
        ),
        live=live,
        width_independent_parameters=propagation.width_independent_parameters(),
        whole=tuple(whole),
        image_shape=tuple(example_input.shape[1:]),
    )
    return held, graph, found


def _check_example(images: Tensor) -> None:
    """Raise unless it is a batch of one image or more."""
    if not isinstance(images, Tensor):
        raise TypeError(f"example_input: expected a torch.Tensor, got {type(images).__name__}")
    if images.dim() != 4 or not images.numel():
        reason = f"it must be one image batch n x c x h x w, got {tuple(images.shape)}"
        raise TracingError("example_input", reason, _INPUT_ADVICE)


def _called(graph: fx.Graph) -> set[str]:
    return {str(node.target) for node in graph.nodes if node.op == "call_module"}


def _held(
    module: nn.Module, called: Collection[nn.Module], made: dict[nn.Module, nn.Module]
) -> nn.Module:
    """Return the module if the graph calls it; else a bare one that holds all that it holds."""
    if module in called:
        return module
    if module not in made:
        made[module] = bare = nn.Module()
        tensors = {name: x for name, x in module.__dict__.items() if isinstance(x, Tensor)}
        bare.__dict__ |= {**tensors, "training": module.training}
        for kind in HELD[:-1]:
            bare.__dict__[kind] = module.__dict__[kind].copy()
        for name, child in module._modules.items():
            bare._modules[name] = None if child is None else _held(child, called, made)
    return made[module]


def _runs(model: nn.Module, graph: fx.Graph, images: Tensor) -> bool:
    try:
        fx.Interpreter(model, graph=graph).run(images)
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
    """Return the graph as a module, with what runs of the modules that `root` holds.

    They are under all their names and in their order; `root` loses the others.
    """
    graph_module = fx.GraphModule(root, graph)
    tensors = (*graph_module.parameters(), *graph_module.buffers())
    _drop_unused(root, {id(each) for each in (*graph_module.modules(), *tensors)})
    for kind in HELD:
        graph_module.__dict__[kind] = root.__dict__[kind]
    return graph_module


def _drop_unused(module: nn.Module, used: Collection[int]) -> None:
    """Remove what is not used, by its id, from a module and from those of its parts that hold."""
    for kind in ("_parameters", "_buffers"):
        for name, tensor in list(module.__dict__[kind].items()):
            if id(tensor) not in used:
                delattr(module, name)
    for name, child in list(module._modules.items()):
        if id(child) not in used:
            if child is not None:
                _drop_unused(child, used)
            if child is None or not (child._modules or child._parameters or child._buffers):
                del module._modules[name]


def _modularize(held: nn.Module, graph: fx.Graph, model: nn.Module) -> None:
    """Replace functions that depend on the mode or the widths by modules, in place."""
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target in BY_MODE:
            module, place = module_by_mode(node)
            _replace(held, node, module, place, model)
        elif node.target is F.pad:
            padding = argument(node, 1, "pad")
            if not isinstance(padding, (tuple, list)):
                refuse(node, "its padding is not written out", "Pad by numbers, each by itself")
            if any(padding[4:]):
                _replace(held, node, _channel_pad(node, tuple(padding)), owner(node), model)


def _channel_pad(node: fx.Node, padding: tuple[Any, ...]) -> ChannelPad:
    mode, value = argument(node, 2, "mode", "constant"), argument(node, 3, "value")
    numbers = all(isinstance(part, int) for part in padding)
    if value is not None and not isinstance(value, (int, float)):
        refuse(node, "it pads with what is no number", "Pad with a number")
    if mode != "constant" or not numbers or min(padding) < 0 or len(padding) != 6:
        advice = "Pad by constants, by numbers of channels that do not depend on shapes"
        refuse(node, f"channel padding {padding} in mode {mode}", advice)
    return ChannelPad(padding[:4], padding[4], padding[5], float(value or 0.0))


def _replace(
    held: nn.Module, node: fx.Node, module: nn.Module | None, place: str, model: nn.Module
) -> None:
    """Put a module in the place of a function's node; None: nothing.

    It goes into the module at the path `place`, and follows its mode.
    """
    (replacement,) = node.all_input_nodes[:1]
    if module is not None:
        if held.get_submodule(place) is model.get_submodule(place):
            refuse(node, f"it follows the mode of the layer '{place}'", _OWN_MODE_ADVICE)
        path = _added(held, module, place, node.name, model)
        with node.graph.inserting_before(node):
            replacement = node.graph.call_module(path, (replacement,))
    node.replace_all_uses_with(replacement)
    node.graph.erase_node(node)


def _added(held: nn.Module, module: nn.Module, place: str, name: str, model: nn.Module) -> str:
    """Add a module to the one at the path `place`, under a free name; return its path."""
    parent, own = held.get_submodule(place), model.get_submodule(place)
    free, number = name, 0
    while hasattr(own, free) or hasattr(parent, free):
        number += 1
        free = f"{name}_{number}"
    parent.add_module(free, module.train(own.training))
    return f"{place}.{free}" if place else free


def _slice_tensors(
    held: nn.Module, graph: fx.Graph, propagation: Propagation, model: nn.Module
) -> Iterator[Site]:
    """Put a layer behind each node that reads a tensor of which not all is in use; yield sites."""
    counted: set[int] = set()
    propagation.check_reads()
    for node, vector in propagation.vectors.sliced():
        place, _, tensor = str(node.target).rpartition(".")
        assert vector.axis is not None
        layer = SlicedTensor(tensor, vector.axis)
        path = _added(held, layer, place, f"{tensor}_in_use", model)
        with graph.inserting_after(node):
            part = graph.call_module(path, (node,))
        node.replace_all_uses_with(part, lambda user: user is not part)  # noqa: B023
        own = isinstance(vector.tensor, nn.Parameter) and id(vector.tensor) not in counted
        counted.add(id(vector.tensor))
        channels = vector.tag.count()
        yield Site(
            name=path,
            kind="tensor",
            inputs=channels,
            outputs=channels,
            positions=0,
            kernel=0,
            vectors=vector.per_channel if own else 0,
            repeated=True,
        )


def _split_channels(
    held: nn.Module, graph: fx.Graph, propagation: Propagation, model: nn.Module
) -> Iterator[Site]:
    """Put a layer in the place of each node that splits or indexes channels; yield sites."""
    for node, (sizes, piece) in propagation.splits.items():
        source = source_of(node)
        tag = propagation.tags[source]
        path = _added(
            held, ChannelSplit(sizes, tag.axis, piece), owner(node), f"{node.name}_in_use", model
        )
        with graph.inserting_before(node):
            pieces = graph.call_module(path, (source,))
            if piece is None:
                node.replace_all_uses_with(pieces)
                graph.erase_node(node)
            else:
                node.args = (pieces, *node.args[1:])
        yield Site(
            name=path,
            kind="split",
            inputs=tag.count(),
            outputs=tag.count(),
            positions=0,
            kernel=0,
            vectors=0,
            repeated=True,
        )


def _fix_kept(propagation: Propagation, slim_head: bool) -> None:
    """Fix what keeps its width: heads, squeeze bottlenecks, and what pads a fixed width.

    And what has no choice: one channel, or one block of them.
    """
    kinds, tags = propagation.kinds, propagation.tags
    for variable in {variable for tag in tags.values() for variable in tag.variables}:
        variable.fixed = variable.size == 1
    consumers: dict[Variable, list[fx.Node]] = defaultdict(list)
    producers: dict[Variable, list[fx.Node]] = defaultdict(list)
    for node, kind in kinds.items():
        for variable in propagation.input_of(node).variables:
            consumers[variable] += [node] if kind in ("convolution", "linear", "pad") else []
        for variable in tags[node].variables:
            producers[variable] += [node] if kind in ("convolution", "linear") else []
    scores = propagation.scores
    classifiers = {
        node for node in kinds if scores.issuperset(each.variable for each in tags[node].leaves)
    }
    for variable, made in producers.items():
        users = consumers[variable]
        alone = all(len(propagation.input_of(node).leaves) == 1 for node in users)
        only_classifies = bool(users) and alone and classifiers.issuperset(users)
        head = only_classifies and [propagation.kernel_of(node) for node in made] == [1]
        squeeze = propagation.gating.issuperset([*made, *map(source_of, made)])
        if made and ((head and not slim_head) or squeeze):
            variable.fixed = True
    steps = propagation.steps()
    for narrow, wide in sorted(propagation.wider, key=lambda pair: pair[0].features):
        bound = True  # which is between counts of groups
        for tag in (narrow, wide):
            bound &= [steps[each.variable] for each in tag.leaves] == [tag.leaves[0].factor]
        if not (bound and narrow.variables):
            wide.fix()
        if not bound:
            narrow.fix()


def _groups(propagation: Propagation) -> tuple[ChannelGroup, ...]:
    """Number the free variables in the order of their first producers; return their groups.

    A part of what a layer puts out is named after the layer and the part.
    """
    names: dict[Variable, str] = {}
    for node in propagation.kinds:
        tag, start = propagation.tags[node], 0
        for each in tag.leaves:
            stop = start + each.features
            part = f"[{start}:{stop}]" if len(tag.variables) > 1 else ""
            if not each.variable.fixed:
                names.setdefault(each.variable, f"{node.target}{part}")
            start = stop
    steps = propagation.steps()
    for index, variable in enumerate(names):
        variable.group, variable.step = index, steps[variable]
    stages = sorted({variable.positions for variable in names}, reverse=True)
    return tuple(
        ChannelGroup(
            name=name,
            maximum=variable.size * variable.step,
            stage=stages.index(variable.positions),
            step=variable.step,
            at_least=tuple(dict.fromkeys(_narrower(variable, propagation.wider))),
        )
        for variable, name in names.items()
    )


def _narrower(variable: Variable, wider: Sequence[tuple[Tag, Tag]]) -> Iterator[int]:
    """Yield the groups that zero-padding makes this one of, directly or through others."""
    for narrow, wide in wider:
        for each in narrow.variables if variable in wide.variables else ():
            assert each.group is not None
            yield each.group
            yield from _narrower(each, wider)


def _live(graph: fx.Graph, propagation: Propagation) -> tuple[tuple[FeatureCount, ...], ...]:
    """List what is held at each step: views share memory, in-place operations take it over.

    A reshape that must copy, as after a transposition, is no view.
    """
    nodes = [node for node in graph.nodes if node in propagation.tags]
    order = {node: index for index, node in enumerate(nodes)}
    views = {node for node in propagation.views if not node.meta.get(_COPIES)}
    needed_until: dict[fx.Node, int] = {}
    for node in reversed(nodes):
        users = [user for user in node.users if user in order]
        uses = [needed_until[user] if user in views else order[user] for user in users]
        needed_until[node] = max([order[node], *uses])
    owners: dict[fx.Node, fx.Node] = {}
    held_until: dict[fx.Node, int] = {}
    for node in nodes:
        taken = [owners[source] for source in node.all_input_nodes if source in owners]
        if node not in views:
            dying = [owner for owner in taken if held_until[owner] == order[node]]
            fitting = [owner for owner in dying if _size(owner) == _size(node)]
            taken = fitting if node in propagation.in_place else []
        owners[node] = owner = taken[0] if taken else node
        held_until[owner] = max(held_until.get(owner, 0), needed_until[node])
    steps = []
    for now, node in enumerate(nodes):
        if owners[node] is node:
            alive = [n for n in nodes[: now + 1] if owners[n] is n and held_until[n] >= now]
            counts = (propagation.tags[n].count(positions_of(n)) for n in alive)
            parts = [part for each in counts for part in each.parts]
            if _SPENT in node.meta:  # a module that runs whole: beside its output
                parts.append(FeatureCount(None, max(0, node.meta[_SPENT].held - _size(node))))
            steps.append(tuple(parts))
    return tuple(steps)


def _size(node: fx.Node) -> int:
    return math.prod(shape_of(node)[1:])
