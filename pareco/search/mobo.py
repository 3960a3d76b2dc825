"""Multi-objective Bayesian optimization with random scalarizations, as ask and tell."""

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from botorch.utils.multi_objective.pareto import is_non_dominated
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search.solver import ScalarizationSolver, SolverError, search_cost_weight, target_cost
from pareco.search.surrogate import NUMERICAL_ERRORS, Surrogate

logger = logging.getLogger(__name__)

TARGETS = 3
DRAWS = 100

Key = tuple[float, ...]
Origin = Literal["uniform", "largest", "model", "random"]


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


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Multipliers to evaluate next, and why they were chosen.

    `target` is the cost that was aimed at; `predicted_loss` and `predicted_deviation` are the loss
    GP's posterior there, in the units of the losses. NaN where no GP was asked.
    """

    alpha: Tensor
    origin: Origin
    target: float = math.nan
    predicted_loss: float = math.nan
    predicted_deviation: float = math.nan


class Mobo:
    """MOBO-RS over multipliers in [alpha_min, 1]^d (PareCO, section 3).

    `cost` maps multipliers `n x d` to `n` costs. `canonical` maps multipliers `n x d` that
    describe the same network onto one representative, which it leaves as it is; by default
    only equal multipliers are one network. All randomness comes from `generator` (CPU).
    """

    def __init__(
        self,
        alpha_min: float,
        dimensions: int,
        cost: Callable[[Tensor], Tensor],
        config: SearchConfig,
        generator: torch.Generator,
        canonical: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        if not 0.0 < alpha_min < 1.0:
            raise ValueError(f"alpha_min must lie between 0 and 1, got {alpha_min}")
        if dimensions < 1:
            raise ValueError(f"dimensions must be at least 1, got {dimensions}")
        self.alpha_min, self.config, self.history = alpha_min, config, History(dimensions)
        self._cost, self._generator = cost, generator
        self._canonical = canonical if canonical is not None else torch.Tensor.clone
        self._surrogate = Surrogate(alpha_min, dimensions, config.beta)
        smallest = torch.full((dimensions,), alpha_min, dtype=torch.double)
        self._cost_range = self._cost_of(smallest), self._cost_of(torch.ones_like(smallest))

    def ask(self, n: int) -> Tensor:
        """Return the multipliers of `n` proposals, `n x d`; see `proposals`."""
        proposals = self.proposals(n)
        if not proposals:
            return self.history.alphas[:0]
        return torch.stack([proposal.alpha for proposal in proposals])

    def proposals(self, n: int) -> list[Proposal]:
        """Return `n` canonical multipliers to evaluate next, each with its origin.

        First up to `initial_widths` network-wise uniform ones, fewer where 100 draws bring no
        new network; then the largest, which ends this phase; then proposals of the GPs. Random
        multipliers stand in where fewer than two losses are measured, the GPs or their minimizer
        fail, or they find nothing new; the log has a line for each. Nothing known (told, or
        proposed in the same ask) is proposed again unless random draws bring nothing new either,
        which the log says too. Does not change the history.
        """
        known = {_key(alpha) for alpha in self._canonical(self.history.alphas)}
        proposals: list[Proposal] = []
        while len(proposals) < n:
            proposal = self._initial(known, len(self.history) + len(proposals))
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
        return proposals if solver is None else self._predicted(proposals)

    def _predicted(self, proposals: list[Proposal]) -> list[Proposal]:
        """Return the proposals with what the loss GP expects at each, for the record alone."""
        alphas = torch.stack([proposal.alpha for proposal in proposals])
        try:
            means, deviations = self._surrogate.predicted_losses(alphas)
        except NUMERICAL_ERRORS as error:
            logger.warning("no predicted losses: %s: %s", type(error).__name__, error)
            return proposals
        predictions = zip(proposals, means.tolist(), deviations.tolist(), strict=True)
        return [
            replace(proposal, predicted_loss=mean, predicted_deviation=deviation)
            for proposal, mean, deviation in predictions
        ]

    def tell(self, alpha: Tensor, loss: float | Tensor, cost: float | Tensor) -> None:
        """Append one entry (`d`, scalars) or several (`n x d`, `n`, `n`).

        A NaN loss is not measured yet. Errors as in `History.add`.
        """
        alphas = alpha.reshape(-1, alpha.shape[-1])
        losses = torch.as_tensor(loss, dtype=torch.double).reshape(-1)
        costs = torch.as_tensor(cost, dtype=torch.double).reshape(-1)
        self.history.add(alphas, losses, costs)

    def refresh(self, losses: Tensor) -> None:
        """Replace the losses of all `n` entries. Errors as in `History.refresh`."""
        self.history.refresh(losses)

    def state(self) -> dict[str, Any]:
        """Return history and hyperparameters, fit for JSON; the generator is the caller's."""
        return {"history": self.history.state(), "hyperparameters": self._surrogate.last_good}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError where its dimensions are not ours."""
        history = History.from_state(state["history"])
        if history.dimensions != self.history.dimensions:
            raise ValueError(
                f"the state has {history.dimensions} dimensions, not {self.history.dimensions}"
            )
        self.history = history
        self._surrogate.last_good = dict(state["hyperparameters"])

    def _initial(self, known: set[Key], index: int) -> Proposal | None:
        """Return a new uniform proposal or the largest network, or None once that is known."""
        largest = self._representative(self.history.alphas.new_ones(self.history.dimensions))
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
        history, measured = self.history, self.history.measured
        if int(measured.sum()) < 2:
            logger.info("no GPs: fewer than two losses are measured")
            return None
        try:
            self._surrogate.fit(
                history.alphas[measured], history.losses[measured], history.costs[measured]
            )
            return ScalarizationSolver(
                self._surrogate.optimistic_bounds,
                history.alphas[history.front()],
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
            alpha = self._representative(solver.minimize(cost_weight))
            return alpha, self._cost_of(alpha)

        front = self.history.front()
        tolerance = self.config.tolerance * self._cost_range[1]
        for _ in range(TARGETS):
            target = target_cost(
                self.history.costs[front],
                self.history.losses[front],
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
        dimensions = self.history.dimensions
        drawn = torch.rand(free or dimensions, dtype=torch.double, generator=self._generator)
        multipliers = self.alpha_min + (1 - self.alpha_min) * drawn
        return self._representative(multipliers.expand(dimensions))

    def _representative(self, alpha: Tensor) -> Tensor:
        return self._canonical(alpha.unsqueeze(0)).squeeze(0).double()

    def _cost_of(self, alpha: Tensor) -> float:
        with torch.no_grad():
            return float(self._cost(alpha.unsqueeze(0)))


def _key(alpha: Tensor) -> Key:
    """Return multipliers `d` as a hashable."""
    return tuple(alpha.tolist())
