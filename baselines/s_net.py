"""S-Net: a fixed list of uniform widths with private batch norm (Yu et al. 2019, 1812.08928)."""

from __future__ import annotations

from collections.abc import Sequence

from pareco.methods import Method
from pareco.widths import Widths


class SNet(Method):
    """Trains and reports M + 2 evenly spread uniform widths, each with its own batch norm."""

    name = "s_net"

    def switches(self) -> Sequence[Widths]:
        """Return the fixed list of widths, the largest first."""
        return self.evenly_spread(self.task.space, self.task.sampled_per_step + 2)

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return the same widths in every step."""
        return self.completed(self.switches(), self.random_widths)

    def candidates(self) -> Sequence[Widths]:
        """Return the fixed list of widths."""
        return self.switches()
