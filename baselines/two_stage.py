"""TwoStage: random widths in training, then a search with frozen weights (arXiv 2007.11752)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from baselines.random_widths import RandomWidths
from pareco.methods import Task, Visit
from pareco.width_search import WidthSearch
from pareco.widths import Widths


class TwoStage(RandomWidths):
    """Trains random widths; searches once training has ended, over as many widths as PareCO."""

    name = "two_stage"

    def __init__(self, task: Task) -> None:
        """Start with an empty history, which stays so until training has ended."""
        super().__init__(task)
        self.search = WidthSearch(self.task)

    def search_on(self) -> bool:
        """Let MOBO-RS visit some more widths with frozen weights, as long as the budget lasts."""
        left = self.task.widths_budget - len(self.search.visits)
        if left <= 0 or not self.search.ask(max(min(self.task.sampled_per_step, left), 1)):
            return False  # nothing is left of the visits, or of the space
        measured = self.search.refresh(final=True)
        return len(measured) == len(self.search.visits)  # else nothing can be paid

    def candidates(self) -> Sequence[Widths]:
        """Return the front of what was visited."""
        return self.search.front()

    def visits(self) -> Sequence[Visit]:
        """Return the history."""
        return self.search.visits

    def state(self) -> dict[str, Any]:
        """Return the search."""
        return self.search.state()

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned. (Earlier versions kept none.)."""
        if state:
            self.search.load_state(state)
