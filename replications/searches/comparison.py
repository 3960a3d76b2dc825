"""Hypervolumes of searches at equal evaluations: their record, differences, table and figure."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from pareco.files import write_text
from pareco.reporting.figures.style import SUFFIXES, styled, write_figure
from pareco.reporting.statistics import intervals
from replications.searches.feeding_results import write_feeding

FOCUS = "exact"
"""What the others are compared with."""
TITLES = {
    "analytic": "analytic front, 24 dimensions",
    "table": "table of a slimmable VGG",
    "noisy": "table, noise of 64 images",
    "live": "frozen VGG, layer by layer",
}
ABOUT = {
    "live": "A trained network with frozen weights, a multiplier for each layer. A search sees\n"
    "losses on 256 training images, drawn anew each time; calibrated ones, held out, score it.\n",
}
"""What a problem's title does not say."""
RECORD = "hypervolumes.csv"
ORIGINS = "hypervolumes.json"
_RANKED = ("exact", "paper", "qlognehvi", "nsga2", "uniform", "random")


class Reached(NamedTuple):
    """The hypervolume that a search of a problem had reached after so many evaluations.

    In the loss's unit, of the front by the losses that it saw, with the noiseless ones; `best` is
    that of the true front, NaN where it isn't known.
    """

    problem: str
    searcher: str
    seed: int
    evaluations: int
    hypervolume: float
    best: float


class Difference(NamedTuple):
    """By how much the search in focus reached more than another, with Student's 95% interval.

    Over the seeds that both have; the limits are NaN where the seeds say nothing of their spread.
    """

    problem: str
    searcher: str
    evaluations: int
    seeds: int
    mean: float
    low: float
    high: float

    @property
    def verdict(self) -> str:
        """`better` or `beaten` where the whole interval says so, else `open`."""
        if self.high < 0:
            return "beaten"
        return "better" if self.low > 0 else "open"


def read_record(folder: Path) -> list[Reached]:
    """Return what was written before; nothing where there is no record."""
    path = folder / RECORD
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [
            Reached(
                row["problem"],
                row["searcher"],
                int(row["seed"]),
                int(row["evaluations"]),
                float(row["hypervolume"]),
                float(row["best"] or "nan"),
            )
            for row in csv.DictReader(file)
        ]


def write_record(folder: Path, reached: Sequence[Reached]) -> None:
    """Write all rows in a stable order."""
    names, ranks = list(TITLES), {name: rank for rank, name in enumerate(_RANKED)}
    ordered = sorted(
        reached, key=lambda r: (names.index(r.problem), ranks[r.searcher], r.seed, r.evaluations)
    )
    rows = [(*each[:4], _fixed(each.hypervolume), _fixed(each.best)) for each in ordered]
    write_text(folder / RECORD, _as_csv(Reached._fields, rows))


def read_origins(
    folder: Path, record: Sequence[Reached], sources: Mapping[str, Mapping[str, object]]
) -> dict[str, dict[str, Any]]:
    """Return, by problem of the record, what it was searched on, and by what.

    That is its `source`, the `environment` of the first search, and the `commits` of all. Raises
    `ValueError` where the rows of a problem are not of the source that is given for it.
    """
    path = folder / ORIGINS
    written = json.loads(path.read_text()) if path.exists() else {}
    origins = {name: written.get(name, {}) for name in {each.problem for each in record}}
    for name in sources:
        if name in origins and origins[name].get("source") != sources[name]:
            raise ValueError(
                f"{folder / RECORD}: its rows of {name} were not searched on what {name} is now: "
                "remove them to search anew, or give back what they were searched on"
            )
    return origins


def write_origins(folder: Path, origins: Mapping[str, Mapping[str, Any]]) -> None:
    """Write what `read_origins` returns, in a stable order."""
    ordered = {name: origins[name] for name in TITLES if name in origins}
    write_text(folder / ORIGINS, json.dumps(ordered, indent=1) + "\n")


def differences(reached: Sequence[Reached]) -> list[Difference]:
    """Return the differences of the search in focus to each other one, seed by seed."""
    frame = pd.DataFrame(reached, columns=list(Reached._fields))
    found = []
    for problem in [each for each in TITLES if each in set(frame["problem"])]:
        own = frame[frame["problem"] == problem]
        table = own.pivot_table(
            index="seed", columns=["searcher", "evaluations"], values="hypervolume"
        )
        for searcher in [each for each in _RANKED[1:] if each in set(own["searcher"])]:
            for evaluations in sorted(set(own["evaluations"])):
                pair = [(FOCUS, evaluations), (searcher, evaluations)]
                if not all(each in table for each in pair):
                    continue
                both = table[pair].dropna()
                values = (both[pair[0]] - both[pair[1]]).to_numpy(dtype=np.float64)
                if not len(values):
                    continue
                low, high = intervals(values[:, None])[:, 0].tolist()
                mean = float(values.mean())
                found.append(
                    Difference(problem, searcher, evaluations, len(values), mean, low, high)
                )
    return found


def write_search_results(folder: Path) -> None:
    """Write what is made of all records in a folder; the same records give the same bytes."""
    sections = (write_comparison(folder, read_record(folder)), write_feeding(folder))
    if any(sections):
        write_text(folder / "README.md", "\n".join(filter(None, sections)))


