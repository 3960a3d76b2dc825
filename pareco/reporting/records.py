"""The records of an experiment in `results/<experiment>/records/`: all else is made from them."""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import TypeAdapter

from pareco.config import COSTS
from pareco.files import write_text
from pareco.reporting.reading import (
    InvalidRecord,
    blaming,
    empty_table,
    read_if_there,
    read_json,
    read_table,
    table_text,
)
from pareco.schema import (
    BUDGET_TYPES,
    COUNTS,
    CURVE_TYPES,
    ENVIRONMENT,
    FRONT_TYPES,
    LATENCIES,
    LATENCY_TABLE,
    LEDGER_TYPES,
    NORMALIZED_APART,
    OBJECTIVES,
    PASSES,
    PHASES,
    PUBLISHED_SCALE,
    PUBLISHED_TYPES,
    VISIT_TYPES,
    LatencyRecord,
    Subject,
    counted,
)


@dataclass(frozen=True, kw_only=True)
class CostWords:
    """What tables and figures call a cost."""

    name: str
    """What follows a number, such as `301 M MACs`."""

    figure: str
    """The file name, without suffix, of the plot of errors over this cost."""

    definition: str = ""
    """What is counted, where the name does not say it."""

    unit: str = ""
    """The unit of a cost that is no count."""

    unit_size: float = 1
    """By what a number is divided to be in this unit."""

    @property
    def axis(self) -> str:
        """What stands at an axis, before `(% of ...)`."""
        label = f"{self.name}: {self.definition}" if self.definition else self.name
        return label[0].upper() + label[1:]

    def amount(self, value: float) -> str:
        """A value in three digits, such as `301 M`, or with the unit, such as `3.21 ms`."""
        return f"{value / self.unit_size:.3g} {self.unit}" if self.unit else amount(value)

    def full(self, value: float) -> str:
        """A value with the name and the definition, if there is one, such as `301 M MACs`."""
        text = f"{self.amount(value)} {self.name}"
        return f"{text} ({self.definition})" if self.definition else text


LATENCY = "latency_ms"

COST_WORDS: Mapping[str, CostWords] = {
    "macs": CostWords(name="MACs", figure="error_vs_flops"),
    "params": CostWords(name="parameters", figure="error_vs_params"),
    "activations": CostWords(
        name="activations",
        figure="error_vs_activations",
        definition="elements put out by layers",
    ),
    "peak_activations": CostWords(
        name="peak activations",
        figure="error_vs_peak_activations",
        definition="elements held at once",
    ),
    "latency": CostWords(
        name="foretold latency",
        figure="error_vs_foretold_latency",
        definition="from a table of operators",
        unit="ms",
        unit_size=1e6,
    ),
    LATENCY: CostWords(
        name="latency",
        figure="error_vs_latency",
        definition="measured, of one image",
        unit="ms",
    ),
}
AXES: tuple[str, ...] = tuple(COST_WORDS)


