"""Methods: how the widths to train, to visit and to report are chosen."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import Tensor

from pareco.config import Cost, SearchConfig
from pareco.cost import CostModel
from pareco.search import Mobo, Origin
from pareco.widths import Widths, WidthSpace


@dataclass(kw_only=True)
class Visit:
    """One entry of a search's history, with the circumstances in which it was chosen.

    It was chosen before the training step `step` (None: once training had ended) for its
    `target_cost`. `predicted_deviation` is the GP's posterior standard deviation of the loss, noise
    left out; `refreshed_loss` is the first loss that was measured afterwards, `final_loss` the
    last. Losses are in nats, costs in the objective's units; None where there is none.
    `known_loss` is what the search goes by: what was measured, or moved along with the others;
    `relative_loss` is 0 for the largest network's and 1 for the smallest's.
    """

    widths: Widths
    step: int | None
    origin: Origin
    target_cost: float | None = None
    predicted_loss: float | None = None
    predicted_deviation: float | None = None
    refreshed_loss: float | None = None
    final_loss: float | None = None
    known_loss: float | None = None
    relative_loss: float | None = None
    weight: float = 0.0
    """Of `known_loss`, or of `relative_loss`, against one new measurement."""
    left_out: int = 0
    """How many refreshes in a row have not measured it."""

    def measured(self, loss: float) -> None:
        """Take note of a loss; one that is not finite was not measured."""
        self.left_out = 0
        self.final_loss = loss if math.isfinite(loss) else None
        if self.refreshed_loss is None:
            self.refreshed_loss = self.final_loss
        known, weight = self.known_loss, self.weight
        if self.final_loss is None or known is None or not weight:
            self.known_loss, self.weight = self.final_loss, float(self.final_loss is not None)
        else:
            self.known_loss = (weight * known + self.final_loss) / (weight + 1)
            self.weight = weight + 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method gets to work with: no data, no optimizer, no loss function.

    `evaluate` returns the search losses `n` (double, less is better) of `n` sub-networks with the
    current weights; every sub-network it measures is counted and paid from the run's search budget:
    `price` returns the MACs that this would take now, `left` those that may be spent; more is
    refused, and ends the run. `objective` is the cost that is traded against the loss.
    `widths_budget` is how many sub-networks a search may visit, `steps` how many steps training
    has, `sampled_per_step` (M) how many sub-networks train in each beside the largest and the
    smallest, `ask_every_steps` (tau) how often PareCO asks for new ones. `pause`, to be called
    within long computations, ends them by an exception when the run is to end.
    """

    space: WidthSpace
    cost: CostModel
    objective: Cost
    generator: torch.Generator
    evaluate: Callable[[Sequence[Widths]], Tensor]
    steps: int
    sampled_per_step: int
    ask_every_steps: int
    widths_budget: int
    search: SearchConfig
    pause: Callable[[], None] = lambda: None
    price: Callable[[Sequence[Widths]], int] = lambda widths: 0
    left: Callable[[], float] = lambda: math.inf
    optimizer: Callable[..., Mobo] = Mobo
    """Makes what a `WidthSearch` asks; a plan puts in its place what costs no time."""

    def affordable(self, widths: Iterable[Widths]) -> list[Widths]:
        """Return the first of these distinct sub-networks, as many as can be paid now."""
        paid, left = [], self.left()
        if math.isinf(left):
            return list(widths)
        for each in widths:
            left -= self.price([each])
            if left < 0:
                break
            paid.append(each)
        return paid

    def costs(self, widths: Sequence[Widths]) -> Tensor:
        """Return the objective `n` (double, less is better) of `n` sub-networks, exactly."""
        return self.cost.of(self.objective, widths).double()


