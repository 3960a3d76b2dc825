"""The search over widths that follows training, and PareCO, the method that trains with it."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

import torch
from scipy.stats import siegelslopes
from torch import Tensor

from pareco.methods import Method, Task, Visit
from pareco.search import front
from pareco.widths import Widths

_LINE_FROM = 3  # distinct losses


class WidthSearch:
    """A search over the widths of a task; each width enters the history once."""

    def __init__(self, task: Task) -> None:
        """Start with an empty history."""
        space = task.space
        self.task = task
        self.visits: list[Visit] = []
        self._heard, self._level, self._gap = 0.0, 0.0, 0.0

        def cost(alphas: Tensor) -> Tensor:
            task.pause()  # here, as every trial of an ask, which may take long, wants a cost
            return task.cost.of(task.objective, space.counts(alphas)).double()

        self._mobo = task.optimizer(
            [space.alpha_min] * space.dimensions,
            [1.0] * space.dimensions,
            task.search,
            task.generator,
            cost=cost,
            monotone=task.cost.monotone(task.objective),
            canonical=space.canonical,
        )

    @property
    def visited(self) -> list[Widths]:
        """The widths of the history, in the order in which they entered it."""
        return [visit.widths for visit in self.visits]

    def ask(self, count: int, step: int | None = None) -> list[Widths]:
        """Return up to `count` new widths, which enter the history with no loss yet.

        Fewer only where all that was proposed is in the history. `step` is the training step, for
        the record; None once training has ended.
        """
        space, before = self.task.space, len(self.visits)
        known = set(self.visited)
        for visit in self.visits:
            visit.asked_loss = visit.known_loss
        for proposal in self._mobo.ask(count):
            widths = space.decode(proposal.alpha)
            if widths not in known:
                known.add(widths)
                visit = Visit(
                    widths=widths,
                    step=step,
                    origin=proposal.origin,
                    target_cost=proposal.target,
                    predicted_loss=proposal.predicted_loss,
                    predicted_deviation=proposal.predicted_deviation,
                    gaps=proposal.gaps,
                )
                self.visits.append(visit)
                self._mobo.tell(space.encode(widths), math.nan)
        return self.visited[before:]

    def visit(self, widths: Widths) -> None:
        """Let widths enter the history, with no loss yet, without having been asked for."""
        self.visits.append(Visit(widths=widths, step=None, origin="uniform"))
        self._mobo.tell(self.task.space.encode(widths), math.nan)

    def refresh(self, final: bool = False) -> set[Widths]:
        """Measure losses again, with the current weights; return the widths that were measured.

        All of the history as long as the search budget pays that; else those that may still
        matter, as many as it pays. The losses of the others move along as theirs did. What was
        known counts for nothing against `final` losses.
        """
        half_life = 0 if final else self.task.search.half_life
        measured = set(self.task.affordable(self._by_importance(final)))
        current = [visit for visit in self.visits if visit.widths in measured]
        losses = self.task.evaluate([visit.widths for visit in current]).tolist()
        if half_life or len(current) < len(self.visits):
            self._move_along(current, losses)
        self._age(half_life)
        for visit, loss in zip(current, losses, strict=True):
            visit.measured(loss)
        self._tell_losses()
        return measured

    def hear(self, widths: Sequence[Widths], losses: Sequence[float]) -> None:
        """Compare the losses of a training step's networks: the largest first, the smallest last.

        How far each lies above the largest is a measurement of the part of the smallest's distance,
        averaged over steps; both ends met the same images, so that most of the noise is theirs too.
        """
        heard, gap = self._heard + 1, losses[-1] - losses[0]
        self._level += (losses[0] - self._level) / heard
        self._gap += (gap - self._gap) / heard
        self._heard = heard
        if not self._gap > 0:  # the first steps: the smallest may be ahead
            return
        above = dict(zip(widths, (each - losses[0] for each in losses), strict=True))
        for visit in self.visits:
            if visit.widths in above:
                known = (visit.relative_loss or 0.0) * visit.weight
                visit.weight += self._gap
                visit.relative_loss = (known + above[visit.widths]) / visit.weight
                visit.left_out = 0

    def recall(self) -> None:
        """Take the losses of all that was heard for the history's, if they tell the ends apart."""
        for visit in self.visits:
            if visit.relative_loss is not None and self._gap > 0:
                visit.known_loss = self._level + visit.relative_loss * self._gap
                visit.final_loss = visit.known_loss
                if visit.refreshed_loss is None:
                    visit.refreshed_loss = visit.known_loss
        self._age(self.task.search.half_life)
        self._tell_losses()

    def _age(self, half_life: float | None) -> None:
        """Let what was known count less, by the share of training from one request to the next."""
        share = self.task.ask_every_steps / self.task.steps
        kept = 0.5 ** (share / half_life) if half_life else 0.0
        self._heard *= kept
        for visit in self.visits:
            visit.left_out += 1
            visit.weight *= kept

    def _by_importance(self, final: bool) -> list[Widths]:
        """Return what is new, the front, the layer behind it, and the rest.

        Of each the longest left out first; of `final` losses, first any that are spread over the
        front.
        """
        best = self.front()
        new = [each.widths for each in reversed(self.visits) if each.known_loss is None]
        behind = self.front(set(self.visited).difference(best))
        waited = {visit.widths: 0 if final else visit.left_out for visit in self.visits}
        order = [_spread(each) for each in ((best, new) if final else (new, best))]
        order += [_spread(behind), self.visited]
        return list(
            dict.fromkeys(each for some in order for each in sorted(some, key=lambda w: -waited[w]))
        )

    def _move_along(self, current: Sequence[Visit], losses: Sequence[float]) -> None:
        """Move what is known along a line from that of `current` to these losses.

        The line is Siegel's, of repeated medians; a falling one is taken to be flat.
        """
        pairs = [
            (visit.known_loss, loss)
            for visit, loss in zip(current, losses, strict=True)
            if visit.known_loss is not None and math.isfinite(loss)
        ]
        if len({known for known, _ in pairs}) < _LINE_FROM:
            return
        known, new = zip(*pairs, strict=True)
        slope, offset = map(float, siegelslopes(new, known))
        if slope <= 0:
            slope, offset = 0.0, median(new)
        for visit in self.visits:
            if visit.known_loss is not None:
                visit.known_loss = offset + slope * visit.known_loss

    def _tell_losses(self) -> None:
        known = [math.nan if each.known_loss is None else each.known_loss for each in self.visits]
        self._mobo.refresh(torch.tensor(known, dtype=torch.double))

    def front(self, among: Collection[Widths] | None = None) -> list[Widths]:
        """Return the widths that no other one beats in both loss and cost, cheapest first.

        Of the whole history, or of these.
        """
        visited = self.visited
        if among is None:
            return [visited[index] for index in self._mobo.front()]
        kept = [index for index, each in enumerate(visited) if each in among]
        best = front(self._mobo.losses[kept], self._mobo.costs[kept])
        return [visited[kept[index]] for index in best]

    def state(self) -> dict[str, Any]:
        """Return the history, ready for JSON."""
        heard = [self._heard, self._level, self._gap]
        visits = [asdict(visit) for visit in self.visits]
        return {"mobo": self._mobo.state(), "visits": visits, "heard": heard}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self._mobo.load_state(state["mobo"])
        self._heard, self._level, self._gap = state.get("heard", (0.0, 0.0, 0.0))
        self.visits = [
            Visit(**{"known_loss": each["final_loss"], **each, "widths": Widths(each["widths"])})
            for each in state["visits"]  # those of earlier versions know the last loss alone
        ]


