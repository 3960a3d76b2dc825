"""What a search has visited, and what it expected there: the record behind two figures."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Self

from pareco.search import Origin, Proposal
from pareco.widths import Widths


@dataclass(kw_only=True)
class Visit:
    """One entry of a search's history, with the circumstances in which it was chosen.

    Losses are in nats, costs in the objective's units; None where there is none.
    """

    widths: Widths
    step: int | None
    """The training step before which it was chosen; None once training had ended."""

    origin: Origin
    target_cost: float | None = None
    """The cost that was aimed at."""

    predicted_loss: float | None = None
    predicted_deviation: float | None = None
    """The GP's posterior standard deviation of the loss, observation noise left out."""

    refreshed_loss: float | None = None
    """The first loss that was measured afterwards."""

    final_loss: float | None = None
    """The last loss that was measured."""

    @classmethod
    def of(cls, proposal: Proposal, widths: Widths, step: int | None) -> Self:
        """Return the visit of a proposal that decodes to these widths."""
        return cls(
            widths=widths,
            step=step,
            origin=proposal.origin,
            target_cost=_known(proposal.target),
            predicted_loss=_known(proposal.predicted_loss),
            predicted_deviation=_known(proposal.predicted_deviation),
        )

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """Return the visit that `state` described."""
        return cls(**{**state, "widths": Widths(state["widths"])})

    def state(self) -> dict[str, Any]:
        """Return all fields, ready for JSON."""
        return {**asdict(self), "widths": list(self.widths)}

    def measured(self, loss: float) -> None:
        """Take note of a loss; one that is not finite was not measured."""
        value = _known(loss)
        self.final_loss = value
        if self.refreshed_loss is None:
            self.refreshed_loss = value


def _known(value: float) -> float | None:
    return value if math.isfinite(value) else None
