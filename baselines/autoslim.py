"""AutoSlim: US-Net training, then greedy slimming (Yu & Huang 2019b, arXiv 1903.11728)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from baselines.us_net import USNet
from pareco.methods import Task
from pareco.widths import Widths

LEVELS = 10  # decrements from the full width of a group to its least, if the budget pays them


class AutoSlim(USNet):
    """Narrows the full network step by step where it hurts the loss least."""

    name = "autoslim"

    def __init__(self, task: Task) -> None:
        """Start at the full network."""
        super().__init__(task)
        self.path = [torch.ones(task.space.dimensions, dtype=torch.double)]
        self.decrement = 0.0

    def search_on(self) -> bool:
        """Do one step of the greedy path; at most LEVELS x d steps of d measurements.

        It measures the network with each multiplier lowered in turn, as far as the search budget
        pays, and keeps the one with the least loss.
        """
        if self.decrement:
            trials = self.trials()
            widths = self.task.affordable(map(self.task.space.decode, trials))
            if not widths:
                return False
            self.path.append(trials[int(self.task.evaluate(widths).argmin())])
        self.decrement = self.finest_decrement()
        return True

    def candidates(self) -> Sequence[Widths]:
        """Return the networks on the path, the largest first."""
        return [self.task.space.decode(alpha) for alpha in self.path]

    def trials(self) -> list[Tensor]:
        """Return the last multipliers with each lowered in turn until the network changes."""
        space, found = self.task.space, []
        for index in range(space.dimensions):
            trial = self.path[-1].clone()
            while trial[index] > space.alpha_min:
                trial[index] = max(float(trial[index]) - self.decrement, space.alpha_min)
                if space.decode(trial) != space.decode(self.path[-1]):
                    found.append(trial)
                    break
        return found

    def finest_decrement(self) -> float:
        """Return the finest decrement with which the rest of the path can be paid, or the coarsest.

        The networks that are left are taken to cost as those on the straight line to the smallest.
        """
        space, alpha, left = self.task.space, self.path[-1], self.task.left()
        rest = alpha - space.alpha_min
        line = [space.decode(space.alpha_min + rest * part) for part in (0.1, 0.3, 0.5, 0.7, 0.9)]
        mean = sum(self.task.price([each]) for each in line) / len(line)
        for levels in range(LEVELS, 1, -1):
            steps = (rest * levels / (1 - space.alpha_min) - 1e-9).ceil()
            if float(steps.sum()) * int(steps.count_nonzero()) * mean <= left:
                return (1 - space.alpha_min) / levels
        return 1 - space.alpha_min

    def state(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": [alpha.tolist() for alpha in self.path], "decrement": self.decrement}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned. (Earlier versions kept none.)."""
        if state:
            self.path = [torch.tensor(alpha, dtype=torch.double) for alpha in state["path"]]
            self.decrement = state["decrement"]
