"""The records of an experiment in `results/<experiment>/records/`: all else is made from them."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import pandas as pd

from pareco.config import COSTS, Cost
from pareco.files import write_text


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

    @property
    def defined(self) -> str:
        """The name, with the definition in brackets if there is one."""
        return f"{self.name} ({self.definition})" if self.definition else self.name

    @property
    def axis(self) -> str:
        """What stands at an axis, before `(% of ...)`."""
        label = f"{self.name}: {self.definition}" if self.definition else self.name
        return label[0].upper() + label[1:]

    def amount(self, value: float) -> str:
        """A value in three digits, such as `301 M`, or with the unit, such as `3.21 ms`."""
        return f"{value:.3g} {self.unit}" if self.unit else amount(value)

    def full(self, value: float) -> str:
        """A value with the name, such as `301 M MACs`."""
        return f"{self.amount(value)} {self.name}"


LATENCY = "latency_ms"
AXES: tuple[str, ...] = (*COSTS, LATENCY)

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
    LATENCY: CostWords(
        name="latency",
        figure="error_vs_latency",
        definition="measured, of one image",
        unit="ms",
    ),
}


def amount(count: float) -> str:
    """A count in three digits with k, M or G, such as `301 M`."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= 0.9995 * size:  # which rounds up to it
            return f"{count / size:.3g} {unit}"
    return f"{count:.0f}"


PUBLISHED_SCALE = "paper"


@dataclass(frozen=True, kw_only=True)
class Group:
    """A channel group: its name and its channel count in the full network."""

    name: str
    maximum: int


@dataclass(frozen=True, kw_only=True)
class ExperimentRecord:
    """What the runs of an experiment share."""

    experiment: str
    network: str
    data: str
    """The name of the data set."""
    image_size: int
    """Height and width in pixels."""
    scale: str
    """PUBLISHED_SCALE for the published schedule, else a line that says how much of it this is."""
    cost: Cost
    """The objective beside the loss: the axis of tables and plots."""
    full_costs: Mapping[str, float]
    """Every cost of the full network: COSTS, and the latency where it was measured."""
    groups: tuple[Group, ...]
    """In the order of a front's `widths`."""
    budget_exempt: tuple[str, ...] = ()
    """Methods that may spend another training budget than the rest, in alphabetical order."""
    test_images: int | None = None
    """How many images the errors are measured on; None where that was not recorded."""

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Self:
        """The experiment of a result.json or network.json.

        Raises KeyError where a field is missing, and ValueError for a cost that COSTS lacks, a
        scale that is not one line of text, or test images that are no positive number.
        """
        exempt = record["budget_exempt"]
        if isinstance(exempt, bool):
            exempt = [record["method"]] if exempt else []
        return cls(
            experiment=_line("experiment", record["experiment"]),
            network=_line("network", record["network"]),
            data=_line("data", record["data"]),
            image_size=int(record["image_size"]),
            scale=_line("scale", record["scale"]),
            cost=_cost(record["cost"]),
            full_costs={name: int(record["full_costs"][name]) for name in COSTS},
            groups=tuple(
                Group(name=_line("a group", group["name"]), maximum=int(group["maximum"]))
                for group in record["groups"]
            ),
            budget_exempt=tuple(sorted(exempt)),
            test_images=_test_images(record.get("test_images")),
        )

    def to_json(self) -> str:
        """The text of network.json, from which `read_experiment` makes it again; no latency."""
        record = asdict(self)
        if self.test_images is None:
            del record["test_images"]
        record["full_costs"] = {name: self.full_costs[name] for name in COSTS}
        return json.dumps(record, indent=2, ensure_ascii=False) + "\n"

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
        """ExperimentRecord, network, data set and image size, in one line."""
        return (
            f"{self.experiment}: {self.network} on {self.data}, "
            f"{self.image_size} x {self.image_size} pixels"
        )

    @property
    def warnings(self) -> tuple[str, ...]:
        """What every table and figure must say: a scale that is not the published one."""
        if self.scale == PUBLISHED_SCALE:
            return ()
        return (f"scale: {self.scale}, not the published schedule",)


