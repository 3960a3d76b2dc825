"""From the folders of finished runs to the records of their experiment."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pareco.config import OF_SWEEP, completed
from pareco.reporting.reading import (
    InvalidRecord,
    blaming,
    read_if_there,
    read_json,
    read_table,
    table_text,
)
from pareco.reporting.records import (
    COMMON,
    ExperimentRecord,
    Records,
    check_front,
    read_latency,
    with_latency,
    without_latency,
)
from pareco.reporting.work import kept_ledger, ledger_frame
from pareco.schema import (
    BUDGET_TYPES,
    CONFIGURATION,
    COUNTS,
    CURVE_TYPES,
    FRONT_TYPES,
    LATENCY_TABLE,
    OF_METHOD,
    RESULT,
    SESSIONS,
    SPLITS,
    VISIT_TYPES,
    Environment,
    EnvironmentRecord,
    RunResult,
    Subject,
)

_CURVE_POINTS = 100


def collected_runs(experiment: str, runs: Path) -> tuple[Records, tuple[Path, ...]]:
    """The records of the finished runs of an experiment, and the folders of the unfinished.

    The runs are those under `runs/<experiment>/<method>/seed<k>/`, ordered by method, seed and
    cost. A folder without DONE is not read. Raises InvalidRecord, naming file or runs, when none
    has finished, a record is incomplete, or two runs differ in their configuration, data, scale,
    cost, network or channel groups.
    """
    folders = sorted(folder for folder in (runs / experiment).glob("*/seed*") if folder.is_dir())
    finished = [folder for folder in folders if (folder / "DONE").exists()]
    if not finished:
        raise InvalidRecord(
            f"no finished run of {experiment!r} in {runs / experiment} ({len(folders)} unfinished)"
        )
    latency = read_latency(runs / experiment / "latency.json")
    unfinished = tuple(folder for folder in folders if folder not in finished)
    return with_latency(records_of(finished), latency), unfinished


@dataclass(frozen=True, kw_only=True)
class _FinishedRun:
    """What the folder of a run holds, beside its tables."""

    folder: Path
    result: RunResult
    sessions: list[Environment]
    configured: Mapping[str, Any]
    """The configuration and the data that every run of an experiment has, ready for JSON."""
    common: Mapping[str, Any]
    """What every run of an experiment must have in common, by what a message calls it."""
    of_method: Mapping[str, Any]
    """What the run's method took for fields left unset, and the code of one's own: the same in all
    runs of a method."""


def records_of(folders: Sequence[Path]) -> Records:
    """The records of these runs, of which there is at least one; see `collected_runs`."""
    runs = [_finished_run(folder) for folder in folders]
    _check_alike(runs)
    shared = {field.name: getattr(runs[0].result, field.name) for field in fields(Subject)}
    for name in COUNTS:
        known = (getattr(run.result, name) for run in runs)
        shared[name] = next((count for count in known if count is not None), None)
    shared["test_images"] = shared["test_images"] or _test_images(folders[0])
    experiment = ExperimentRecord(
        **shared,
        budget_exempt=tuple(sorted({r.result.method for r in runs if r.result.budget_exempt})),
    )
    fronts = pd.concat([_front(run) for run in runs])
    curves = pd.concat([_curve(run) for run in runs])
    visits = pd.concat([_own_rows(run, "visits.csv", VISIT_TYPES) for run in runs])
    records = Records(
        experiment=experiment,
        fronts=fronts,
        curves=curves,
        visits=visits,
        environment=_environment_record(
            {
                (run.result.method, run.result.seed): {
                    "sessions": run.sessions,
                    **run.result.timing,
                    "damaged_images": run.result.damaged_images,
                }
                for run in runs
            }
        ),
        ledger=ledger_frame([run.result for run in runs]),
        configuration=merged(
            {COMMON: runs[0].configured}, *({run.result.method: run.of_method} for run in runs)
        ),
        latency_table=read_if_there(folders[0] / LATENCY_TABLE),
    )
    return _ordered(records)


def _test_images(folder: Path) -> int | None:
    """How many images the splits of a run have to test on; None where they were not kept."""
    path = folder / "splits.json"
    if not path.exists():
        return None
    return sum(end - first for first, end in read_json(path, SPLITS)["test"]) or None


def joined(records: Records, before: Records) -> Records:
    """The records, and of `before` those of the runs that they have not.

    Latencies stay where they were measured for every network, all at once. Raises InvalidRecord
    unless both are of one configuration and data.
    """
    check_addable(records.configuration, before)
    new = pd.MultiIndex.from_tuples(records.runs)
    ours_alone, theirs_alone = without_latency(records), without_latency(before)

    def rows(name: str) -> pd.DataFrame:
        added, kept = getattr(ours_alone, name), getattr(theirs_alone, name)
        kept = kept[~pd.MultiIndex.from_frame(kept[["method", "seed"]]).isin(new)]
        tables = [each for each in (added, kept) if len(each)]
        return pd.concat(tables, ignore_index=True) if tables else added

    exempt = {*records.experiment.budget_exempt, *before.experiment.budget_exempt}
    experiment = replace(
        ours_alone.experiment,
        budget_exempt=tuple(sorted(exempt)),
    )
    together = Records(
        experiment=experiment,
        fronts=rows("fronts"),
        curves=rows("curves"),
        visits=rows("visits"),
        environment=_environment_record(_runs(before.environment) | _runs(records.environment)),
        ledger=rows("ledger"),
        configuration=merged(before.configuration, records.configuration),
        latency_table=before.latency_table,  # of one configuration, so of one table
    )
    return with_latency(with_latency(_ordered(together), before.latency), records.latency)


def merged(*configurations: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Several configurations of records in one, which says of each part what any of them does."""
    found: dict[str, dict[str, Any]] = {}
    for each in configurations:
        for part, own in each.items():
            found[part] = {**found.get(part, {}), **own}
    return found


