"""The report of an experiment in Weights & Biases: what it says, and how it gets there."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import warnings
from collections.abc import Sequence
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from pareco.reporting.collection import commit_name
from pareco.reporting.figures import shown_costs
from pareco.reporting.records import COST_WORDS, ExperimentRecord, Records
from pareco.reporting.statistics import cost_percents, errors_at, method_order, staircase
from pareco.reporting.summary import seeds_text
from pareco.tracking.mirror import define_curve, log_missing, started_run

LOSSES = {
    "loss_largest": "Training loss of the largest network (nats)",
    "loss_smallest": "Training loss of the smallest network, on soft output (nats)",
}
"""The titles of the losses that are drawn."""

WIDTHS_PERCENT = 60
_FINISH_SECONDS = 60


def width_name(group: str) -> str:
    """The name in W&B of a channel group's width; dots would be taken for levels."""
    return f"width/{group.replace('.', '-')}"


def summary_group(records: Records) -> str:
    """The group of the summaries in W&B: theirs alone, as others belong to other records."""
    return f"summary-{records.experiment.experiment[:100]}-{digest(records)}"


def digest(records: Records) -> str:
    """What tells these records from earlier ones of the experiment, in W&B."""
    tables = (records.fronts, records.curves)
    texts = [records.experiment.to_json(), *(table.to_csv(index=False) for table in tables)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]


