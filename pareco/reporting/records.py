"""The records of an experiment in `results/<experiment>/records/`: all else is made from them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pareco.cost import COSTS
from pareco.files import write_text
from pareco.reporting.costs import LATENCY
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
CURVE_TYPES = {
    "method": "str",
    "seed": "int64",
    "step": "int64",
    "loss_largest": "float64",
    "loss_smallest": "float64",
}
VISIT_TYPES = {
    "method": "str",
    "seed": "int64",
    "visit": "int64",
    "step": "Int64",
    "origin": "str",
    "widths": "str",
    **dict.fromkeys(COSTS, "int64"),
    "target_cost": "float64",
    "predicted_loss": "float64",
    "predicted_deviation": "float64",
    "refreshed_loss": "float64",
    "final_loss": "float64",
}
VISIT_MAY_LACK = (
    *("step", "target_cost", "predicted_loss", "predicted_deviation"),
    *("refreshed_loss", "final_loss"),
)

FOLDER = "records"


class InvalidRecord(ValueError):
    """A record that is missing, incomplete, or at odds with itself or with another run."""


@dataclass(frozen=True, kw_only=True)
class Records:
    """What the finished runs of one experiment have left, as tables in a fixed order.

    Where latency was measured, `fronts` has the column LATENCY (milliseconds), and so have the
    experiment's full costs.
    """

    experiment: Experiment
    fronts: pd.DataFrame
    """One row per evaluated sub-network: the columns of front.csv, then those of the budget."""

    curves: pd.DataFrame
    """The training losses (nats) of the largest and smallest network, means over some steps."""

    visits: pd.DataFrame
    """One row per entry of a search's history, in the order of the visits."""

    environment: Mapping[str, Any]
    """Where and how fast each run was made; see `environment_record`."""

    latency: Mapping[str, Any] | None = None
    """How latency was measured, and the milliseconds of each network by its widths."""

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Method and seed of every run, in the order of the fronts."""
        pairs = self.fronts[["method", "seed"]].drop_duplicates()
        return [(str(method), int(seed)) for method, seed in pairs.itertuples(index=False)]


def read_records(folder: Path) -> Records:
    """Return the records of an experiment whose results lie in `folder`.

    Raises InvalidRecord, naming the file, for one that is missing, damaged or incomplete.
    """
    folder = folder / FOLDER
    experiment = read_experiment(folder / "network.json")
    if experiment.experiment != folder.parent.resolve().name:
        raise InvalidRecord(
            f"{folder / 'network.json'} is that of {experiment.experiment!r}, not of its folder"
        )
    fronts = read_table(folder / "fronts.csv", {**FRONT_TYPES, **BUDGET_TYPES})
    if fronts.empty:
        raise InvalidRecord(f"{folder / 'fronts.csv'}: there is no network in it")
    with blaming(folder / "fronts.csv"):
        check_front(fronts, experiment)
    latency = folder / "latency.json"
    return with_latency(
        Records(
            experiment=experiment,
            fronts=fronts,
            curves=read_table(folder / "curves.csv", CURVE_TYPES),
            visits=read_table(folder / "visits.csv", VISIT_TYPES, may_lack=VISIT_MAY_LACK),
            environment=read_environment(folder / "environment.json"),
        ),
        read_latency(latency) if latency.exists() else None,
    )


def write_records(records: Records, folder: Path) -> None:
    """Write what `read_records` reads; the same records give the same bytes."""
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "network.json", records.experiment.to_json())
    tables = {
        "fronts": records.fronts[[*FRONT_TYPES, *BUDGET_TYPES]],
        "curves": records.curves[list(CURVE_TYPES)],
        "visits": records.visits[list(VISIT_TYPES)],
    }
    for name, table in tables.items():
        text = table.to_csv(index=False, float_format="%.6f", lineterminator="\n")
        write_text(folder / f"{name}.csv", text)
    for name, content in (("environment", records.environment), ("latency", records.latency)):
        if content is not None:
            write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
        else:
            (folder / f"{name}.json").unlink(missing_ok=True)


def with_latency(records: Records, latency: Mapping[str, Any] | None) -> Records:
    """Return the records with latencies, where there is one for every network; else without."""
    if latency is None:
        return records
    times = latency["milliseconds"]
    full = " ".join(str(group.maximum) for group in records.experiment.groups)
    if not {full, *records.fronts["widths"]} <= set(times):
        return records
    costs = {**records.experiment.full_costs, LATENCY: times[full]}
    return replace(
        records,
        experiment=replace(records.experiment, full_costs=costs),
        fronts=records.fronts.assign(**{LATENCY: records.fronts["widths"].map(times)}),
        latency=latency,
    )


def read_experiment(path: Path) -> Experiment:
    """The experiment of a network.json; InvalidRecord if the file is missing or incomplete."""
    with blaming(path):
        return Experiment.from_record(json.loads(path.read_text(encoding="utf-8")))


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; InvalidRecord if the file is missing or holds something else."""
    with blaming(path):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        return content


