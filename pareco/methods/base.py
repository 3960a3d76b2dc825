"""What a method decides, and what it is given to decide with."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from pareco.cost import Cost, CostModel
from pareco.methods.visits import Visit
from pareco.search import SearchConfig
from pareco.widths import Widths, WidthSpace

_DRAWS = 100


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method gets to work with: no data, no optimizer, no loss function.

    `evaluate` returns the search losses `n` (double, less is better) of `n` sub-networks with the
    current weights; every sub-network it measures is counted. `objective` is the cost that is
    traded against the loss. `widths_budget` is how many
    sub-networks a search may visit, `sampled_per_step` (M) how many train in each step beside the
    largest and the smallest, `ask_every_steps` (tau) how often PareCO asks for new ones.
    """

    space: WidthSpace
    cost: CostModel
    objective: Cost
    generator: torch.Generator
    evaluate: Callable[[Sequence[Widths]], Tensor]
    sampled_per_step: int
    ask_every_steps: int
    widths_budget: int
    search: SearchConfig

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

    def __init__(self, task: Task) -> None:
        """Start on a task."""
        self.task = task

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

    def candidates(self) -> Sequence[Widths]:
        """Return the widths that the front is chosen from, once training has ended."""
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
        for _ in range(_DRAWS):
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
                f"only {len(widths)} of {count} evenly spread uniform widths are distinct: lower "
                "training.sampled_per_step or network.alpha_min, or take a wider network"
            )
        return widths

    def random_widths(self) -> Widths:
        """Return widths with a random multiplier for each dimension of the space."""
        return self.task.space.sample(self.task.generator)
