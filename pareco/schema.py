"""What the files of runs and records hold: columns and fields, their types, what may be missing.

Runs write what stands here, and reports read and check it. Columns are given with the types that
pandas has for them; every JSON object may hold more fields than those named, which are not read.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import inf
from typing import Annotated, Literal, NotRequired, get_args

from pydantic import AfterValidator, Field, TypeAdapter
from typing_extensions import TypedDict

from pareco.config import COSTS, Cost


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a run spent, in numbers."""

    gradient_steps: int
    passes: int
    search_evaluations: int
    widths_visited: int


SPLIT_LOSSES = {"batch": "training_loss", "holdout": "held_out_loss"}
"""The column of the loss that the front is chosen by, for each `search_split` of the data."""

OBJECTIVES = {"latency": "int64"}
"""More columns of those fronts and visits whose experiment has such a cost: nanoseconds, foretold
from a table."""

LATENCY_TABLE = "latency_table.json"
"""The file, of a run and in the records, of the table that such a latency was foretold from."""

FRONT_TYPES = {
    "experiment": "str",
    "method": "str",
    "seed": "int64",
    "widths": "str",
    **dict.fromkeys(COSTS, "int64"),
    "search_loss": "float64",
    "test_top1_error": "float64",
    "test_top5_error": "float64",
    "test_loss": "float64",
    "calibration_images": "int64",
    **dict.fromkeys(SPLIT_LOSSES.values(), "float64"),
}
"""front.csv of a run, errors in percent; with those of BUDGET_TYPES, fronts.csv of the records.

Losses are in nats. The search loss is the one of the split losses that the front was chosen by; the
other one was measured on as many images, where some were held out. Earlier runs and records have
neither, nor the test loss.
"""

BUDGET_TYPES = dict.fromkeys(Budget.__annotations__, "int64")
PASSES = ("gradient_steps", "passes")
"""What of a budget methods have in common, unless they share MACs."""

Phase = Literal["training", "search", "choice", "test", "lost"]
PHASES: tuple[Phase, ...] = get_args(Phase)
"""What a run spends on: gradient steps; the losses that a method asks for meanwhile; choosing the
front, calibration included; the test images, and the front's losses on the other split; and what an
interruption made it do again, which no total includes."""