def read_environment(path: Path) -> dict[str, Any]:
    """The record of an environment.json; InvalidRecord where something is missing in it."""
    record = read_json(path)
    with blaming(path):
        for each in record["environments"]:
            for name in ("commit", "dirty", "python", "packages", "cpu", "gpus"):
                each[name]
        for run in (run for seeds in record["runs"].values() for run in seeds.values()):
            for name in ("seconds", "damaged_images"):
                float(run[name])
            for name in ("images_per_second", "data_waiting_percent"):
                run[name]
            if not all(0 <= index < len(record["environments"]) for index in run["sessions"]):
                raise ValueError("a run names an environment that is not there")
    return record


def read_latency(path: Path) -> dict[str, Any]:
    """The record of a latency.json; InvalidRecord unless all its times are positive numbers."""
    record = read_json(path)
    with blaming(path):
        for name in ("device", "cpu", "gpus", "cpu_threads", "batch_size"):
            record[name]
        times = {str(widths): float(time) for widths, time in record["milliseconds"].items()}
        if wrong := [widths for widths, time in times.items() if not 0 < time < float("inf")]:
            raise ValueError(f"no time: that of {wrong[0]!r}")
        return {**record, "milliseconds": times}


def read_table(
    path: Path, types: Mapping[str, str], *, may_lack: tuple[str, ...] = ()
) -> pd.DataFrame:
    """The columns named in `types`, in that order; others are left out.

    Raises InvalidRecord when a column is missing, or a value is missing or not finite in a column
    that `may_lack` does not name.
    """
    with blaming(path):
        optional = {name: [""] for name in may_lack}
        table = pd.read_csv(
            path,
            usecols=list(types),
            dtype=dict(types),
            keep_default_na=False,
            na_values=optional,
        )
        numbers = [name for name, kind in types.items() if kind == "float64"]
        required = [name for name in numbers if name not in may_lack]
        if unusable := [name for name in required if not np.isfinite(table[name]).all()]:
            raise ValueError(f"NaN or an infinite value in column {', '.join(unusable)}")
        errors = [name for name in numbers if name.endswith("error")]
        if outside := [name for name in errors if not table[name].between(0, 100).all()]:
            raise ValueError(f"an error outside 0 to 100% in column {', '.join(outside)}")
        return table[list(types)]


def check_front(front: pd.DataFrame, experiment: Experiment) -> None:
    """Raise ValueError where costs or widths are not those of a sub-network."""
    for cost in COSTS:
        full = experiment.full_costs[cost]
        if not front[cost].between(1, full).all():
            raise ValueError(f"{cost} outside 1 to {full}, the full network's")
    for widths in front["widths"]:
        _check_widths(widths, experiment.groups)


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
    except (AttributeError, IndexError, OSError, TypeError, ValueError) as error:
        raise InvalidRecord(f"{path}: {error}") from error
