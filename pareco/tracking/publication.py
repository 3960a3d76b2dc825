"""What a finished run shows in Weights & Biases: its front, figures, files and final numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

COST, ERROR = "front/cost", "front/error"
_COPIED_BYTES = 1_000_000


@dataclass(frozen=True, kw_only=True)
class Publication:
    """What a run has found."""

    front: pd.DataFrame
    """One row per network: shown as a table, and its `cost` and `error` as points of a plot."""

    cost: str
    """The column of the front that plots have as their axis."""

    error: str = "test_top1_error"
    """The column of the front that plots have over it."""

    figures: Mapping[str, Figure] = field(default_factory=dict)
    """Figures by name, shown as images."""

    artifacts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    """Files by type, such as `model`: one artifact each, named after the run and the type."""

    summary: Mapping[str, float | str | None] = field(default_factory=dict)
    """The final numbers."""


def show(publication: Publication, run: Any, step: int) -> None:
    """Log a publication to a W&B run, its rows of history from `step` on.

    The points of the front, one row each, can be plotted as a line: `front/error` over
    `front/cost`.
    """
    import wandb

    front = publication.front.sort_values(publication.cost, kind="stable")
    define_curve(run, COST, [ERROR])
    points = zip(front[publication.cost], front[publication.error], strict=True)
    for at, (cost, error) in enumerate(points, start=step):
        run.log({COST: float(cost), ERROR: float(error)}, step=at)
    images = {f"figures/{name}": _image(figure) for name, figure in publication.figures.items()}
    table = wandb.Table(dataframe=front.reset_index(drop=True))
    run.log({"front/networks": table, **images}, step=step + len(front))
    for kind, files in publication.artifacts.items():
        artifact = wandb.Artifact(f"{run.id}-{kind}", type=kind)
        for file in files:
            # A large file is uploaded from where it lies: copies in W&B's folder are never removed.
            large = file.stat().st_size > _COPIED_BYTES
            artifact.add_file(str(file.resolve()), policy="immutable" if large else "mutable")
        run.log_artifact(artifact)
    run.summary.update(dict(publication.summary))


def define_curve(run: Any, axis: str, metrics: Sequence[str]) -> None:
    """Have some metrics of a W&B run plotted over another one in place of the step."""
    run.define_metric(axis, hidden=True)
    for metric in metrics:
        run.define_metric(metric, step_metric=axis)


def _image(figure: Figure) -> Any:
    import wandb
    from PIL import Image

    content = BytesIO()
    figure.savefig(content, format="png", dpi=150, metadata={"Software": None})
    return wandb.Image(Image.open(content), file_type="png")