def _line(field: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or not value.isprintable():
        raise ValueError(f"{field} {value!r} is not one line of text")
    return value


def _test_images(value: Any) -> int | None:
    if value is None or (isinstance(value, int) and value > 0):
        return value
    raise ValueError(f"test_images {value!r} is no number of images")


def _cost(value: Any) -> Cost:
    for name in COSTS:
        if value == name:
            return name
    raise ValueError(f"cost {value!r} is none of {', '.join(COSTS)}")


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

    experiment: ExperimentRecord
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


def read_experiment(path: Path) -> ExperimentRecord:
    """The experiment of a network.json; InvalidRecord if the file is missing or incomplete."""
    with blaming(path):
        return ExperimentRecord.from_record(json.loads(path.read_text(encoding="utf-8")))


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


def check_front(front: pd.DataFrame, experiment: ExperimentRecord) -> None:
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


PUBLISHED_TYPES = {
    "network": "str",
    "data": "str",
    "image_size": "int64",
    "method": "str",
    "config": "str",
    "macs_millions": "float64",
    "params_millions": "float64",
    "top1_error": "float64",
    "source": "str",
    "note": "str",
}
_MAY_LACK = ("macs_millions", "params_millions")
_REQUIRED_TEXTS = ("network", "data", "method", "source")


_OURS = Path(__file__).parents[2] / "results" / "published"


def published_folder(results: Path) -> Path:
    """The folder of published numbers in the results, or else that of this repository."""
    own = results / "published"
    return own if own.is_dir() else _OURS


def read_published(folder: Path) -> pd.DataFrame:
    """The rows of all CSV files in a folder, those of a file in its order; none without a folder.

    The columns are PUBLISHED_TYPES: errors in percent, costs in millions, NaN where the source has
    none. Raises InvalidRecord, naming file and line, for a row that is damaged or has no source.
    """
    tables = [_read(path) for path in sorted(folder.glob("*.csv"))]
    if not tables:
        return pd.DataFrame(columns=list(PUBLISHED_TYPES)).astype(PUBLISHED_TYPES)
    return pd.concat(tables, ignore_index=True)


def published_for(experiment: ExperimentRecord, published: pd.DataFrame) -> pd.DataFrame:
    """The rows of the experiment's network, data set and image size whose MACs are known.

    So a scale with smaller images, or other ones, has none; a shorter schedule has them.
    """
    same = (
        (published["network"] == experiment.network)
        & (published["data"] == experiment.data)
        & (published["image_size"] == experiment.image_size)
        & published["macs_millions"].notna()
    )
    return published[same].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    with blaming(path):
        table = pd.read_csv(
            path,
            dtype=dict(PUBLISHED_TYPES),
            keep_default_na=False,
            na_values={name: [""] for name in _MAY_LACK},
        )
        if list(table.columns) != list(PUBLISHED_TYPES):
            raise ValueError(f"its columns are not {', '.join(PUBLISHED_TYPES)}")
        for index, row in enumerate(table.to_dict("records")):
            if fault := _fault(row):
                raise InvalidRecord(f"{path}, line {index + 2}: {fault}")
        return table


def _fault(row: dict) -> str | None:
    """What is wrong with a row, if anything is."""
    for name in _REQUIRED_TEXTS:
        if not row[name].strip():
            return f"{name} is empty"
    for name in _MAY_LACK:
        if not np.isnan(row[name]) and not 0 < row[name] < np.inf:
            return f"{name} is no positive number: {row[name]}"
    if not 0 <= row["top1_error"] <= 100:
        return f"top1_error is no percentage: {row['top1_error']}"
    return f"image_size is {row['image_size']}" if row["image_size"] < 1 else None
