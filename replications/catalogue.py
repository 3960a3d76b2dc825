"""Which experiments, scales and methods there are: the folders and files are the registry."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

import baselines
import pareco.methods
from pareco.config import Experiment
from pareco.methods import Method, methods_in
from replications.scales import SCALES, Scale


def experiment_names() -> list[str]:
    """Return the names of all experiments: the folders here that hold an `experiment.py`."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob("*/experiment.py"))


def experiment_named(name: str, scale: str = "paper") -> Experiment:
    """Return the configuration of an experiment at a scale.

    Raises `ValueError` with the known names, and the nearest, for an unknown experiment or scale.
    """
    scales = scales_of(name)
    return scales[_known("scale", scale, scales)](_module(name).EXPERIMENT)


def scales_of(name: str) -> dict[str, Scale]:
    """Return the scales of an experiment by name: those of all, and the `SCALES` of its folder.

    Raises `ValueError` for an unknown experiment.
    """
    return SCALES | getattr(_module(name), "SCALES", {})


def known_methods() -> dict[str, type[Method]]:
    """Return PareCO and every baseline by name."""
    return methods_in([pareco.methods, baselines])


def _module(name: str) -> ModuleType:
    known = _known("experiment", name, experiment_names())
    return importlib.import_module(f"replications.{known}.experiment")


def _known(kind: str, name: str, names: Collection[str]) -> str:
    """Return the name; raise `ValueError` unless it is one of the names."""
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown {kind} {name!r}.{hint} Known: {', '.join(names)}")
    return name