def check_addable(configuration: Mapping[str, Mapping[str, Any]], before: Records) -> None:
    """Raise InvalidRecord, naming what differs, for runs that can't be added to records of before.

    They have this `configuration`, as that of `Records`.
    """
    if not before.configuration:
        why = "an unknown one"
    elif differences := configured_otherwise(configuration, before.configuration):
        why = f"another configuration ({'; '.join(differences)})"
    else:
        return
    raise InvalidRecord(
        f"the records of {before.experiment.experiment!r} are of {why}, so the runs cannot be "
        "added to them: take another --name, or replace them by a report without --add"
    )


def _ordered(records: Records) -> Records:
    """The records with the rows of their tables in order."""
    order = ["method", "seed", records.experiment.cost, "search_loss", "widths"]
    return replace(
        records,
        fronts=records.fronts.sort_values(order, ignore_index=True),
        curves=records.curves.sort_values(["method", "seed", "step"], ignore_index=True),
        visits=records.visits.sort_values(["method", "seed", "visit"], ignore_index=True),
        ledger=records.ledger.sort_values(["method", "seed"], kind="stable", ignore_index=True),
    )


def configured_otherwise(
    ours: Mapping[str, Mapping[str, Any]], theirs: Mapping[str, Mapping[str, Any]]
) -> list[str]:
    """How the `configuration` of some records differs from ours: field, value there, value now.

    A field that one lacks has its default there. What fields left unset meant is compared of the
    methods, and of the fields, of which both say it; not the scale, which tells of the others in
    words.
    """
    here, there = completed(ours[COMMON]), completed(theirs[COMMON])
    keys = sorted((here.keys() | there.keys()) - {"scale"})
    pairs = {key: (here.get(key), there.get(key)) for key in keys}
    for method in sorted((ours.keys() & theirs.keys()) - {COMMON}):
        own, other = ours[method], theirs[method]
        both = sorted(own.keys() & other.keys())
        pairs |= {f"{key} of {method}": (own[key], other[key]) for key in both}
    return [
        f"{key}: {other} there, {own} now" for key, (own, other) in pairs.items() if own != other
    ]


def with_kept_times(records: Records, before: Records) -> Records:
    """The records, with the times and environments of `before` for each run of the same front.

    The same is a front whose rows, budget included, are written alike in both; its ledger is kept
    too where it has the same MACs. Latencies are kept
    as they stand where `before` has one for every network: they are measured all at once.
    """
    types = {**FRONT_TYPES, **BUDGET_TYPES}
    fronts, fronts_before = (
        {run: table_text(front, types) for run, front in each.fronts.groupby(["method", "seed"])}
        for each in (records, before)
    )
    runs, runs_before = _runs(records.environment), _runs(before.environment)
    same = [run for run in runs if run in runs_before and fronts[run] == fronts_before.get(run)]
    runs |= {run: runs_before[run] for run in same}
    ledger = kept_ledger(records.ledger, before.ledger, same)
    records = replace(records, environment=_environment_record(runs), ledger=ledger)
    network, network_before = (
        (each.experiment.network, each.experiment.image_size, each.experiment.groups)
        for each in (records, before)
    )
    return with_latency(records, before.latency) if network == network_before else records


def commit_name(environment: Mapping[str, Any], digits: int | None) -> str:
    """The commit, to some digits, with a remark where the tree had changed.

    Or `unknown`, with the version where PareCO was installed.
    """
    if environment["commit"] is None:
        version = environment["packages"].get("pareco")
        return f"unknown (PareCO {version})" if version else "unknown"
    name = str(environment["commit"])[:digits]
    return f"{name} with uncommitted changes" if environment["dirty"] else name


