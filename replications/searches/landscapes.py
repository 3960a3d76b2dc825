"""What searches are compared on: a front known by construction, measured tables, a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from pareco.evaluation import batch_losses
from pareco.randomness import derived_generator
from pareco.search import front
from pareco.search.mobo import Batched
from pareco.widths import Widths
from replications.searches.grid import Grid
from replications.searches.trained import TrainedNetwork

LEAST = 0.42
ANALYTIC_DIMENSIONS = 24
LIVE_IMAGES = 256
_TARGETS = 400
_TIES = 2  # layers between two whose widths matter together


@dataclass(frozen=True, kw_only=True)
class SearchProblem:
    """A box of multipliers, `d` each of `lower` and `upper`, with a cost that is known.

    `cost` returns parts of the full cost, exactly, and `relaxed_cost` something near, with
    gradients. `observed` returns the losses that a search sees, drawn from a generator; `noiseless`
    those that its front is scored by. The reference point of hypervolumes is the loss of the
    smallest network and the cost of the largest; `best` is the hypervolume of the true front, None
    where it isn't known.
    """

    name: str
    lower: Tensor
    upper: Tensor
    cost: Batched
    relaxed_cost: Batched
    canonical: Batched
    observed: Callable[[Tensor, torch.Generator], Tensor]
    noiseless: Batched
    reference: float
    best: float | None

    @property
    def dimensions(self) -> int:
        """The number of multipliers."""
        return len(self.lower)


def hypervolume(losses: Tensor, costs: Tensor, reference: float) -> float:
    """Return the area that `n` networks dominate up to the reference point, in the loss's unit.

    More is better. The costs are parts of the full cost, so this is by how much the best loss that
    a budget buys is less than the reference, averaged over all budgets. 0 for none.
    """
    from botorch.utils.multi_objective.hypervolume import Hypervolume

    best = front(losses, costs)
    pairs = torch.stack([losses, costs], dim=1).double()[best]
    return Hypervolume(torch.tensor([-reference, -1.0], dtype=torch.double)).compute(-pairs)


@dataclass(frozen=True)
class Posynomial:
    """A sum of `k` positive weights times products of powers `k x d` of multipliers: 1 at ones.

    Its logarithm is convex in the logarithms of the multipliers.
    """

    weights: Tensor
    powers: Tensor

    def __call__(self, alphas: Tensor) -> Tensor:
        """Return the values `n` of `n x d` multipliers."""
        return (alphas.double().log() @ self.powers.T).exp() @ (self.weights / self.weights.sum())

    def logarithm(self, logs: np.ndarray) -> tuple[float, np.ndarray]:
        """Return the logarithm and its gradient `d` at the logarithms `d` of multipliers."""
        terms = (self.weights / self.weights.sum()).numpy() * np.exp(self.powers.numpy() @ logs)
        total = terms.sum()
        return float(np.log(total)), terms @ self.powers.numpy() / total


def analytic(targets: int = _TARGETS) -> SearchProblem:
    """Return a problem in 24 dimensions whose front is that of geometric programs, at some costs.

    The cost is a chain of layers' multiply-accumulates, products of neighbouring widths. The loss
    is a power of inverse widths, and of products of two, of layers that differ in importance: it is
    no sum over layers. Both are convex in logarithms, so every local minimum is the least.
    """
    d, generator = ANALYTIC_DIMENSIONS, torch.Generator().manual_seed(24)
    eye = torch.eye(d, dtype=torch.double)
    chain = torch.cat([eye[:1], eye[1:] + eye[:-1], eye[-1:]])
    sizes = 0.7 * torch.randn(len(chain), dtype=torch.double, generator=generator)
    cost = Posynomial(sizes.exp(), chain)
    pairs = -(eye[:-_TIES] + eye[_TIES:])
    important = 1.2 * torch.randn(2 * d - _TIES, dtype=torch.double, generator=generator)
    damage = Posynomial(important.exp(), torch.cat([-eye, pairs]))

    def loss(alphas: Tensor) -> Tensor:
        return 0.5 * damage(alphas) ** 0.75

    lower, upper = torch.full((d,), LEAST).double(), torch.ones(d).double()
    reference = float(loss(lower.unsqueeze(0)))
    costs, losses = geometric_front(cost, damage, targets)
    best = np.trapezoid(reference - 0.5 * losses**0.75, costs)
    return SearchProblem(
        name="analytic",
        lower=lower,
        upper=upper,
        cost=cost,
        relaxed_cost=cost,
        canonical=torch.Tensor.clone,
        observed=lambda alphas, _: loss(alphas),
        noiseless=loss,
        reference=reference,
        best=float(best),
    )


def geometric_front(
    cost: Posynomial, damage: Posynomial, targets: int = _TARGETS
) -> tuple[np.ndarray, np.ndarray]:
    """Return costs up to 1, and the least damage at each: `targets` evenly spread, by SLSQP.

    Raises RuntimeError where a minimization does not end well.
    """
    dimensions = cost.powers.shape[1]
    logs = np.full(dimensions, np.log(LEAST))
    costs = np.linspace(np.exp(cost.logarithm(logs)[0]), 1.0, targets)
    least = [np.exp(damage.logarithm(logs)[0])]
    for target in costs[1:]:
        limit = {
            "type": "ineq",
            "fun": lambda x, target=target: np.log(target) - cost.logarithm(x)[0],
            "jac": lambda x: -cost.logarithm(x)[1],
        }
        found = minimize(
            damage.logarithm,
            logs,
            jac=True,
            method="SLSQP",
            bounds=[(np.log(LEAST), 0.0)] * dimensions,
            constraints=limit,
            options={"maxiter": 500, "ftol": 1e-10},
        )
        if not found.success:
            raise RuntimeError(f"no least damage at a cost of {target:.4f}: {found.message}")
        logs = found.x
        least.append(np.exp(found.fun))
    return costs, np.array(least)


def tabulated(grid: Grid, *, noisy: bool) -> SearchProblem:
    """Return the search of a table of networks, with the noise of a batch's losses or without."""
    costs = grid.macs.double() / grid.macs.max()
    relaxed = quadratic(grid, costs)

    def observed(alphas: Tensor, generator: torch.Generator) -> Tensor:
        rows = grid.rows(alphas)
        if not noisy:
            return grid.losses[rows]
        noise = torch.randn(len(rows), dtype=torch.double, generator=generator)
        return grid.losses[rows] + grid.noise[rows] * noise

    lower = grid.multipliers[:1].repeat(grid.dimensions)
    reference = float(grid.losses[grid.rows(lower.unsqueeze(0))])
    return SearchProblem(
        name="noisy" if noisy else "table",
        lower=lower,
        upper=grid.multipliers[-1:].repeat(grid.dimensions),
        cost=lambda alphas: costs[grid.rows(alphas)],
        relaxed_cost=relaxed,
        canonical=grid.canonical,
        observed=observed,
        noiseless=lambda alphas: grid.losses[grid.rows(alphas)],
        reference=reference,
        best=hypervolume(grid.losses, costs, reference),
    )


