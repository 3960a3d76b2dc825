"""MOBO-RS over the widths of a network: asks in multipliers, answers in widths."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from pareco.methods.base import Task
from pareco.search import Mobo
from pareco.widths import Widths


class WidthSearch:
    """A search over the widths of a task; each width enters the history once."""

    def __init__(self, task: Task) -> None:
        """Start with an empty history."""
        space = task.space
        self.task = task
        self.visited: list[Widths] = []
        self._mobo = Mobo(
            space.alpha_min,
            space.dimensions,
            lambda alphas: task.costs([space.decode(alpha) for alpha in alphas]),
            task.search,
            task.generator,
            canonical=self._canonical,
        )

    def ask(self, count: int) -> list[Widths]:
        """Return up to `count` new widths, which enter the history with no loss yet.

        Fewer only where all that was proposed is in the history.
        """
        proposals = [self.task.space.decode(alpha) for alpha in self._mobo.ask(count)]
        new = [each for each in dict.fromkeys(proposals) if each not in self.visited]
        for widths in new:
            alpha = self.task.space.encode(widths)
            self._mobo.tell(alpha, float("nan"), self.task.costs([widths]))
        self.visited += new
        return new

    def refresh(self) -> None:
        """Measure the loss of every entry again, with the current weights."""
        if self.visited:
            self._mobo.refresh(self.task.evaluate(self.visited))

    def measure_new(self) -> None:
        """Measure the entries that have no loss yet, and keep the other losses."""
        losses = self._mobo.history.losses.clone()
        missing = torch.isnan(losses)
        chosen = [each for each, new in zip(self.visited, missing.tolist(), strict=True) if new]
        losses[missing] = self.task.evaluate(chosen)
        self._mobo.refresh(losses)

    def front(self) -> list[Widths]:
        """Return the widths that no other one beats in both loss and cost, cheapest first."""
        return [self.visited[index] for index in self._mobo.history.front()]

    def state(self) -> dict[str, Any]:
        """Return the history, ready for JSON."""
        return {"mobo": self._mobo.state(), "visited": [list(each) for each in self.visited]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self._mobo.load_state(state["mobo"])
        self.visited = [Widths(counts) for counts in state["visited"]]

    def _canonical(self, alphas: Tensor) -> Tensor:
        space = self.task.space
        representatives = [space.encode(space.decode(alpha)) for alpha in alphas]
        return torch.stack(representatives) if representatives else alphas
