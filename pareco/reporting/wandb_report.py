"""The report of an experiment in Weights & Biases: what it says, and how it gets there."""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import pandas as pd

from pareco.reporting.records import COST_WORDS, LATENCY, ExperimentRecord, Records
from pareco.reporting.statistics import cost_percents, errors_at, method_order, staircase
from pareco.tracking.mirror import quiet_settings

LOSSES = ("loss_largest", "loss_smallest")
CURVE_STEP = "curve/step"
WIDTHS_PERCENT = 60
_COSTS = ("macs", "peak_activations", LATENCY)


@dataclass(frozen=True, kw_only=True)
class SummaryRun:
    """What the runs of one method have found, as means over its seeds."""

    method: str
    fronts: dict[str, list[tuple[float, float]]]
    """For each cost: budgets in percent of the full network's, and the errors they select."""

    curves: dict[str, list[tuple[float, float]]]
    """For each of LOSSES: gradient steps and losses; empty for a method that may train longer."""

    widths: dict[str, float]
    """By channel group: channels in percent of the full network's, of the network that
    WIDTHS_PERCENT of the full cost select; empty where that selects none in some seed."""


def front_names(cost: str) -> tuple[str, str]:
    """The names in W&B of the budgets of a cost, and of the errors that they select."""
    return f"front/{cost}/percent", f"front/{cost}/error"


def width_name(group: str) -> str:
    """The name in W&B of a channel group's width; dots would be taken for levels."""
    return f"width/{group.replace('.', '-')}"


def shown_costs(experiment: ExperimentRecord) -> list[str]:
    """The experiment's own cost, then MACs, memory, and latency where it was measured."""
    costs = dict.fromkeys((experiment.cost, *_COSTS))
    return [cost for cost in costs if cost in experiment.full_costs]


def summary_group(records: Records) -> str:
    """The group of the summaries in W&B: theirs alone, as others belong to other records."""
    return f"summary-{records.experiment.experiment[:100]}-{digest(records)}"


def digest(records: Records) -> str:
    """What tells these records from earlier ones of the experiment, in W&B."""
    tables = (records.fronts, records.curves)
    texts = [records.experiment.to_json(), *(table.to_csv(index=False) for table in tables)]
    return hashlib.sha256("".join(texts).encode()).hexdigest()[:12]


def summary_runs(records: Records, focus: str) -> list[SummaryRun]:
    """A summary of each method, `focus` first where it is among them."""
    experiment = records.experiment
    return [
        SummaryRun(
            method=method,
            fronts={cost: _front(records, method, cost) for cost in shown_costs(experiment)},
            curves={} if method in experiment.budget_exempt else _curves(records, method),
            widths=_widths(records, method),
        )
        for method in method_order(records.fronts["method"], focus)
    ]


def upload_summary(records: Records, runs: Sequence[SummaryRun], project: str) -> str:
    """Upload the summaries that are not there yet; return the entity that they belong to.

    Needs a key and a server that answers. Raises what wandb raises, and TimeoutError.
    """
    import wandb

    settings = quiet_settings(init_timeout=30, finish_timeout=60, finish_timeout_raises=True)
    experiment, key, entity = records.experiment, digest(records), ""
    with TemporaryDirectory() as folder:
        for summary in runs:
            name = re.sub(r"[^A-Za-z0-9_-]+", "-", f"{experiment.experiment}-{summary.method}")
            run = wandb.init(
                project=project,
                group=summary_group(records),
                job_type=summary.method,
                name=f"{experiment.experiment}: {summary.method}",
                id=f"summary-{name[-90:]}-{key}",
                config={
                    "records": key,
                    "method": summary.method,
                    "experiment": experiment.experiment,
                    "scale": experiment.scale,
                },
                dir=folder,
                mode="online",
                resume="allow",
                reinit="create_new",
                settings=settings,
            )
            entity = run.entity
            _fill(run, summary)
            run.finish()
    return entity


def _fill(run: Any, summary: SummaryRun) -> None:
    """Log what a W&B run lacks of a summary: it may be there, whole or in part."""
    for cost in summary.fronts:
        axis, error = front_names(cost)
        run.define_metric(axis, hidden=True)
        run.define_metric(error, step_metric=axis)
    run.define_metric(CURVE_STEP, hidden=True)
    run.define_metric("curve/*", step_metric=CURVE_STEP)
    for step, row in enumerate(_rows(summary)):
        if step >= run.starting_step:
            run.log(row, step=step)
    run.summary.update({width_name(group): value for group, value in summary.widths.items()})


