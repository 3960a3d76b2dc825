"""The record of a run's scalars: `metrics.jsonl`, one JSON object per line."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from pareco.files import write_text


class Record:
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
