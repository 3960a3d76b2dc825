"""Multi-objective Bayesian optimization with random scalarizations, as ask and tell."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pareco.search.history import History
from pareco.search.solver import ScalarizationSolver, search_cost_weight
from pareco.search.surrogate import Surrogate, SurrogateError
from pareco.search.targets import target_cost

logger = logging.getLogger(__name__)

TARGET_RETRIES = 2
RANDOM_RETRIES = 100


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of the search; the defaults are the paper's where it names them."""

    initial_widths: int = 20
    """Entries drawn as network-wise uniform multipliers before the largest and the GPs."""

    beta: float = 0.1
    """Exploration: the optimistic bounds are mu - sqrt(beta) sigma."""

    reference: float = -3.0
    """Reference point b of the scalarization, in standard deviations."""

    augmentation: float = 1e-6
    """Weight of the sum that augments the Tchebyshev maximum."""

    target_bins: int = 50
    """Bins of the cost range from which a target cost is drawn."""

    trials: int = 10
    """Most trials of the binary search on the cost's weight."""

    tolerance: float = 0.02
    """Accepted distance from the target cost, as a fraction of the full network's cost."""

    raw_samples: int = 256
    """Sobol points from which the inner optimizer's starts are picked."""

    starts: int = 4
    """Points that the inner optimizer refines for each weight."""

    iterations: int = 30
    """Most L-BFGS-B iterations of the inner optimizer for each weight."""

    def __post_init__(self) -> None:
        for name in ("target_bins", "trials", "raw_samples", "starts", "iterations"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("initial_widths", "beta", "augmentation", "tolerance"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} must not be negative, got {getattr(self, name)}")
        if not self.reference < 0:
            raise ValueError(f"reference must be negative, got {self.reference}")


class Mobo:
    """MOBO-RS over multipliers in [alpha_min, 1]^d (PareCO, section 3; DESIGN section 4, "Ask").

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
        self._cost_range = (
            self._cost_of(torch.full((dimensions,), alpha_min, dtype=torch.double)),
            self._cost_of(torch.ones(dimensions, dtype=torch.double)),
        )

    def ask(self, n: int) -> Tensor:
        """Return `n x d` canonical multipliers to evaluate next.

        First `initial_widths` network-wise uniform ones, then the largest network, then
        proposals of the GPs; random multipliers where fewer than two losses are measured or the
        GPs can't be had. Nothing known (told, or proposed in the same ask) is proposed again
        unless nothing new is found; the log says so. Does not change the history.
        """
        known = {_key(alpha) for alpha in self._canonical(self.history.alphas)}
        initial = self.config.initial_widths
        solver = self._solver() if len(self.history) + n > initial else None
        largest = self._representative(self.history.alphas.new_ones(self.history.dimensions))
        proposals = []
        for index in range(len(self.history), len(self.history) + n):
            if index < initial:
                proposal = self._unknown(known, self._uniform)
            elif index == initial and _key(largest) not in known:
                proposal = largest
            elif solver is None:
                proposal = self._unknown(known, self._random)
            else:
                proposal = self._unknown(known, lambda: self._targeted(solver))
            known.add(_key(proposal))
            proposals.append(proposal)
        return torch.stack(proposals) if proposals else self.history.alphas[:0]

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

    def _solver(self) -> ScalarizationSolver | None:
        """Return a solver on GPs fitted to the measured entries, or None where that fails."""
        history, config = self.history, self.config
        measured = history.measured
        if int(measured.sum()) < 2:
            return None
        try:
            self._surrogate.fit(
                history.alphas[measured], history.losses[measured], history.costs[measured]
            )
        except SurrogateError as error:
            logger.warning("random proposals: %s", error)
            return None
        return ScalarizationSolver(
            self._surrogate.optimistic_bounds,
            history.alphas[history.front()],
            self.alpha_min,
            self._generator,
            raw_samples=config.raw_samples,
            starts=config.starts,
            iterations=config.iterations,
            reference=config.reference,
            augmentation=config.augmentation,
        )

    def _targeted(self, solver: ScalarizationSolver) -> Tensor:
        """Return the solver's canonical multipliers `d` for a newly drawn target cost."""
        front = self.history.front()
        target = target_cost(
            self.history.costs[front],
            self.history.losses[front],
            self._cost_range,
            self._generator,
            self.config.target_bins,
        )

        def propose(cost_weight: float) -> tuple[Tensor, float]:
            alpha = self._representative(solver.minimize(cost_weight))
            return alpha, self._cost_of(alpha)

        tolerance = self.config.tolerance * self._cost_range[1]
        return search_cost_weight(propose, target, tolerance, self.config.trials)

    def _unknown(self, known: set[tuple[float, ...]], draw: Callable[[], Tensor]) -> Tensor:
        """Return a draw that is not known, else a random one, else one that is known."""
        proposal = draw()
        for retry in range(TARGET_RETRIES + RANDOM_RETRIES):
            if _key(proposal) not in known:
                return proposal
            proposal = draw() if retry < TARGET_RETRIES else self._random()
        logger.warning("no unknown multipliers in %d draws: one is repeated", RANDOM_RETRIES)
        return proposal

    def _uniform(self) -> Tensor:
        """Return network-wise uniform canonical multipliers `d`."""
        return self._random(1)

    def _random(self, free: int | None = None) -> Tensor:
        """Return canonical multipliers `d`, `free` of them (by default all) drawn by itself."""
        dimensions = self.history.dimensions
        drawn = torch.rand(free or dimensions, dtype=torch.double, generator=self._generator)
        return self._representative(
            (self.alpha_min + (1 - self.alpha_min) * drawn).expand(dimensions)
        )

    def _representative(self, alpha: Tensor) -> Tensor:
        return self._canonical(alpha.unsqueeze(0)).squeeze(0).double()

    def _cost_of(self, alpha: Tensor) -> float:
        with torch.no_grad():
            return float(self._cost(alpha.unsqueeze(0)))


def _key(alpha: Tensor) -> tuple[float, ...]:
    """Return multipliers `d` as a hashable."""
    return tuple(alpha.tolist())
