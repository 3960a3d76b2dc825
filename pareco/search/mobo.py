"""Multi-objective Bayesian optimization with random scalarizations, as ask and tell."""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search.solver import ScalarizationSolver, SolverError, search_cost_weight, target_cost
from pareco.search.surrogate import NUMERICAL_ERRORS, Surrogate

logger = logging.getLogger(__name__)

TARGETS = 3
DRAWS = 100

Key = tuple[float, ...]
Origin = Literal["uniform", "largest", "model", "random"]


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Multipliers to evaluate next, and why they were chosen.

    `target` is the cost that was aimed at; `predicted_loss` and `predicted_deviation` are the loss
    GP's posterior there, in the units of the losses. None where no GP was asked.
    """

    alpha: Tensor
    origin: Origin
    target: float | None = None
    predicted_loss: float | None = None
    predicted_deviation: float | None = None


class Mobo:
    """MOBO-RS over multipliers in [alpha_min, 1]^d (PareCO, section 3).

    `cost` returns the cost of multipliers `d`. `canonical` maps multipliers `d` that describe the
    same network onto one representative, which it leaves as it is; by default only equal
    multipliers are one network. All randomness comes from `generator` (CPU).

    What was told is in `alphas` `n x d`, `losses` `n` and `costs` `n`, in double precision; less
    is better for loss and cost, and a loss that is NaN is not measured yet.
    """

    def __init__(
        self,
        alpha_min: float,
        dimensions: int,
        cost: Callable[[Tensor], float],
        config: SearchConfig,
        generator: torch.Generator,
        canonical: Callable[[Tensor], Tensor] = torch.Tensor.clone,
    ) -> None:
        if not 0.0 < alpha_min < 1.0:
            raise ValueError(f"alpha_min must lie between 0 and 1, got {alpha_min}")
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        self.alpha_min, self.dimensions, self.config = alpha_min, dimensions, config
        self.alphas = torch.empty(0, dimensions, dtype=torch.double)
        self.losses, self.costs = self.alphas.new_empty(0), self.alphas.new_empty(0)
        self._cost, self._canonical, self._generator = cost, canonical, generator
        self._surrogate = Surrogate(alpha_min, dimensions, config.beta)
        largest = self.alphas.new_ones(dimensions)
        self._cost_range = cost(alpha_min * largest), cost(largest)

    def ask(self, n: int) -> list[Proposal]:
        """Return `n` canonical multipliers to evaluate next, each with its origin.

        First up to `initial_widths` network-wise uniform ones, fewer where 100 draws bring no
        new network; then the largest, which ends this phase; then proposals of the GPs. Random
        multipliers stand in where fewer than two losses are measured, the GPs or their minimizer
        fail, or they find nothing new; the log has a line for each. Nothing known (told, or
        proposed in the same ask) is proposed again unless random draws bring nothing new either,
        which the log says too. Does not change what was told.
        """
        known = {_key(self._canonical(alpha)) for alpha in self.alphas}
        proposals: list[Proposal] = []
        while len(proposals) < n:
            proposal = self._initial(known, len(self.alphas) + len(proposals))
            if proposal is None:
                break
            known.add(_key(proposal.alpha))
            proposals.append(proposal)
        solver = self._solver() if len(proposals) < n else None
        while len(proposals) < n:
            targeted = None if solver is None else self._targeted(solver, known)
            proposal = self._stand_in(known) if targeted is None else targeted
            known.add(_key(proposal.alpha))
            proposals.append(proposal)
        if solver is None:
            return proposals
        alphas = torch.stack([proposal.alpha for proposal in proposals])
        means, deviations = self._surrogate.predicted_losses(alphas)
        return [
            replace(proposal, predicted_loss=mean, predicted_deviation=deviation)
            for proposal, mean, deviation in zip(
                proposals, means.tolist(), deviations.tolist(), strict=True
            )
        ]

    def tell(self, alpha: Tensor, loss: float | Tensor, cost: float | Tensor) -> None:
        """Append one entry (`d`, scalars) or several (`n x d`, `n`, `n`).

        A NaN loss is not measured yet, nor is an infinite one. Raises ValueError where lengths
        disagree, or alphas or costs are not finite; nothing is appended then.
        """
        alphas = alpha.reshape(-1, alpha.shape[-1])
        losses = torch.as_tensor(loss, dtype=torch.double).reshape(-1)
        costs = torch.as_tensor(cost, dtype=torch.double).reshape(-1)
        if alphas.shape[1] != self.dimensions or not len(alphas) == len(losses) == len(costs):
            raise ValueError(
                f"alphas must be n x {self.dimensions} and losses and costs n, got "
                f"{tuple(alphas.shape)}, {len(losses)} and {len(costs)}"
            )
        if not (alphas.isfinite().all() and costs.isfinite().all()):
            raise ValueError("alphas and costs must be finite")
        self.alphas = torch.cat([self.alphas, alphas.double()])
        self.costs = torch.cat([self.costs, costs])
        self.refresh(torch.cat([self.losses, losses]))

    def refresh(self, losses: Tensor) -> None:
        """Replace all `n` losses. Raises ValueError where they are not as many as the entries."""
        if losses.shape != self.costs.shape:
            raise ValueError(f"{len(self.costs)} losses are needed, got {tuple(losses.shape)}")
        self.losses = losses.double().where(losses.isfinite(), math.nan)

    def front(self) -> list[int]:
        """Return the indices of the measured entries on the front, cheapest first."""
        return front(self.losses, self.costs)

    def state(self) -> dict[str, Any]:
        """Return what was told and hyperparameters, fit for JSON; the generator is the caller's."""
        history = {
            "dimensions": self.dimensions,
            "alphas": self.alphas.tolist(),
            "losses": [None if math.isnan(loss) else loss for loss in self.losses.tolist()],
            "costs": self.costs.tolist(),
        }
        return {"history": history, "hyperparameters": dict(self._surrogate.last_good)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError where its dimensions are not ours."""
        history = state["history"]
        losses = [math.nan if loss is None else loss for loss in history["losses"]]
        alphas = torch.tensor(history["alphas"], dtype=torch.double)
        self.alphas, self.losses, self.costs = self.alphas[:0], self.losses[:0], self.costs[:0]
        self.tell(
            alphas.reshape(-1, history["dimensions"]),
            torch.tensor(losses, dtype=torch.double),
            torch.tensor(history["costs"], dtype=torch.double),
        )
        self._surrogate.last_good = dict(state["hyperparameters"])

    def _initial(self, known: set[Key], index: int) -> Proposal | None:
        """Return a new uniform proposal or the largest network, or None once that is known."""
        largest = self._canonical(self.alphas.new_ones(self.dimensions))
        if _key(largest) in known:
            return None
        if index < self.config.initial_widths:
            uniform = self._unknown(known | {_key(largest)}, free=1)
            if uniform is not None:
                return Proposal(alpha=uniform, origin="uniform")
            logger.info("no new uniform network in %d draws: %d entries precede", DRAWS, index)
        return Proposal(alpha=largest, origin="largest")

    def _solver(self) -> ScalarizationSolver | None:
        """Return a solver on GPs fitted to the measured entries, or None where that fails."""
        measured = self.losses.isfinite()
        if int(measured.sum()) < 2:
            logger.info("no GPs: fewer than two losses are measured")
            return None
        try:
            self._surrogate.fit(self.alphas[measured], self.losses[measured], self.costs[measured])
            return ScalarizationSolver(
                self._surrogate.optimistic_bounds,
                self.alphas[self.front()],
                self.alpha_min,
                self.config,
                self._generator,
            )
        except NUMERICAL_ERRORS as error:
            logger.warning("no GPs: %s: %s", type(error).__name__, error)
            return None

    def _targeted(self, solver: ScalarizationSolver, known: set[Key]) -> Proposal | None:
        """Return unknown canonical multipliers near a newly drawn target cost.

        Where the nearest is known, the next nearest trial of the binary search stands in, then
        another target's; None where all of these are known or the solver fails.
        """

        def propose(cost_weight: float) -> tuple[Tensor, float]:
            alpha = self._canonical(solver.minimize(cost_weight))
            return alpha, self._cost(alpha)

        best = self.front()
        tolerance = self.config.tolerance * self._cost_range[1]
        for _ in range(TARGETS):
            target = target_cost(
                self.costs[best],
                self.losses[best],
                self._cost_range,
                self._generator,
                self.config.target_bins,
            )
            try:
                trials = search_cost_weight(propose, target, tolerance, self.config.trials)
            except SolverError as error:
                logger.warning("no proposal of the GPs: %s", error)
                return None
            for alpha in trials:
                if _key(alpha) not in known:
                    return Proposal(alpha=alpha, origin="model", target=target)
        logger.info("no proposal of the GPs: those for %d targets are known", TARGETS)
        return None

    def _stand_in(self, known: set[Key]) -> Proposal:
        """Return random multipliers that are not known, else some that are; logs which."""
        alpha = self._unknown(known)
        if alpha is None:
            logger.warning("random proposal: nothing unknown in %d draws, one is repeated", DRAWS)
            alpha = self._random()
        else:
            logger.info("random proposal")
        return Proposal(alpha=alpha, origin="random")

    def _unknown(self, known: set[Key], free: int | None = None) -> Tensor | None:
        """Return the first of 100 draws of `_random` that is not known, or None."""
        draws = (self._random(free) for _ in range(DRAWS))
        return next((alpha for alpha in draws if _key(alpha) not in known), None)

    def _random(self, free: int | None = None) -> Tensor:
        """Return canonical multipliers `d`, `free` of them (by default all) drawn by itself."""
        drawn = torch.rand(free or self.dimensions, dtype=torch.double, generator=self._generator)
        multipliers = self.alpha_min + (1 - self.alpha_min) * drawn
        return self._canonical(multipliers.expand(self.dimensions))


def _key(alpha: Tensor) -> Key:
    """Return multipliers `d` as a hashable."""
    return tuple(alpha.tolist())


def front(losses: Tensor | Sequence[float], costs: Tensor | Sequence[float]) -> list[int]:
    """Return the indices of the non-dominated (loss, cost) pairs, cheapest first.

    Less is better in both; of equal pairs the first stands. NaN losses are never on the front.
    """
    pairs = torch.stack([torch.as_tensor(each, dtype=torch.double) for each in (losses, costs)], 1)
    known = pairs.isfinite().all(1).nonzero().flatten()
    values = pairs[known].numpy()
    ascending = np.lexsort((values[:, 0], values[:, 1]))  # by cost, then loss, then place
    ordered = values[ascending, 0]
    below = np.minimum.accumulate(np.append(np.inf, ordered))[:-1]
    return known[ascending[ordered < below]].tolist()
