"""PareCO with the exact search: no model of the cost, no scalarization (ours)."""

from __future__ import annotations

from types import MappingProxyType

from pareco.methods import Task
from pareco.width_search import PareCO


class ParecoExact(PareCO):
    """PareCO whose search minimizes the loss's bound at a known cost, from the smallest on."""

    name = "pareco_exact"
    sets_search_budget = False
    search_budget = 0.1
    own_search = MappingProxyType({"solver": "exact"})

    def __init__(self, task: Task) -> None:
        """Start with the smallest network in the history: every step trains it."""
        super().__init__(task)
        self.search.visit(task.space.smallest)
