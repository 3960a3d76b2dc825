"""Methods: how the widths to train, to visit and to report are chosen."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import math
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any, ClassVar

import torch
from torch import Tensor

from pareco.config import Cost, SearchConfig, TrainingConfig
from pareco.cost import CostModel
from pareco.own_code import blaming, module_of
from pareco.search import Mobo, Origin
from pareco.widths import Widths, WidthSpace

_OURS = (__name__.partition(".")[0], "baselines", "replications")
"""The packages whose methods are this project's."""


@dataclass(kw_only=True)
class Visit:
    """One entry of a search's history, with the circumstances in which it was chosen.

    It was chosen before the training step `step` (None: once training had ended) for its
    `target_cost`. `predicted_deviation` is the GP's posterior standard deviation of the loss, noise
    left out; `refreshed_loss` is the first loss that was measured afterwards, `final_loss` the
    last. Losses are in nats, costs in the objective's units; None where there is none.
    `known_loss` is what the search goes by: what was measured, or moved along with the others, and
    `asked_loss` what that was when the search last asked; `gaps` is how many targets, its own
    included, nothing came near before it was proposed, as they lay in gaps of the front.
    `relative_loss` is 0 for the largest network's and 1 for the smallest's.
    """

    widths: Widths
    step: int | None
    origin: Origin
    target_cost: float | None = None
    predicted_loss: float | None = None
    predicted_deviation: float | None = None
    refreshed_loss: float | None = None
    final_loss: float | None = None
    known_loss: float | None = None
    asked_loss: float | None = None
    gaps: int | None = None
    relative_loss: float | None = None
    weight: float = 0.0
    """Of `known_loss`, or of `relative_loss`, against one new measurement."""
    left_out: int = 0
    """How many refreshes in a row have not measured it."""

    def measured(self, loss: float) -> None:
        """Take note of a loss; one that is not finite was not measured."""
        self.left_out = 0
        self.final_loss = loss if math.isfinite(loss) else None
        if self.refreshed_loss is None:
            self.refreshed_loss = self.final_loss
        known, weight = self.known_loss, self.weight
        if self.final_loss is None or known is None or not weight:
            self.known_loss, self.weight = self.final_loss, float(self.final_loss is not None)
        else:
            self.known_loss = (weight * known + self.final_loss) / (weight + 1)
            self.weight = weight + 1


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a method gets to work with: no data, no optimizer, no loss function.

    `evaluate` returns the search losses `n` (double, less is better) of `n` sub-networks with the
    current weights; every sub-network it measures is counted and paid from the run's search budget:
    `price` returns the MACs that this would take now, `left` those that may be spent; more is
    refused, and ends the run. `objective` is the cost that is traded against the loss.
    `widths_budget` is how many sub-networks a search may visit, `steps` how many steps training
    has, `sampled_per_step` (M) how many sub-networks train in each beside the largest and the
    smallest, `ask_every_steps` (tau) how often PareCO asks for new ones. `pause`, to be called
    within long computations, ends them by an exception when the run is to end.
    """

    space: WidthSpace
    cost: CostModel
    objective: Cost
    generator: torch.Generator
    evaluate: Callable[[Sequence[Widths]], Tensor]
    steps: int
    sampled_per_step: int
    ask_every_steps: int
    widths_budget: int
    search: SearchConfig
    pause: Callable[[], None] = lambda: None
    price: Callable[[Sequence[Widths]], int] = lambda widths: 0
    left: Callable[[], float] = lambda: math.inf
    optimizer: Callable[..., Mobo] = Mobo
    """Makes what a `WidthSearch` asks; a plan puts in its place what costs no time."""

    def affordable(self, widths: Iterable[Widths]) -> list[Widths]:
        """Return the first of these distinct sub-networks, as many as can be paid now."""
        paid, left = [], self.left()
        if math.isinf(left):
            return list(widths)
        for each in widths:
            left -= self.price([each])
            if left < 0:
                break
            paid.append(each)
        return paid

    def costs(self, widths: Sequence[Widths]) -> Tensor:
        """Return the objective `n` (double, less is better) of `n` sub-networks, exactly."""
        return self.cost.of(self.objective, widths).double()


class Method:
    """A way to choose widths. A subclass in its own file is found by its `name`.

    All else is the pipeline's: every step trains the largest network, `widths_for_step`, and the
    smallest; at the end the pipeline calibrates and measures `candidates` with the largest and
    the smallest, and reports those on the front of search loss and cost.
    """

    name: ClassVar[str]
    budget_exempt: ClassVar[bool] = False  # trains longer than the others by its nature
    sets_search_budget: ClassVar[bool] = False  # its search is what all may spend by default
    search_budget: ClassVar[float | None] = None  # its own, unless `search.budget` is set
    own_search: ClassVar[Mapping[str, Any]] = MappingProxyType(
        {}
    )  # its own values of `search` fields left unset
    trains_alone: ClassVar[bool] = False  # each network by itself, with weights of its own
    draws: int = 5_000  # before `completed` takes it that the space has no more

    def __init__(self, task: Task) -> None:
        """Start on a task; what its search leaves unset has this method's own values."""
        self.task = replace(task, search=task.search.resolved(self.own_search))

    @classmethod
    def spaces(cls, space: WidthSpace, sampled_per_step: int) -> Sequence[WidthSpace]:
        """Return one space for each set of weights that is trained, unless they are named."""
        return [space]

    @classmethod
    def spaces_to_train(cls, space: WidthSpace, training: TrainingConfig) -> Sequence[WidthSpace]:
        """Return its `spaces`, or one for each network of `training.alone`, where any is named.

        Raises `ValueError` if they are named for a method that does not train networks alone, or
        one is no sub-network, or there twice.
        """
        if not training.alone:
            return cls.spaces(space, training.sampled_per_step)
        if not cls.trains_alone:
            raise ValueError(
                f"training.alone names networks to train alone, which {cls.name} does not do"
            )
        alone: list[Widths] = []
        for counts in training.alone:
            try:
                widths = Widths.parse(counts)
                space.check(widths)
            except ValueError as error:
                raise ValueError(f"training.alone {counts!r}: {error}") from error
            if widths in alone:
                raise ValueError(f"training.alone names {widths} more than once")
            alone.append(widths)
        return [replace(space, only=widths) for widths in alone]

    def switches(self) -> Sequence[Widths]:
        """Return the sub-networks with batch-norm weights of their own."""
        return ()

    def widths_for_step(self, step: int) -> Sequence[Widths]:
        """Return the widths to train in this step between the largest and the smallest."""
        raise NotImplementedError

    def hear(self, step: int, widths: Sequence[Widths], losses: Sequence[float]) -> None:
        """Hear what the networks of a gradient step came to: nothing, unless a method wants it.

        `widths` are those of the step, largest first, smallest last; `losses` their cross-entropies
        (nats) on the labels of its batch, the means over all processes. Told in order, of all steps
        before one that is a multiple of `ask_every_steps` when the widths for that one are asked
        for, and of all of them before the search that follows training. When exactly is the
        machine's choice: a method draws nothing here, and elsewhere counts on no more.
        """

    def search_on(self) -> bool:
        """Do one part of a search that follows training; return whether there may be more.

        It is called until there is none. A run that is interrupted goes on from `state` as it was
        between two parts; what was evaluated meanwhile is not measured again.
        """
        return False

    def candidates(self) -> Sequence[Widths]:
        """Return the widths that the front is chosen from, once training and search have ended."""
        raise NotImplementedError

    def visits(self) -> Sequence[Visit]:
        """Return what a search of this method has visited, in order: for the record alone."""
        return ()

    def state(self) -> dict[str, Any]:
        """Return what a checkpoint must keep, ready for JSON; the generator is kept elsewhere."""
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        """Take up a state that `state` returned."""

    def completed(self, widths: Sequence[Widths], draw: Callable[[], Widths]) -> list[Widths]:
        """Return M distinct widths, none the largest or smallest: those given, then drawn ones.

        Fewer only where the space has no more. So every method trains equally many networks.
        """
        space, wanted = self.task.space, self.task.sampled_per_step
        ends = (space.largest, space.smallest)
        chosen = [each for each in dict.fromkeys(widths) if each not in ends][:wanted]
        for _ in range(self.draws):
            if len(chosen) == wanted:
                break
            drawn = draw()
            if drawn not in ends and drawn not in chosen:
                chosen.append(drawn)
        return chosen

    @staticmethod
    def evenly_spread(space: WidthSpace, count: int) -> list[Widths]:
        """Return `count` uniform widths, evenly spread from the largest to the smallest.

        Raises `ValueError` where rounding leaves fewer distinct ones.
        """
        widths = list(space.spread(count))
        if len(widths) < count:
            raise ValueError(
                f"only {len(widths)} of {count} evenly spread uniform widths are distinct at "
                f"network.divisor {space.divisor}, network.alpha_min {space.alpha_min} and "
                f"training.sampled_per_step {count - 2}: lower one of them, or take a wider network"
            )
        return widths

    def random_widths(self) -> Widths:
        """Return widths with a random multiplier for each dimension of the space."""
        return self.task.space.sample(self.task.generator)


