"""AutoSlim: US-Net training, then greedy slimming (Yu & Huang 2019b, arXiv 1903.11728)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from baselines.us_net import USNet
from pareco.widths import Widths

LEVELS = 10  # decrements from the full width of a group to its least


class AutoSlim(USNet):
    """Narrows the full network step by step where it hurts the loss least."""

    name = "autoslim"

    def candidates(self) -> Sequence[Widths]:
        """Return the networks on the greedy path from the largest to the smallest.

        Each step measures the network with each multiplier lowered in turn and keeps the one with
        the least loss; at most LEVELS x d steps of d measurements.
        """
        space = self.task.space
        alpha = torch.ones(space.dimensions, dtype=torch.double)
        path = [space.largest]
        while trials := [
            trial for index in range(len(alpha)) for trial in self.lowered(alpha, index)
        ]:
            losses = self.task.evaluate([space.decode(trial) for trial in trials])
            alpha = trials[int(losses.argmin())]
            path.append(space.decode(alpha))
        return path

    def lowered(self, alpha: Tensor, index: int) -> list[Tensor]:
        """Return the multipliers with one lowered until the network changes; nothing if none is."""
        space, result = self.task.space, alpha.clone()
        decrement = (1 - space.alpha_min) / LEVELS
        while result[index] > space.alpha_min:
            result[index] = max(float(result[index]) - decrement, space.alpha_min)
            if space.decode(result) != space.decode(alpha):
                return [result]
        return []
