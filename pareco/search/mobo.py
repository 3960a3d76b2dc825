"""Multi-objective Bayesian optimization with random scalarizations, as ask and tell."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search.exact import ExactSolver
from pareco.search.problem import CostError, Found, Key, Problem, SolverError, key
from pareco.search.solver import ScalarizationSolver
from pareco.search.surrogate import NUMERICAL_ERRORS, Surrogate

logger = logging.getLogger(__name__)

SOLVERS = {"tchebyshev": ScalarizationSolver, "exact": ExactSolver}

Origin = Literal["uniform", "largest", "model", "random"]
Batched = Callable[[Tensor], Tensor]
Values = float | Sequence[Any] | np.ndarray | Tensor

_ROUNDING = 1e-9  # of the box, within which coordinates are the same


@dataclass(frozen=True, kw_only=True)
class Proposal:
    """Coordinates to evaluate next, and why they were chosen.

    `target` is the cost that was aimed at; `predicted_loss` and `predicted_deviation` are the loss
    GP's posterior there, in the units of the losses. None where no GP was asked. `gaps` is how many
    targets, its own included, no minimizer came near: the front has a gap there.
    """

    alpha: Tensor
    origin: Origin
    target: float | None = None
    predicted_loss: float | None = None
    predicted_deviation: float | None = None
    gaps: int = 0


def _numbers(values: Values) -> Tensor:
    return torch.as_tensor(values, dtype=torch.double).detach()


@contextmanager
def _callers_errors() -> Iterator[None]:
    """Raise what the caller's function of costs has raised."""
    try:
        yield
    except CostError as error:
        raise error.error from None