def checked_widths(method: Method, given: Any, source: str) -> list[Widths]:
    """Return the widths that a method's function `source` has given.

    Raises `ValueError`, naming both, unless they are sub-networks of its space.
    """
    try:
        widths = [Widths(each) for each in given]
        for each in widths:
            method.task.space.check(each)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"method {method.name}: {source} must return widths of task.space: {error}"
        ) from error
    return widths


def code_digest(kind: type[Method]) -> str | None:
    """Return the SHA-256 of the file that defines a method; None where there is no such file."""
    file = _file_of(kind)
    try:
        return hashlib.sha256(Path(file).read_bytes()).hexdigest() if file else None
    except OSError:
        return None


def _file_of(kind: type[Method]) -> str | None:
    """Return the file that defines a method; None where it is in none."""
    return getattr(sys.modules.get(kind.__module__), "__file__", None)


def is_own(kind: type[Method]) -> bool:
    """Return whether a method is somebody's own, and not one of this project."""
    return kind.__module__.partition(".")[0] not in _OURS


def method_in(module: str, name: str) -> type[Method]:
    """Return the method of this name that a module defines; `ValueError` if it defines none."""
    for kind in _defined(importlib.import_module(module)):
        if vars(kind).get("name") == name:
            return kind
    raise ValueError(f"{module} defines no method whose name is {name!r}")


