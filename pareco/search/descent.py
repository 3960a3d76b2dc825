"""Local minimizers in the unit cube, many starts in one batch."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

CELLS, GRIDS = 32, 3  # multipliers are told apart by 32^-3 before the straight line
STEEPEST, FLATTEST = 1e8, 1e-8  # curvatures
MEMORY = 4  # merits, the highest of which a step may come back to

Evaluation = Callable[[Tensor], tuple[Tensor, Tensor]]
"""Maps `m x d` points to the `m x 2` values of two functions and their gradients `m x 2 x d`."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """Two functions' values and gradients at `m` points, and the curvature `m` of a step."""

    points: Tensor
    values: Tensor
    gradients: Tensor
    curvature: Tensor

    def steps(self, weights: Tensor) -> Tensor:
        """Return the steps `m x s x d` in the cube that minimize the weighted models.

        In closed form, for `m x s x 2` weights of the two functions.
        """
        slopes = weights @ (self.gradients / self.curvature[:, None, None])
        points = self.points.unsqueeze(1)
        return (points - slopes).clamp_(0.0, 1.0).sub_(points)

    def after(self, step: Tensor) -> Tensor:
        """Return the linear models' values `m x 2` after one step `m x d`."""
        return self.values + (self.gradients @ step.unsqueeze(-1)).squeeze(-1)


class Goal(Protocol):
    """What is minimized, and the multipliers of its dual, which has one variable in [0, 1].

    `balance` are the coefficients of the linear models whose sum falls as the variable rises, and
    is zero where it is right.
    """

    balance: tuple[float, float]

    def weights(self, model: Model, variable: Tensor) -> Tensor:
        """Return the weights `m x s x 2` of the two functions for `m x s` variables."""
        ...

    def merit(self, values: Tensor) -> Tensor:
        """Return what is minimized, `m`, from `m x 2` values; infinite where not allowed."""
        ...

    def promised(self, model: Model, step: Tensor) -> Tensor:
        """Return by how much the linear models' merit falls with steps `m x d`, `m`."""
        ...


class Larger:
    """The larger of the two functions."""

    balance = (1.0, -1.0)

    def weights(self, model: Model, variable: Tensor) -> Tensor:
        """Return (v, 1 - v)."""
        return torch.stack([variable, 1 - variable], dim=-1)

    def merit(self, values: Tensor) -> Tensor:
        """Return the larger one."""
        return values.amax(dim=1)

    def promised(self, model: Model, step: Tensor) -> Tensor:
        """Return by how much the larger model falls."""
        return self.merit(model.values) - self.merit(model.after(step))


class FirstWhereSecondIsNotPositive:
    """The first function, where the second is at most zero."""

    balance = (0.0, 1.0)

    def weights(self, model: Model, variable: Tensor) -> Tensor:
        """Return (1, v / (1 - v) x the ratio of the gradients)."""
        first, second = model.gradients.norm(dim=2).clamp_min(FLATTEST).unbind(dim=1)
        price = variable / (1 - variable).clamp_min(1e-9) * (first / second).unsqueeze(1)
        return torch.stack([torch.ones_like(price), price], dim=-1)

    def merit(self, values: Tensor) -> Tensor:
        """Return the first, infinite where the second is positive."""
        return values[:, 0].where(values[:, 1] <= 0, torch.inf)

    def promised(self, model: Model, step: Tensor) -> Tensor:
        """Return by how much the first model falls."""
        return model.values[:, 0] - model.after(step)[:, 0]


def descended(
    goal: Goal,
    evaluate: Evaluation,
    starts: Tensor,
    iterations: int,
    precision: float,
    moved: Callable[[Tensor], Tensor] = torch.Tensor.clone,
) -> Tensor:
    """Return the best points `m x d` of the unit cube that were met from each start.

    A proximal point of both linear models is taken at a time (the least of the goal's model +
    c/2 |step|^2 in the cube; its dual has one variable), then `moved`, which may put it where it
    is allowed. The curvature c of each point follows its last steps (Barzilai and Borwein, 1988)
    and grows where the merit would rise. Ends once no model promises `precision`, or after
    `iterations` evaluations beside the first. Errors of `evaluate` are raised.
    """
    values, gradients = evaluate(starts)
    flat = gradients.flatten(1).norm(dim=1).clamp(FLATTEST, STEEPEST)
    model = Model(points=starts, values=values, gradients=gradients, curvature=flat)
    best, least = starts, goal.merit(values)
    recent = least.unsqueeze(1).repeat(1, MEMORY)
    for iteration in range(iterations):
        weights = _dual_weights(goal, model)
        step = model.steps(weights.unsqueeze(1)).squeeze(1)
        promised = goal.promised(model, step)
        if not (promised > precision).any():
            break
        points = moved(model.points + step)
        values, gradients = evaluate(points)
        reached = goal.merit(values)
        better = reached < least
        best, least = torch.where(better[:, None], points, best), least.minimum(reached)
        taken = reached <= recent.amax(dim=1) - 1e-4 * promised
        recent[taken, iteration % MEMORY] = reached[taken]
        change = (weights.unsqueeze(-1) * (gradients - model.gradients)).sum(dim=1)
        found = _curvature(points - model.points, change, model.curvature, iteration % 2 == 1)
        model = Model(
            points=torch.where(taken[:, None], points, model.points),
            values=torch.where(taken[:, None], values, model.values),
            gradients=torch.where(taken[:, None, None], gradients, model.gradients),
            curvature=torch.where(taken, found, model.curvature * 4).clamp(FLATTEST, STEEPEST),
        )
    return best


def _dual_weights(goal: Goal, model: Model) -> Tensor:
    """Return the weights `m x 2` of the two functions at the proximal point.

    The zero of the balance is looked for on a grid, on a finer one between two neighbours of it,
    and so on, at last by a straight line.
    """
    first, second = goal.balance
    value = (first * model.values[:, :1]) + (second * model.values[:, 1:])
    slope = (first * model.gradients[:, 0] + second * model.gradients[:, 1]).unsqueeze(-1)
    grid = torch.linspace(0.0, 1.0, CELLS + 1, dtype=value.dtype)
    low, high = torch.zeros_like(value), torch.ones_like(value)
    above, below = high, low
    for _ in range(GRIDS):
        variables = low + (high - low) * grid
        steps = model.steps(goal.weights(model, variables))
        balance = value + (steps @ slope).squeeze(-1)
        cell = (balance[:, 1:] > 0).sum(dim=1, keepdim=True).clamp_max(CELLS - 1)
        low, high = variables.gather(1, cell), variables.gather(1, cell + 1)
        above, below = balance.gather(1, cell), balance.gather(1, cell + 1)
    share = (above / (above - below)).nan_to_num(0.0).clamp(0.0, 1.0)
    return goal.weights(model, low + share * (high - low)).squeeze(1)


def _curvature(step: Tensor, change: Tensor, last: Tensor, short: bool) -> Tensor:
    """Return the curvature `m` along steps `m x d` in which the slope made these changes."""
    along = (change * step).sum(dim=1)
    over = step.square().sum(dim=1)
    measured = along / over if short else change.square().sum(dim=1) / along
    return torch.where(along > 0, measured.nan_to_num(FLATTEST), last / 4)