def _rows(summary: SummaryRun) -> Iterator[dict[str, float]]:
    """Yield the rows of a summary's history: the points of its fronts, then of its curves."""
    for cost, points in summary.fronts.items():
        for point in points:
            yield dict(zip(front_names(cost), point, strict=True))
    for name, points in summary.curves.items():
        for point in points:
            yield dict(zip((CURVE_STEP, f"curve/{name}"), point, strict=True))


def _front(records: Records, method: str, cost: str) -> list[tuple[float, float]]:
    """The mean over seeds of the error at each whole percent at which every seed has a network."""
    full = records.experiment.full_costs[cost]
    fronts = records.fronts[records.fronts["method"] == method]
    percents = np.arange(1, 101)
    budgets = percents * full / 100
    means = np.mean([errors_at(front, cost, budgets) for _, front in fronts.groupby("seed")], 0)
    known = ~np.isnan(means)
    return list(zip(percents[known].astype(float).tolist(), means[known].tolist(), strict=True))


def _curves(records: Records, method: str) -> dict[str, list[tuple[float, float]]]:
    """The mean losses over seeds, by step."""
    curves = records.curves[records.curves["method"] == method]
    means = curves.groupby("step")[list(LOSSES)].mean()
    steps = means.index.astype(float).tolist()
    return {name: list(zip(steps, means[name].tolist(), strict=True)) for name in LOSSES}


def _widths(records: Records, method: str) -> dict[str, float]:
    experiment = records.experiment
    fronts = records.fronts[records.fronts["method"] == method]
    first = cost_percents(records.fronts, experiment.cost, experiment.full_cost)[0]
    budget = max(first, WIDTHS_PERCENT) * experiment.full_cost / 100
    chosen: list[pd.Series] = []
    for _, front in fronts.groupby("seed"):
        steps = staircase(front, experiment.cost)
        affordable = steps[steps[experiment.cost] <= budget]
        if affordable.empty:
            return {}
        chosen.append(affordable.iloc[-1])
    counts = np.array([[int(count) for count in row["widths"].split()] for row in chosen])
    shares = 100 * counts.mean(axis=0) / [group.maximum for group in experiment.groups]
    names = [group.name for group in experiment.groups]
    return dict(zip(names, shares.tolist(), strict=True))


_TITLE_LENGTH = 128
_CURVE_TITLES = {
    "loss_largest": "Training loss of the largest network (nats)",
    "loss_smallest": "Training loss of the smallest network, on soft output (nats)",
}


def wandb_report(
    records: Records,
    summaries: Sequence[SummaryRun],
    *,
    project: str,
    entity: str,
    claims: str,
    tables: str,
    command: str,
) -> Any:
    """The report, a `wandb_workspaces.reports.v2.Report` that is not saved yet.

    Its panels draw the summaries, once `upload_summary` has brought them there. `claims` and
    `tables` are Markdown; `command` makes the experiment's results. Nothing is asked of the
    network: without an `entity` the report cannot be saved.
    """
    wr = reports_library()

    experiment = records.experiment
    notes = "\n\n".join(f"**{warning}**" for warning in experiment.warnings)
    texts = [wr.MarkdownBlock(text=notes)] if notes else []
    return wr.Report(
        project=project,
        entity=entity,
        title=experiment.title[:_TITLE_LENGTH],
        description="; ".join((experiment.title, *experiment.warnings)),
        width="fluid",
        blocks=[
            *texts,
            wr.H2(text="Claims of the paper"),
            wr.MarkdownBlock(text=claims),
            wr.H2(text="Error over cost"),
            wr.P(text=_FRONT_TEXT),
            _grid(records, _front_panels(records)),
            wr.H2(text="Training curves"),
            wr.P(text="Means over the seeds, of as many steps for each point."),
            _grid(records, _curve_panels()),
            wr.H2(text="Widths"),
            wr.P(text=_WIDTH_TEXT),
            _grid(records, [_width_panel(records)]),
            wr.H2(text="Results"),
            wr.MarkdownBlock(text=tables),
            wr.H2(text="How to reproduce"),
            wr.MarkdownBlock(text=reproduction(records, command, len(summaries))),
        ],
    )


