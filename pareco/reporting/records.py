"""The finished runs of one experiment, read from their folders and checked against each other."""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

FRONT_TYPES = {
    "experiment": "str",
    "method": "str",
    "seed": "int64",
    "widths": "str",
    "macs": "int64",
    "params": "int64",
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
class Group:
    """A channel group: its name and its channel count in the full network."""

    name: str
    maximum: int


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What the runs of an experiment share."""

    experiment: str
    network: str
    full_macs: int
    full_params: int
    groups: tuple[Group, ...]
    """In the order of a front's `widths`."""
    budget_exempt: tuple[str, ...] = ()
    """Methods that may spend another training budget than the rest, in alphabetical order."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The experiment of a result.json or network.json; KeyError where a field is missing."""
        exempt = record["budget_exempt"]
        if isinstance(exempt, bool):
            exempt = [record["method"]] if exempt else []
        return cls(
            experiment=str(record["experiment"]),
            network=str(record["network"]),
            full_macs=int(record["full_macs"]),
            full_params=int(record["full_params"]),
            groups=tuple(
                Group(name=str(group["name"]), maximum=int(group["maximum"]))
                for group in record["groups"]
            ),
            budget_exempt=tuple(sorted(exempt)),
        )

    def to_json(self) -> str:
        """The text of network.json, from which `read_experiment` makes the same experiment."""
        return json.dumps(asdict(self), indent=2) + "\n"


def amount(count: float) -> str:
    """A count in three digits with k, M or G, such as `301 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:  # which rounds up to it
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


@dataclass(frozen=True, kw_only=True)
class Runs:
    """The finished runs of one experiment, and the folders of those that have not finished."""

    experiment: Experiment
    fronts: pd.DataFrame
    """One row per evaluated sub-network: the columns of front.csv, then those of the budget."""
    unfinished: tuple[Path, ...]


def collected_runs(experiment: str, runs: Path) -> Runs:
    """The runs under `runs/<experiment>/<method>/seed<k>/`, ordered by method, seed and MACs.

    A folder without DONE is not read. Raises InvalidRecord, naming file or runs, when none has
    finished, a record is incomplete, or two runs differ in their network or channel groups.
    """
    folders = sorted(folder for folder in (runs / experiment).glob("*/seed*") if folder.is_dir())
    finished = [folder for folder in folders if (folder / "DONE").exists()]
    if not finished:
        raise InvalidRecord(
            f"no finished run of {experiment!r} in {runs / experiment} ({len(folders)} unfinished);"
            f" make them with: python -m replications run {experiment}"
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
    order = ["method", "seed", "macs", "search_loss", "widths"]
    return Runs(
        experiment=replace(shared, budget_exempt=tuple(sorted(exempt))),
        fronts=pd.concat(fronts).sort_values(order, ignore_index=True),
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
    with _blaming(folder / "config.json"):
        configuration = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        for own in ("method", "seed"):
            del configuration[own]
    with _blaming(folder / "env.json"):
        sessions = json.loads((folder / "env.json").read_text(encoding="utf-8"))
        return configuration | {"data": sessions[0]["data_fingerprint"]}


def read_experiment(path: Path) -> Experiment:
    """The experiment of a network.json; InvalidRecord if the file is missing or incomplete."""
    with _blaming(path):
        return Experiment.from_record(json.loads(path.read_text(encoding="utf-8")))


def read_fronts(path: Path, types: Mapping[str, str]) -> pd.DataFrame:
    """The columns named in `types`, in that order; others are left out.

    Raises InvalidRecord when a column is missing, a value is missing or not finite, or there are
    no rows.
    """
    with _blaming(path):
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
    with _blaming(path):
        record = json.loads(path.read_text(encoding="utf-8"))
        experiment = Experiment.from_record(record)
        identity = (experiment.experiment, str(record["method"]), f"seed{record['seed']}")
        budget = {name: int(record["budget"][name]) for name in BUDGET_TYPES}
        if identity != folder.parts[-3:]:
            raise ValueError(f"it belongs to {'/'.join(identity)}, not to its folder")
    path = folder / "front.csv"
    front = read_fronts(path, FRONT_TYPES)
    with _blaming(path):
        seeds = "seed" + front["seed"].astype(str)
        rows = zip(front["experiment"], front["method"], seeds, strict=True)
        if any(row != identity for row in rows):
            raise ValueError("a row belongs to another run than its folder")
        if not front["macs"].between(1, experiment.full_macs).all():
            raise ValueError(f"MACs outside 1 to {experiment.full_macs}, those of the full network")
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
def _blaming(path: Path) -> Iterator[None]:
    try:
        yield
    except KeyError as error:
        raise InvalidRecord(f"{path} lacks {error}") from error
    except (OSError, TypeError, ValueError) as error:
        raise InvalidRecord(f"{path}: {error}") from error
