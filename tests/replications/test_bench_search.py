"""The bench of the search on a history so short that its times say nothing: what it writes."""

import csv
import io
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from pareco.search import Proposal
from pareco.training.plan import Planner
from pareco.training.preparation import planner_before
from replications import bench_search
from replications.bench import BenchCommand, as_csv
from replications.bench_search import SearchRow, history, targets_met
from tests.experiments import TINY


def planner() -> Planner:
    return planner_before(TINY)


def test_all_asks_are_written_beside_a_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_search, "CASES", ("digits",))
    monkeypatch.setattr(bench_search, "SHARES", ())
    monkeypatch.setattr(bench_search, "ENTRIES", (22,))
    monkeypatch.setattr(bench_search, "ASKS", {"tchebyshev": 1, "exact": 5})
    threads, shown = torch.get_num_threads(), io.StringIO()
    command = BenchCommand(results=tmp_path, only="search")
    status = command.carried_out(Console(file=shown, width=160))
    assert torch.get_num_threads() == threads
    assert [each.name for each in (tmp_path / "bench").iterdir()] == ["search.csv", "search.json"]
    with (tmp_path / "bench" / "search.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    found = {(row["what"], row["solver"]): row for row in rows}
    fit = float(found["fit (s)", ""]["median"])
    for solver, what, count in (
        ("tchebyshev", "ask that fits", "1"),
        ("exact", "ask that fits", "1"),
        ("exact", "ask", "4"),
    ):
        row = found[f"{what} (s)", solver]
        assert (row["entries"], row["values"], row["dimensions"]) == ("22", count, "8")
        ratio = float(found[f"{what} / fit", solver]["median"])
        assert ratio == pytest.approx(float(row["median"]) / fit, abs=0.01, rel=0.05)  # as written
    assert ("ask (s)", "tchebyshev") not in found  # each of its asks fits
    missed = float(found["targets met (%)", "exact"]["median"]) < 95
    missed |= float(found["targets met (%)", "tchebyshev"]["median"]) < 95
    assert status == int(missed)
    assert "targets in gaps (%)" in shown.getvalue()


def test_targets_in_gaps_are_counted_apart() -> None:
    """By hand: near, near after a gap, missed, missed in a gap, and one without a target."""
    ours = planner()
    full, tolerance = ours.space.largest, ours.experiment.search.tolerance
    cost = float(ours.cost.macs(full))
    largest = ours.space.encode(full)
    far = cost * (1 - 1.5 * tolerance)
    proposals = [
        Proposal(alpha=largest, origin="model", target=cost * (1 - 0.5 * tolerance)),
        Proposal(alpha=largest, origin="model", target=cost, gaps=1),
        Proposal(alpha=largest, origin="model", target=far),
        Proposal(alpha=largest, origin="model", target=far, gaps=2),
        Proposal(alpha=largest, origin="random"),
    ]
    met, gaps = targets_met(ours, proposals)
    assert met == pytest.approx(100 * 2 / 3)
    assert gaps == pytest.approx(100 * 3 / 6)  # one near, one near and a gap, one missed, two gaps
    assert math.isnan(targets_met(ours, proposals[-1:])[0])


def test_a_history_is_of_the_space_and_begins_with_the_largest() -> None:
    ours = planner()
    alphas, losses = history(ours, 30)
    assert torch.equal(alphas[0], ours.space.encode(ours.space.largest))
    assert torch.equal(ours.space.canonical(alphas), alphas)
    assert len(losses) == 30
    assert losses[0] < losses.median()  # less pruned, less loss
    assert all(map(torch.equal, history(ours, 30), (alphas, losses)))


def test_the_share_of_the_search_is_the_plans() -> None:
    row = bench_search._share_row("digits", "smoke")
    assert (row.experiment, row.solver, row.goal) == ("digits-smoke", "exact", 10.0)
    assert 0 < row.median < 100


def test_goals_are_met_from_their_side() -> None:
    row = bench_search._row(
        "ask (s)", [1.0, 2.0, 3.0], experiment="a", solver="", dimensions=2, entries=None
    )
    assert isinstance(row, SearchRow)
    assert (row.median, row.lower, row.upper, row.values) == (2.0, 1.5, 2.5, 3)
    assert row.met
    assert not replace(row, goal=1.9).met
    assert replace(row, goal=1.9, more_is_better=True).met
    assert as_csv([row]).splitlines()[1] == "ask (s),a,,2,,2.0000,1.5000,2.5000,3,,False"
