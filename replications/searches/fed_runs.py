"""A run of the feeding study: a job that also tests what its search went by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from pareco.evaluation import Counts
from pareco.files import write_text
from pareco.reporting.reading import read_json, read_table
from pareco.reporting.statistics import area_under_front, errors_at
from pareco.schema import FRONT_TYPES, PHASES, RESULT, SESSIONS, VISIT_TYPES
from pareco.widths import Widths
from replications.searches.feeding_results import PERCENTS, Fed
from replications.searches.trained import TrainedNetwork
from replications.sweep import Job

VISITS = 64
"""Most visits of a run whose losses are compared, evenly spread over those that have one."""
TESTED = "asked_and_tested.csv"


@dataclass(frozen=True, kw_only=True)
class FedRun(Job):
    """A run whose search is fed in one way, within a budget."""

    way: str
    budget: float
    on_record: bool = False
    """Whether the record has it already, from wherever it was done."""

    def __str__(self) -> str:
        """Return way, budget and seed."""
        return f"{self.way} {self.budget:g} seed {self.seed}"

    @property
    def done(self) -> bool:
        """Whether it is on record, or has finished and the losses of its visits are tested."""
        return self.on_record or (super().done and (self.folder / TESTED).exists())

    def follow_up(self) -> None:
        """Test the networks of visits, which are in a file of the run's folder then."""
        visits = read_table(self.folder / "visits.csv", VISIT_TYPES).dropna(subset=["asked_loss"])
        places = np.linspace(0, len(visits) - 1, min(VISITS, len(visits))).round()
        chosen = visits.iloc[places.astype(int)][["visit", "widths", "macs", "asked_loss"]]
        widths = [Widths(map(int, each.split())) for each in chosen["widths"]]
        tested = chosen.assign(test_loss=self._test_losses(widths) if widths else [])
        text = tested.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        write_text(self.folder / TESTED, text)

    def _test_losses(self, widths: list[Widths]) -> list[float]:
        """Return the calibrated losses on all test images, as the run would measure them."""
        trained = TrainedNetwork(folder=self.folder, images=self.machine.images, search_images=0)
        test = trained.data.test.held(trained.experiment.evaluation.batch_size)
        counts = trained.evaluator.counts_on(test, widths, Counts(), lambda counts: None)
        return [each.loss for each in counts.measurements]

    def row(self) -> Fed:
        """Return what the run came to."""
        result = read_json(self.folder / "result.json", RESULT)
        front = read_table(self.folder / "front.csv", FRONT_TYPES)
        cost, tested = result.cost, pd.read_csv(self.folder / TESTED)
        full = float(result.full_costs[cost])
        errors = errors_at(front, cost, [percent * full / 100 for percent in PERCENTS])
        spent = {phase: (result.ledger or {})[phase] for phase in PHASES}
        macs = {name: each.forward_macs + each.backward_macs for name, each in spent.items()}
        plain, held = rank_correlations(tested)
        at = zip(PERCENTS, errors.tolist(), strict=True)
        return Fed(
            way=self.way,
            budget=self.budget,
            seed=self.seed,
            visits=len(tested),
            rank_correlation=plain,
            rank_correlation_at_equal_macs=held,
            area=area_under_front(front, cost, full, PERCENTS[0]),
            **{f"error_at_{percent}": error for percent, error in at},
            **{f"{phase}_macs": macs[phase] for phase in ("training", "search", "choice")},
            seconds=result.timing["seconds"],
        )

    def session(self) -> dict[str, Any]:
        """Return the environment that the run began in."""
        return dict(read_json(self.folder / "env.json", SESSIONS)[0])


def rank_correlations(tested: pd.DataFrame) -> tuple[float, float]:
    """Return Spearman's correlation of asked and test loss, and the one with MACs held.

    NaN for fewer than three networks, or where one of the three numbers is the same for all.
    """
    names = ["asked_loss", "test_loss", "macs"]
    if len(tested) < 3 or (tested[names].nunique() < 2).any():
        return float("nan"), float("nan")
    own = tested[names].rank().corr().to_numpy()
    rest = np.sqrt(max((1 - own[0, 2] ** 2) * (1 - own[1, 2] ** 2), 0.0))
    held = (own[0, 1] - own[0, 2] * own[1, 2]) / rest if rest > 1e-9 else float("nan")
    return float(own[0, 1]), float(held)
