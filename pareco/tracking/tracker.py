"""What a run records as it trains, and shows to Weights & Biases."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pareco.files import write_text
from pareco.tracking.mirror import Mirror, Publication


class MetricsFile:
    """A record that begins with the lines that are kept, and is flushed after each new one."""

    def __init__(self, path: Path, kept: Sequence[str]) -> None:
        write_text(path, "".join(kept))
        self._file = path.open("a", encoding="utf-8")

    @property
    def closed(self) -> bool:
        """Whether nothing more can be appended."""
        return self._file.closed

    def append(self, step: int, scalars: Mapping[str, float]) -> dict[str, float]:
        """Write one line, with null for a non-finite value; return the scalars as plain numbers."""
        values = {name: _number(value) for name, value in scalars.items()}
        finite = {name: v if math.isfinite(v) else None for name, v in values.items()}
        self._file.write(json.dumps({"step": step, **finite}, allow_nan=False) + "\n")
        self._file.flush()
        return values

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def lines_before(path: Path, step: int) -> list[str]:
    """The record's whole lines with an earlier step; a last line that is no JSON is left out.

    Raises ValueError, naming the line, for another one that is no JSON.
    """
    if not path.exists():
        return []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    kept = []
    for number, line in enumerate(lines, start=1):
        try:
            recorded = json.loads(line)["step"]
        except (ValueError, TypeError, KeyError) as error:
            if number == len(lines):
                break
            raise ValueError(f"{path}, line {number} is not a record: {line!r}") from error
        if recorded < step:
            kept.append(line + "\n")
    return kept


def _number(value: float) -> float:
    return value if isinstance(value, int) else float(value)


class Tracker:
    """The scalars of one run: written to `folder/metrics.jsonl`, mirrored to W&B.

    The record has one JSON object per line, `{"step": ..., name: value, ...}`, and is flushed
    after each; a non-finite value is written as null. Without `resume_from` it starts empty. With
    `resume_from=s`, lines of step >= s and a torn last line are dropped first, so that it reads as
    if the run had never been interrupted; a broken line elsewhere raises ValueError.

    The mirror obeys `WANDB_MODE`; unless that says `offline` or `disabled` it is online where a
    key is present and the server answers, else offline in `folder/wandb`. It never prompts, and
    its first exception is logged and ends it without reaching the caller. When a run goes on, the
    mirror first gets what it lacks of the record, and then nothing twice.
    """

    def __init__(
        self,
        folder: Path,
        *,
        project: str,
        group: str,
        job_type: str,
        name: str,
        config: Mapping[str, Any],
        resume_from: int | None = None,
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        kept = [] if resume_from is None else lines_before(path, resume_from)
        self._record = MetricsFile(path, kept)
        self._mirror = Mirror(
            folder.resolve(),
            resumed=resume_from is not None,
            run_arguments={
                "project": project,
                "group": group,
                "job_type": job_type,
                "name": name,
                "config": dict(config),
            },
        )
        self._mirror.catch_up(json.loads(line) for line in kept)

    def log(self, step: int, **scalars: float) -> None:
        """Append one line of scalars (numbers or one-element arrays) at `step`.

        Steps must not decrease: W&B drops what arrives for an earlier step; the record keeps it.
        """
        self._mirror.log(int(step), self._record.append(int(step), scalars))

    def publish(self, make: Callable[[], Publication]) -> None:
        """Show what a run has found in the mirror: front, figures, files, final numbers.

        Called once, when the run has ended. `make` is called where there is a mirror, else
        nothing happens; what it raises is logged, like any exception of the mirror, and ends that.
        """
        self._mirror.publish(make)

    def close(self, *, failed: bool = False) -> None:
        """Close the record and finish the mirror, as failed if so; a second call does nothing."""
        if not self._record.closed:
            self._record.close()
            self._mirror.close(failed)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close(failed=kind is not None)
