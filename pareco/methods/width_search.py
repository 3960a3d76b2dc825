"""MOBO-RS over the widths of a network: asks in multipliers, answers in widths."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from pareco.methods.base import Task
from pareco.methods.visits import Visit
from pareco.search import Mobo
from pareco.widths import Widths


class WidthSearch:
    """A search over the widths of a task; each width enters the history once."""

    def __init__(self, task: Task) -> None:
        """Start with an empty history."""
        space = task.space
        self.task = task
        self.visits: list[Visit] = []
        self._mobo = Mobo(
            space.alpha_min,
            space.dimensions,
            lambda alphas: task.costs([space.decode(alpha) for alpha in alphas]),
            task.search,
            task.generator,
            canonical=self._canonical,
        )

    @property
    def visited(self) -> list[Widths]:
        """The widths of the history, in the order in which they entered it."""
        return [visit.widths for visit in self.visits]

    def ask(self, count: int, step: int | None = None) -> list[Widths]:
        """Return up to `count` new widths, which enter the history with no loss yet.

        Fewer only where all that was proposed is in the history. `step` is the training step, for
        the record; None once training has ended.
        """
        known = set(self.visited)
        new: dict[Widths, Visit] = {}
        for proposal in self._mobo.proposals(count):
            widths = self.task.space.decode(proposal.alpha)
            if widths not in known and widths not in new:
                new[widths] = Visit.of(proposal, widths, step)
        for widths in new:
            alpha = self.task.space.encode(widths)
            self._mobo.tell(alpha, float("nan"), self.task.costs([widths]))
        self.visits += new.values()
        return list(new)

    def refresh(self) -> None:
        """Measure the loss of every entry again, with the current weights."""
        if self.visits:
            self._measured(self.visits)

    def measure_new(self) -> None:
        """Measure the entries that have no loss yet, and keep the other losses."""
        missing = torch.isnan(self._mobo.history.losses).tolist()
        self._measured([visit for visit, new in zip(self.visits, missing, strict=True) if new])

    def _measured(self, visits: list[Visit]) -> None:
        """Measure these entries, and keep the other losses."""
        losses = self.task.evaluate([visit.widths for visit in visits]).tolist()
        for visit, loss in zip(visits, losses, strict=True):
            visit.measured(loss)
        final = [math.nan if v.final_loss is None else v.final_loss for v in self.visits]
        self._mobo.refresh(torch.tensor(final, dtype=torch.double))

    def front(self) -> list[Widths]:
        """Return the widths that no other one beats in both loss and cost, cheapest first."""
        return [self.visited[index] for index in self._mobo.history.front()]

    def state(self) -> dict[str, Any]:
        """Return the history, ready for JSON."""
        return {"mobo": self._mobo.state(), "visits": [visit.state() for visit in self.visits]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self._mobo.load_state(state["mobo"])
        self.visits = [Visit.from_state(each) for each in state["visits"]]

    def _canonical(self, alphas: Tensor) -> Tensor:
        space = self.task.space
        representatives = [space.encode(space.decode(alpha)) for alpha in alphas]
        return torch.stack(representatives) if representatives else alphas
