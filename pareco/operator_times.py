"""Times of operators and of whole networks, for a latency table and to check one."""

from __future__ import annotations

import itertools
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from pareco.config import COSTS
from pareco.latency_table import BLOCK, FORMAT, LatencyTable, OperatorTimes
from pareco.slimmable import SlimmableNet
from pareco.training.environment import hardware
from pareco.widths import Widths, WidthSpace

_PASSES = 5
_SECONDS = 0.01  # of passes, at least
_ALL_COUNTS = 17  # of a group, up to which each is measured
_BLOCKS = 3  # of channels, of which some are measured otherwise
_PARTS = (0, 1, BLOCK // 2, BLOCK)  # of such a block: after which a vector or a step may begin
_PROBES = 16  # networks that show which sizes depend on which group
_ROUNDS = 2  # through the networks of a table: what disturbs one seldom disturbs the other
_SCALING = 5  # networks that are measured as wholes
_ELEMENTS = 20_480
"""Of a convolution's input, beyond which PyTorch gives it to oneDNN on CPUs, if it is of one image
and neither pointwise nor depthwise (`use_mkldnn` in aten/src/ATen/native/Convolution.cpp)."""


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """What a table predicts of some sub-networks and what was measured, in milliseconds, `n` each.

    `error` is the median of how far predictions are off, as a part of what was measured; `rank` is
    Spearman's correlation, NaN of fewer than two.
    """

    predicted: tuple[float, ...]
    measured: tuple[float, ...]
    error: float
    rank: float


def agreement(
    table: LatencyTable, net: SlimmableNet, widths: Sequence[Widths], images: Tensor
) -> Agreement:
    """Return how well a table of this network foretells the latency of whole sub-networks."""
    from scipy.stats import spearmanr

    net.eval()
    times = dict.fromkeys(widths, math.inf)
    with _threads(table.cpu_threads):
        for each in [*times] * _ROUNDS:
            (found,) = _least_times(net, each, images, whole=True)
            times[each] = min(times[each], found / 1000)
    predicted = table.milliseconds(widths).numpy()
    measured = np.array([times[each] for each in widths])
    rank: Any = spearmanr(predicted, measured)[0] if len(widths) > 1 else math.nan
    return Agreement(
        predicted=tuple(predicted.tolist()),
        measured=tuple(measured.tolist()),
        error=float(np.median(np.abs(predicted / measured - 1))),
        rank=float(rank),
    )


def measured_table(
    net: SlimmableNet,
    network: str,
    images: Tensor,
    *,
    threads: int = 1,
    on_progress: Callable[[int, int], None] = lambda done, of: None,
) -> LatencyTable:
    """Return the latency table of a network, called `network`, for batches as `images`.

    Operators are timed where they run, in networks of so many widths that each operator meets all
    pairs of the levels of its groups; the least of several passes counts, as what else the machine
    does only adds. `net` lies on the device of the images; its weights do not matter. Last, a few
    whole networks are timed for the table's `scale`. `on_progress` is told how many networks are
    done, and of how many. Raises `ValueError` for an operator that no table can hold.
    """
    net.eval()
    operators = _operators(net, images)
    levels = _levels(net.space, operators)
    designs = _designs(net.space, levels, operators)
    times: dict[Widths, np.ndarray] = {}
    # Mixed, so that no size alone is measured while the machine does something else as well.
    mixed = torch.randperm(len(designs), generator=torch.Generator().manual_seed(0)).tolist()
    with _threads(threads):
        for done, index in enumerate(mixed * _ROUNDS):
            on_progress(done, len(designs) * _ROUNDS)
            found = _least_times(net, designs[index], images)
            times[designs[index]] = np.minimum(found, times.get(designs[index], math.inf))
    table = LatencyTable(
        format=FORMAT,
        network=network,
        image_size=images.shape[-1],
        channels=images.shape[1],
        batch_size=len(images),
        cpu_threads=threads,
        torch=torch.__version__.partition("+")[0],
        machine=hardware(images.device),
        full_costs={name: net.cost.full_costs[name] for name in COSTS},
        alpha_min=net.space.alpha_min,
        divisor=net.space.divisor,
        names=net.space.names,
        maxima=net.space.maxima,
        levels=levels,
        scale=1.0,
        operators=tuple(
            OperatorTimes(
                name=each.name,
                operation=each.operation,
                groups=each.groups,
                cuts=each.cuts,
                microseconds=_grid(each, levels, {w: own[at] for w, own in times.items()}),
            )
            for at, each in enumerate(operators)
        ),
    )
    whole = agreement(table, net, list(net.space.spread(_SCALING)), images)
    scale = np.median(np.divide(whole.measured, whole.predicted))
    return replace(table, scale=float(f"{scale:.4g}"))


@dataclass(frozen=True, kw_only=True)
class _Operator:
    """A node of a network's graph, and the groups that its size depends on; see `OperatorTimes`."""

    name: str
    operation: str
    groups: tuple[int, ...]
    cuts: tuple[int | None, ...]


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _timed(graph: fx.Graph) -> list[fx.Node]:
    """Return the nodes of a graph that do something."""
    return [node for node in graph.nodes if node.op not in ("placeholder", "output")]


class _Sizes(fx.Interpreter):
    """Runs a graph and notes the sizes of all that goes into each node, and of what comes out."""

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        known = [self.env.get(each) for each in n.all_input_nodes]
        n.meta["sizes"] = [
            size for x in (*known, result) if isinstance(x, Tensor) for size in x.shape
        ]
        return result


def _operators(net: SlimmableNet, images: Tensor) -> list[_Operator]:
    """Return what runs in the network, in its order.

    How sizes follow the groups is seen in networks of random widths.
    """
    space, generator = net.space, torch.Generator().manual_seed(0)
    probes = [Widths(space.maxima)]
    for _ in range(_PROBES):
        ends = zip(space.smallest, space.maxima, strict=True)
        drawn = [int(torch.randint(a, b + 1, (), generator=generator)) for a, b in ends]
        probes.append(_allowed(space, drawn))
    plain = [net.extract(widths).eval().to("meta") for widths in probes]
    for each in plain:
        _Sizes(each, garbage_collect_values=False).run(images.to("meta"))
    found, counts = [], np.array(probes)
    for nodes in zip(*(_timed(each.graph) for each in plain), strict=True):
        node, own = nodes[0], np.array([each.meta["sizes"] for each in nodes])
        module = plain[0].get_submodule(str(node.target)) if node.op == "call_module" else None
        groups = _groups(node, own, counts)
        target = getattr(node.target, "__name__", node.target)
        found.append(
            _Operator(
                name=str(node.target) if module is not None else node.name,
                operation=type(module).__name__ if module is not None else str(target),
                groups=groups,
                cuts=_cuts(node, module, groups, own, counts, images),
            )
        )
    return found


def _groups(node: fx.Node, sizes: np.ndarray, probes: np.ndarray) -> tuple[int, ...]:
    """Return the groups that sizes `n x sizes` follow in networks of the widths `n x groups`."""
    groups = set()
    for column in sizes.T:
        if (column == column[0]).all():
            continue
        parts = column[:, None] / probes
        (alike,) = np.nonzero((parts == parts[0]).all(0))
        if not len(alike):
            raise ValueError(
                f"no latency table can hold {node.name}: a size of it depends on several channel "
                "groups at once, as where features are concatenated"
            )
        groups.add(int(alike[0]))
    if len(groups) > 2:
        raise ValueError(
            f"no latency table can hold {node.name}: it depends on {len(groups)} channel groups, "
            "and two is the most"
        )
    return tuple(sorted(groups))


def _cuts(
    node: fx.Node,
    module: nn.Module | None,
    groups: tuple[int, ...],
    sizes: np.ndarray,
    probes: np.ndarray,
    images: Tensor,
) -> tuple[int | None, ...]:
    """Return for each group the count up to which another kernel runs; None without such a one."""
    alone = images.device.type == "cpu" and len(images) == 1
    if not (isinstance(module, nn.Conv2d) and alone and module.groups == 1):
        return (None,) * len(groups)
    if module.kernel_size == (1, 1):
        return (None,) * len(groups)
    read = _groups(node, sizes[:, 1:2], probes)
    cuts = {group: _ELEMENTS * probes[0][group] // math.prod(sizes[0][:4]) for group in read}
    return tuple(
        int(cuts[group])
        if group in cuts and probes[:, group].min() <= cuts[group] < probes[0][group]
        else None
        for group in groups
    )


def _levels(space: WidthSpace, operators: Sequence[_Operator]) -> tuple[tuple[int, ...], ...]:
    """Return the counts of each group at which operators are measured, in ascending order.

    All that it can have, where these are few. Else both ends, the first, middle and last channels
    of some blocks with the last of the one before, and what is beside each cut.
    """
    multipliers = torch.linspace(space.alpha_min, 1, 4 * max(space.maxima) + 1, dtype=torch.double)
    found = space.counts(multipliers[:, None].expand(-1, space.dimensions))
    levels = []
    for group, column in enumerate(found.T):
        counts: list[int] = column.unique().tolist()
        low, high = counts[0], counts[-1]
        if len(counts) > _ALL_COUNTS:
            starts = range(-(-low // BLOCK) * BLOCK, high - BLOCK + 1, BLOCK)
            places = np.linspace(0, len(starts) - 1, _BLOCKS).round() if starts else ()
            wanted = {starts[int(place)] + part for place in places for part in _PARTS}
            for cut in {dict(zip(x.groups, x.cuts, strict=True)).get(group) for x in operators}:
                if cut is None:
                    continue
                wanted |= {max(each for each in counts if each <= cut)}
                wanted |= {min(each for each in counts if each > cut)}
            counts = [low, *(each for each in counts[1:-1] if each in wanted), high]
        levels.append(tuple(counts))
    return tuple(levels)


def _allowed(space: WidthSpace, counts: Sequence[int]) -> Widths:
    """Return the counts as widths: of whole groups, wide enough for every zero-padding shortcut."""
    lifted = list(counts)
    for index, group in enumerate(space.groups):
        lifted[index] = group.lifted([lifted[each] for each in (index, *group.at_least)])
    return Widths(lifted)


def _designs(
    space: WidthSpace, levels: Sequence[Sequence[int]], operators: Sequence[_Operator]
) -> list[Widths]:
    """Return widths in which each operator meets all pairs of the levels of its groups.

    Of a prime p of rows and of columns, group g has in row i and column j the level i + s j mod p,
    with another slope s than all groups that it shares an operator with: as in a Latin square,
    two such groups meet in all pairs.
    """
    beside = defaultdict[int, set[int]](set)
    for each in operators:
        for group in each.groups:
            beside[group] |= {*each.groups} - {group}
    slopes: list[int] = []
    for group in range(len(levels)):
        taken = {slopes[other] for other in beside[group] if other < group}
        slopes.append(next(slope for slope in itertools.count() if slope not in taken))
    most = max(max(slopes) + 1, *map(len, levels))
    prime = next(n for n in itertools.count(most) if all(n % k for k in range(2, n)))
    columns = range(prime if max(slopes) else 1)
    designs = [
        _allowed(
            space,
            [
                own[(row + slope * column) % prime * len(own) // prime]
                for own, slope in zip(levels, slopes, strict=True)
            ],
        )
        for row in range(prime)
        for column in columns
    ]
    return list(dict.fromkeys(designs))


@torch.no_grad()
def _least_times(
    net: SlimmableNet, widths: Widths, images: Tensor, *, whole: bool = False
) -> np.ndarray:
    """Return the least times of a network's operators in some passes, in microseconds.

    The plain network runs as it is, but for a look at the clock between two operators; of the
    `whole`, before the first and after the last alone.
    """
    plain = net.extract(widths).eval()
    clock, microseconds = _CLOCKS.get(images.device.type, _ACCELERATORS)
    nodes = _timed(plain.graph)
    with plain.graph.inserting_before(nodes[0]):
        looks = [plain.graph.call_function(clock)]
    for node in nodes[-1:] if whole else nodes:
        with plain.graph.inserting_after(node):
            looks.append(plain.graph.call_function(clock))
    (output,) = (node for node in plain.graph.nodes if node.op == "output")
    output.args = (tuple(looks),)
    plain.recompile()
    plain(images)
    least, passes, end = np.full(len(looks) - 1, math.inf), 0, time.perf_counter() + _SECONDS
    while passes < _PASSES or time.perf_counter() < end:
        least, passes = np.minimum(least, microseconds(plain(images))), passes + 1
    return least


def _event() -> torch.Event:
    """Return an event that is recorded now, in the order of what runs on the accelerator."""
    event = torch.Event(enable_timing=True)
    event.record()
    return event


def _between_events(events: Sequence[torch.Event]) -> np.ndarray:
    events[-1].synchronize()
    pairs = itertools.pairwise(events)
    return np.array([1000 * first.elapsed_time(second) for first, second in pairs])


def _between_looks(looks: Sequence[int]) -> np.ndarray:
    return np.diff(looks) / 1000


_CLOCKS = {"cpu": (time.perf_counter_ns, _between_looks)}
_ACCELERATORS = (_event, _between_events)


def _grid(
    operator: _Operator, levels: Sequence[Sequence[int]], times: Mapping[Widths, float]
) -> Any:
    """Return an operator's times at all levels of its groups: medians over networks, in lists.

    Where no network may have a pair of levels, that of the nearest pair stands for it.
    """
    own = [levels[group] for group in operator.groups]
    samples = defaultdict[tuple[int, ...], list[float]](list)
    for widths, found in times.items():
        counts = [widths[group] for group in operator.groups]
        if all(count in known for count, known in zip(counts, own, strict=True)):
            place = tuple(known.index(count) for count, known in zip(counts, own, strict=True))
            samples[place].append(found)
    grid = np.empty([len(known) for known in own])
    for place in np.ndindex(*grid.shape):
        near = min(samples, key=lambda each: np.abs(np.subtract(each, place)).sum())
        grid[place] = float(f"{np.median(samples[near]):.4g}")
    return grid.tolist()
