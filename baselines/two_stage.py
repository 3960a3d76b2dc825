"""TwoStage: random widths in training, then a search with frozen weights (arXiv 2007.11752)."""

from __future__ import annotations

from collections.abc import Sequence

from baselines.random_widths import RandomWidths
from pareco.methods import Task, Visit, WidthSearch
from pareco.widths import Widths


class TwoStage(RandomWidths):
    """Trains random widths; searches once training has ended, over as many widths as PareCO."""

    name = "two_stage"

    def __init__(self, task: Task) -> None:
        """Start with an empty history, which stays so until training has ended."""
        super().__init__(task)
        self.search = WidthSearch(task)

    def candidates(self) -> Sequence[Widths]:
        """Return the front of what MOBO-RS visits with frozen weights."""
        search, budget = self.search, self.task.widths_budget
        while len(search.visits) < budget:
            wanted = min(self.task.sampled_per_step, budget - len(search.visits))
            if not search.ask(max(wanted, 1)):
                break  # the space has no more
            search.refresh()
        return search.front()

    def visits(self) -> Sequence[Visit]:
        """Return the history."""
        return self.search.visits
