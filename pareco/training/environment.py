"""What a run ran on: commit, versions, and hardware."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from pareco.processes import Processes, tf32_in_use

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate"),
    *("botorch", "gpytorch", "numpy", "scipy", "wandb"),
)


def environment(data_fingerprint: str, processes: Processes) -> dict[str, Any]:
    """Return PareCO's commit and dirty flag (see `commit_of`), versions, hardware, fingerprint."""
    commit, dirty = commit_of(Path(__file__).resolve().parents[1])
    return {
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": _versions(),
        **hardware(processes.device),
        "tf32": tf32_in_use(processes.device),
        "processes": processes.share.count,
        "data_fingerprint": data_fingerprint,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return system, processor, GPUs and the kind of device that computes, ready for JSON."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": (names or [platform.processor()])[0],
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": os.cpu_count(),
        "device": device.type,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def commit_of(package: Path) -> tuple[str | None, bool | None]:
    """Return commit and dirty flag of the checkout at whose top a package lies, tracked by git.

    None for both without one: a package that is installed may lie in an environment inside the
    repository of something else, whose commit says nothing about it.
    """
    top = package.parent
    own = _git(top, "ls-files", "--error-unmatch", "--", f"{package.name}/__init__.py")
    found = _git(top, "rev-parse", "--show-toplevel")
    if own is None or found is None or Path(found).resolve() != top.resolve():
        return None, None
    status = _git(top, "status", "--porcelain", "--", ":/", ":!/results")
    return _git(top, "rev-parse", "HEAD"), None if status is None else bool(status)


def _git(folder: Path, *arguments: str) -> str | None:
    """Return what git says there, whatever repository the caller's variables name; None if not."""
    command = ["git", "-C", str(folder), *arguments]
    variables = {name: each for name, each in os.environ.items() if not name.startswith("GIT_")}
    try:
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=10, check=False, env=variables
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _versions() -> dict[str, str]:
    """Return the versions of PareCO and of what results may depend on, where it is installed."""
    versions = {}
    for name in (__name__.partition(".")[0], *_PACKAGES):
        with suppress(importlib.metadata.PackageNotFoundError):  # PareCO, run from its folder
            versions[name] = importlib.metadata.version(name)
    return versions
