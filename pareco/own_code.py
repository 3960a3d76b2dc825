"""Code of somebody's own, run because its user names it: never because a file that is read does."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def module_of(file: Path) -> ModuleType:
    """Return what a file defines as a module, which no other one can be taken for."""
    path = file.expanduser().resolve(strict=True)
    name = f"{path.stem}_{hashlib.sha256(bytes(path)).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def blaming(where: str) -> Iterator[None]:
    """Raise `ValueError`, naming place and line, for what code ends with inside the block."""
    try:
        yield
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        line = f"{last.filename}, line {last.lineno}: " if Path(last.filename).is_file() else ""
        raise ValueError(f"{where}: {line}{type(error).__name__}: {error}") from error
