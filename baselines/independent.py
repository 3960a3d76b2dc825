"""Independent: every reported network trained alone, with weights of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pareco.methods import Method
from pareco.widths import Widths, WidthSpace


class Independent(Method):
    """Trains M + 2 evenly spread uniform widths, or given ones, each for the full schedule."""

    name = "independent"
    budget_exempt = True
    trains_alone = True

    @classmethod
    def spaces(cls, space: WidthSpace, sampled_per_step: int) -> Sequence[WidthSpace]:
        """Return one space for each network, which holds it alone."""
        alone = cls.evenly_spread(space, sampled_per_step + 2)
        return [replace(space, only=widths) for widths in alone]

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return nothing: the largest and the smallest of the space are the network."""
        return ()

    def candidates(self) -> Sequence[Widths]:
        """Return the network."""
        return [self.task.space.largest]
