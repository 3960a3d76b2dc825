"""The page as one HTML text: template, style, scripts, data and figures, all inside."""

import re
from base64 import b64encode
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args
from urllib.parse import quote

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from pareco.config import EMBEDDED
from pareco.reporting.claims import Outcome, Verdict
from pareco.reporting.collection import commit_name
from pareco.reporting.figures.style import mean_areas, method_looks
from pareco.reporting.page.chart import chart_data
from pareco.reporting.records import AXES, COST_WORDS, Records
from pareco.reporting.rendering import Table, Tables
from pareco.reporting.statistics import cost_percents, run_measures
from pareco.reporting.summary import SummaryRow, order_text, seeds_text

_FILES = Path(__file__).parent / "files"
_SOURCE_MAP = re.compile(r"^//# sourceMappingURL=.*\n?", re.MULTILINE)
_UNQUOTED = " /:;=,()"
_FORETOLD = "latency"  # from a table, where it is the objective: no other experiment has it
_FIRST_FIGURE = COST_WORDS["macs"].figure
_CAPTIONS = {words.figure: f"Error against {words.name}" for words in COST_WORDS.values()} | {
    "front_points": "Every network of the fronts, none chosen by a budget",
    "widths": "Channels of each group along the front",
    "curves": "Training losses of the largest and the smallest network",
    "visits": "Cost of the widths that the search visited",
    "predictions": "Loss that the search expected, and the loss found",
}
_ABOUT = {
    "the paper": "Claims of the paper",
    "ours": "Claims of ours, at a smaller scale",
    "costs": "Published costs that our cost model is held to, nothing trained",
}


@dataclass(frozen=True, kw_only=True)
class Section:
    """What the page shows of one experiment."""

    records: Records
    tables: Tables
    figures: Mapping[str, bytes]
    """The bytes of an SVG by its file name, without suffix, or else by a caption."""

    how: str
    """The command that makes these results again."""

    focus: str
    """The method that stands first; where it has no runs, the first in alphabetical order."""


def page_html(
    sections: Sequence[Section],
    claims: Sequence[Verdict],
    summary: Sequence[SummaryRow],
    measured: Sequence[Table] = (),
) -> str:
    """The text of an HTML file that shows all results and needs no other file and no network.

    It opens with the errors over MACs of the `first_section`. The same arguments give the same
    text. What they hold is shown as text: no name and no cell of a table becomes markup, and no
    script runs but the page's own. Each experiment may have one section. The tables `measured`,
    of what running takes, stand last.
    """
    experiments = [section.records.experiment for section in sections]
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
        first=_opening(first_section(sections)),
        sections=[_shown(section) for section in sections],
        costs={
            name: COST_WORDS[name]
            for name in AXES
            if name != _FORETOLD or any(name in each.full_costs for each in experiments)
        },
        anchors={
            each.experiment: f"experiment-{quote(each.experiment, safe='')}" for each in experiments
        },
        whole=[each.experiment for each in experiments if each.published],
        smaller=[each.experiment for each in experiments if not each.published],
        claims=claims,
        counted=_counted(claims),
        ran=[row for row in summary if row.folder is not None],
        absent=[row for row in summary if row.folder is None],
        measured=measured,
    )


def first_section(sections: Sequence[Section]) -> Section | None:
    """The section whose picture opens the page; None where none has errors over MACs.

    One at the published scale comes before others, but for embedded data, which nothing was
    published for; then one with more seeds of two methods, then one with more test images (0 where
    they were not recorded), then one with more networks.
    """

    def rank(section: Section) -> tuple[bool, int, int, int]:
        experiment, fronts = section.records.experiment, section.records.fronts
        seeds = int(fronts.groupby("method")["seed"].nunique().nlargest(2).min())
        published = experiment.published and experiment.data not in EMBEDDED
        return published, seeds, experiment.test_images or 0, len(fronts)

    return max((each for each in sections if _FIRST_FIGURE in each.figures), key=rank, default=None)