def duration(seconds: float) -> str:
    """A time in whole minutes, or from two hours on in hours, such as `2.5 h`."""
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _finished_run(folder: Path) -> _FinishedRun:
    configuration = completed(read_json(folder / "config.json", CONFIGURATION))
    sessions = read_json(folder / "env.json", SESSIONS)
    result = read_json(folder / "result.json", RESULT)
    with blaming(folder / "result.json"):
        identity = (result.experiment, result.method, f"seed{result.seed}")
        if identity != folder.parts[-3:]:
            raise ValueError(f"it belongs to {'/'.join(identity)}, not to its folder")
    fingerprint, processes = sessions[0].get("data_fingerprint"), sessions[0].get("processes", 1)
    configured, of_method = divided_configuration(configuration, fingerprint, processes)
    return _FinishedRun(
        folder=folder,
        result=result,
        sessions=sessions,
        configured=configured,
        common=configured | {field.name: getattr(result, field.name) for field in fields(Subject)},
        of_method=of_method,
    )


def divided_configuration(
    configuration: Mapping[str, Any], data_fingerprint: str | None, processes: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a run has in common with all of its experiment, and with those of its method alone.

    The first is its configuration and data; the second what its method took for fields left unset,
    and the code of one that is somebody's own.
    """
    own = ("method", "seed", *OF_SWEEP)
    of_method = {key: each for key, each in configuration.items() if key.startswith(OF_METHOD)}
    others = configuration.keys() - of_method
    common = {key: configuration[key] for key in others if key not in own}
    common["data fingerprint"] = data_fingerprint
    if not configuration["training.sync_batch_norm"]:
        common["processes"] = processes
    return common, of_method


def _check_alike(runs: Sequence[_FinishedRun]) -> None:
    """Raise InvalidRecord, naming what differs, unless all runs have one configuration and data.

    And those of one method the same meaning of what that left unset, where they say it. Counts that
    one of them did not record differ from none.
    """
    of_methods: dict[str, dict[str, Any]] = {}
    for other in runs:
        first, known = runs[0], of_methods.setdefault(other.result.method, {})
        pairs = {
            key: (first.common.get(key), other.common.get(key))
            for key in sorted(first.common.keys() | other.common.keys())
        }
        meant = {key: (known.setdefault(key, each), each) for key, each in other.of_method.items()}
        changes = [
            f"{key}: {one}, {another}"
            for key, (one, another) in (pairs | meant).items()
            if one != another and not (key in COUNTS and None in (one, another))
        ]
        if changes:
            raise InvalidRecord(
                f"{first.folder} and {other.folder} differ in {'; '.join(changes)}:"
                " only runs of one configuration can be compared"
            )


def _own_rows(run: _FinishedRun, name: str, types: Mapping[str, str]) -> pd.DataFrame:
    """A table of a run, in which every row names the run."""
    table = read_table(run.folder / name, types)
    own = (table["method"] == run.result.method) & (table["seed"] == run.result.seed)
    if "experiment" in table:
        own &= table["experiment"] == run.result.experiment
    with blaming(run.folder / name):
        if not own.all():
            raise ValueError("a row belongs to another run than its folder")
    return table


def _front(run: _FinishedRun) -> pd.DataFrame:
    """The front of a run, with the columns of its budget."""
    front = _own_rows(run, "front.csv", FRONT_TYPES)
    with blaming(run.folder / "front.csv"):
        check_front(front, run.result)
    return front.assign(**asdict(run.result.budget))


def _curve(run: _FinishedRun) -> pd.DataFrame:
    """The training losses of a run: means over as many steps each, to one, at most _CURVE_POINTS.

    `step` is the last step of each mean.
    """
    path = run.folder / "metrics.jsonl"
    with blaming(path):
        lines = path.read_text(encoding="utf-8").splitlines()
        table = pd.DataFrame([json.loads(line) for line in lines])
        losses = table[["step", "loss_largest", "loss_smallest"]].dropna()
        points = min(_CURVE_POINTS, len(losses))
        parts = losses.groupby(np.arange(len(losses)) * points // max(len(losses), 1))
        means = parts.mean().assign(step=parts["step"].max())
        means = means.assign(method=run.result.method, seed=run.result.seed)
        return means[list(CURVE_TYPES)].astype(CURVE_TYPES)


def _environment_record(runs: Mapping[tuple[str, int], Mapping[str, Any]]) -> EnvironmentRecord:
    """The content of environment.json, from what it says of each method and seed, in any order.

    Where it has positions, `sessions` are the environments themselves.
    """
    environments: list[Environment] = []
    record: dict[str, dict[str, Any]] = {}
    for (method, seed), run in sorted(runs.items(), key=lambda run: run[0]):
        for each in run["sessions"]:
            if each not in environments:
                environments.append(each)
        numbers = [environments.index(each) for each in run["sessions"]]
        record.setdefault(method, {})[f"seed{seed}"] = {**run, "sessions": numbers}
    return {"environments": environments, "runs": record}


def _runs(record: Mapping[str, Any]) -> dict[tuple[str, int], dict[str, Any]]:
    """What `_environment_record` made the record of."""
    known = record["environments"]
    return {
        (method, int(seed.removeprefix("seed"))): run
        | {"sessions": [known[index] for index in run["sessions"]]}
        for method, seeds in record["runs"].items()
        for seed, run in seeds.items()
    }
