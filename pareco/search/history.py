"""The history H: all (multipliers, loss, cost) seen so far."""

import math
from typing import Any

import torch
from botorch.utils.multi_objective.hypervolume import Hypervolume
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor


class History:
    """All entries told so far: `alphas` `n x d`, `losses` `n`, `costs` `n`, in double precision.

    Less is better for loss and cost. A loss which is NaN is not measured yet; an infinite one is
    stored as NaN. Unmeasured entries are never on the front.
    """

    def __init__(self, dimensions: int) -> None:
        self.alphas = torch.empty(0, dimensions, dtype=torch.double)
        self.losses = torch.empty(0, dtype=torch.double)
        self.costs = torch.empty(0, dtype=torch.double)

    def __len__(self) -> int:
        return len(self.costs)

    @property
    def dimensions(self) -> int:
        """Return d, the number of multipliers of an entry."""
        return self.alphas.shape[1]

    @property
    def measured(self) -> Tensor:
        """Return a mask `n`: which entries have a loss."""
        return self.losses.isfinite()

    def add(self, alphas: Tensor, losses: Tensor, costs: Tensor) -> None:
        """Append `n x d` alphas with `n` losses (NaN: not measured yet) and `n` costs.

        Raises ValueError where lengths disagree, or alphas or costs are not finite; the history
        is then unchanged.
        """
        count = len(alphas)
        if alphas.shape != (count, self.dimensions):
            raise ValueError(f"alphas must be n x {self.dimensions}, got {tuple(alphas.shape)}")
        if losses.shape != (count,) or costs.shape != (count,):
            raise ValueError(
                f"{count} alphas need {count} losses and costs, "
                f"got {tuple(losses.shape)} and {tuple(costs.shape)}"
            )
        if not (alphas.isfinite().all() and costs.isfinite().all()):
            raise ValueError("alphas and costs must be finite")
        self.alphas = torch.cat([self.alphas, _plain(alphas)])
        self.losses = torch.cat([self.losses, _finite_or_nan(losses)])
        self.costs = torch.cat([self.costs, _plain(costs)])

    def refresh(self, losses: Tensor) -> None:
        """Replace all `n` losses. Raises ValueError where their number is not the history's."""
        if losses.shape != (len(self),):
            raise ValueError(f"{len(self)} losses are needed, got {tuple(losses.shape)}")
        self.losses = _finite_or_nan(losses)

    def front(self) -> Tensor:
        """Return the indices of the non-dominated measured entries, sorted by cost.

        Of entries with equal loss and cost only the first is listed.
        """
        indices = self.measured.nonzero().squeeze(1)
        objectives = torch.stack([self.losses[indices], self.costs[indices]], dim=1)
        indices = indices[is_non_dominated(objectives, maximize=False)]
        return indices[torch.argsort(self.costs[indices])]

    def hypervolume(self, reference: tuple[float, float]) -> float:
        """Return the area dominated by the front up to `reference` (loss, cost); more is better.

        Entries which don't improve on the reference in both count nothing.
        """
        front = self.front()
        objectives = torch.stack([self.losses[front], self.costs[front]], dim=1)
        volume = Hypervolume(ref_point=-torch.tensor(reference, dtype=torch.double))
        return float(volume.compute(-objectives))

    def state(self) -> dict[str, Any]:
        """Return the entries as plain lists fit for JSON; an unmeasured loss is None."""
        losses = [None if math.isnan(loss) else loss for loss in self.losses.tolist()]
        return {
            "dimensions": self.dimensions,
            "alphas": self.alphas.tolist(),
            "losses": losses,
            "costs": self.costs.tolist(),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "History":
        """Return the history which `state()` described."""
        history = cls(state["dimensions"])
        losses = [math.nan if loss is None else loss for loss in state["losses"]]
        history.add(
            torch.tensor(state["alphas"], dtype=torch.double).reshape(-1, history.dimensions),
            torch.tensor(losses, dtype=torch.double),
            torch.tensor(state["costs"], dtype=torch.double),
        )
        return history


def _plain(values: Tensor) -> Tensor:
    """Return a detached copy on the CPU in double precision."""
    return values.detach().to("cpu", torch.double, copy=True)


def _finite_or_nan(losses: Tensor) -> Tensor:
    """Return the losses with NaN in place of infinities."""
    return _plain(losses).nan_to_num(nan=math.nan, posinf=math.nan, neginf=math.nan)