def what_it_shows(records: Records, focus: str) -> str:
    """One sentence of an experiment's errors over MACs, and how sure an order of methods is."""
    fronts, full = records.fronts, records.experiment.full_costs["macs"]
    looks, areas = method_looks(records, focus), mean_areas(fronts, "macs", full)
    fewer = records.experiment.planned_fewer
    judged = [name for name in looks if name not in fewer] or list(looks)
    equal = [name for name in judged if name == looks[name].label and areas[name] > 0]
    first, seeds = next(iter(looks)), seeds_text(fronts[fronts["method"].isin(judged)])
    if min(looks[name].seeds for name in judged) == 1 or first not in equal[:1] or len(equal) == 1:
        errors = fronts["test_top1_error"]
        return (
            f"the {len(fronts)} networks of {len(looks)} methods have test errors of"
            f" {errors.min():.1f} to {errors.max():.1f}%, with {seeds} each; that settles no"
            " order of the methods."
        )
    others = [name for name in equal if name != first]
    least = min(others, key=lambda name: areas[name])
    among = f", the least of the {len(others)} others" if len(others) > 1 else ""
    sure = order_text(run_measures(fronts, "macs", full), least, first, len(others))
    return (
        f"over budgets from {cost_percents(fronts, 'macs', full)[0]} to 100% of the full network’s"
        f" MACs, the mean test error is {areas[first]:.2f}% with {first}, and {areas[least]:.2f}%"
        f" with {least}{among} with equal budgets"
        f" (means over {seeds}; {sure})."
    )


def environment_tables(records: Records) -> dict[str, dict[str, Mapping[str, Any]]]:
    """By title the columns of a table, of environments, runs, and how latency was measured."""
    tables: dict[str, dict[str, Mapping[str, Any]]] = {"Environments": {}, "Runs": {}}
    for number, each in enumerate(records.environment["environments"], start=1):
        tables["Environments"][f"environment {number}"] = each
    for method, seeds in records.environment["runs"].items():
        for seed, run in seeds.items():
            environments = [index + 1 for index in run["sessions"]]
            tables["Runs"][f"{method}, {seed}"] = {**run, "sessions": environments}
    if records.latency is not None:
        tables["How latency was measured"] = {"value": records.latency}
    return tables


def _opening(section: Section | None) -> dict[str, str] | None:
    """The first picture, and what it shows."""
    if section is None:
        return None
    return {
        "experiment": section.records.experiment.experiment,
        "title": section.records.experiment.title,
        "image": _address(section.figures[_FIRST_FIGURE]),
        "sentence": what_it_shows(section.records, section.focus),
    }


def _shown(section: Section) -> dict[str, Any]:
    """What the template needs of one experiment."""
    records = section.records
    chart = chart_data(records, section.focus)
    commits = [commit_name(each, 10) for each in records.environment["environments"]]
    return {
        "records": records,
        "experiment": records.experiment,
        "tables": section.tables,
        "figures": {
            _CAPTIONS.get(name, name): _address(svg) for name, svg in section.figures.items()
        },
        "how": section.how,
        "methods": chart["methods"],
        "data": htmlsafe_json_dumps(chart, separators=(",", ":"), allow_nan=False),
        "commits": ", ".join(dict.fromkeys(commits)),
        "environments": environment_tables(records),
    }


def _address(svg: bytes) -> str:
    return f"data:image/svg+xml,{quote(svg, safe=_UNQUOTED)}"


def _counted(claims: Sequence[Verdict]) -> list[tuple[str, list[tuple[str, int]]]]:
    """How many claims of each sort have each outcome, those included that none has."""
    counted = []
    for about, title in _ABOUT.items():
        counts = Counter(claim.outcome for claim in claims if claim.about == about)
        if counts:
            outcomes = dict.fromkeys((*get_args(Outcome), *counts))
            counted.append((title, [(outcome, counts[outcome]) for outcome in outcomes]))
    return counted


def _chart_library() -> str:
    """Chart.js with its license, without the comment by which browsers look for a source map."""
    text, terms = (_read(f"vendor/chart.js/{name}") for name in ("chart.umd.min.js", "LICENSE.md"))
    return f"/*!\n{terms.strip()}\n*/\n{_SOURCE_MAP.sub('', text)}"


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
