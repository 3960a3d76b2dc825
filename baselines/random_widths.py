"""Random widths: a random multiplier for each layer (PareCO's ablation, arXiv 2007.11752)."""

from __future__ import annotations

from collections.abc import Sequence

from pareco.methods import Method
from pareco.widths import Widths


class RandomWidths(Method):
    """Trains random widths; reports the best among as many random widths as PareCO visits."""

    name = "random_widths"

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return networks with random multipliers."""
        return self.completed((), self.random_widths)

    def candidates(self) -> Sequence[Widths]:
        """Return random widths, as many as a search may visit and can pay."""
        drawn = (self.random_widths() for _ in range(self.task.widths_budget))
        return self.task.affordable(dict.fromkeys(drawn))
