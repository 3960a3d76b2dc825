"""US-Net: one random multiplier for the whole network (Yu & Huang 2019, arXiv 1903.05134)."""

from __future__ import annotations

from collections.abc import Sequence

from pareco.methods import Method
from pareco.widths import Widths


class USNet(Method):
    """Trains uniform widths at random; reports the best of evenly spread uniform widths."""

    name = "us_net"

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return networks with one random multiplier each."""
        return self.completed((), self.uniform_widths)

    def uniform_widths(self) -> Widths:
        """Return widths with the first of a random draw of multipliers for the whole network."""
        alpha = self.task.space.sample_alpha(self.task.generator)[0]
        return self.task.space.uniform(float(alpha))

    def candidates(self) -> Sequence[Widths]:
        """Return evenly spread uniform widths: as many as a search may visit and can pay."""
        count, left = self.task.widths_budget, self.task.left()
        widths = list(self.task.space.spread(count))
        while count > 2 and (price := self.task.price(widths)) > left:
            count = max(min(count - 1, int(count * left / price)), 2)
            widths = list(self.task.space.spread(count))
        return widths
