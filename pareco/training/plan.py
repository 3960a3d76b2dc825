"""What a run will spend, known before it is spent: its method is played without its network."""

from __future__ import annotations

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache, partial
from typing import Any

import torch

from pareco.config import Experiment
from pareco.cost import CostModel
from pareco.evaluation import OverBudget, SearchEvaluations, final_front
from pareco.methods import Method, Task, blaming_own, checked_widths
from pareco.randomness import derived_generator
from pareco.schema import PHASES, Phase
from pareco.search import Mobo
from pareco.search.mobo import Proposal
from pareco.search.problem import Key, first_unknown, key
from pareco.training.search_batches import search_batch_images, takes_training_batch
from pareco.width_search import PareCO
from pareco.widths import Widths, WidthSpace

_PLAYED_WHOLE = 20_000  # steps; of longer runs a few are played between two asks
_PLAYED_BETWEEN = 8
_PLAYED_ASKS = 600  # refreshing a history of n asks takes n^2
_POINTS = 1001
_SHIFTS = 101
_FLOAT_BYTES = 4
_METRICS_BYTES = 200  # of a step's line in the metrics file, about


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What a run may spend on each set of weights, in MACs; None where nothing limits it."""

    search: int | None = None
    """On choosing widths: losses in training, calibration and losses after it."""
    in_training: int | None = None
    """Of these, until training has ended; before that, in proportion to what is done of it."""
    training: int | None = None
    """On training with its search: it goes on until they are spent. None for `epochs`."""
    choice: int | None = None
    """On choosing widths once training has ended, where `training` is limited."""

    def at(self, done: float, steps: int) -> float:
        """Return what a search may have spent where this part of training is done, of `steps`."""
        whole = math.inf if self.in_training is None else self.in_training
        return whole * max(done, 1 / steps)

    def after(self, searched: int) -> float:
        """Return what a search may have spent before the test, so much of it in training."""
        whole = math.inf if self.search is None else self.search
        return whole if self.choice is None else min(whole, searched + self.choice)


@dataclass(frozen=True, kw_only=True)
class RunPlan:
    """What a run of one method with one seed will spend; forward and backward MACs by phase."""

    gradient_steps: int
    images: int
    """That are trained on, each by every network of its step."""
    networks: Mapping[Phase, int]
    """How many run in each phase: one for each part of a gradient step, each search loss, each of
    the choice, and each that is tested."""
    distinct: int
    """Networks that are trained in some step or other, each counted once."""
    asks: Sequence[tuple[int, int]]
    """Of each request to the search's models: entries of the history, and how many it asks for."""
    macs: Mapping[Phase, tuple[int, int]]
    decoded: int
    """Images that are read and decoded, as often as they are."""
    disk_kept: int
    """Bytes in the run's folder once it has finished: weights and metrics file."""
    disk_most: int
    """Bytes while it runs: these, and three checkpoints, of which one is being written."""

    @property
    def evaluations(self) -> int:
        """Search losses, those of the choice included."""
        return self.networks["search"] + self.networks["choice"]

    @property
    def total(self) -> int:
        """The MACs of all phases."""
        return self.of(*self.macs)

    @property
    def before_test(self) -> int:
        """The MACs that are spent before the test."""
        return self.total - self.of("test")

    def of(self, *phases: Phase) -> int:
        """Return the MACs of phases together, forward and backward."""
        return sum(sum(self.macs[phase]) for phase in phases)