@dataclass(kw_only=True)
class Spending:
    """What a run spent in a phase: MACs (a backward pass counts two forward ones), and time."""

    forward_macs: Annotated[int, Field(ge=0)]
    backward_macs: Annotated[int, Field(ge=0)]
    seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Of the wall clock."""
    device_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    """Those of all processes."""


LEDGER_TYPES = {
    "method": "str",
    "seed": "int64",
    "phase": "str",
    "forward_macs": "uint64",
    "backward_macs": "uint64",
    "seconds": "float64",
    "device_seconds": "float64",
}
"""ledger.csv of the records: a row for each phase of each run that has a ledger."""

CURVE_TYPES = {
    "method": "str",
    "seed": "int64",
    "step": "int64",
    "loss_largest": "float64",
    "loss_smallest": "float64",
}
"""curves.csv of the records, made from the metrics.jsonl of each run; losses in nats."""

VISIT_NUMBERS = {
    "target_cost": ".1f",
    "predicted_loss": ".6f",
    "predicted_deviation": ".6f",
    "refreshed_loss": ".6f",
    "final_loss": ".6f",
    "asked_loss": ".6f",
    "gaps": "d",
}
"""The numbers that a visit may lack, and how a run writes them; earlier runs have not the last two.
"""

VISIT_TYPES = {
    "method": "str",
    "seed": "int64",
    "visit": "int64",
    "step": "Int64",
    "origin": "str",
    "widths": "str",
    **dict.fromkeys(COSTS, "int64"),
    **dict.fromkeys(VISIT_NUMBERS, "float64"),
    "gaps": "Int64",
}
"""visits.csv of the records; that of a run has the experiment before them."""

PUBLISHED_TYPES = {
    "network": "str",
    "data": "str",
    "image_size": "int64",
    "classes": "int64",
    "train_images": "int64",
    "test_images": "int64",
    "method": "str",
    "config": "str",
    "macs_millions": "float64",
    "params_millions": "float64",
    "top1_error": "float64",
    "source": "str",
    "note": "str",
}
"""The CSV files of published numbers; the error in percent."""

MAY_LACK = {
    *("step", *VISIT_NUMBERS, *SPLIT_LOSSES.values(), "test_loss"),
    *("config", "macs_millions", "params_millions", "note"),
}
"""Columns with empty cells; a step only in visits."""

MAY_BE_ABSENT = {*SPLIT_LOSSES.values(), "test_loss", "asked_loss", "gaps"}
"""Columns that earlier files do not have; they are read as empty."""

LIMITS = {
    **dict.fromkeys(("test_top1_error", "test_top5_error", "top1_error"), (0, 100)),
    **dict.fromkeys(("macs_millions", "params_millions"), (1e-6, 1e12)),
    "image_size": (1, 1e6),
    **dict.fromkeys(("classes", "train_images", "test_images"), (1, 1e12)),
    **dict.fromkeys(VISIT_NUMBERS, (-inf, inf)),
    "gaps": (0, inf),
    **dict.fromkeys(("forward_macs", "backward_macs"), (0, 2**64 - 1)),
    **dict.fromkeys(("seconds", "device_seconds"), (0, inf)),
}
"""The least and the most that a number may be; of others, anything finite."""


PUBLISHED_SCALE = "paper"
NORMALIZED_APART = "; batch norm in each of"
"""What a scale says next where processes, whose number follows, had batch norm of their own."""


def _line(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise ValueError(f"{text!r} is not one line of text")
    return text


def _complete(costs: Mapping[str, int | float]) -> dict[str, int | float]:
    if missing := [name for name in COSTS if name not in costs]:
        raise ValueError(f"it lacks {missing[0]!r}")
    return {name: costs[name] for name in (*COSTS, *OBJECTIVES) if name in costs}


def _whole_ledger(ledger: Mapping[str, Spending] | None) -> Mapping[str, Spending] | None:
    if ledger is not None and set(ledger) != set(PHASES):
        raise ValueError(f"its phases are {', '.join(ledger)}, not {', '.join(PHASES)}")
    return ledger


Line = Annotated[str, AfterValidator(_line)]
Count = Annotated[int, Field(gt=0)]
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


@dataclass(frozen=True, kw_only=True)
class GroupSize:
    """A channel group by its name, and its channel count in the full network."""

    name: Line
    maximum: int


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What the runs of an experiment have in common."""

    experiment: Line
    network: Line
    data: Line
    """The name of the data set."""
    image_size: int
    """Height and width in pixels."""
    classes: Count | None = None
    """How many classes, and below how many images; None where that was not recorded."""
    train_images: Count | None = None
    """That are learned from."""
    search_images: Count | None = None
    """That the final search loss is measured on."""
    held_out_images: Annotated[int, Field(ge=0)] | None = None
    """Those of the search that are none of the training images."""
    test_images: Count | None = None
    """That errors are measured on."""
    scale: Line
    """PUBLISHED_SCALE for the published schedule, else a line that says how much of it this is.

    Either may go on with NORMALIZED_APART."""
    cost: Cost
    """The objective beside the loss: the axis of tables and plots."""
    full_costs: Annotated[Mapping[str, int | float], AfterValidator(_complete)]
    """Every cost of the full network: COSTS, OBJECTIVES that it has, and the measured latency."""
    groups: tuple[GroupSize, ...]
    """In the order of a front's `widths`."""
    started_from: Line | None = None
    """The weights that training started from, in words; None for fresh ones."""
    equal_macs: Count | None = None
    """MACs that every run spent before the test, but for its last step and search; None where
    methods have gradient steps and passes in common instead."""


class Timing(TypedDict):
    """The time of a run, and the rates of its training (None if there was none).

    `seconds` are of everything once network and data are there; images a second and the percentage
    of waiting for them are of the gradient steps alone, with the search of a method that searches
    in training, without decoding into memory before, checkpoints, choosing and testing the front.
    """

    seconds: float
    images_per_second: float | None
    data_waiting_percent: float | None