def amount(count: float) -> str:
    """A count in three digits with its unit, such as `301 M`."""
    larger = ((1e18, "E"), (1e15, "P"), (1e12, "T"))
    for size, unit in (*larger, (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:  # which rounds up to it
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


FOLDER = "records"


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord(Subject):
    """What the runs of an experiment share, as network.json has it."""

    budget_exempt: tuple[str, ...] = ()
    """Methods that may spend another training budget than the rest, in alphabetical order."""

    planned_seeds: int = 0
    """How many seeds each method is to have; 0 where nobody has said."""

    planned_fewer: Mapping[str, int] = field(default_factory=dict)
    """How many seeds methods are to have that are to have fewer, by their names."""

    def to_json(self) -> str:
        """The text of network.json, from which it is read again; no latency."""
        absent = [
            name for name in (*COUNTS, "equal_macs", "started_from") if getattr(self, name) is None
        ]
        whole = ("planned_seeds", "planned_fewer")
        absent += [name for name in whole if not getattr(self, name)]
        record = {name: value for name, value in asdict(self).items() if name not in absent}
        known = (name for name in (*COSTS, *OBJECTIVES) if name in self.full_costs)
        record["full_costs"] = {name: self.full_costs[name] for name in known}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

    @property
    def published(self) -> bool:
        """Whether it was run from scratch at the published schedule, by however many processes."""
        schedule = self.scale.partition(NORMALIZED_APART)[0]
        return schedule == PUBLISHED_SCALE and self.started_from is None

    @property
    def equal(self) -> tuple[str, ...]:
        """The columns of BUDGET_TYPES that methods have to share; none where they share MACs."""
        return () if self.equal_macs else PASSES

    @property
    def full_cost(self) -> float:
        """What the full network costs, by the experiment's own cost."""
        return self.full_costs[self.cost]

    @property
    def words(self) -> CostWords:
        """What the experiment's own cost is called."""
        return COST_WORDS[self.cost]

    @property
    def title(self) -> str:
        """Experiment, network, data set and image size, in one line."""
        return (
            f"{self.experiment}: {self.network} on {self.data}, "
            f"{self.image_size} x {self.image_size} pixels"
        )

    @property
    def search_split(self) -> Literal["batch", "holdout"] | None:
        """Where the front was chosen, see SPLIT_LOSSES; None where that was not recorded."""
        if self.held_out_images is None:
            return None
        return "holdout" if self.held_out_images else "batch"

    @property
    def counts(self) -> str:
        """The numbers of classes and images in a sentence; - for what was not recorded."""
        return counted(self.data, {name: getattr(self, name) for name in COUNTS})

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every table and figure must say: a scale that is not simply the published one.

        And which weights training started from.
        """
        start = self.started_from
        given = () if start is None else (f"started from {start}; what these cost is not counted",)
        if self.scale == PUBLISHED_SCALE:
            return given
        if self.scale.partition(NORMALIZED_APART)[0] == PUBLISHED_SCALE:
            return (f"scale: {self.scale}", *given)
        return (f"scale: {self.scale}, not the published schedule", *given)


@dataclass(frozen=True, kw_only=True)
class Records:
    """What the finished runs of one experiment have left, as tables in a fixed order.

    Where latency was measured, `fronts` has the column LATENCY (milliseconds), and so have the
    experiment's full costs.
    """

    experiment: ExperimentRecord
    fronts: pd.DataFrame
    """One row per evaluated sub-network: the columns of front.csv, then those of the budget."""

    curves: pd.DataFrame
    """The training losses (nats) of the largest and smallest network, means over some steps."""

    visits: pd.DataFrame
    """One row per entry of a search's history, in the order of the visits."""

    environment: Mapping[str, Any]
    """Where and how fast each run was made: an `EnvironmentRecord`."""

    ledger: pd.DataFrame = field(default_factory=lambda: empty_table(LEDGER_TYPES))
    """What each run spent: a row for each phase of each run that has a ledger."""

    configuration: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    """The configuration and data that all runs have in common (COMMON), and by method what it took
    for fields left unset. Empty in earlier records."""

    latency: Mapping[str, Any] | None = None
    """A `LatencyRecord`, where latency was measured."""

    latency_table: str | None = None
    """The text of the `pareco.latency_table` that latency was foretold from, where it was."""

    @property
    def runs(self) -> list[tuple[str, int]]:
        """Method and seed of every run, in the order of the fronts."""
        pairs = self.fronts[["method", "seed"]].drop_duplicates()
        return [(str(method), int(seed)) for method, seed in pairs.itertuples(index=False)]


COMMON = "common"
_EXPERIMENT = TypeAdapter(ExperimentRecord)
_CONFIGURATION = TypeAdapter(dict[str, dict[str, Any]])
_TABLES = {
    "fronts": {**FRONT_TYPES, **BUDGET_TYPES},
    "curves": CURVE_TYPES,
    "visits": VISIT_TYPES,
}


def read_records(folder: Path) -> Records:
    """Return the records of an experiment whose results lie in `folder`.

    Raises InvalidRecord, naming the file, for one that is missing, damaged or incomplete.
    """
    folder = folder / FOLDER
    experiment = read_json(folder / "network.json", _EXPERIMENT)
    place = folder.parent  # which may be a link, of this name or to it
    if experiment.experiment not in (Path(os.path.abspath(place)).name, place.resolve().name):
        raise InvalidRecord(
            f"{folder / 'network.json'} is that of {experiment.experiment!r}, not of its folder"
        )
    fronts, curves, visits = (
        read_table(folder / f"{name}.csv", types) for name, types in _TABLES.items()
    )
    with blaming(folder / "fronts.csv"):
        check_front(fronts, experiment)
    records = Records(
        experiment=experiment,
        fronts=fronts,
        curves=curves,
        visits=visits,
        environment=read_json(folder / "environment.json", ENVIRONMENT),
        ledger=_read_ledger(folder / "ledger.csv"),
        configuration=_read_configuration(folder / "config.json"),
        latency_table=read_if_there(folder / LATENCY_TABLE),
    )
    return with_latency(records, read_latency(folder / "latency.json"))


def _read_ledger(path: Path) -> pd.DataFrame:
    """The ledgers of runs; none where there is no file, as with earlier records."""
    if not path.exists():
        return empty_table(LEDGER_TYPES)
    ledger = read_table(path, LEDGER_TYPES)
    with blaming(path):
        for (method, seed), rows in ledger.groupby(["method", "seed"]):
            if sorted(rows["phase"]) != sorted(PHASES):
                phases = ", ".join(rows["phase"])
                raise ValueError(f"{method}, seed {seed} has the phases {phases}")
    return ledger


def _read_configuration(path: Path) -> Mapping[str, Mapping[str, Any]]:
    """The configuration of runs; none where there is no file, as with earlier records."""
    if not path.exists():
        return {}
    found = read_json(path, _CONFIGURATION)
    with blaming(path):
        if COMMON not in found:
            raise KeyError(COMMON)
    return found


def write_records(records: Records, folder: Path) -> None:
    """Write what `read_records` reads; the same records give the same bytes."""
    folder = folder / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "network.json", records.experiment.to_json())
    for name, types in _TABLES.items():
        write_text(folder / f"{name}.csv", table_text(getattr(records, name), types))
    if len(records.ledger):
        write_text(folder / "ledger.csv", table_text(records.ledger, LEDGER_TYPES))
    else:
        (folder / "ledger.csv").unlink(missing_ok=True)
    if records.latency_table is None:
        (folder / LATENCY_TABLE).unlink(missing_ok=True)
    else:
        write_text(folder / LATENCY_TABLE, records.latency_table)
    contents = {
        "environment": records.environment,
        "latency": records.latency,
        "config": {
            name: dict(sorted(fields.items()))
            for name, fields in sorted(records.configuration.items())
        },
    }
    for name, content in contents.items():
        if content:
            write_text(folder / f"{name}.json", json.dumps(content, indent=1) + "\n")
        else:
            (folder / f"{name}.json").unlink(missing_ok=True)


def with_latency(records: Records, latency: Mapping[str, Any] | None) -> Records:
    """Return the records with latencies, where there is one for every network; else unchanged."""
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


def without_latency(records: Records) -> Records:
    """Return the records as they were before latency was measured."""
    costs = {name: cost for name, cost in records.experiment.full_costs.items() if name != LATENCY}
    return replace(
        records,
        experiment=replace(records.experiment, full_costs=costs),
        fronts=records.fronts.drop(columns=LATENCY, errors="ignore"),
        latency=None,
    )


def read_latency(path: Path) -> LatencyRecord | None:
    """The record of a latency.json, None without one; InvalidRecord where it is damaged."""
    return read_json(path, LATENCIES) if path.exists() else None


def check_front(front: pd.DataFrame, experiment: Subject) -> None:
    """Raise ValueError without a network, or where costs or widths are not of a sub-network."""
    if front.empty:
        raise ValueError("there is no network in it")
    for cost in COSTS:
        full = experiment.full_costs[cost]
        if not front[cost].between(1, full).all():
            raise ValueError(f"{cost} outside 1 to {full}, the full network's")
    for widths in front["widths"]:
        counts, groups = [int(count) for count in widths.split()], experiment.groups
        if len(counts) != len(groups):
            raise ValueError(f"widths {widths!r} has {len(counts)} counts for {len(groups)} groups")
        for count, group in zip(counts, groups, strict=True):
            if not 1 <= count <= group.maximum:
                raise ValueError(f"{count} channels in group {group.name!r} of {group.maximum}")


_OURS = Path(__file__).parent / "published"  # in a checkout, a link into its results/


def read_published(results: Path) -> pd.DataFrame:
    """The published numbers in a folder of results, or where it has none, in that of this project.

    The rows of all CSV files in `published/`, those of a file in its order, with the columns
    PUBLISHED_TYPES: errors in percent, costs in millions, NaN where the source has none. Raises
    InvalidRecord as of `read_table`.
    """
    own = results / "published"
    paths = sorted((own if own.is_dir() else _OURS).glob("*.csv"))
    none = pd.DataFrame(columns=list(PUBLISHED_TYPES)).astype(PUBLISHED_TYPES)
    tables = [read_table(path, PUBLISHED_TYPES) for path in paths]
    return pd.concat(tables, ignore_index=True) if tables else none


def published_for(experiment: ExperimentRecord, published: pd.DataFrame) -> pd.DataFrame:
    """The rows of the experiment's network, data set and image size whose MACs are known.

    The data set is one of the same name, with as many classes, training images (those held out
    for the search among them) and test images. So a part of it has none, nor has a scale with
    smaller images; a shorter schedule has them. Nor has an experiment whose own cost is another
    one than MACs.
    """
    learned = (experiment.train_images or 0) + (experiment.held_out_images or 0)
    same = (
        (published["network"] == experiment.network)
        & (published["data"] == experiment.data)
        & (published["image_size"] == experiment.image_size)
        & (published["classes"] == experiment.classes)
        & (published["train_images"] == learned)
        & (published["test_images"] == experiment.test_images)
        & published["macs_millions"].notna()
        & (experiment.cost == "macs")
    )
    return published[same].reset_index(drop=True)
