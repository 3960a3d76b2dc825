"""Which experiments and methods there are: the folders and files are the registry."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path

import baselines
import pareco.methods
from pareco.config import Experiment
from pareco.methods import Method, methods_in


def experiment_names() -> list[str]:
    """Return the names of all experiments: the folders here that hold an `experiment.py`."""
    return sorted(file.parent.name for file in Path(__file__).parent.glob("*/experiment.py"))


def experiment_named(name: str) -> Experiment:
    """Return the configuration of an experiment; raises `ValueError` with the nearest names."""
    names = experiment_names()
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"unknown experiment {name!r}.{hint} Known: {', '.join(names)}")
    return importlib.import_module(f"replications.{name}.experiment").EXPERIMENT


def known_methods() -> dict[str, type[Method]]:
    """Return PareCO and every baseline by name."""
    return methods_in([pareco.methods, baselines])
