"""Where a run comes from: commit, versions, hardware, data."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from pareco.processes import Processes

_PACKAGES = (
    *("torch", "torchvision", "timm", "accelerate"),
    *("botorch", "gpytorch", "numpy", "scipy", "wandb"),
)


def environment(data_fingerprint: str, processes: Processes) -> dict[str, Any]:
    """Return commit, dirty flag, versions, hardware and data fingerprint, ready for JSON.

    Commit and dirty flag are None outside a git checkout.
    """
    status = _git("status", "--porcelain", "--", ":/", ":!/results")
    return {
        "commit": _git("rev-parse", "HEAD"),
        "dirty": None if status is None else bool(status),
        "python": platform.python_version(),
        "packages": {name: importlib.metadata.version(name) for name in _PACKAGES},
        **hardware(processes.device),
        "processes": processes.share.count,
        "data_fingerprint": data_fingerprint,
    }


def hardware(device: torch.device) -> dict[str, Any]:
    """Return system, processor, GPUs and the kind of device that computes, ready for JSON."""
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu_name(),
        "cpu_instructions": torch.backends.cpu.get_cpu_capability(),
        "cpu_cores": os.cpu_count(),
        "device": device.type,
        "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
    }


def _git(*arguments: str) -> str | None:
    folder = Path(__file__).resolve().parent
    try:
        command = ["git", "-C", str(folder), *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return result.stdout.strip() if result.returncode == 0 else None


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
