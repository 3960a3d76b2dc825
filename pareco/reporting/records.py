"""The finished runs of one experiment, read from their folders and checked against each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pareco.cost import COSTS
from pareco.reporting.experiment import Experiment, Group

FRONT_TYPES = {
    "experiment": "str",
    "method": "str",
    "seed": "int64",
    "widths": "str",
    **dict.fromkeys(COSTS, "int64"),
    "search_loss": "float64",
    "test_top1_error": "float64",
    "test_top5_error": "float64",
    "calibration_images": "int64",
}
BUDGET_TYPES = dict.fromkeys(
    ("gradient_steps", "passes", "search_evaluations", "widths_visited"), "int64"
)


class InvalidRecord(ValueError):
    """A record that is missing, incomplete, or at odds with itself or with another run."""


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The finished runs of one experiment, their folders, and those of unfinished ones."""

    experiment: Experiment
    fronts: pd.DataFrame
    """One row per evaluated sub-network: the columns of front.csv, then those of the budget."""
    finished: tuple[Path, ...]
    unfinished: tuple[Path, ...]


def collected_runs(experiment: str, runs: Path) -> Runs:
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
    _check_alike(finished)
    fronts, shared, exempt = [], None, set()
    for folder in finished:
        own, front = _run(folder)
        exempt.update(own.budget_exempt)
        own = replace(own, budget_exempt=())
        shared = shared or own
        if own != shared:
            different = [
                name for name in asdict(own) if getattr(own, name) != getattr(shared, name)
            ]
            raise InvalidRecord(f"{folder} and {finished[0]} differ in {', '.join(different)}")
        fronts.append(front)
    assert shared is not None
    order = ["method", "seed", shared.cost, "search_loss", "widths"]
    return Runs(
        experiment=replace(shared, budget_exempt=tuple(sorted(exempt))),
        fronts=pd.concat(fronts).sort_values(order, ignore_index=True),
        finished=tuple(finished),
        unfinished=tuple(folder for folder in folders if folder not in finished),
    )


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


def read_experiment(path: Path) -> Experiment:
    """The experiment of a network.json; InvalidRecord if the file is missing or incomplete."""
    with blaming(path):
        return Experiment.from_record(json.loads(path.read_text(encoding="utf-8")))


def read_fronts(path: Path, types: Mapping[str, str]) -> pd.DataFrame:
    """The columns named in `types`, in that order; others are left out.

    Raises InvalidRecord when a column is missing, a value is missing or not finite, or there are
    no rows.
    """
    with blaming(path):
        table = pd.read_csv(path, usecols=list(types), dtype=dict(types), keep_default_na=False)
        if table.empty:
            raise ValueError("there is no network in it")
        numbers = [name for name, kind in types.items() if kind == "float64"]
        if unusable := [name for name in numbers if not np.isfinite(table[name]).all()]:
            raise ValueError(f"NaN or an infinite value in column {', '.join(unusable)}")
        errors = [name for name in numbers if name.endswith("error")]
        if outside := [name for name in errors if not table[name].between(0, 100).all()]:
            raise ValueError(f"an error outside 0 to 100% in column {', '.join(outside)}")
        return table[list(types)]


def _run(folder: Path) -> tuple[Experiment, pd.DataFrame]:
    path = folder / "result.json"
    with blaming(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        experiment = Experiment.from_record(record)
        identity = (experiment.experiment, str(record["method"]), f"seed{record['seed']}")
        budget = {name: int(record["budget"][name]) for name in BUDGET_TYPES}
        if identity != folder.parts[-3:]:
            raise ValueError(f"it belongs to {'/'.join(identity)}, not to its folder")
    path = folder / "front.csv"
    front = read_fronts(path, FRONT_TYPES)
    with blaming(path):
        seeds = "seed" + front["seed"].astype(str)
        rows = zip(front["experiment"], front["method"], seeds, strict=True)
        if any(row != identity for row in rows):
            raise ValueError("a row belongs to another run than its folder")
        for cost, full in experiment.full_costs.items():
            if not front[cost].between(1, full).all():
                raise ValueError(f"{cost} outside 1 to {full}, the full network's")
        for widths in front["widths"]:
            _check_widths(widths, experiment.groups)
    return experiment, front.assign(**budget)


def _check_widths(widths: str, groups: tuple[Group, ...]) -> None:
    counts = [int(count) for count in widths.split()]
    if len(counts) != len(groups):
        raise ValueError(f"widths {widths!r} has {len(counts)} counts for {len(groups)} groups")
    for count, group in zip(counts, groups, strict=True):
        if not 1 <= count <= group.maximum:
            raise ValueError(f"{count} channels in group {group.name!r} of {group.maximum}")


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Raise InvalidRecord, naming `path`, for what goes wrong with it inside the `with` block."""
    try:
        yield
    except KeyError as error:
        raise InvalidRecord(f"{path} lacks {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise InvalidRecord(f"{path}: {error}") from error
