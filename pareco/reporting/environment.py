"""Where and how fast the runs of an experiment were made: kept apart, as no re-run repeats it."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pareco.reporting.records import blaming

# Named one by one, so that no path of a machine and no host name gets into the results.
_REQUIRED = ("commit", "dirty", "python", "packages", "cpu", "gpus")
_OPTIONAL = ("system", "cpu_instructions", "cpu_cores", "device", "processes", "data_fingerprint")
_TIMES = ("seconds", "images_per_second", "data_waiting_percent")


def environment_record(finished: Sequence[Path]) -> dict[str, Any]:
    """The content of environment.json: distinct environments, and by method and seed the runs.

    A run names the environment of each of its sessions by position, and gives its timing and the
    number of damaged images. The same folders give the same record. Raises InvalidRecord for an
    env.json or result.json that is missing, damaged or incomplete.
    """
    environments: list[dict[str, Any]] = []
    runs: dict[str, dict[str, Any]] = {}
    for folder in sorted(finished, key=_method_and_seed):
        sessions = _sessions(folder)
        environments += [each for each in _distinct(sessions) if each not in environments]
        method, seed = _method_and_seed(folder)
        runs.setdefault(method, {})[f"seed{seed}"] = {
            "sessions": [environments.index(each) for each in sessions],
            **_spent(folder),
        }
    return {"environments": environments, "runs": runs}


def commit_name(environment: Mapping[str, Any], digits: int | None) -> str:
    """The commit, to some digits, with a remark where the tree had changed; or `unknown`."""
    name = "unknown" if environment["commit"] is None else str(environment["commit"])[:digits]
    return f"{name} with uncommitted changes" if environment["dirty"] else name


def duration(seconds: float) -> str:
    """A time in whole minutes, or from two hours on in hours, such as `2.5 h`."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _method_and_seed(folder: Path) -> tuple[str, int]:
    return folder.parent.name, int(folder.name.removeprefix("seed"))


def _sessions(folder: Path) -> list[dict[str, Any]]:
    path = folder / "env.json"
    with blaming(path):
        sessions = json.loads(path.read_text(encoding="utf-8"))
        return [
            {name: session[name] for name in _REQUIRED}
            | {name: session[name] for name in _OPTIONAL if name in session}
            for session in sessions
        ]


def _distinct(sessions: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [each for index, each in enumerate(sessions) if each not in sessions[:index]]


def _spent(folder: Path) -> dict[str, Any]:
    path = folder / "result.json"
    with blaming(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        timing = {name: record["timing"][name] for name in _TIMES}
        return {**timing, "damaged_images": record["damaged_images"]}
