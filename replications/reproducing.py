"""The command that makes an experiment's results again, by what its records say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import Any

from pareco.config import DATA_SETS, Experiment, as_json, completed
from pareco.reporting.records import COMMON, PUBLISHED_SCALE, Records
from pareco.schema import NORMALIZED_APART
from replications.catalogue import (
    catalogued,
    equal_compute_name,
    experiment_named,
    method_names,
    name_at,
    takes_any_images,
)
from replications.run import FREE

_CHANGED = ", changed: "
_AFTER = (_CHANGED, ", from given weights", ", equal compute: ", NORMALIZED_APART)


def how_to_reproduce(records: Records) -> str:
    """Return the command that makes an experiment's results; images of one's own are in FOLDER.

    It is that of the catalogue's experiment and scale that differ least, with a flag for each field
    that does, where the records have their configuration. A comment says what no flag does.
    """
    record = records.experiment
    origin, notes = _origin(records), list(_notes(records))
    if origin is None:
        command = (
            f"python -m replications run EXPERIMENT --name {record.experiment}{_images(records)}"
        )
        return _with_notes(command, [*notes, *_changes_in_words(records)])
    of, scale = origin
    plain, fitted = _plain_name(records, scale), takes_any_images(of)
    default = None if fitted else experiment_named(of, scale)
    flags = [] if default is None else list(_flags(records, default))
    if default is None or not records.configuration:
        notes += _changes_in_words(records)
    chosen = [] if default is None else list(_chosen(records, default))
    named = plain == (f"{of}-{record.data}" if fitted else of)
    if record.equal_macs:
        flags.insert(0, f"--training.macs {record.equal_macs}")
    if not named and not fitted:
        scaled = [] if scale == PUBLISHED_SCALE else [f"--scale {scale}"]
        equal = ["--equal compute"] if record.equal_macs else []
        options = [f"--{name.lower()} {' '.join(values)}" for name, values in chosen]
        first = f"python -m replications run {of}"
        parts = [first, *scaled, f"--name {plain}{_images(records)}", *options, *equal, *flags]
        return _with_notes(" ".join(parts), notes)
    parts = [f"make replicate-{of.replace('_', '-')}"]
    if fitted:
        parts += [f"IMAGES=FOLDER DATA_NAME={record.data}"]
        parts += [f"NETWORK={record.network} SIZE={record.image_size}"]
    parts += ["EQUAL=compute"] if record.equal_macs else []
    parts += [] if scale == PUBLISHED_SCALE else [f"SCALE={scale}"]
    if not fitted and record.data not in DATA_SETS:
        parts.append(f"DATA=FOLDER DATA_NAME={record.data}")
    parts += [f'{name}="{" ".join(values)}"' for name, values in chosen]
    flags = flags if named else [f"--name {plain}", *flags]
    parts += [f'SET="{" ".join(flags)}"'] if flags else []
    return _with_notes(" ".join(parts), notes)


def _origin(records: Records) -> tuple[str, str] | None:
    """Return the experiment and the scale that records are of, None where that is not to be had.

    It has the name, is its beginning, or differs in the fewest fields of those whose scale's line
    begins alike.
    """
    record, name = records.experiment, records.experiment.experiment
    head = record.scale
    for part in _AFTER:
        head = head.partition(part)[0]
    found = []
    for known, experiment, scale in catalogued():
        if takes_any_images(experiment):
            if record.data in DATA_SETS or not name.startswith(f"{experiment}-"):
                continue
            rank = (0, name_at(name, scale) != name, scale == PUBLISHED_SCALE)
        else:
            default = experiment_named(experiment, scale)
            named = name in (known, equal_compute_name(known, scale))
            begins = name.startswith(f"{experiment}-") and name_at(name, scale) == name
            if (not named and default.scale != head) or not (
                named or begins or records.configuration
            ):
                continue
            differing = len(list(_flags(records, default)))
            rank = (0 if named else 1 + differing, not begins, -len(experiment))
        found.append((rank, experiment, scale))
    return min(found)[1:] if found else None


def _plain_name(records: Records, scale: str) -> str:
    """Return the --name of runs, to which the scale and equal compute add their own."""
    plain = records.experiment.experiment
    if scale != PUBLISHED_SCALE:
        plain = plain.removesuffix(f"-{scale}")
    return plain.removesuffix("-compute") if records.experiment.equal_macs else plain


def _flags(records: Records, default: Experiment) -> Iterator[str]:
    """Yield the flags of the fields that differ; none where the configuration is not known."""
    if not records.configuration:
        return
    ours, theirs = completed(records.configuration[COMMON]), as_json(default)
    for key in theirs:
        if key not in {*FREE, "data.name"} and ours.get(key) != theirs[key]:
            yield _flag(key, ours.get(key))
    if ours.get("network.order_channels") != theirs["network.order_channels"]:
        yield _flag("network.order_channels", ours["network.order_channels"])
    if records.latency_table is not None:
        folder = f"results/{records.experiment.experiment}/records"
        yield f"--latency-table {folder}/latency_table.json"


def _flag(key: str, value: Any) -> str:
    """Return the flag that sets a field."""
    section, dot, field = key.replace("_", "-").rpartition(".")
    if isinstance(value, bool):
        return f"--{section}{dot}{'' if value else 'no-'}{field}"
    values = value if isinstance(value, list) else [value]
    return " ".join([f"--{section}{dot}{field}", *(shlex.quote(str(each)) for each in values)])


def _chosen(records: Records, default: Experiment) -> Iterator[tuple[str, Sequence[str]]]:
    """Yield the methods and the seeds that there are, where these are not the default's."""
    seeds: dict[str, set[int]] = {}
    for method, seed in records.runs:
        seeds.setdefault(method, set()).add(seed)
    order = {method: place for place, method in enumerate(default.methods)}
    if seeds.keys() != order.keys():
        yield "METHODS", sorted(seeds, key=lambda method: (order.get(method, len(order)), method))
    per_method = list(seeds.values())
    alike = all(each == per_method[0] for each in per_method)
    if alike and per_method[0] != {*default.seeds}:
        yield "SEEDS", [str(seed) for seed in sorted(per_method[0])]


def _images(records: Records) -> str:
    data = records.experiment.data
    return "" if data in DATA_SETS else f" --images FOLDER --data.name {data}"


def _changes_in_words(records: Records) -> list[str]:
    """Return what the scale's line says is changed, but for the name of the data."""
    changed = records.experiment.scale.partition(_CHANGED)[2]
    for part in _AFTER:
        changed = changed.partition(part)[0]
    named = f"data.name {records.experiment.data}"
    changed = changed.removeprefix(named).removeprefix(", ")
    return [f"changed: {changed}"] if changed else []


def _notes(records: Records) -> Iterator[str]:
    record = records.experiment
    if record.started_from:
        yield "with --network.weights FILE, or --network.pretrained"
    _, apart, processes = record.scale.partition(NORMALIZED_APART)
    if apart:
        yield f"in {processes.strip()}"
    if own := sorted({method for method, _ in records.runs} - {*method_names()}):
        yield f"with the file of your own method in place of {', '.join(own)}"


def _with_notes(command: str, notes: Sequence[str]) -> str:
    return f"{command}  # {'; '.join(notes)}" if notes else command