def write_comparison(folder: Path, reached: Sequence[Reached]) -> str:
    """Write differences and figure from a record; return the tables, nothing without a record."""
    if not reached:
        return ""
    found = differences(reached)
    rows = [(*each[:4], *map(_fixed, each[4:]), each.verdict) for each in found]
    write_text(folder / "differences.csv", _as_csv((*Difference._fields, f"{FOCUS}_is"), rows))
    figure = hypervolume_figure(reached)
    for suffix in SUFFIXES:
        write_figure(figure, folder / f"hypervolume{suffix}")
    return markdown(reached, found)


def means(reached: Sequence[Reached]) -> Mapping[tuple[str, str, int], tuple[float, float, int]]:
    """Return mean, half of Student's 95% interval, and seeds by problem, searcher, evaluations."""
    values: dict[tuple[str, str, int], list[float]] = {}
    for each in reached:
        where = (each.problem, each.searcher, each.evaluations)
        values.setdefault(where, []).append(each.hypervolume)
    return {where: _mean(np.array(found)) for where, found in values.items()}


def _mean(values: np.ndarray) -> tuple[float, float, int]:
    low, high = intervals(values[:, None])[:, 0].tolist()
    return float(values.mean()), (high - low) / 2, len(values)


def markdown(reached: Sequence[Reached], found: Sequence[Difference]) -> str:
    """Return the tables of all problems, with what is said of each difference."""
    lines = [_INTRODUCTION]
    about = means(reached)
    verdicts = {(each.problem, each.searcher, each.evaluations): each for each in found}
    for problem in [each for each in TITLES if each in {r.problem for r in reached}]:
        own = [each for each in reached if each.problem == problem]
        best = next((each.best for each in own if not math.isnan(each.best)), None)
        evaluations = sorted({each.evaluations for each in own})
        lines.append(f"\n## {TITLES[problem]}\n")
        lines += [ABOUT[problem]] if problem in ABOUT else []
        if best is not None:
            lines.append(f"The true front has {best:.4f} nats.\n")
        lines.append(f"| search | seeds | {' | '.join(f'{n} evaluations' for n in evaluations)} |")
        lines.append("| --- |" + " ---: |" * (1 + len(evaluations)))
        for searcher in [each for each in _RANKED if each in {r.searcher for r in own}]:
            seeds = len({each.seed for each in own if each.searcher == searcher})
            cells = [_cell((problem, searcher, n), about, verdicts) for n in evaluations]
            lines.append(f"| {searcher} | {seeds} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(
    where: tuple[str, str, int],
    about: Mapping[tuple[str, str, int], tuple[float, float, int]],
    verdicts: Mapping[tuple[str, str, int], Difference],
) -> str:
    if where not in about:
        return "–"
    mean, reach, _ = about[where]
    text = f"{mean:.4f}" if math.isnan(reach) else f"{mean:.4f} ± {reach:.4f}"
    if where not in verdicts:
        return text
    each = verdicts[where]
    if math.isnan(each.low):
        return f"{text} ({each.mean:+.4f})"
    return f"{text} ({each.low:+.4f} to {each.high:+.4f}: {each.verdict})"


def hypervolume_figure(reached: Sequence[Reached]) -> Figure:
    """Return a panel for each problem: mean hypervolumes over evaluations, with 95% intervals."""
    import seaborn as sns

    problems = [each for each in TITLES if each in {r.problem for r in reached}]
    searchers = [each for each in _RANKED if each in {r.searcher for r in reached}]
    colors: dict[str, str] = dict(
        zip(_RANKED, sns.color_palette("colorblind", len(_RANKED)).as_hex(), strict=True)
    )
    about = means(reached)
    with styled():
        figure = Figure(figsize=(max(2.6 * len(problems), 4), 3.1))
        panels = figure.subplots(1, len(problems), squeeze=False)[0]
        for axes, problem in zip(panels, problems, strict=True):
            for searcher in searchers:
                own = sorted(n for p, s, n in about if (p, s) == (problem, searcher))
                found = [about[problem, searcher, n] for n in own]
                centre, reach, _ = np.array(found or np.empty((0, 3))).T
                look = {"color": colors[searcher], "marker": "o", "markersize": 3}
                axes.plot(own, centre, label=searcher, **look)
                axes.fill_between(
                    own, centre - reach, centre + reach, color=colors[searcher], alpha=0.15, lw=0
                )
            best = next(each.best for each in reached if each.problem == problem)
            if not math.isnan(best):
                axes.axhline(best, color="0.4", linestyle=":", label="true front")
            axes.set_xscale("log")
            ticks = sorted({each.evaluations for each in reached if each.problem == problem})
            axes.set_xticks(ticks, [str(n) for n in ticks])
            axes.minorticks_off()
            axes.set_title(TITLES[problem])
            axes.set_xlabel("evaluations")
        panels[0].set_ylabel("hypervolume (nats)")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure


def _fixed(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6f}"


def _as_csv(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return text.getvalue()


_INTRODUCTION = f"""# Searches at equal evaluations

Made by `python -m replications searches`. Hypervolume of (loss, part of the full cost): by how many
nats the best loss that a budget buys is less than that of the smallest network, averaged over all
budgets up to the full cost; more is better. A search's front is chosen by the losses that it saw,
and scored by the noiseless ones. Mean over seeds, with half of Student's 95% interval; in brackets
the interval of how much more `{FOCUS}` reached with the same seeds: *better* or *beaten* where all
of it lies on one side of zero."""
