"""From the folders of finished runs to the records of their experiment."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pareco.reporting.records import (
    BUDGET_TYPES,
    CURVE_TYPES,
    FRONT_TYPES,
    VISIT_MAY_LACK,
    VISIT_TYPES,
    ExperimentRecord,
    InvalidRecord,
    Records,
    blaming,
    check_front,
    read_latency,
    read_table,
    with_latency,
)

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


_CURVE_POINTS = 100


@dataclass(frozen=True, kw_only=True)
class CollectedRuns:
    """The records of the finished runs of one experiment, and the folders of the unfinished."""

    records: Records
    unfinished: tuple[Path, ...]


def collected_runs(experiment: str, runs: Path) -> CollectedRuns:
    """The runs under `runs/<experiment>/<method>/seed<k>/`, ordered by method, seed and cost.

    A folder without DONE is not read. Raises InvalidRecord, naming file or runs, when none has
    finished, a record is incomplete, or two runs differ in their configuration, data, scale, cost,
    network or channel groups.
    """
    folders = sorted(folder for folder in (runs / experiment).glob("*/seed*") if folder.is_dir())
    finished = [folder for folder in folders if (folder / "DONE").exists()]
    if not finished:
        raise InvalidRecord(
            f"no finished run of {experiment!r} in {runs / experiment} ({len(folders)} unfinished)"
        )
    records = records_of(finished)
    latency = runs / experiment / "latency.json"
    return CollectedRuns(
        records=with_latency(records, read_latency(latency) if latency.exists() else None),
        unfinished=tuple(folder for folder in folders if folder not in finished),
    )


def records_of(folders: Sequence[Path]) -> Records:
    """The records of these runs, of which there is at least one; see `collected_runs`."""
    _check_alike(folders)
    shared = _shared_experiment(folders)
    order = ["method", "seed", shared.cost, "search_loss", "widths"]
    fronts = pd.concat([_front(folder, shared) for folder in folders])
    curves = pd.concat([_curve(folder) for folder in folders])
    visits = pd.concat([_visits(folder) for folder in folders])
    return Records(
        experiment=shared,
        fronts=fronts.sort_values(order, ignore_index=True),
        curves=curves.sort_values(["method", "seed", "step"], ignore_index=True),
        visits=visits.sort_values(["method", "seed", "visit"], ignore_index=True),
        environment=environment_record(folders),
    )


def _shared_experiment(finished: Sequence[Path]) -> ExperimentRecord:
    """The experiment that all runs agree on, with the methods that any run exempts."""
    first, *others = [_experiment(folder) for folder in finished]
    exempt = {*first.budget_exempt}
    alike = replace(first, budget_exempt=())
    for folder, own in zip(finished[1:], others, strict=True):
        exempt.update(own.budget_exempt)
        own = replace(own, budget_exempt=())
        if own != alike:
            names = [name for name in asdict(own) if getattr(own, name) != getattr(alike, name)]
            raise InvalidRecord(f"{folder} and {finished[0]} differ in {', '.join(names)}")
    return replace(
        alike, budget_exempt=tuple(sorted(exempt)), test_images=_test_images(finished[0])
    )


def _test_images(folder: Path) -> int | None:
    """How many images the splits of a run have to test on; None where they were not kept."""
    path = folder / "splits.json"
    if not path.exists():
        return None
    with blaming(path):
        splits = json.loads(path.read_text(encoding="utf-8"))
        return sum(end - first for first, end in splits["test"])


def _check_alike(finished: Sequence[Path]) -> None:
    """Raise InvalidRecord, naming the fields, unless all runs have one configuration and data."""
    first, *others = [_configuration(folder) for folder in finished]
    for folder, other in zip(finished[1:], others, strict=True):
        fields = sorted(key for key in first | other if first.get(key) != other.get(key))
        if fields:
            changes = "; ".join(f"{key}: {first.get(key)}, {other.get(key)}" for key in fields)
            raise InvalidRecord(
                f"{finished[0]} and {folder} have other configurations ({changes}):"
                " only runs of one configuration can be compared"
            )


def _configuration(folder: Path) -> dict[str, Any]:
    """What every run of an experiment must have in common."""
    with blaming(folder / "config.json"):
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for own in ("method", "seed"):
            del configuration[own]
    with blaming(folder / "env.json"):
        sessions = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        return configuration | {"data fingerprint": sessions[0]["data_fingerprint"]}


def _result(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "result.json").read_text(encoding="utf-8"))


def _experiment(folder: Path) -> ExperimentRecord:
    with blaming(folder / "result.json"):
        record = _result(folder)
        experiment = ExperimentRecord.from_record(record)
        identity = (experiment.experiment, str(record["method"]), f"seed{record['seed']}")
        if identity != folder.parts[-3:]:
            raise ValueError(f"it belongs to {'/'.join(identity)}, not to its folder")
        return experiment


def _front(folder: Path, experiment: ExperimentRecord) -> pd.DataFrame:
    """The front of a run, with the columns of its budget."""
    with blaming(folder / "result.json"):
        budget = {name: int(_result(folder)["budget"][name]) for name in BUDGET_TYPES}
    path = folder / "front.csv"
    front = read_table(path, FRONT_TYPES)
    with blaming(path):
        if front.empty:
            raise ValueError("there is no network in it")
        seeds = "seed" + front["seed"].astype(str)
        rows = zip(front["experiment"], front["method"], seeds, strict=True)
        if any(row != folder.parts[-3:] for row in rows):
            raise ValueError("a row belongs to another run than its folder")
        check_front(front, experiment)
    return front.assign(**budget)


def _curve(folder: Path) -> pd.DataFrame:
    """The training losses of a run: means over as many steps each, to one, at most _CURVE_POINTS.

    `step` is the last step of each mean.
    """
    path = folder / "metrics.jsonl"
    with blaming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        table = pd.DataFrame([json.loads(line) for line in lines])
        losses = table[["step", "loss_largest", "loss_smallest"]].dropna()
        points = min(_CURVE_POINTS, len(losses))
        parts = losses.groupby(np.arange(len(losses)) * points // max(len(losses), 1))
        means = parts.mean().assign(step=parts["step"].max())
        means = means.assign(method=folder.parent.name, seed=_seed(folder))
        return means[list(CURVE_TYPES)].astype(CURVE_TYPES)


def _visits(folder: Path) -> pd.DataFrame:
    path = folder / "visits.csv"
    visits = read_table(path, VISIT_TYPES, may_lack=VISIT_MAY_LACK)
    with blaming(path):
        if set(zip(visits["method"], visits["seed"], strict=True)) - {
            (folder.parent.name, _seed(folder))
        }:
            raise ValueError("a row belongs to another run than its folder")
    return visits


def _seed(folder: Path) -> int:
    return int(folder.name.removeprefix("seed"))
