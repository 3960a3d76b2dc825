"""The numbers that others have published, each with its source, to set beside ours."""

from pathlib import Path

import numpy as np
import pandas as pd

from pareco.reporting.experiment import Experiment
from pareco.reporting.records import InvalidRecord, blaming

PUBLISHED_TYPES = {
    "network": "str",
    "data": "str",
    "image_size": "int64",
    "method": "str",
    "config": "str",
    "macs_millions": "float64",
    "params_millions": "float64",
    "top1_error": "float64",
    "source": "str",
    "note": "str",
}
_MAY_LACK = ("macs_millions", "params_millions")
_REQUIRED_TEXTS = ("network", "data", "method", "source")


_OURS = Path(__file__).parents[2] / "results" / "published"


def published_folder(results: Path) -> Path:
    """The folder of published numbers in the results, or else that of this repository."""
    own = results / "published"
    return own if own.is_dir() else _OURS


def read_published(folder: Path) -> pd.DataFrame:
    """The rows of all CSV files in a folder, those of a file in its order; none without a folder.

    The columns are PUBLISHED_TYPES: errors in percent, costs in millions, NaN where the source has
    none. Raises InvalidRecord, naming file and line, for a row that is damaged or has no source.
    """
    tables = [_read(path) for path in sorted(folder.glob("*.csv"))]
    if not tables:
        return pd.DataFrame(columns=list(PUBLISHED_TYPES)).astype(PUBLISHED_TYPES)
    return pd.concat(tables, ignore_index=True)


def published_for(experiment: Experiment, published: pd.DataFrame) -> pd.DataFrame:
    """The rows of the experiment's network, data set and image size whose MACs are known.

    So a scale with smaller images, or other ones, has none; a shorter schedule has them.
    """
    same = (
        (published["network"] == experiment.network)
        & (published["data"] == experiment.data)
        & (published["image_size"] == experiment.image_size)
        & published["macs_millions"].notna()
    )
    return published[same].reset_index(drop=True)


def _read(path: Path) -> pd.DataFrame:
    with blaming(path):
        table = pd.read_csv(
            path,
            dtype=dict(PUBLISHED_TYPES),
            keep_default_na=False,
            na_values={name: [""] for name in _MAY_LACK},
        )
        if list(table.columns) != list(PUBLISHED_TYPES):
            raise ValueError(f"its columns are not {', '.join(PUBLISHED_TYPES)}")
        for index, row in enumerate(table.to_dict("records")):
            if fault := _fault(row):
                raise InvalidRecord(f"{path}, line {index + 2}: {fault}")
        return table


def _fault(row: dict) -> str | None:
    """What is wrong with a row, if anything is."""
    for name in _REQUIRED_TEXTS:
        if not row[name].strip():
            return f"{name} is empty"
    for name in _MAY_LACK:
        if not np.isnan(row[name]) and not 0 < row[name] < np.inf:
            return f"{name} is no positive number: {row[name]}"
    if not 0 <= row["top1_error"] <= 100:
        return f"top1_error is no percentage: {row['top1_error']}"
    return f"image_size is {row['image_size']}" if row["image_size"] < 1 else None
