"""What a run spends: multiply-accumulates and seconds, booked where a network runs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

from pareco.schema import PHASES, Phase, Spending

Macs = dict[Phase, tuple[int, int]]
"""Of forward and of backward passes."""


def nothing() -> dict[Phase, Spending]:
    """Return a phase's spending for each phase, of which nothing is spent."""
    return {
        phase: Spending(forward_macs=0, backward_macs=0, seconds=0.0, device_seconds=0.0)
        for phase in PHASES
    }


class Ledger:
    """What a run has spent in each phase, over all its processes and sessions.

    A network that has one books every pass here as it runs (`SlimmableNet.book_in`), under the
    phase that the pipeline is in: no method and no caller can forget to. MACs are the cost model's
    times the images; a backward pass counts two forward ones, whatever of it is left out, such as
    the gradient of the images. Seconds are of the wall clock, device seconds those times the
    processes. What one process does is its own until all of them `settle`; only what is settled is
    in the totals and in a checkpoint.

    *lost* is what an interruption makes a run do twice, once of the two times, so that the other
    phases have the MACs of a run that nothing befell (their seconds are those that it took). It is
    the least that was lost: after a signal all that has to be done again, with its time; after a
    kill the gradient steps that the metrics file has beyond the checkpoint, with their search, but
    neither their time, nor what was measured once training had ended, nor what an earlier kill has
    cost if no checkpoint was written since.
    """

    def __init__(self, spent: Mapping[str, Mapping[str, Any]] | None = None) -> None:
        """Go on from what `state` returned, or else from nothing."""
        self._spent = nothing()
        self._spent |= {phase: Spending(**spent[phase]) for phase in PHASES if spent}
        self._own = nothing()
        self._phase: Phase | None = None
        self._since = 0.0

    @contextmanager
    def during(self, phase: Phase) -> Iterator[None]:
        """Book under this phase inside the `with` block, then under the one before again."""
        before = self._phase
        self._enter(phase)
        try:
            yield
        finally:
            self._enter(before)

    def _enter(self, phase: Phase | None) -> None:
        """Book the time since the last call under the phase that it was, and go on in another."""
        now = time.perf_counter()
        if self._phase is not None:
            self._own[self._phase].seconds += now - self._since
        self._phase, self._since = phase, now

    def book(self, *, forward_macs: int = 0, backward_macs: int = 0) -> None:
        """Add passes of this process. Raises `RuntimeError` outside of any phase."""
        if self._phase is None:
            raise RuntimeError("a network of a run may run only in a phase of its ledger")
        own = self._own[self._phase]
        own.forward_macs += forward_macs
        own.backward_macs += backward_macs

    def settle(self, everyones: Callable[[Macs], list[Macs]]) -> None:
        """Add to the totals what was done since the last time, by all processes.

        `everyones` returns the MACs of each of them, of those of this one.
        """
        self._enter(self._phase)
        own = self._own
        macs = everyones({p: (own[p].forward_macs, own[p].backward_macs) for p in PHASES})
        for phase, total in self._spent.items():
            total.forward_macs += sum(each[phase][0] for each in macs)
            total.backward_macs += sum(each[phase][1] for each in macs)
            total.seconds += own[phase].seconds
            total.device_seconds += own[phase].seconds * len(macs)
        self._own = nothing()

    def lose(self) -> None:
        """Book as lost what this process has not settled: it will be done again."""
        self._enter(self._phase)
        lost = nothing()
        for own in self._own.values():
            lost["lost"].forward_macs += own.forward_macs
            lost["lost"].backward_macs += own.backward_macs
            lost["lost"].seconds += own.seconds
        self._own = lost

    def lose_up_to(self, *, forward_macs: int, backward_macs: int) -> None:
        """Book as lost how much more than the totals these are, which the run had got to."""
        total, lost = self.total(), self._spent["lost"]
        lost.forward_macs += max(forward_macs - total.forward_macs, 0)
        lost.backward_macs += max(backward_macs - total.backward_macs, 0)

    def total(self) -> Spending:
        """Return what is settled of all phases, without what was lost."""
        kept = [self._spent[phase] for phase in PHASES if phase != "lost"]
        return Spending(
            forward_macs=sum(each.forward_macs for each in kept),
            backward_macs=sum(each.backward_macs for each in kept),
            seconds=sum(each.seconds for each in kept),
            device_seconds=sum(each.device_seconds for each in kept),
        )

    def state(self) -> dict[str, dict[str, Any]]:
        """Return what is settled, by phases, ready for JSON."""
        return {phase: asdict(spent) for phase, spent in self._spent.items()}
