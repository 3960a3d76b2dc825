"""A network whose width can be switched layer by layer, and the calibration of its batch norm."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from pareco.config import Granularity
from pareco.cost import CostModel, Trace
from pareco.ledger import Ledger
from pareco.slimmable.admission import admitted_copy
from pareco.slimmable.corners import Size, corners
from pareco.slimmable.forms import SlicedTensor, sliced
from pareco.slimmable.layers import (
    BatchParts,
    ChannelSplit,
    NormStatistics,
    Setting,
    SlicedBatchNorm,
    SlicedLayer,
)
from pareco.slimmable.modes import modes_kept
from pareco.slimmable.nodes import TracingError
from pareco.slimmable.ordering import put_in_order
from pareco.slimmable.tracing import HELD, assembled, trace
from pareco.slimmable.whole import made_around
from pareco.widths import Widths, WidthSpace


def make_slimmable(
    model: nn.Module,
    example_input: Tensor,
    *,
    alpha_min: float = 0.42,
    divisor: int = 1,
    granularity: Granularity = "layer",
    slim_head: bool = False,
    order_channels: bool = False,
    whole: Collection[str] = (),
) -> SlimmableNet:
    """Return a slimmable copy of the model, at full width, with the same state dict.

    `model` is a convolutional classifier that torch.fx can trace and whose operations have a rule
    (docs/rules.md); it is not changed. Parts of it that do not run are kept, in their place; costs
    do not count them, and `extract` drops them.
    Groups of channels, of grouped convolutions and group norms, stay whole (`ChannelGroup.step`).
    `example_input` is an image batch `n x c x h x w`: costs hold for its size, and conditions on
    shapes are as for it; a size for which one is not raises an `AssertionError`. The other
    arguments are those of `WidthSpace`; `slim_head` frees what feeds only the classifier.
    `order_channels` is for trained weights: the channels of each group are put in the order of the
    L1 norms of their filters, largest first, so that narrow networks keep those; the state dict is
    permuted, and the full network's outputs are the same but for the order of sums. `whole` has
    the paths of modules, such as attention, that run as they are: what goes into them and comes out
    keeps all its channels, and torch's flop counter says what they cost. With "auto" in it so do
    those that have no rule, and all like them; the network's own `whole` has their paths.

    Raises `TracingError` (a `ValueError`) naming the node that cannot be traced, sliced or ordered,
    and `TypeError` for what is no module or no tensor.
    """
    held, graph, found = made_around(
        model,
        lambda paths: trace(
            admitted_copy(model, paths), example_input, slim_head=slim_head, whole=paths
        ),
        whole,
    )
    if order_channels:
        put_in_order(held, found)
    space = WidthSpace(
        groups=found.groups, alpha_min=alpha_min, divisor=divisor, granularity=granularity
    )
    return SlimmableNet(held, graph, space, found)


class SlimmableNet(nn.Module):
    """One set of weights that runs at many widths (PareCO, arXiv 2007.11752; US-Net).

    `space` holds the widths it can run at, `cost` their costs for an image of `image_shape`
    (c x h x w). A sub-network uses the first channels of every layer, but all of the modules at the
    paths in `whole`.
    """

    def __init__(self, held: nn.Module, graph: fx.Graph, space: WidthSpace, found: Trace) -> None:
        """Take over what a traced network holds, and its graph; see `make_slimmable`."""
        super().__init__()
        self.training = held.training
        self.space, self.cost, self.whole = space, CostModel(space, found), found.whole
        self.image_shape = found.image_shape
        self._program = _Program(graph)
        self._layers: dict[str, SlicedLayer] = {}
        self._places: dict[str, tuple[nn.Module, str, nn.Module]] = {}
        self._setting = Setting(widths=space.largest)
        forms: dict[nn.Module, SlicedLayer] = {}
        for site in found.sites:
            if not site.name:
                continue
            if site.name not in self._layers:
                layer = held.get_submodule(site.name)
                self._layers[site.name] = forms[layer] = sliced(layer, site.name)
            self._layers[site.name].follow(self._setting, site.inputs, site.outputs)
        for parent in list(held.modules()):
            for name, child in parent._modules.items():
                parent._modules[name] = forms.get(child, child)  # type: ignore[arg-type]
        self._switches: dict[Widths, str] = {}
        self._ledger: Ledger | None = None
        self._channels_last = self._warned = False
        for name in held._modules:
            if name in self.__dict__ and name.startswith("_"):
                raise TracingError(name, "SlimmableNet keeps its own there", "Rename it")
        for kind in HELD:
            self.__dict__[kind].update(held.__dict__[kind])  # they may be named as attributes here
        for layer in self._layers.values():
            if isinstance(layer, SlicedTensor):
                place = layer.name.rpartition(".")[0]
                layer.belong_to(held.get_submodule(place) if place else self)
        for path, module in self.named_modules(remove_duplicate=False):
            if not isinstance(module, SlicedLayer):
                continue
            parent: Any = self
            names = path.split(".")
            for depth, name in enumerate(names, start=1):
                child = parent._modules[name]
                self._places[".".join(names[:depth])] = parent, name, child
                parent = child

    @property
    def widths(self) -> Widths:
        """The widths that the network runs at."""
        return self._setting.widths

    def forward(self, images: Tensor) -> Tensor:
        """Return class scores `n x classes` of images `n x c x h x w`, at the current widths."""
        setting = self._setting
        if not (self.training or setting.full or setting.statistics or setting.by_batch):
            self._warn_uncalibrated()
        held = self._modules | self._parameters | self._buffers
        if self._channels_last:
            images = images.contiguous(memory_format=torch.channels_last)
        if torch.is_grad_enabled():
            setting.corners = self._corners()
        try:
            scores = self._program(held, images)
        finally:
            setting.corners = {}
        if self._ledger is not None:
            self._book(self._ledger, len(images), scores)
        return scores

    def _warn_uncalibrated(self) -> None:
        """Warn, once, of batch norm by the full network's statistics in a narrower one."""
        if not self._warned and any(layer.running_mean is not None for layer in self.norms()):
            warnings.warn(
                "a sub-network runs with the batch-norm statistics of the full network, which are "
                "not its own: its outputs mean little. Measure them once, by statistics = "
                "pareco.calibrated_statistics(net, widths, batches) on training images, and run it "
                "with net.at(widths, statistics) or net.set_widths(widths, statistics)",
                stacklevel=5,  # whoever called the network
            )
        self._warned = True

    def keep_channels_last(self) -> None:
        """Lay weights, and from now on images, out in memory with the channel last."""
        self._channels_last = True
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def _corners(self) -> dict[int, Tensor]:
        """Return what is in use of trained parameters of which not all is, by their ids."""
        wanted: dict[int, tuple[nn.Parameter, Size]] = {}
        for layer in self._layers.values():
            for kind in layer.kinds:
                parameter = layer.parameter_in_use(kind)
                if parameter is not None and parameter.requires_grad:
                    size = layer.size_in_use(parameter)
                    if tuple(size) != parameter.shape[: len(size)]:
                        wanted[id(parameter)] = parameter, size
        if not wanted:
            return {}
        return dict(zip(wanted, corners(*zip(*wanted.values(), strict=True)), strict=True))

    def book_in(self, ledger: Ledger | None) -> None:
        """Book from now on every pass in this ledger, by the MACs of an image of the traced size.

        A forward pass is booked as it has run, a backward pass, as two of them, when it runs.
        """
        self._ledger = ledger

    def _book(self, ledger: Ledger, images: int, scores: Tensor) -> None:
        macs = images * self.cost.macs_at(self._setting.widths)
        ledger.book(forward_macs=macs)

        def differentiated(gradient: Tensor) -> None:
            ledger.book(backward_macs=2 * macs)

        if scores.requires_grad:
            scores.register_hook(differentiated)

    def book_replay(self, images: int) -> None:
        """Book a forward and a backward pass at the current widths that run without this object."""
        if self._ledger is not None:
            macs = images * self.cost.macs_at(self._setting.widths)
            self._ledger.book(forward_macs=macs, backward_macs=2 * macs)

    def set_widths(self, widths: Widths, statistics: NormStatistics | None = None) -> None:
        """Run at these widths from now on, in evaluation with these batch-norm statistics.

        Without `statistics`, evaluation uses the first entries of the full network's. Raises
        `ValueError` if the widths are not in the space, or the statistics are of others.
        """
        widths = Widths(widths)
        self.space.check(widths)
        if statistics is not None:
            statistics.check_of(widths)
        self._set(widths, statistics)

    def _set(self, widths: Widths, statistics: NormStatistics | None) -> None:
        for path, (parent, name, child) in self._places.items():
            if parent._modules.get(name) is not child:
                raise RuntimeError(
                    f"the module {path} was replaced, or wrapped, after make_slimmable, which "
                    "knows the former one: do that to the plain model, and make it slimmable"
                )
        setting = self._setting
        setting.widths, setting.statistics = widths, statistics
        setting.full = widths == self.space.maxima
        setting.switch = self._switches.get(widths)
        setting.kept = {}

    @torch.no_grad()
    def keep_views(self) -> None:
        """Keep, until the widths change, views of what is in use of the weights that are frozen.

        Else each pass makes them anew, which takes a narrow network a tenth of its time on a CPU.
        They take no memory of their own.
        """
        for layer in self._layers.values():
            for kind in layer.kinds:
                parameter = layer.parameter_in_use(kind)
                if parameter is not None and not parameter.requires_grad:
                    view = layer.in_use(kind)
                    assert view is not None
                    if view.data_ptr() == parameter.data_ptr():  # what is put together would age
                        self._setting.kept[id(parameter)] = parameter, view

    def _apply(self, *arguments: Any, **options: Any) -> SlimmableNet:
        """Do what `to`, `half` and the like ask for; weights may lie elsewhere afterwards."""
        self._setting.kept = {}
        return super()._apply(*arguments, **options)

    @contextmanager
    def at(
        self, widths: Widths, statistics: NormStatistics | None = None
    ) -> Iterator[SlimmableNet]:
        """Run at these widths inside the `with` block, then at the former ones again."""
        before = self._setting.widths, self._setting.statistics
        self.set_widths(widths, statistics)
        try:
            yield self
        finally:
            self._set(*before)

    def norms(self) -> list[SlicedBatchNorm]:
        """Return the batch-norm layers, in the order of the network."""
        return [layer for layer in self._layers.values() if isinstance(layer, SlicedBatchNorm)]

    def share_batches(self, parts: BatchParts | None) -> None:
        """Take the batch statistics of batch norm over these parts; None: over each batch alone."""
        self._setting.parts = parts

    def privatize_norm(self, switches: Sequence[Widths]) -> None:
        """Give these sub-networks batch-norm weights of their own (S-Net, arXiv 1812.08928).

        The full network keeps the shared ones. Affects the state dict: call it before loading.
        """
        for widths in switches:
            if widths == self.space.maxima or widths in self._switches:
                continue
            key = f"switch{len(self._switches)}"
            with self.at(widths):
                copies: dict[int, nn.Parameter] = {}
                for layer in self.norms():
                    layer.add_private(key, copies)
            self._switches[widths] = key
        self._set(self._setting.widths, self._setting.statistics)

    @property
    def switches(self) -> tuple[Widths, ...]:
        """The sub-networks that have batch-norm weights of their own."""
        return tuple(self._switches)

    def private_weights(self, widths: Widths) -> dict[str, nn.Parameter]:
        """Return the batch-norm weights that a sub-network has of its own, if any.

        They are named as those of the plain network, whose place they take.
        """
        switch = self._switches.get(Widths(widths))
        if switch is None:
            return {}
        return {
            f"{layer.name}.{kind}": parameter
            for layer in self.norms()
            for kind in ("weight", "bias")
            if (parameter := layer._parameters.get(f"{kind}_{switch}")) is not None
        }

    def shared_weights(self) -> dict[str, Tensor]:
        """Return parameters and buffers of the full network, by the names of the plain one.

        Without what `private_weights` returns of any sub-network.
        """
        private = {id(x) for each in self._switches for x in self.private_weights(each).values()}
        state = self.state_dict(keep_vars=True)
        return {name: tensor for name, tensor in state.items() if id(tensor) not in private}

    def extract(self, widths: Widths, statistics: NormStatistics | None = None) -> fx.GraphModule:
        """Return a plain network with a copy of the weights of one sub-network.

        It holds no slimmable layer, and only what runs, and gives the same outputs; its batch-norm
        statistics are `statistics` or, without, the first entries of the full network's.
        """
        copies: dict[int, Tensor] = {}
        with self.at(widths, statistics), torch.device("meta"):  # no initialization to throw away
            plain: dict[int, Any] = {
                id(layer): layer.extracted(copies) for layer in self._layers.values()
            }
            graph = copy.deepcopy(self._program.graph)
            for node in list(graph.nodes):
                layer = self._layers.get(str(node.target))
                if isinstance(layer, (SlicedTensor, ChannelSplit)):
                    node.replace_all_uses_with(layer.inlined(node))
                    graph.erase_node(node)
        root = nn.Module()
        root.training = self.training
        for kind in HELD:
            root.__dict__[kind] = copy.deepcopy(self.__dict__[kind], {**copies, **plain})
        return assembled(root, graph)


