"""Where, with what and how long the runs of an experiment were made, as tables."""

from collections.abc import Iterator, Mapping
from typing import Any

from pareco.reporting.environment import commit_name, duration
from pareco.reporting.records import Records
from pareco.reporting.table_formats import Cell, Table

_RUN_COLUMNS = (
    "run",
    "seconds",
    "images per second",
    "waiting for data (%)",
    "damaged images",
    "environments",
)


def provenance_tables(records: Records) -> tuple[Table, ...]:
    """The environments one beside the other, the runs, and how latency was measured, if it was."""
    tables = [_environment_table(records.environment), _run_table(records.environment)]
    if records.latency is not None:
        tables.append(_latency_table(records.latency))
    return tuple(table for table in tables if table.rows)


def provenance_line(records: Records) -> str:
    """How many runs there are, the time of all of them, the commits, and the processors."""
    environments = records.environment["environments"]
    seconds = [run["seconds"] for _, _, run in _runs(records.environment)]
    commits = dict.fromkeys(commit_name(each, 10) for each in environments)
    machines = dict.fromkeys(_machine(each) for each in environments)
    runs = f"{len(seconds)} run{'' if len(seconds) == 1 else 's'}"
    return (
        f"{runs}, {duration(sum(seconds))} in all, on {' and '.join(machines)};"
        f" commit {', '.join(commits)}"
    )


def _environment_table(environment: Mapping[str, Any]) -> Table:
    """One row for each field, one column for each environment."""
    fields = [_fields(each) for each in environment["environments"]]
    names = dict.fromkeys(name for each in fields for name in each)
    return Table(
        title="Environments",
        columns=("field", *(f"environment {index}" for index in range(1, len(fields) + 1))),
        rows=tuple((Cell(name), *(Cell(each.get(name, "–")) for each in fields)) for name in names),
    )


def _fields(environment: Mapping[str, Any]) -> dict[str, str]:
    shown: dict[str, str] = {"commit": commit_name(environment, None)}
    for name, value in environment.items():
        if name in ("commit", "dirty", "packages"):
            continue
        if isinstance(value, list):
            value = ", ".join(map(str, value)) or "none"
        shown[name.replace("_", " ")] = str(value)
    return shown | {str(name): str(version) for name, version in environment["packages"].items()}


def _run_table(environment: Mapping[str, Any]) -> Table:
    rows = tuple(
        (
            Cell(f"{method}, {seed.replace('seed', 'seed ')}"),
            Cell(f"{run['seconds']:,.1f}"),
            Cell(_number(run["images_per_second"])),
            Cell(_number(run["data_waiting_percent"])),
            Cell(f"{run['damaged_images']:,}"),
            Cell(", ".join(str(index + 1) for index in dict.fromkeys(run["sessions"]))),
        )
        for method, seed, run in _runs(environment)
    )
    return Table(title="Runs", columns=_RUN_COLUMNS, rows=rows)


def _latency_table(latency: Mapping[str, Any]) -> Table:
    conditions = {
        name.replace("_", " "): ", ".join(map(str, value)) if isinstance(value, list) else value
        for name, value in latency.items()
        if name != "milliseconds"
    }
    conditions["networks measured"] = len(latency["milliseconds"])
    rows = tuple((Cell(name), Cell(str(value) or "none")) for name, value in conditions.items())
    return Table(title="How latency was measured", columns=("field", "value"), rows=rows)


def _runs(environment: Mapping[str, Any]) -> Iterator[tuple[str, str, Mapping[str, Any]]]:
    """Yield method, seed and record of each run, in the order of the record."""
    for method, seeds in environment["runs"].items():
        for seed, run in seeds.items():
            yield method, seed, run


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f}"


def _machine(environment: Mapping[str, Any]) -> str:
    """The GPUs where they were used, else the processor with its cores."""
    if environment["gpus"] and environment.get("device") != "cpu":
        return ", ".join(environment["gpus"])
    cores = environment.get("cpu_cores")
    return f"{environment['cpu']}{f' ({cores} cores)' if cores else ''}"
