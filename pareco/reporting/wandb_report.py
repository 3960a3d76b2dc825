"""The report of an experiment in Weights & Biases: what it says, and how it gets there."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

from pareco.reporting.costs import COST_WORDS
from pareco.reporting.records import Records
from pareco.reporting.wandb_summary import (
    CURVE_STEP,
    LOSSES,
    WIDTHS_PERCENT,
    SummaryRun,
    digest,
    front_names,
    shown_costs,
    summary_group,
    width_name,
)

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