class _Program:
    """A network's operations, as a function of its modules. Copies are the program itself."""

    def __init__(self, graph: fx.Graph) -> None:
        self.graph = graph
        self._module = fx.GraphModule(_stand_ins(graph), graph)

    def __call__(self, held: Mapping[str, Any], images: Tensor) -> Tensor:
        """Return the network's outputs; `held` are its modules and tensors by name."""
        return type(self._module).forward(SimpleNamespace(**held), images)

    def __deepcopy__(self, memo: dict[int, Any]) -> _Program:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # A graph alone cannot be pickled with every function of torch; its code can be.
        return _program_of, (self._module,)


def _program_of(module: fx.GraphModule) -> _Program:
    return _Program(module.graph)


def _stand_ins(graph: fx.Graph) -> dict[str, nn.Module | nn.Parameter]:
    """Return what has no weights for each name of a module or tensor that the graph uses."""
    kinds = {"call_module": nn.Identity, "get_attr": nn.Parameter}
    return {str(node.target): kinds[node.op]() for node in graph.nodes if node.op in kinds}


@torch.no_grad()
def calibrated_statistics(
    net: SlimmableNet, widths: Widths, batches: Iterable[Tensor]
) -> NormStatistics:
    """Return the batch-norm statistics of a sub-network, averaged over image batches.

    Forwards each batch `n x c x h x w` with frozen weights and batch normalization by the batch,
    everything else in evaluation mode, and takes the cumulative average of means and (unbiased)
    variances, every batch alike: give batches of equal size. ("Post-statistics": Yu & Huang 2019,
    arXiv 1903.05134, section 3.3.) A layer that runs several times averages over its calls too.
    The network itself is left as it was. One without batch norm takes no batch and has none.

    Raises `ValueError` if there is no batch, or one without an image, and `TypeError` for what is
    no batch.
    """
    (statistics,) = jointly_calibrated(net, [widths], batches)
    return statistics


