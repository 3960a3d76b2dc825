"""The configuration of the search, and the checks that all configurations share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache
from numbers import Integral, Real
from types import MappingProxyType, NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


def require(condition: bool, message: str) -> None:
    """Raise `ValueError` with this message unless the condition holds."""
    if not condition:
        raise ValueError(message)


def at_least(least: float, config: Any, *names: str) -> None:
    """Raise `ValueError` naming the first of these fields that is set and less than `least`."""
    bound = f"be at least {least}" if least else "not be negative"
    for name in names:
        value = getattr(config, name)
        require(value is None or value >= least, f"{name} must {bound}, got {value}")


def check_values(config: Any) -> None:
    """Raise `ValueError` naming the first field whose value is not as its type says.

    Numbers of other libraries, such as NumPy's, become Python's, and lists tuples, as records hold
    them.
    """
    for name, hint in _hints(type(config)).items():
        object.__setattr__(config, name, _checked(name, getattr(config, name), hint))


_hints = cache(get_type_hints)
_PLAIN: dict[Any, tuple[type, str]] = {
    bool: (bool, "True or False"),
    int: (Integral, "a whole number"),
    float: (Real, "a number"),
    str: (str, "a text"),
}


def _checked(name: str, value: Any, hint: Any) -> Any:
    """Return a value of this type; parts of configurations have been checked."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    if value is None and NoneType in kinds:
        return None
    kind = kinds[0]
    if get_origin(kind) is Literal:
        known = get_args(kind) + ((None,) if NoneType in kinds else ())
        text = f"{name} must be one of {', '.join(map(str, known))}, got {value!r}"
        require(value in get_args(kind), text)
    elif get_origin(kind) is tuple:
        values: Any = value
        require(isinstance(value, tuple | list), f"{name} must be a list, got {value!r}")
        return tuple(_checked(name, each, get_args(kind)[0]) for each in values)
    elif kind in _PLAIN:
        wanted, text = _PLAIN[kind]
        fits = isinstance(value, wanted) and (kind is bool or not isinstance(value, bool))
        require(fits, f"{name} must be {text}, got {value!r}")
        if not isinstance(value, int | float | str):  # another library's
            return kind(value)
    return value


@dataclass(frozen=True, kw_only=True)
class SearchConfig:
    """Settings of the search; the defaults are the paper's where it names them."""

    budget: float | None = None
    """Most MACs that a method spends on choosing widths before the test, in training and after it,
    as a part of those of training; None for the method's own or, where it has none, for what
    PareCO's own search is planned to spend."""

    part_in_training: float | None = None
    """Part of a budget, set here or the method's own, that may be spent in training; what is left
    is for choosing the front. None for the part that PareCO's search, fed alike, is planned to."""

    initial_widths: int = 20
    """Most entries drawn as network-wise uniform multipliers before the largest and the GPs."""

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
    """Accepted distance from the target cost, as a fraction of the full network's cost (of the
    range, where costs are not all positive)."""

    solver: Literal["tchebyshev", "exact"] | None = None
    """The paper's, or ours where the cost is known exactly; None for the method's own."""

    targets: int = 3
    """Most target costs that are drawn for a proposal while minimizers are known, or miss."""

    draws: int = 100
    """Random draws after which it is taken that there is nothing new."""

    raw_samples: int | None = None
    """Points from which the inner optimizer's starts are picked; None for 1024, exact 512."""

    starts: int = 4
    """Points that the inner optimizer refines for each weight or target, in one batch."""

    iterations: int = 30
    """Most iterations of the inner optimizer."""

    precision: float = 1e-4
    """What the inner optimizer must still promise to go on, in standard deviations."""

    first_iterations: int = 40
    """Most iterations of a fit that starts from default hyperparameters."""

    warm_iterations: int = 10
    """Most iterations of a fit that starts from the last hyperparameters."""

    fit_every: int | None = None
    """Asks from one fit of the hyperparameters to the next; None for 1, exact 5."""

    restart_every: int = 5
    """Fits after which one also starts from the defaults; the likelier hyperparameters stay."""

    fit_entries: int = 256
    """Most entries of the history that a fit of hyperparameters sees."""

    losses_from: Literal["refresh", "training"] | None = None
    """Where the losses of the history come from in training: measured anew at each request, or from
    the training's own passes, compared with both ends on the same batch, which costs nothing. None
    for the method's own; the paper's are measured anew."""

    refresh_images: int | None = None
    """Images that losses are refreshed on, where more than a training batch in whole ones; None for
    the method's own, or those of a batch."""

    visits_per_ask: int | None = None
    """New widths at each request, M of which train at a time; None for the method's own, or M."""

    trains: Literal["newest", "front"] | None = None
    """Which train between two requests: the newest, or in each step a draw of the front's for half
    of M and of the newest for the rest. None for the method's own; the paper's are the newest."""

    target_costs: Literal["area", "uniform"] | None = None
    """Costs are aimed at where the front leaves much area, or as those of random network-wise
    uniform multipliers are spread; None for the method's own; the paper's go by area."""

    half_life: float | None = None
    """Part of the training after which a loss that was known counts half against one that is
    measured; 0: not at all, as in the paper. None for the method's own."""

    def __post_init__(self) -> None:
        check_values(self)
        at_least(1, self, "target_bins", "trials", "raw_samples", "starts", "iterations")
        at_least(1, self, "targets", "draws", "first_iterations", "warm_iterations")
        at_least(1, self, "fit_every", "restart_every", "visits_per_ask")
        at_least(2, self, "fit_entries", "refresh_images")
        at_least(0, self, "budget", "initial_widths", "beta", "augmentation")
        at_least(0, self, "tolerance", "precision", "half_life")
        part = self.part_in_training
        require(part is None or 0 <= part <= 1, f"part_in_training must be in [0, 1], got {part}")
        require(self.reference < 0, f"reference must be negative, got {self.reference}")
        finite = ("budget", "beta", "augmentation", "tolerance", "reference", "precision")
        for name in (*finite, "half_life"):
            value = getattr(self, name)
            require(value is None or math.isfinite(value), f"{name} must be finite, got {value}")

    def resolved(self, own: Mapping[str, Any] = MappingProxyType({})) -> SearchConfig:
        """Return the settings with what is None set: to a method's own values, else its solver's.

        `own` are by the field's name. None stays where it means what is had anyway: the budget,
        images of a batch, M visits.
        """
        mine = {name: value for name, value in vars(self).items() if value is not None}
        chosen = _PAPERS | dict(own) | mine
        return replace(self, **(_OF_SOLVERS[chosen["solver"]] | chosen))


_PAPERS: dict[str, Any] = {
    "solver": "tchebyshev",
    "losses_from": "refresh",
    "trains": "newest",
    "target_costs": "area",
    "half_life": 0.0,
}
_OF_SOLVERS: dict[str, dict[str, Any]] = {
    "tchebyshev": {"raw_samples": 1024, "fit_every": 1},
    "exact": {"raw_samples": 512, "fit_every": 5},
}