def method_task(
    experiment: Experiment,
    space: WidthSpace,
    cost: CostModel,
    evaluations: SearchEvaluations,
    seed: int,
    steps: int,
    pause: Callable[[], None] = lambda: None,
    optimizer: Callable[..., Mobo] = Mobo,
) -> Task:
    """Return what a method is given for one set of weights, to be trained for so many steps."""
    config = experiment.training
    asks = -(-steps // config.ask_every_steps)
    visits = experiment.search.visits_per_ask or config.sampled_per_step
    return Task(
        space=space,
        cost=cost,
        objective=experiment.cost,
        generator=derived_generator(seed, "method", *space.only or ()),
        evaluate=evaluations,
        price=evaluations.price,
        left=lambda: evaluations.left,
        steps=max(steps, 1),
        sampled_per_step=config.sampled_per_step,
        ask_every_steps=config.ask_every_steps,
        widths_budget=max(asks * visits, 1),
        search=experiment.search,
        pause=pause,
        optimizer=optimizer,
    )


@dataclass(frozen=True)
class _Played:
    """A method that is played on one set of weights; each of its asks stands for `every`."""

    method: Method
    evaluations: SearchEvaluations
    limits: Limits
    every: int


@dataclass(frozen=True, kw_only=True)
class Planner:
    """Plans runs of an experiment on a network of this space and cost, and on so many images.

    A run is played: its method draws, asks and chooses as it will, from the generator that it will
    have, but no network runs. Losses are made up, falling with the cost and a little at random, and
    in the place of the search's models is a draw of widths at the cost that it would aim at. So
    what does not depend on losses is exact; of long runs only some steps are played, each for
    several.
    """

    experiment: Experiment
    space: WidthSpace
    cost: CostModel = field(compare=False)  # the space's own
    train_images: int
    search_images: int
    test_images: int
    parameters: int
    """Of the full network."""
    calibration_images: int
    """On which each sub-network is calibrated: none where there is no batch norm."""

    @property
    def steps(self) -> int:
        """The gradient steps of `epochs`."""
        training = self.experiment.training
        return training.epochs * (self.train_images // training.batch_size)

    @property
    def plays_whole(self) -> bool:
        """Whether every step is played."""
        return self.steps <= _PLAYED_WHOLE

    @cached_property
    def nominal_training(self) -> int:
        """The MACs of training for `epochs`, with random uniform multipliers in every step."""
        config, space = self.experiment.training, self.space
        multipliers = torch.linspace(space.alpha_min, 1, _POINTS, dtype=torch.double).tolist()
        mean = sum(self._macs[space.uniform(each)] for each in multipliers) / _POINTS
        step = self._macs[space.largest] + self._macs[space.smallest]
        step += config.sampled_per_step * mean
        return round(3 * self.steps * config.batch_size * step)

    def _search_batch(self, kind: type[Method]) -> int:
        sizes = self.train_images, self.search_images
        return search_batch_images(self.experiment, kind, *sizes)

    @property
    def _choice_images(self) -> int:
        """The images that each network's choice takes: calibration, and the search loss."""
        return self.calibration_images + self.search_images

    @property
    def _ends_price(self) -> int:
        ends = self.space.largest, self.space.smallest
        return self._choice_images * sum(map(self._macs.__getitem__, ends))

    def limits(self, method: type[Method], seed: int) -> Limits:
        """Return what a run may spend.

        Raises `ValueError` if nothing is left to train with, or the method asks for more.
        """
        config, total = self.experiment.search, self.experiment.training.macs
        asked = config.budget
        budget = method.search_budget if asked is None else asked
        with blaming_own(method):
            sets = len(method.spaces_to_train(self.space, self.experiment.training))
        search = in_training = training = choice = None
        if not method.budget_exempt and not (budget is None and method.sets_search_budget):
            plain = replace(self.experiment.training, alone=())
            unnamed = replace(self, experiment=replace(self.experiment, training=plain))
            published = _played(unnamed, PareCO, 0, Limits())
            search = in_training = published.of("search")
            search += published.of("choice")
            if budget is not None:
                planned, part = in_training / max(search, 1), config.part_in_training
                search = round(budget * self.nominal_training)
                in_training = round((planned if part is None else part) * search)
                if asked is None:  # a short run's own part might not even pay the ends
                    search = max(search, in_training + self._ends_price)
            search, in_training = search // sets, in_training // sets
        limits = Limits(search=search, in_training=in_training)
        if total is not None and not method.budget_exempt:
            if sets > 1:
                raise ValueError(
                    f"training.macs: {method.name} trains {sets} sets of weights one after the "
                    "other, which can't share it: it has to be budget_exempt"
                )
            choice = _played(self, method, seed, limits).of("choice")
            training = total - choice
            if training <= 0:
                raise ValueError(
                    f"training.macs {total}: choosing the front of {method.name} alone takes "
                    f"{choice}, so that nothing is left to train with"
                )
        return Limits(search=search, in_training=in_training, training=training, choice=choice)

    def plan(self, method: type[Method], seed: int) -> RunPlan:
        """Return what a run of this method with this seed will spend.

        Raises `ValueError`, with the method's name, where it asks for more than its search budget.
        """
        return _played(self, method, seed, self.limits(method, seed))

    def played(self, kind: type[Method], seed: int, limits: Limits) -> RunPlan:
        """Return what a run within these limits will spend. Raises `OverBudget` if it asks more."""
        spaces = kind.spaces_to_train(self.space, self.experiment.training)
        total, every, asked = Counter[str](), self._asks_per_played(kind), list[tuple[int, int]]()
        for space in spaces:
            evaluations = SearchEvaluations(self._macs.__getitem__)
            task = method_task(
                *(self.experiment, space, self.cost, evaluations, seed, self.steps),
                optimizer=partial(ForeseenMobo, asked),
            )
            tau, visited = every * task.ask_every_steps, -(-task.widths_budget // every)
            method = kind(replace(task, ask_every_steps=tau, widths_budget=visited))
            method.switches()
            played = _Played(method, evaluations, limits, every)
            total.update(self._trained(played))
            total.update(self._chosen(played))
        images = total["steps"] * self.experiment.training.batch_size
        weights = _FLOAT_BYTES * self.parameters
        kept = len(spaces) * weights + _METRICS_BYTES * total["steps"]
        return RunPlan(
            gradient_steps=total["steps"],
            images=images,
            networks={phase: total[f"{phase} networks"] for phase in PHASES},
            distinct=total["distinct networks"],
            asks=[(every * entries, count) for entries, count in asked for _ in range(every)],
            macs={
                "training": (total["training"], 2 * total["training"]),
                "search": (total["search"], 0),
                "choice": (total["choice"], 0),
                "test": (total["test"], 0),
            },
            decoded=self._decoded(images, self._searched(kind, total["asks"]), len(spaces)),
            disk_kept=kept,
            disk_most=kept + 3 * 2 * weights,
        )

    def _asks_per_played(self, kind: type[Method]) -> int:
        """Return for how many asks each one stands that is played: more for a long history."""
        asks = self.steps / self.experiment.training.ask_every_steps
        return max(1, math.ceil(asks / _PLAYED_ASKS)) if kind.visits is not Method.visits else 1

    def _searched(self, kind: type[Method], asks: int) -> int:
        """Return how many images are decoded for so many searches in training."""
        same = takes_training_batch(self.experiment, kind)
        return 0 if same else asks * self._search_batch(kind)

    def _decoded(self, images: int, searched: int, sets: int) -> int:
        """Return how many images are decoded to train and search on so many."""
        data, held_out = self.experiment.data, self.experiment.data.search_split == "holdout"
        if data.in_memory:
            return self.train_images + held_out * self.search_images + self.test_images
        after = self.calibration_images + self.test_images
        after += (1 + held_out) * self.search_images
        return images + searched + sets * after

    def _trained(self, played: _Played) -> dict[str, int]:
        """Play the steps of training; return how many they stand for, asks, and forward MACs."""
        config, limits = self.experiment.training, played.limits
        space, evaluations = played.method.task.space, played.evaluations
        images = self._search_batch(type(played.method))
        forward = search = done = trained = measured = distinct = 0.0
        asks, known = 0, set[Widths]()
        for step, weight in self._steps_played(limits.training is None, played.every):
            part = done / self.steps
            if limits.training is not None:
                part = (3 * forward + search) / limits.training
            if part >= 1:
                break
            evaluations.begin(self._losses, images=images, limit=limits.at(part, self.steps))
            before, counted = evaluations.spent, evaluations.count
            given = played.method.widths_for_step(step)
            between = checked_widths(played.method, given, "widths_for_step")
            often = played.every**2 * weight
            search += often * (evaluations.spent - before)
            measured += often * (evaluations.count - counted)
            asks += evaluations.spent > before
            networks = list(dict.fromkeys((space.largest, *between, space.smallest)))
            if type(played.method).hear is not Method.hear:
                played.method.hear(step, networks, self._losses(networks))
            macs = config.batch_size * sum(map(self._macs.__getitem__, networks))
            if limits.training is not None and weight > 1:
                weight = min(weight, math.ceil(limits.training * (1 - part) / (3 * macs)))
            forward += weight * macs
            trained += weight * len(networks)
            distinct += weight * len({*networks} - known)
            known.update(networks)
            done += weight
        return {
            "steps": round(done),
            "asks": asks * played.every,
            "training": round(forward),
            "training networks": round(trained),
            "distinct networks": round(distinct),
            "search": round(min(search, limits.at(1, self.steps))),
            "search networks": round(measured),
        }

    def _steps_played(self, ends: bool, every: int) -> Iterator[tuple[int, float]]:
        """Yield steps, and for how many each of them stands; for ever, unless that `ends`."""
        tau, first = every * self.experiment.training.ask_every_steps, 0
        while not ends or first < self.steps:
            length = min(tau, self.steps - first) if ends else tau
            others = length - 1 if self.plays_whole else min(length - 1, _PLAYED_BETWEEN)
            yield first, 1
            for step in range(first + 1, first + 1 + others):
                yield step, (length - 1) / others
            first += length

    def _chosen(self, played: _Played) -> dict[str, int]:
        """Play what comes after training; return forward MACs."""
        data, evaluations = self.experiment.data, played.evaluations
        before, counted = evaluations.spent, evaluations.count
        limit = played.limits.after(before)
        evaluations.begin(self._final_losses, images=self._choice_images, limit=limit, final=True)
        front = final_front(played.method, evaluations, lambda: None)
        tested = self.test_images + (data.search_split == "holdout") * self.search_images
        return {
            "choice": round(min(played.every * (evaluations.spent - before), limit)),
            "choice networks": played.every * (evaluations.count - counted),
            "test": tested * sum(self._macs[widths] for widths, _ in front),
            "test networks": len(front),
        }

    @cached_property
    def _macs(self) -> dict[Widths, int]:
        return _Table(self.cost.macs_at)

    def _losses(self, widths: Sequence[Widths], spread: float = 0.1) -> list[float]:
        return [self._falling[each] + spread * self._random[each] for each in widths]

    def _final_losses(self, widths: Sequence[Widths]) -> list[float]:
        return self._losses(widths, spread=2.5)  # fronts are then about as long as trained ones

    @cached_property
    def _falling(self) -> dict[Widths, float]:
        full = self.cost.macs_at(self.space.largest)
        return _Table(lambda widths: full / self._macs[widths])

    @cached_property
    def _random(self) -> dict[Widths, float]:
        return _Table(_noise)


@lru_cache(maxsize=16)
def _played(planner: Planner, method: type[Method], seed: int, limits: Limits) -> RunPlan:
    """Return what a planner has played; once, as every budget begins with PareCO's own."""
    with blaming_own(method):
        try:
            return planner.played(method, seed, limits)
        except OverBudget as error:
            raise ValueError(f"method {method.name} {error}") from error


class _Table(dict[Widths, Any]):
    """What a function returns for widths, which is asked for each of them once."""

    def __init__(self, function: Callable[[Widths], Any]) -> None:
        self._function = function

    def __missing__(self, widths: Widths) -> Any:
        value = self[widths] = self._function(widths)
        return value


def _noise(widths: Widths) -> float:
    """Return a number from -0.5 to 0.5, the same for the same widths."""
    digest = hashlib.blake2b(str(widths).encode(), digest_size=4).digest()
    return int.from_bytes(digest, "little") / 2**32 - 0.5


class ForeseenMobo(Mobo):
    """Asks as MOBO-RS does, with a draw in the place of its models: no time, and like costs.

    It notes in `asked` the entries of its history when it is asked, and for how many.
    """

    def __init__(self, asked: list[tuple[int, int]], *box: Any, **options: Any) -> None:
        super().__init__(*box, **options)
        self._asked = asked

    def _fitted(self) -> bool:
        return True

    def _modelled(self, count: int, known: set[Key]) -> list[Proposal]:
        """Return random coordinates, moved along the diagonal to costs that are aimed at."""
        self._asked.append((len(self.alphas), count))
        problem, proposals = self._problem(), []
        assert self._cost is not None
        shifts = torch.linspace(-1, 1, _SHIFTS, dtype=torch.double).unsqueeze(1)
        for _ in range(count):
            points = (self._points(self._random()) + shifts).clamp(0, 1)
            distances = (self._cost(self._alphas(points)) - problem.target()).abs()
            alphas = problem.canonical(points[distances.argsort()])
            new = first_unknown(alphas, known)
            proposal = Proposal(alpha=alphas[new or 0], origin="model")
            proposals.append(proposal if new is not None else self._stand_in(known))
            known.add(key(proposals[-1].alpha))
        return proposals

    def _with_predictions(self, proposals: list[Proposal]) -> list[Proposal]:
        return proposals
