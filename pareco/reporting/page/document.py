"""The page as one HTML text: template, style, scripts, data and figures, all inside."""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from pareco.reporting.claims import Outcome, Verdict
from pareco.reporting.collection import commit_name, duration
from pareco.reporting.page.chart import axes, chart_data, method_looks
from pareco.reporting.records import COST_WORDS, PUBLISHED_SCALE, Records
from pareco.reporting.summary import SummaryRow
from pareco.reporting.tables import Cell, Table, Tables

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


_FILES = Path(__file__).parent / "files"
_CHART_LIBRARY = _FILES / "vendor" / "chart.js"
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*\n?", re.MULTILINE)
_UNQUOTED = " /:;=,()"
_CAPTIONS = {words.figure: f"Error against {words.name}" for words in COST_WORDS.values()} | {
    "widths": "Channels of each group along the front",
    "curves": "Training losses of the largest and the smallest network",
    "visits": "Cost of the widths that the search visited",
    "predictions": "Loss that the search expected, and the loss found",
}
_ABOUT = {
    "the paper": "Claims of the paper",
    "costs": "Published costs that our cost model is held to, nothing trained",
}
_NOT_IN_ANCHORS = re.compile(r"[^A-Za-z0-9_-]+")


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of one experiment."""

    records: Records
    tables: Tables
    figures: Mapping[str, bytes]
    """The bytes of an SVG by its file name, without suffix, or else by a caption."""

    how: str
    """The command that makes these results again."""

    focus: str = "pareco"
    """The method that stands first; where it has no runs, the first in alphabetical order."""


def page_html(
    sections: Sequence[Section], claims: Sequence[Verdict], summary: Sequence[SummaryRow]
) -> str:
    """The text of an HTML file that shows all results and needs no other file and no network.

    The same arguments give the same text. What they hold is shown as text: no name and no cell of
    a table becomes markup, and no script runs but the page's own. Each experiment may have one
    section.
    """
    experiments = [section.records.experiment for section in sections]
    anchors = _anchors([each.experiment for each in experiments])
    style, scripts = _read("style.css"), [_chart_library(), _read("page.js")]
    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template("page.html").render(
        policy=_policy(style, scripts),
        style=Markup(style),
        scripts=[Markup(script) for script in scripts],
        sections=[_shown(section) for section in sections],
        anchors=anchors,
        whole=[each.experiment for each in experiments if each.scale == PUBLISHED_SCALE],
        smaller=[each.experiment for each in experiments if each.scale != PUBLISHED_SCALE],
        claims=claims,
        counted=_counted(claims),
        summary=summary,
    )


def _shown(section: Section) -> dict[str, Any]:
    """What the template needs of one experiment."""
    records = section.records
    data = chart_data(records, section.focus)
    return {
        "experiment": records.experiment,
        "tables": section.tables,
        "figures": {
            _CAPTIONS.get(name, name): f"data:image/svg+xml,{quote(svg, safe=_UNQUOTED)}"
            for name, svg in section.figures.items()
        },
        "how": section.how,
        "looks": list(method_looks(records, section.focus).values()),
        "axes": axes(records.experiment),
        "data": htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False),
        "networks": len(records.fronts),
        "provenance": provenance_line(records),
        "provenance_tables": provenance_tables(records),
    }


def _counted(claims: Sequence[Verdict]) -> list[tuple[str, list[tuple[str, int]]]]:
    """How many claims of each sort have each outcome, those included that none has."""
    counted = []
    for about, title in _ABOUT.items():
        counts = Counter(claim.outcome for claim in claims if claim.about == about)
        if counts:
            outcomes = dict.fromkeys((*get_args(Outcome), *counts))
            counted.append((title, [(outcome, counts[outcome]) for outcome in outcomes]))
    return counted


def _anchors(experiments: Sequence[str]) -> dict[str, str]:
    """An id of an HTML element for each experiment."""
    found: dict[str, str] = {}
    for experiment in experiments:
        anchor = f"experiment-{_NOT_IN_ANCHORS.sub('-', experiment)}"
        while anchor in found.values():
            anchor += "-"
        found[experiment] = anchor
    return found


def _chart_library() -> str:
    """Chart.js with its license, without the comment by which browsers look for a source map."""
    text = (_CHART_LIBRARY / "chart.umd.min.js").read_text(encoding="utf-8")
    license_text = (_CHART_LIBRARY / "LICENSE.md").read_text(encoding="utf-8")
    return f"/*!\n{license_text.strip()}\n*/\n{_SOURCE_MAP.sub('', text)}"


def _policy(style: str, scripts: Sequence[str]) -> str:
    """The content security policy: no network, and no style or script but these."""
    allowed = " ".join(map(_hash, scripts))
    return (
        f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {allowed};"
        " base-uri 'none'; form-action 'none'"
    )


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


def _read(name: str) -> str:
    return (_FILES / name).read_text(encoding="utf-8")