@torch.no_grad()
def jointly_calibrated(
    net: SlimmableNet, widths: Sequence[Widths], batches: Iterable[Tensor]
) -> list[NormStatistics]:
    """Return what `calibrated_statistics` would of each of `n` sub-networks, `n`.

    Goes through the batches once.
    """
    found = [NormStatistics(widths=Widths(each)) for each in widths]
    if not net.norms():
        return found
    with normalized_by_batch(net):
        for images in _checked_batches(net, batches):
            for each, statistics in zip(widths, found, strict=True):
                net._setting.collecting = statistics
                with net.at(each):
                    net(images)
                statistics.batches += 1
    if not all(each.batches for each in found):
        raise ValueError("calibration needs at least one batch of images")
    return found


def _checked_batches(net: SlimmableNet, batches: Iterable[Tensor]) -> Iterator[Tensor]:
    """Yield the batches; raise `TypeError` for what is none, `ValueError` for one of no image."""
    dimensions = len(net.image_shape) + 1
    for images in batches:
        if not isinstance(images, Tensor) or images.dim() != dimensions:
            what = f"a tensor {list(images.shape)}" if isinstance(images, Tensor) else type(images)
            example = ["n", *map(str, net.image_shape)]
            raise TypeError(
                f"each calibration batch must be a tensor of images, {' x '.join(example)} or of "
                f"another size, without labels; got {what}"
            )
        if not len(images):
            raise ValueError("a calibration batch has no image")
        yield images


@contextmanager
def normalized_by_batch(net: SlimmableNet) -> Iterator[None]:
    """Normalize by the batch inside the `with` block, everything else in evaluation mode.

    The statistics of the network stay as they are.
    """
    setting = net._setting
    before = setting.by_batch, setting.collecting
    with modes_kept(net):
        net.eval()
        setting.by_batch = True
        try:
            yield
        finally:
            setting.by_batch, setting.collecting = before
