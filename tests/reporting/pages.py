"""Sections over synthetic runs, for the tests of the page's text and of the page in a browser."""

from dataclasses import replace

import pandas as pd

from pareco.reporting.claims import Verdict
from pareco.reporting.page import Section
from pareco.reporting.records import LATENCY, Records
from pareco.reporting.summary import SummaryRow
from pareco.reporting.tables import experiment_tables

NONE = pd.DataFrame(columns=["method", "source", "macs_millions", "top1_error"])
"""No published network."""
HOSTILE = '</script><img src=x onerror="window.broken=1">&\'\u2028<!--'
SVG = b'<svg xmlns="http://www.w3.org/2000/svg" width="80" height="40"><path d="M0 0\nL9 9"/></svg>'
CLAIM = Verdict(
    id="layers",
    statement="Widths per layer give the better trade-off",
    source="slides, page 3",
    experiments=("digits", "elsewhere"),
    about="the paper",
    why="Noise of the test images",
    outcome="not run at that scale",
    ours="0.7 points",
    evidence="three seeds of digits",
)
ABSENT = SummaryRow(experiment="elsewhere", scale="paper", subject="resnet8 on imagenet, 224 px")
RAN = SummaryRow(
    experiment="digits",
    scale="paper",
    subject="resnet8 on cifar10, 32 px",
    runs="3 methods, 2 seeds",
    outcome="area: pareco 5.00",
    machine="A processor",
    folder="digits",
)


def without_latency(records: Records) -> Records:
    """The records as if no latency had been measured."""
    costs = {name: cost for name, cost in records.experiment.full_costs.items() if name != LATENCY}
    experiment = replace(records.experiment, full_costs=costs)
    fronts = records.fronts.drop(columns=LATENCY)
    return replace(records, experiment=experiment, fronts=fronts, latency=None)


def renamed(records: Records, name: str) -> Records:
    """The records with `name` as experiment, network, first group, first method and commit."""
    first, *groups = records.experiment.groups
    names = {"experiment": name, "network": name, "groups": (replace(first, name=name), *groups)}
    runs = records.environment["runs"]
    environment = {
        "environments": [{**each, "commit": name} for each in records.environment["environments"]],
        "runs": {name if key == "pareco" else key: run for key, run in runs.items()},
    }
    fronts = records.fronts.replace({"method": {"pareco": name}})
    changed = replace(records.experiment, **names)
    return replace(records, experiment=changed, fronts=fronts, environment=environment)


def section_of(records: Records) -> Section:
    """The page's section of some records, with one figure."""
    return Section(
        records=records,
        tables=experiment_tables(records, NONE, "pareco"),
        figures={"error_vs_flops": SVG},
        how=f"make replicate-{records.experiment.experiment}",
        focus="pareco",
    )