def counted(name: str, counts: Mapping[str, int | None]) -> str:
    """Return the numbers of a data set's classes and images in a sentence; - for an unknown one."""
    classes, train, search, held_out, test = (
        "-" if counts[each] is None else f"{counts[each]:,}" for each in COUNTS
    )
    kept = {search: ", held out", "-": "", "0": ", of the training images"}
    of_search = "" if search == "-" else kept.get(held_out, f", {held_out} of them held out")
    return (
        f"{name}: {classes} classes, {train} training images, {search} for the search{of_search}, "
        f"{test} test images."
    )


COUNTS = ("classes", "train_images", "search_images", "held_out_images", "test_images")
"""The fields of a subject that older records lack."""


@dataclass(frozen=True, kw_only=True)
class RunResult(Subject):
    """The result.json of a run."""

    method: str
    seed: int
    budget: Budget
    budget_exempt: bool
    timing: Timing
    damaged_images: int
    class_names: tuple[str, ...] | None = None
    """In the order of the labels; None of a run from before they were kept."""
    ledger: Annotated[Mapping[str, Spending] | None, AfterValidator(_whole_ledger)] = None
    """By phases; None of a run that was begun before there were ledgers."""
    parts: Mapping[str, float] | None = None
    """Seconds by phase but what was lost, and those of training that went to `images` that were
    waited for and to the `reduction` of gradients; None of a run from before they were kept."""


class Environment(TypedDict):
    """Where a session of a run was: an entry of its env.json, and of environment.json.

    No field that could hold a path of a machine or its name is read.
    """

    commit: str | None
    dirty: bool | None
    python: str
    packages: dict[str, str]
    cpu: str
    gpus: list[str]
    system: NotRequired[str]
    cpu_instructions: NotRequired[str]
    cpu_cores: NotRequired[int | None]
    device: NotRequired[str]
    tf32: NotRequired[bool]
    processes: NotRequired[int]
    data_fingerprint: NotRequired[str]


class SplitRuns(TypedDict):
    """The part of splits.json that is read: runs of indices, `[first, one past the last]`."""

    test: list[tuple[int, int]]


class RunTimes(TypedDict):
    """What environment.json says of a run; its sessions are positions among the environments."""

    sessions: list[int]
    seconds: float
    images_per_second: float | None
    data_waiting_percent: float | None
    damaged_images: int


class EnvironmentRecord(TypedDict):
    """The environment.json of the records: distinct environments; runs by method and `seed<k>`."""

    environments: list[Environment]
    runs: dict[str, dict[str, RunTimes]]


def _sessions_known(record: EnvironmentRecord) -> EnvironmentRecord:
    known = range(len(record["environments"]))
    for run in (run for seeds in record["runs"].values() for run in seeds.values()):
        if any(session not in known for session in run["sessions"]):
            raise ValueError("a run names an environment that is not there")
    return record


class LatencyRecord(TypedDict):
    """latency.json: how latency was measured, and that of each network by its widths."""

    system: NotRequired[str]
    cpu: str
    cpu_instructions: NotRequired[str]
    cpu_cores: NotRequired[int | None]
    device: str
    gpus: list[str]
    torch: NotRequired[str]
    cpu_threads: int
    batch_size: int
    image_size: NotRequired[int]
    milliseconds: dict[str, Milliseconds]


MEANT = "unset.search."
"""What begins the names, in a configuration, of what its method takes for fields left unset."""
METHOD_CODE = "method_code"
"""The name, in a configuration, of the SHA-256 of the code of a method that isn't PareCO's."""
OF_METHOD = (MEANT, METHOD_CODE)
"""What begins the names, in a configuration, of what is the same in all runs of a method."""
CONFIGURATION = TypeAdapter(dict[str, object])
SPLITS = TypeAdapter(SplitRuns)
SESSIONS = TypeAdapter(Annotated[list[Environment], Field(min_length=1)])
RESULT = TypeAdapter(RunResult)
ENVIRONMENT = TypeAdapter(Annotated[EnvironmentRecord, AfterValidator(_sessions_known)])
LATENCIES = TypeAdapter(LatencyRecord)
