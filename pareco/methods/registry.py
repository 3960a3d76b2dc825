"""The methods found in a folder: one class in one file each."""

from __future__ import annotations

import difflib
import importlib
import inspect
import pkgutil
from collections.abc import Iterable
from types import ModuleType

from pareco.methods.base import Method


def methods_in(packages: Iterable[ModuleType]) -> dict[str, type[Method]]:
    """Return the methods defined in the modules of these packages, by their names, sorted.

    Raises `ValueError` if two have the same name.
    """
    found: dict[str, type[Method]] = {}
    for package in packages:
        for entry in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{entry.name}")
            for _, item in inspect.getmembers(module, inspect.isclass):
                if not issubclass(item, Method) or not hasattr(item, "name"):
                    continue
                if found.setdefault(item.name, item) is not item:
                    raise ValueError(
                        f"two methods are named {item.name!r}: {found[item.name]}, {item}"
                    )
    return dict(sorted(found.items()))


def method_named(name: str, methods: dict[str, type[Method]]) -> type[Method]:
    """Return the method of this name; raises `ValueError` with the known and the nearest names."""
    if name in methods:
        return methods[name]
    near = difflib.get_close_matches(name, methods, n=1)
    hint = f"; did you mean {near[0]!r}?" if near else ""
    raise ValueError(f"unknown method {name!r}{hint} Known: {', '.join(methods)}")