_FRONT_TEXT = (
    "At each whole percent of the full network's cost: the test top-1 error (%) of the network "
    "with the lowest search loss within that budget, mean over the seeds. There are networks only "
    "where the line steps."
)
_WIDTH_TEXT = (
    "Channels of each group, in percent of the full network's, of the network that "
    f"{WIDTHS_PERCENT}% of the full cost select; mean over the seeds."
)


def reports_library() -> Any:
    """The module `wandb_workspaces.reports.v2`, whose import warns of its own old pydantic."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        import wandb_workspaces.reports.v2 as reports
    return reports


def spec_json(report: Any) -> str:
    """The whole report as W&B stores it, as JSON; nothing is asked of the network."""
    text = report._to_model().spec.model_dump_json(by_alias=True, exclude_none=True)
    head = {"title": report.title, "description": report.description, "project": report.project}
    return json.dumps({**head, "spec": json.loads(text)}, indent=1, ensure_ascii=False) + "\n"


def reproduction(records: Records, command: str, methods: int) -> str:
    """How to make these results again, and with what they were made; Markdown."""
    lines = [f"    {command}", ""]
    for each in records.environment["environments"]:
        commit = f"{each['commit']}{' with changes' if each['dirty'] else ''}"
        packages = [f"{name} {version}" for name, version in each["packages"].items()]
        gpu = each.get("device") != "cpu" and each["gpus"]
        device = ", ".join(each["gpus"]) if gpu else each["cpu"]
        versions = ", ".join((f"Python {each['python']}", *packages))
        lines.append(f"- commit {_code(commit)}; {_code(versions)}; on {_code(device)}")
    seeds = records.fronts["seed"].nunique()
    lines += ["", f"{methods} methods with {seeds} seeds; records {_code(digest(records))}."]
    return "\n".join(lines) + "\n"


def _code(text: str) -> str:
    """Text that stays as it is in Markdown."""
    return f"`{' '.join(str(text).split()).replace('`', chr(39))}`"


def _grid(records: Records, panels: Sequence[Any]) -> Any:
    """Panels over the summaries of these records, which are in the report's own project."""
    wr = reports_library()

    runs = wr.Runset(name="Methods", filters=f"Group = '{summary_group(records)}'")
    return wr.PanelGrid(runsets=[runs], panels=list(panels))


def _front_panels(records: Records) -> list[Any]:
    wr = reports_library()

    panels = []
    for position, cost in enumerate(shown_costs(records.experiment)):
        axis, error = front_names(cost)
        words, full = COST_WORDS[cost], records.experiment.full_costs[cost]
        panels.append(
            wr.LinePlot(
                title=f"Error over {words.name}",
                x=axis,
                y=[error],
                title_x=f"{words.axis} (% of the full network's {words.amount(full)})",
                title_y="Test top-1 error (%)",
                groupby=wr.Config("method"),
                groupby_aggfunc="mean",
                layout=_layout(position),
            )
        )
    return panels


def _curve_panels() -> list[Any]:
    wr = reports_library()

    return [
        wr.LinePlot(
            title=_CURVE_TITLES[name],
            x=CURVE_STEP,
            y=[f"curve/{name}"],
            title_x="gradient step",
            title_y="nats",
            groupby=wr.Config("method"),
            groupby_aggfunc="mean",
            layout=_layout(position),
        )
        for position, name in enumerate(LOSSES)
    ]


def _width_panel(records: Records) -> Any:
    wr = reports_library()

    groups = records.experiment.groups
    return wr.BarPlot(
        title="Channels by group (% of the full network's)",
        metrics=[wr.SummaryMetric(width_name(group.name)) for group in groups],
        orientation="v",
        max_bars_to_show=len(groups) * records.fronts["method"].nunique(),
        layout=wr.Layout(x=0, y=0, w=24, h=10),
    )


def _layout(position: int) -> Any:
    """Two panels side by side, of the 24 columns of a grid."""
    wr = reports_library()

    return wr.Layout(x=12 * (position % 2), y=9 * (position // 2), w=12, h=9)