def quadratic(grid: Grid, costs: Tensor) -> Batched:
    """Return the least-squares polynomial of the second degree through a table's costs."""
    left, right = torch.triu_indices(grid.dimensions + 1, grid.dimensions + 1)

    def features(alphas: Tensor) -> Tensor:
        padded = torch.cat([torch.ones_like(alphas[..., :1]), alphas], dim=-1)
        return padded[..., left] * padded[..., right]

    solved = torch.linalg.lstsq(features(grid.alphas), costs.unsqueeze(1)).solution.squeeze(1)
    return lambda alphas: features(alphas.double()) @ solved


def live(trained: TrainedNetwork) -> SearchProblem:
    """Return the search of a network with frozen weights, a multiplier for each layer.

    A search sees losses on training images, with batch norm by these, as it would in training; its
    front is scored by calibrated losses on the search images.
    """
    space, net = trained.net.space, trained.net
    full = float(net.cost.macs(space.largest))
    measured: dict[Widths, float] = {}

    def observed(alphas: Tensor, generator: torch.Generator) -> Tensor:
        images = trained.data.train
        chosen = torch.randperm(len(images), generator=generator)[:LIVE_IMAGES]
        widths = [space.decode(each) for each in alphas]
        return batch_losses(net, images.normalized(chosen), widths).double()

    def noiseless(alphas: Tensor) -> Tensor:
        widths = [space.decode(each) for each in alphas]
        new = [each for each in dict.fromkeys(widths) if each not in measured]
        measured.update(zip(new, trained.evaluator.search_losses(new) if new else (), strict=True))
        return torch.tensor([measured[each] for each in widths], dtype=torch.double)

    lower = torch.full((space.dimensions,), space.alpha_min, dtype=torch.double)
    return SearchProblem(
        name="live",
        lower=lower,
        upper=torch.ones_like(lower),
        cost=lambda alphas: net.cost.macs(space.counts(alphas)).double() / full,
        relaxed_cost=lambda alphas: net.cost.macs(alphas) / full,
        canonical=space.canonical,
        observed=observed,
        noiseless=noiseless,
        reference=float(noiseless(lower.unsqueeze(0))),
        best=None,
    )


def noise_generator(seed: int, problem: SearchProblem) -> torch.Generator:
    """Return what the noise of a seed's losses is drawn from, the same for all searches."""
    return derived_generator(seed, "losses", problem.name)
