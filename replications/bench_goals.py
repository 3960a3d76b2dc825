"""What the files of `bench/` say of the goals: for the page, and the summary of results."""

from __future__ import annotations

import csv
import json
from pathlib import Path

from pareco.reporting.rendering import Cell, Table


def goals_table(results: Path) -> Table | None:
    """Return what the files of `bench/` in the results say of the goals; None without any.

    Less is better, but for the proposals that met their targets.
    """
    rows, machines = [], {}
    for name in ("step", "search", "deployed"):
        if not (path := results / "bench" / f"{name}.csv").exists():
            continue
        found = json.loads(path.with_suffix(".json").read_text())
        machines[f"{found['cpu']}, {found['threads']} thread"] = None
        for row in csv.DictReader(path.read_text().splitlines()):
            if row["goal"]:
                rows.append(tuple(map(Cell, _goal_cells(row))))
    title = f"What running many widths, and the search, take beside goals ({'; '.join(machines)})"
    columns = ("what", "of", "median", "quartiles", "goal", "met")
    return Table(title, columns, tuple(rows)) if rows else None


def _goal_cells(row: dict[str, str]) -> tuple[str, ...]:
    median, goal = float(row["median"]), float(row["goal"])
    more = row.get("more_is_better") == "True"
    if "network" in row:
        macs = f", {int(row['macs']):,} MACs" if "macs" in row else ""
        of = f"{row['network']}, {row['images']} images of {row['image_size']} px{macs}"
    else:
        entries = f", {row['entries']} entries" if row["entries"] else ""
        of = f"{row['solver']}, {row['experiment']}{entries}"
    spread = f"{float(row['lower']):.3g} to {float(row['upper']):.3g}"
    met = median >= goal if more else median <= goal
    return row["what"], of, f"{median:.3g}", spread, f"{goal:g}", "yes" if met else "no"
