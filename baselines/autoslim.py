"""AutoSlim: US-Net training, then greedy slimming (Yu & Huang 2019b, arXiv 1903.11728)."""

from __future__ import annotations

from typing import Any

from baselines.us_net import USNet
from pareco.methods import Task
from pareco.widths import Widths

LEVELS = 10  # decrements from the full width of a group to its least, if the budget pays them


class AutoSlim(USNet):
    """Narrows the full network step by step where it hurts the loss least."""

    name = "autoslim"

    def __init__(self, task: Task) -> None:
        """Start at the full network; `path` are the multipliers after each step."""
        super().__init__(task)
        self.path, self.decrement = [[1.0] * task.space.dimensions], 0.0

    def search_on(self) -> bool:
        """Measure the network with each multiplier lowered in turn, and keep the best."""
        if self.decrement:
            trials = [each for at in range(len(self.path[-1])) for each in self.lowered(at)]
            if not (widths := self.task.affordable(map(self.task.space.decode, trials))):
                return False
            self.path.append(trials[int(self.task.evaluate(widths).argmin())])
        least, last, levels = self.task.space.alpha_min, self.path[-1], LEVELS
        line = [[least + part * (each - least) for each in last] for part in (0.1, 0.3, 0.5, 0.7)]
        price = sum(self.task.price([self.task.space.decode(each)]) for each in line) / len(line)
        rounds = sum((each - least) / (1 - least) for each in last) * len(last)
        while levels > 1 and rounds * levels * price > self.task.left():
            levels -= 1  # to what pays d networks a step, as on the line to the smallest
        self.decrement = (1 - least) / levels
        return True

    def lowered(self, index: int) -> list[list[float]]:
        """Return the multipliers with one lowered until the network changes; nothing if none is."""
        space, result = self.task.space, [*self.path[-1]]
        while result[index] > space.alpha_min:
            result[index] = max(result[index] - self.decrement, space.alpha_min)
            if space.decode(result) != space.decode(self.path[-1]):
                return [result]
        return []

    def candidates(self) -> list[Widths]:
        """Return the networks on the path from the largest to the smallest."""
        return [self.task.space.decode(each) for each in self.path]

    def state(self) -> dict[str, Any]:
        """Return the path."""
        return {"path": self.path, "decrement": self.decrement}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned. (Earlier versions kept none.)."""
        self.path, self.decrement = state.get("path", self.path), state.get("decrement", 0.0)