class Method:
    """A way to choose widths. A subclass in its own file is found by its `name`.

    All else is the pipeline's: every step trains the largest network, `widths_for_step`, and the
    smallest; at the end the pipeline calibrates and measures `candidates` with the largest and
    the smallest, and reports those on the front of search loss and cost.
    """

    name: ClassVar[str]
    budget_exempt: ClassVar[bool] = False  # trains longer than the others by its nature
    sets_search_budget: ClassVar[bool] = False  # its search is what all may spend by default
    search_budget: ClassVar[float | None] = None  # its own, unless `search.budget` is set
    own_search: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {}
    )  # its own values of `search` fields left unset
    draws: int = 5_000  # before `completed` takes it that the space has no more

    def __init__(self, task: Task) -> None:
        """Start on a task; what its search leaves unset has this method's own values."""
        self.task = replace(task, search=task.search.resolved(self.own_search))

    @classmethod
    def spaces(cls, space: WidthSpace, sampled_per_step: int) -> Sequence[WidthSpace]:
        """Return one space for each set of weights that is trained."""
        return [space]

    def switches(self) -> Sequence[Widths]:
        """Return the sub-networks with batch-norm weights of their own."""
        return ()

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return the widths to train in this step between the largest and the smallest."""
        raise NotImplementedError

    def hear(self, step: int, widths: Sequence[Widths], losses: Sequence[float]) -> None:
        """Hear what the networks of a gradient step came to: nothing, unless a method wants it.

        `widths` are those of the step, largest first, smallest last; `losses` their cross-entropies
        (nats) on the labels of its batch, the means over all processes. Told in order, of all steps
        before one that is a multiple of `ask_every_steps` when the widths for that one are asked
        for, and of all of them before the search that follows training. When exactly is the
        machine's choice: a method draws nothing here, and elsewhere counts on no more.
        """

    def search_on(self) -> bool:
        """Do one part of a search that follows training; return whether there may be more.

        It is called until there is none. A run that is interrupted goes on from `state` as it was
        between two parts; what was evaluated meanwhile is not measured again.
        """
        return False

    def candidates(self) -> Sequence[Widths]:
        """Return the widths that the front is chosen from, once training and search have ended."""
        raise NotImplementedError

    def visits(self) -> Sequence[Visit]:
        """Return what a search of this method has visited, in order: for the record alone."""
        return ()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, ready for JSON; the generator is kept elsewhere."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""

    def completed(self, widths: Sequence[Widths], draw: Callable[[], Widths]) -> list[Widths]:
        """Return M distinct widths, none the largest or smallest: those given, then drawn ones.

        Fewer only where the space has no more. So every method trains equally many networks.
        """
        space, wanted = self.task.space, self.task.sampled_per_step
        ends = (space.largest, space.smallest)
        chosen = [each for each in dict.fromkeys(widths) if each not in ends][:wanted]
        for _ in range(self.draws):
            if len(chosen) == wanted:
                break
            drawn = draw()
            if drawn not in ends and drawn not in chosen:
                chosen.append(drawn)
        return chosen

    @staticmethod
    def evenly_spread(space: WidthSpace, count: int) -> list[Widths]:
        """Return `count` uniform widths, evenly spread from the largest to the smallest.

        Raises `ValueError` where rounding leaves fewer distinct ones.
        """
        widths = list(space.spread(count))
        if len(widths) < count:
            raise ValueError(
                f"only {len(widths)} of {count} evenly spread uniform widths are distinct at "
                f"network.divisor {space.divisor}, network.alpha_min {space.alpha_min} and "
                f"training.sampled_per_step {count - 2}: lower one of them, or take a wider network"
            )
        return widths

    def random_widths(self) -> Widths:
        """Return widths with a random multiplier for each dimension of the space."""
        return self.task.space.sample(self.task.generator)


def method_in(module: str, name: str) -> type[Method]:
    """Return the method of this name that a module defines; `ValueError` if it defines none."""
    members = vars(importlib.import_module(module)).values()
    for item in members:
        if isinstance(item, type) and issubclass(item, Method) and vars(item).get("name") == name:
            return item
    raise ValueError(f"{module} defines no method whose name is {name!r}")