def _spread(widths: Sequence[Widths]) -> list[Widths]:
    """Return them in an order of which any beginning is spread over all (van der Corput's)."""
    digits = max(len(widths) - 1, 1).bit_length()
    places = sorted(range(len(widths)), key=lambda place: f"{place:0{digits}b}"[::-1])
    return [widths[place] for place in places]


class PareCO(Method):
    """Every tau steps refreshes the losses of the widths visited and asks MOBO-RS for more."""

    name = "pareco"
    sets_search_budget = True

    def __init__(self, task: Task) -> None:
        """Start with an empty history."""
        super().__init__(task)
        self.search = WidthSearch(self.task)
        self.current: list[Widths] = []
        self.front: list[Widths] = []

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return the newest proposals, renewed every tau steps, or a draw of them or the front."""
        task, config = self.task, self.task.search
        visits = config.visits_per_ask or task.sampled_per_step
        drawn = config.trains == "front" or visits > task.sampled_per_step
        if step % task.ask_every_steps == 0:
            if config.losses_from == "training":
                self.search.recall()
            else:
                self.search.refresh()
            self.current = self.search.ask(visits, step)
            if config.trains == "front":
                self.front = self.search.front()
            if not drawn:
                self.current = self.completed(self.current, self.random_widths)
        return self._draw() if drawn else self.current

    def _draw(self) -> list[Widths]:
        """Return M of the newest, half of them of the front if there is one; at random."""
        newest, front, odd = self._shuffled(self.current), self._shuffled(self.front), 0
        if front and self.task.sampled_per_step % 2:
            odd = int(torch.randint(2, (), generator=self.task.generator))
        half = (self.task.sampled_per_step + odd) // 2
        return self.completed([*front[:half], *newest, *front[half:]], self.random_widths)

    def _shuffled(self, widths: Sequence[Widths]) -> list[Widths]:
        ends = (self.task.space.largest, self.task.space.smallest)
        order = torch.randperm(len(widths), generator=self.task.generator).tolist()
        return [widths[index] for index in order if widths[index] not in ends]

    def hear(self, step: int, widths: Sequence[Widths], losses: Sequence[float]) -> None:
        """Let the search compare the losses of this step's networks, if it goes by those."""
        if self.task.search.losses_from == "training" and all(map(math.isfinite, losses)):
            self.search.hear(widths, losses)

    def candidates(self) -> Sequence[Widths]:
        """Return the front of what the budget lets measure with the final weights: mostly all."""
        return self.search.front(self.search.refresh(final=True))

    def visits(self) -> Sequence[Visit]:
        """Return the history."""
        return self.search.visits

    def state(self) -> dict[str, Any]:
        """Return the search, the current widths, and the front as it was at the last request."""
        widths = {"current": list(self.current), "front": list(self.front)}
        return {"search": self.search.state(), **widths}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""
        self.search.load_state(state["search"])
        self.current = [Widths(counts) for counts in state["current"]]
        self.front = [Widths(counts) for counts in state.get("front", ())]
