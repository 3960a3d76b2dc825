"""PareCO: widths optimized together with the weights (arXiv 2007.11752, Algorithm 1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pareco.methods.base import Method, Task
from pareco.methods.visits import Visit
from pareco.methods.width_search import WidthSearch
from pareco.widths import Widths


class PareCO(Method):
    """Every tau steps refreshes the losses of all widths visited and asks MOBO-RS for M more."""

    name = "pareco"

    def __init__(self, task: Task) -> None:
        """Start with an empty history."""
        super().__init__(task)
        self.search = WidthSearch(task)
        self.current: list[Widths] = []

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return the newest proposals; every tau steps they are renewed."""
        if step % self.task.ask_every_steps == 0:
            self.search.refresh()
            proposals = self.search.ask(self.task.sampled_per_step, step)
            self.current = self.completed(proposals, self.random_widths)
        return self.current

    def candidates(self) -> Sequence[Widths]:
        """Return the front of the history, its losses refreshed with the final weights."""
        self.search.refresh()
        return self.search.front()

    def visits(self) -> Sequence[Visit]:
        """Return the history."""
        return self.search.visits

    def state(self) -> dict[str, Any]:
        """Return the search and the current widths."""
        return {"search": self.search.state(), "current": [list(each) for each in self.current]}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self.search.load_state(state["search"])
        self.current = [Widths(counts) for counts in state["current"]]
