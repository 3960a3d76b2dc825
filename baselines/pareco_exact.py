"""PareCO with the exact search, fed by what training measures anyway (ours)."""

from __future__ import annotations

from types import MappingProxyType

from pareco.methods import Task
from pareco.width_search import PareCO


class ParecoExact(PareCO):
    """PareCO whose search minimizes the loss's bound at a known cost, from the smallest on.

    It measures nothing while it trains: losses are those of the training steps. So a tenth of the
    training's MACs is left for the choice of its front. In each step it trains one network of the
    front and one of the newest, at costs spread as those of random uniform multipliers.
    """

    name = "pareco_exact"
    sets_search_budget = False
    search_budget = 0.1
    own_search = MappingProxyType(
        {
            "solver": "exact",
            "losses_from": "training",
            "trains": "front",
            "visits_per_ask": 4,
            "half_life": 0.1,
            "target_costs": "uniform",
        }
    )

    def __init__(self, task: Task) -> None:
        """Start with the smallest network in the history: every step trains it."""
        super().__init__(task)
        self.search.visit(task.space.smallest)
