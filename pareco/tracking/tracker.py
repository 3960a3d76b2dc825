"""What a run records as it trains, and shows to Weights & Biases."""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Self

from pareco.files import write_text
from pareco.tracking.mirror import Mirror, Publication, Row


def metrics_rows(path: Path) -> list[tuple[str, Row]]:
    """The whole lines of a metrics file, each with its step and scalars, NaN where it has null.

    The file may be missing; a torn last line is left out. Raises ValueError, naming the line, for
    another one that cannot be read.
    """
    if not path.exists():
        return []
    rows: list[tuple[str, Row]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            scalars = {name: math.nan if v is None else v for name, v in json.loads(line).items()}
            rows.append((line, (int(scalars.pop("step")), scalars)))
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            if number < len(lines):
                what = f"{path}, line {number} is no line of metrics: {line!r}"
                raise ValueError(what) from error
    return rows


class Tracker:
    """The scalars of one run: written to `folder/metrics.jsonl`, mirrored to W&B.

    The metrics file has one JSON object per line, `{"step": ..., name: value, ...}`, and is flushed
    after each; a non-finite value is written as null. Without `resume_from` it starts empty. With
    `resume_from=s`, lines of step >= s and a torn last line are dropped first, so that it reads as
    if the run had never been interrupted; a broken line elsewhere raises ValueError.

    The mirror obeys `WANDB_MODE`; unless that says `offline` or `disabled` it is online where a
    key is present and the server answers, else offline in `folder/wandb`. It is named by the
    `name` (of the experiment), `method` and `seed` in `config`. It never prompts, and its first
    exception is logged and ends it without reaching the caller. When a run goes on, the server
    first gets what it lacks of the metrics file, and then nothing twice.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        config: Mapping[str, Any],
        resume_from: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = []
        if resume_from is not None:
            kept = [(line, row) for line, row in metrics_rows(path) if row[0] < resume_from]
        write_text(path, "".join(f"{line}\n" for line, _ in kept))
        self._file = path.open("a", encoding="utf-8")
        self._mirror = Mirror(
            folder.resolve(),
            [row for _, row in kept],
            resumed=resume_from is not None,
            project=project,
            config=config,
        )

    def log(self, step: int, **scalars: float) -> None:
        """Append one line of scalars (numbers or one-element arrays) at `step`.

        Steps must not decrease: W&B drops what arrives for an earlier step; the file keeps it.
        """
        values = {name: v if isinstance(v, int) else float(v) for name, v in scalars.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": int(step), **finite}, allow_nan=False) + "\n")
        self._file.flush()
        self._mirror.log(int(step), values)

    def publish(self, make: Callable[[], Publication]) -> None:
        """Show what a run has found in the mirror: front, figures, files, final numbers.

        Called once, when the run has ended. `make` is called where there is a mirror, else
        nothing happens; what it raises is logged, like any exception of the mirror, and ends that.
        """
        self._mirror.publish(make)

    def close(self, *, failed: bool = False) -> None:
        """Close the file and finish the mirror, as failed if so; a second call does nothing."""
        if not self._file.closed:
            self._file.close()
            self._mirror.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.close(failed=kind is not None)