class Mobo:
    """MOBO-RS in a box (PareCO, section 3): loss and cost, both to be small.

    `lower` and `upper` are the box, `d` each. `cost` returns the exact costs `m` of `m x d`
    coordinates; without it costs are told with the losses, and the exact solver can't be used.
    With it the cost must not fall as a coordinate rises unless `monotone` is False. `canonical`
    maps coordinates `m x d` that describe the same thing onto one representative, which it leaves
    as it is; by default only equal ones are the same. All randomness comes from `generator` (CPU).

    What was told is in `alphas` `n x d`, `losses` `n` and `costs` `n`, in double precision; a loss
    that is NaN is not measured yet.
    """

    def __init__(
        self,
        lower: Tensor | Sequence[float],
        upper: Tensor | Sequence[float],
        config: SearchConfig,
        generator: torch.Generator,
        *,
        cost: Batched | None = None,
        monotone: bool = True,
        canonical: Batched = torch.Tensor.clone,
    ) -> None:
        low, high = (torch.as_tensor(each, dtype=torch.double) for each in (lower, upper))
        if not (low.shape == high.shape and low.dim() == 1 and len(low) and (low < high).all()):
            raise ValueError(f"lower must lie below upper in each dimension, got {low} and {high}")
        self.lower, self.upper, self.dimensions = low, high, len(low)
        self.config = config.resolved()
        self._solver_class = SOLVERS[self.config.solver or "tchebyshev"]
        if cost is None and "cost" not in self._solver_class.outputs:
            raise ValueError(f"search.solver {self.config.solver!r} needs the function cost")
        self.alphas = torch.empty(0, self.dimensions, dtype=torch.double)
        self.losses, self.costs = self.alphas.new_empty(0), self.alphas.new_empty(0)
        self._cost, self._monotone, self._canonical = cost, monotone, canonical
        self._generator, self._known = generator, set[Key]()
        self._surrogate = Surrogate(self.dimensions, self.config, self._solver_class.outputs)
        self._largest = canonical(high.unsqueeze(0)).squeeze(0)

    @_callers_errors()
    def ask(self, n: int) -> list[Proposal]:
        """Return `n` canonical coordinates to evaluate next, each with its origin.

        First up to `initial_widths` uniform ones, fewer where `draws` draws bring
        nothing new; then the largest, which ends this phase; then proposals of the GPs. Random
        coordinates stand in where fewer than two losses are measured, the GPs or their minimizer
        fail, or they find nothing new; the log has a line for each. Nothing known (told, or
        proposed in the same ask) is proposed again unless random draws bring nothing new either,
        which the log says too. Does not change what was told. Raises what the function cost does,
        and ValueError where that returns no such costs, or they fall and should not.
        """
        known, proposals = set(self._known), list[Proposal]()
        while len(proposals) < n:
            proposal = self._initial(known, len(self.alphas) + len(proposals))
            if proposal is None:
                break
            known.add(key(proposal.alpha))
            proposals.append(proposal)
        wanted = n - len(proposals)
        if not wanted:
            return proposals
        fitted = self._fitted()
        if fitted:
            proposals += self._modelled(wanted, known)
        while len(proposals) < n:
            proposals.append(self._stand_in(known))
            known.add(key(proposals[-1].alpha))
        return self._with_predictions(proposals) if fitted else proposals

    @_callers_errors()
    def tell(self, alpha: Values, loss: Values, cost: Values | None = None) -> None:
        """Append one entry (`d`, scalars) or several (`n x d`, `n`, `n`).

        The cost is told where no function computes it, and only there. A NaN loss is not measured
        yet, nor is an infinite one. Raises ValueError where lengths disagree, alphas or costs are
        not finite, or alphas lie outside the box, and as `ask` of the function cost; nothing is
        appended then.
        """
        if (cost is None) == (self._cost is None):
            raise ValueError("the cost is either computed by the function cost or told: not both")
        alphas = torch.atleast_2d(_numbers(alpha))
        self._check(alphas)
        told = _numbers(cost).reshape(-1) if cost is not None else self._exact_costs(alphas)
        losses = _numbers(loss).reshape(-1)
        self._check_lengths(alphas, losses, told)
        self._append(alphas, losses, told)

    def _check(self, alphas: Tensor) -> None:
        """Raise ValueError unless these are finite coordinates `n x d` in the box.

        Or beside it, where `canonical` maps the nearest in the box onto them.
        """
        if alphas.dim() != 2 or alphas.shape[1] != self.dimensions:
            raise ValueError(f"alphas must be n x {self.dimensions}, got {tuple(alphas.shape)}")
        if not alphas.isfinite().all():
            raise ValueError("alphas and costs must be finite")
        nearest = alphas.clamp(self.lower, self.upper)
        if torch.equal(nearest, alphas):
            return
        away = torch.stack([nearest - alphas, self._canonical(nearest) - alphas]).abs()
        outside = (away > _ROUNDING * (self.upper - self.lower)).any(2).all(0)
        if outside.any():
            box, got = f"{self.lower.tolist()} to {self.upper.tolist()}", alphas[outside][0]
            raise ValueError(f"alphas must lie in the box from {box}, got {got.tolist()}")

    def _check_lengths(self, alphas: Tensor, losses: Tensor, costs: Tensor) -> None:
        if not len(alphas) == len(losses) == len(costs):
            raise ValueError(
                f"alphas must be n x {self.dimensions} and losses and costs n, got "
                f"{tuple(alphas.shape)}, {len(losses)} and {len(costs)}"
            )
        if not costs.isfinite().all():
            raise ValueError("alphas and costs must be finite")

    def _append(self, alphas: Tensor, losses: Tensor, costs: Tensor) -> None:
        self.alphas = torch.cat([self.alphas, alphas])
        self.costs = torch.cat([self.costs, costs])
        self._known |= {key(each) for each in self._canonical(alphas)}
        self.refresh(torch.cat([self.losses, losses]))

    def refresh(self, losses: Values) -> None:
        """Replace all `n` losses. Raises ValueError where they are not as many as the entries."""
        told = _numbers(losses)
        if told.shape != self.costs.shape:
            raise ValueError(f"{len(self.costs)} losses are needed, got {tuple(told.shape)}")
        self.losses = told.where(told.isfinite(), math.nan)

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
        return {"history": history, "fits": self._surrogate.state()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from `state()`. Raises ValueError, and changes nothing, if it does not fit."""
        history = state["history"]
        losses = _numbers([math.nan if loss is None else loss for loss in history["losses"]])
        if history["dimensions"] != self.dimensions:
            raise ValueError(f"dimensions {history['dimensions']} are not our {self.dimensions}")
        alphas = _numbers(history["alphas"]).reshape(-1, self.dimensions)
        costs = _numbers(history["costs"])
        self._check(alphas)
        self._check_lengths(alphas, losses, costs)
        self._surrogate.load_state(state.get("fits", {}))  # older states have none
        self.alphas, self.losses, self.costs = self.alphas[:0], self.losses[:0], self.costs[:0]
        self._known = set()
        self._append(alphas, losses, costs)

    def _initial(self, known: set[Key], index: int) -> Proposal | None:
        """Return a new uniform proposal or the largest network, or None once that is known."""
        largest = key(self._largest)
        if largest in known:
            return None
        if index < self.config.initial_widths:
            uniform = self._unknown(known | {largest}, free=1)
            if uniform is not None:
                return Proposal(alpha=uniform, origin="uniform")
            draws = self.config.draws
            logger.info("no new uniform network in %d draws: %d entries precede", draws, index)
        return Proposal(alpha=self._largest, origin="largest")

    def _fitted(self) -> bool:
        """Return whether GPs could be fitted to the measured entries."""
        measured = self.losses.isfinite()
        if int(measured.sum()) < 2:
            logger.info("no GPs: fewer than two losses are measured")
            return False
        outputs = {"loss": self.losses, "cost": self.costs}
        values = [outputs[name][measured] for name in self._solver_class.outputs]
        try:
            self._surrogate.fit(self._points(self.alphas[measured]), *values)
        except NUMERICAL_ERRORS as error:
            logger.warning("no GPs: %s: %s", type(error).__name__, error)
            return False
        return True

    def _modelled(self, count: int, known: set[Key]) -> list[Proposal]:
        """Return up to `count` proposals of the solver, which become known."""
        found: list[Found] = []
        try:
            solver = self._solver_class(self._problem(), self._surrogate)
            for each in solver.proposals(count, known):
                found.append(each)
        except SolverError as error:
            logger.warning("no proposal of the GPs: %s", error)
        except FloatingPointError as error:
            logger.warning("no GPs: %s: %s", type(error).__name__, error)
        else:
            if len(found) < count:
                targets = self.config.targets
                logger.info("no proposal of the GPs: those for %d targets are known", targets)
        return [
            Proposal(alpha=each.alpha, origin="model", target=each.target, gaps=each.gaps)
            for each in found
        ]

    def _problem(self) -> Problem:
        best = self.front()
        return Problem(
            config=self.config,
            generator=self._generator,
            canonical=lambda points: self._canonical(self._alphas(points)),
            points=self._points,
            costs=self._costs,
            monotone=self._monotone,
            cost_range=self._cost_range(),
            front=self._points(self.alphas[best]).clamp(0.0, 1.0),
            front_costs=self.costs[best],
            front_losses=self.losses[best],
        )

    def _cost_range(self) -> tuple[float, float]:
        """Return the cost of the box's lowest and highest corner, or the least and most told."""
        if self._cost is None:
            return float(self.costs.min()), float(self.costs.max())
        low, high = self._exact_costs(torch.stack([self.lower, self.upper])).tolist()
        if self._monotone and high < low:
            raise ValueError(
                f"the function cost falls, from {low:g} to {high:g}, as all coordinates rise: give "
                "monotone=False"
            )
        return min(low, high), max(low, high)

    def _costs(self, points: Tensor) -> Tensor:
        """Return the costs `m` of points `m x d`: exact, or the GP's means."""
        if self._cost is None:
            return self._surrogate.predicted(1, points)[0]
        return self._exact_costs(self._alphas(points))

    def _exact_costs(self, alphas: Tensor) -> Tensor:
        """Return the costs `m` of coordinates `m x d` by the function. Raises CostError."""
        assert self._cost is not None
        if not len(alphas):  # which a function may well not take
            return alphas.new_empty(0)
        try:
            costs = _numbers(self._cost(alphas))
            if costs.shape != (len(alphas),):
                wanted = f"{len(alphas)} costs of {len(alphas)} x {self.dimensions}"
                raise ValueError(f"the function cost must return {wanted}, got {(*costs.shape,)}")
            if not costs.isfinite().all():
                at = alphas[~costs.isfinite()][0].tolist()
                raise ValueError(f"the function cost is not finite at {at}")
        except NUMERICAL_ERRORS as error:
            raise CostError(error) from error
        return costs

    def _points(self, alphas: Tensor) -> Tensor:
        return (alphas - self.lower) / (self.upper - self.lower)

    def _alphas(self, points: Tensor) -> Tensor:
        return torch.lerp(self.lower, self.upper, points)

    def _with_predictions(self, proposals: list[Proposal]) -> list[Proposal]:
        alphas = torch.stack([proposal.alpha for proposal in proposals])
        means, deviations = self._surrogate.predicted(0, self._points(alphas))
        return [
            replace(proposal, predicted_loss=mean, predicted_deviation=deviation)
            for proposal, mean, deviation in zip(
                proposals, means.tolist(), deviations.tolist(), strict=True
            )
        ]

    def _stand_in(self, known: set[Key]) -> Proposal:
        """Return random coordinates that are not known, else some that are; logs which."""
        alpha = self._unknown(known)
        if alpha is None:
            text = "random proposal: nothing unknown in %d draws, one is repeated"
            logger.warning(text, self.config.draws)
            alpha = self._random()
        else:
            logger.info("random proposal")
        return Proposal(alpha=alpha, origin="random")

    def _unknown(self, known: set[Key], free: int | None = None) -> Tensor | None:
        """Return the first of so many draws of `_random` that is not known, or None."""
        draws = (self._random(free) for _ in range(self.config.draws))
        return next((alpha for alpha in draws if key(alpha) not in known), None)

    def _random(self, free: int | None = None) -> Tensor:
        """Return canonical coordinates `d`, `free` of them (by default all) drawn by itself."""
        drawn = torch.rand(free or self.dimensions, dtype=torch.double, generator=self._generator)
        return self._canonical(self._alphas(drawn.expand(1, self.dimensions))).squeeze(0)


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
