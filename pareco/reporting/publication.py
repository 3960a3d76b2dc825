"""What one finished run shows in Weights & Biases, made from its folder."""

import json
from pathlib import Path

from pareco.reporting.figures import experiment_figures
from pareco.reporting.published import read_published
from pareco.reporting.runs import records_of
from pareco.reporting.statistics import run_measures
from pareco.tracking import Publication

_RECORDS = ("config.json", "env.json", "splits.json", "front.csv", "visits.csv", "result.json")


def run_publication(folder: Path) -> Publication:
    """The front, figures, records, weights and final numbers of the run in a folder.

    The summary has the errors at fixed costs, area and hypervolume of `run_measures`, and the
    budget. Raises InvalidRecord for a record that is missing or damaged.
    """
    records = records_of([folder])
    experiment = records.experiment
    measures = run_measures(records.fronts, experiment.cost, experiment.full_cost).iloc[0]
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    nothing = read_published(folder / "published")
    return Publication(
        front=records.fronts,
        cost=experiment.cost,
        figures=experiment_figures(records, nothing, folder.parent.name),
        artifacts={
            "front": [folder / name for name in _RECORDS],
            "model": sorted(folder.glob("weights/*.safetensors")),
        },
        summary={
            **{f"error/{name}": float(value) for name, value in measures.items()},
            **{f"budget/{name}": int(value) for name, value in result["budget"].items()},
            "scale": experiment.scale,
        },
    )