def summary_lines(
    records: Records, method: str
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """What the runs of a method have found, as means over seeds: points by their two names in W&B.

    For each cost the budgets, in percent of the full network's, and the errors that they select;
    then, but for a method that may train longer, the gradient steps that every seed has and each
    of LOSSES.
    """
    lines = {
        (f"front/{cost}/percent", f"front/{cost}/error"): _front(records, method, cost)
        for cost in shown_costs(records.experiment)
    }
    if method in records.experiment.budget_exempt:
        return lines
    curves = records.curves[records.curves["method"] == method]
    by_step, seeds = curves.groupby("step"), curves["seed"].nunique()
    means = by_step[[*LOSSES]].mean()[by_step["seed"].nunique() == seeds]
    steps = means.index.astype(float)
    return lines | {
        ("curve/step", f"curve/{loss}"): list(zip(steps, means[loss], strict=True))
        for loss in LOSSES
    }


def upload_summary(records: Records, focus: str, project: str) -> str:
    """Upload a summary of each method, if not there yet; return the entity that they belong to.

    Needs a key and a server that answers. Raises what wandb raises, and TimeoutError.
    """
    experiment, key, entity = records.experiment, digest(records), ""
    with TemporaryDirectory() as folder:
        for method in method_order(records.fronts["method"], focus):
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{experiment.experiment}-{method}")
            run = started_run(
                "online",
                _FINISH_SECONDS,
                project=project,
                group=summary_group(records),
                job_type=method,
                name=f"{experiment.experiment}: {method}",
                id=f"summary-{name[-90:]}-{key}",
                config={
                    "records": key,
                    "method": method,
                    "experiment": experiment.experiment,
                    "scale": experiment.scale,
                },
                dir=folder,
            )
            entity = run.entity
            lines = summary_lines(records, method)
            for axis, values in lines:
                define_curve(run, axis, values)
            points = ((names, each) for names, line in lines.items() for each in line)
            log_missing(run, enumerate(dict(zip(*point, strict=True)) for point in points))
            widths = summary_widths(records, method)
            run.summary.update({width_name(group): width for group, width in widths.items()})
            run.finish()
    return entity


def _front(records: Records, method: str, cost: str) -> list[tuple[float, float]]:
    """The mean over seeds of the error at each whole percent at which every seed has a network."""
    fronts = records.fronts[records.fronts["method"] == method]
    percents = np.arange(1, 101)
    budgets = percents * records.experiment.full_costs[cost] / 100
    means = np.mean([errors_at(front, cost, budgets) for _, front in fronts.groupby("seed")], 0)
    known = ~np.isnan(means)
    return list(zip(percents[known].astype(float).tolist(), means[known].tolist(), strict=True))


def summary_widths(records: Records, method: str) -> dict[str, float]:
    """By channel group: channels in percent of the full network's, the mean over seeds.

    Of the network that WIDTHS_PERCENT of the full cost select; empty where that selects none in
    some seed.
    """
    experiment = records.experiment
    cost, fronts = experiment.cost, records.fronts
    first = cost_percents(fronts, cost, experiment.full_cost)[0]
    budget = max(first, WIDTHS_PERCENT) * experiment.full_cost / 100
    own = fronts[fronts["method"] == method]
    affordable = own[own[cost] <= budget].groupby("seed")
    if len(affordable) < own["seed"].nunique():
        return {}
    chosen = [staircase(front, cost).iloc[-1]["widths"] for _, front in affordable]
    counts = np.array([[int(count) for count in text.split()] for text in chosen])
    shares = 100 * counts.mean(axis=0) / [group.maximum for group in experiment.groups]
    names = [group.name for group in experiment.groups]
    return dict(zip(names, shares.tolist(), strict=True))


_TITLE_LENGTH = 128
_FRONT_TEXT = (
    "At each whole percent of the full network's cost: the test top-1 error (%) of the network "
    "with the lowest search loss within that budget, mean over the seeds. There are networks only "
    "where the line steps. The 95% t intervals of the means stand in the tables below."
)
_WIDTH_TEXT = (
    "Channels of each group, in percent of the full network's, of the network that "
    f"{WIDTHS_PERCENT}% of the full cost select; mean over the seeds."
)

_RUNS_TEXT = (
    "Of the runs that the project has of this experiment, in these records or not: by "
    "method, then by seed. A group of the list opens into its seeds; each line is a mean over its "
    "group."
)
GROUPING = ("config.method", "config.seed")
"""By what the runs themselves are grouped: the outer one first."""


def wandb_report(
    records: Records, *, project: str, entity: str, claims: str, tables: str, command: str
) -> Any:
    """The report, a `wandb_workspaces.reports.v2.Report` that is not saved yet.

    Its panels draw the summaries, once `upload_summary` has brought them there, and the last ones
    the runs of the experiment, as the mirror or a sync has brought them. `claims` and `tables` are
    Markdown; `command` makes the experiment's results. Nothing is asked of the network: without an
    `entity` the report cannot be saved.
    """
    wr, experiment = reports_library(), records.experiment
    runs = wr.Runset(name="Methods", filters=f"Group = '{summary_group(records)}'")

    def grid(panels: list[Any]) -> Any:
        return wr.PanelGrid(runsets=[runs], panels=panels)

    fronts = [
        (
            f"Error over {words.name}",
            f"front/{cost}/percent",
            f"front/{cost}/error",
            f"{words.axis} (% of the full network's {words.amount(experiment.full_costs[cost])})",
            "Test top-1 error (%)",
        )
        for cost, words in ((cost, COST_WORDS[cost]) for cost in shown_costs(experiment))
    ]
    curves = [
        (title, "curve/step", f"curve/{loss}", "gradient step", "nats")
        for loss, title in LOSSES.items()
    ]
    notes = "\n\n".join(f"**{warning}**" for warning in experiment.warnings)
    return wr.Report(
        project=project,
        entity=entity,
        title=experiment.title[:_TITLE_LENGTH],
        description="; ".join((experiment.title, *experiment.warnings)),
        width="fluid",
        blocks=[
            *([wr.MarkdownBlock(text=notes)] if notes else []),
            wr.H2(text="Claims of the paper"),
            wr.MarkdownBlock(text=claims),
            wr.H2(text="Error over cost"),
            wr.P(text=_FRONT_TEXT),
            grid(_lines(wr, fronts)),
            wr.H2(text="Training curves"),
            wr.P(text="Means over the seeds, of as many steps for each point."),
            grid(_lines(wr, curves)),
            wr.H2(text="Widths"),
            wr.P(text=_WIDTH_TEXT),
            grid([_bars(wr, records)]),
            wr.H2(text="Runs by method and seed"),
            wr.P(text=_RUNS_TEXT),
            _runs(wr, experiment),
            wr.H2(text="Results"),
            wr.MarkdownBlock(text=tables),
            wr.H2(text="How to reproduce"),
            wr.MarkdownBlock(text=reproduction(records, command)),
        ],
    )


def reports_library() -> Any:
    """The module `wandb_workspaces.reports.v2`, whose import warns of its own old pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2 as reports
    return reports


def report_json(report: Any) -> str:
    """The whole report as JSON: each of its parts with the name of its type and what is set in it.

    These are the public names and fields of `wandb_workspaces.reports.v2`; nothing is asked of the
    network.
    """
    return json.dumps(_plain(report), indent=1, ensure_ascii=False) + "\n"


def _plain(part: Any) -> Any:
    if isinstance(part, list | tuple):
        return [_plain(each) for each in part]
    if not dataclasses.is_dataclass(part):
        return part
    names = [each.name for each in dataclasses.fields(part) if not each.name.startswith("_")]
    values = {name: _plain(getattr(part, name)) for name in names}
    is_set = {name: value for name, value in values.items() if value not in (None, "", [], {})}
    return {"type": type(part).__name__, **is_set}


def _lines(
    wr: Any, plots: Sequence[tuple[str, str, str, str, str]], *, by_method: bool = True
) -> list[Any]:
    """Plots with a line for each method, two side by side of the 24 columns of a grid.

    Each is given by its title, the names in W&B of its x and y, and the titles of these axes. Not
    `by_method`, the lines are those of the groups of the runset.
    """
    grouping = {"groupby": wr.Config("method"), "groupby_aggfunc": "mean"} if by_method else {}
    return [
        wr.LinePlot(
            title=title,
            x=x,
            y=[y],
            title_x=title_x,
            title_y=title_y,
            **grouping,
            layout=wr.Layout(x=12 * (position % 2), y=9 * (position // 2), w=12, h=9),
        )
        for position, (title, x, y, title_x, title_y) in enumerate(plots)
    ]


def _runs(wr: Any, experiment: ExperimentRecord) -> Any:
    """Fronts and training losses of the runs themselves, in groups that the reader can open."""
    own = wr.Runset(
        name="Runs by method and seed",
        filters=f"Group = '{experiment.experiment}'",
        groupby=list(GROUPING),
    )
    plots = [
        ("Error over cost", "front/cost", "front/error", experiment.words.axis, "Test error (%)"),
        *((title, "Step", loss, "gradient step", "nats") for loss, title in LOSSES.items()),
    ]
    return wr.PanelGrid(runsets=[own], panels=_lines(wr, plots, by_method=False))


def _bars(wr: Any, records: Records) -> Any:
    groups = records.experiment.groups
    return wr.BarPlot(
        title="Channels by group (% of the full network's)",
        metrics=[wr.SummaryMetric(width_name(group.name)) for group in groups],
        orientation="v",
        max_bars_to_show=len(groups) * records.fronts["method"].nunique(),
        layout=wr.Layout(x=0, y=0, w=24, h=10),
    )


def reproduction(records: Records, command: str) -> str:
    """How to make these results again, and with what they were made; Markdown."""
    lines = [f"    {command}", ""]
    for each in records.environment["environments"]:
        commit = commit_name(each, None)
        packages = [f"{name} {version}" for name, version in each["packages"].items()]
        gpu = each.get("device") != "cpu" and each["gpus"]
        device = ", ".join(each["gpus"]) if gpu else each["cpu"]
        versions = ", ".join((f"Python {each['python']}", *packages))
        lines.append(f"- commit {_code(commit)}; {_code(versions)}; on {_code(device)}")
    methods, seeds = records.fronts["method"].nunique(), seeds_text(records.fronts)
    lines += ["", f"{methods} methods with {seeds}; records {_code(digest(records))}."]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Text that stays as it is in Markdown."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"