def own_method(place: str) -> type[Method]:
    """Return the method of somebody's own at a place, whose code is run, once in a process.

    The place is `FILE.py` where the file defines one method, or else `FILE.py:CLASS`; or
    `MODULE:CLASS`. Raises `ValueError` with what is there unless that is a method with a `name` fit
    for a folder, and with the line where its code ends with an error.
    """
    parts = re.fullmatch(r"(.+?\.py)(?::(\w+))?|([\w.]+):(\w+)", place)
    if parts is None:
        raise ValueError(f"{place}: a method of your own is FILE.py, FILE.py:CLASS or MODULE:CLASS")
    file, of_file, name, of_module = parts.groups()
    where, wanted = file or name, of_file or of_module
    if file and not Path(file).expanduser().exists():
        raise ValueError(f"{file}: no such file")
    with blaming(where):
        module = module_of(Path(file)) if file else importlib.import_module(name)
    if wanted is None:
        kind = _only_method(module, where)
    else:
        kind = vars(module).get(wanted)
        if not (isinstance(kind, type) and issubclass(kind, Method)):
            raise ValueError(f"{where}: {wanted} is no subclass of pareco.Method; {_held(module)}")
    return _fit_to_run(kind, where)


@contextmanager
def blaming_own(kind: type[Method]) -> Iterator[None]:
    """Raise `ValueError`, naming the line, for errors in the code of a method of somebody's own.

    What it is told by a `ValueError` or `OSError` from elsewhere is let pass.
    """
    try:
        yield
    except Exception as error:
        file = _file_of(kind)
        frames = traceback.extract_tb(error.__traceback__)
        own = [each for each in frames if each.filename == file]
        told = isinstance(error, ValueError | OSError) and own[-1:] != frames[-1:]
        if not is_own(kind) or not own or told:
            raise
        where = f"{file}, line {own[-1].lineno}"
        raise ValueError(f"method {kind.name}: {where}: {type(error).__name__}: {error}") from error


def _defined(module: ModuleType) -> list[type[Method]]:
    """Return the methods, and what they share, that a module itself defines."""
    kinds = (item for item in vars(module).values() if isinstance(item, type))
    return [each for each in kinds if issubclass(each, Method) and _is_of(each, module)]


def _is_of(item: Any, module: ModuleType) -> bool:
    return getattr(item, "__module__", None) == module.__name__


def _held(module: ModuleType) -> str:
    """Return what a module defines, for people."""
    names = [name for name, item in vars(module).items() if _is_of(item, module)]
    return f"it defines {', '.join(names) or 'nothing'}"


def _only_method(module: ModuleType, where: str) -> type[Method]:
    found = [kind for kind in _defined(module) if "name" in vars(kind)]
    if not found:
        raise ValueError(
            f"{where} has no method, which is a subclass of pareco.Method with a `name`; "
            f"{_held(module)}"
        )
    if len(found) > 1:
        names = ", ".join(kind.__name__ for kind in found)
        raise ValueError(f"{where} has several methods, {names}: name one, {where}:CLASS")
    return found[0]


def _fit_to_run(kind: type[Method], where: str) -> type[Method]:
    """Return the method; raise `ValueError` unless it has a name, and widths to train and report.

    The name is that of a folder.
    """
    name, own = getattr(kind, "name", None), f"{where}: {kind.__name__}"
    if not isinstance(name, str) or re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_-]*", name) is None:
        raise ValueError(f"{own} needs a `name` of letters, digits, '_' and '-', got {name!r}")
    for needed in (Method.widths_for_step, Method.candidates):
        if getattr(kind, needed.__name__) is needed:
            raise ValueError(f"{own} has no `{needed.__name__}`: a method needs one")
    return kind
