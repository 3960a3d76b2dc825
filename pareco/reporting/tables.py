"""The tables of an experiment, as Markdown, LaTeX, CSV and for the terminal."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan
from urllib.parse import quote

import numpy as np
import pandas as pd
import rich.box
import rich.console
import rich.table
from rich.text import Text

from pareco.reporting.records import BUDGET_TYPES, COST_WORDS, ExperimentRecord, Records
from pareco.reporting.statistics import (
    AREA,
    EXEMPT,
    HYPERVOLUME,
    UNEQUAL,
    budget_marks,
    budget_table,
    cost_percents,
    method_order,
    paired_differences,
    run_measures,
    seed_statistics,
)


@dataclass(frozen=True)
class Cell:
    """A table's cell; `best` ones are shown in bold."""

    text: str
    best: bool = False
    link: str = ""
    """The file that Markdown links the text to, if any."""


@dataclass(frozen=True)
class Table:
    """A titled table; `columns` names every cell of a row, the first being the row's name."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    wide: bool = False
    """Whether it is too wide for a terminal, which leaves it out."""


@dataclass(frozen=True, kw_only=True)
class Tables:
    """An experiment's tables with the lines that go above and below them."""

    heading: str
    warnings: tuple[str, ...]
    """What nobody may miss, such as a scale that is not the published one."""

    notes: tuple[str, ...]
    tables: tuple[Table, ...]
    footnotes: tuple[str, ...]


def markdown(tables: Tables) -> str:
    """The text of table.md."""
    warnings = [f"**{markdown_text(warning)}**" for warning in tables.warnings]
    parts = [f"# {markdown_text(tables.heading)}", *warnings]
    parts += [markdown_text(" ".join(tables.notes))]
    for table in tables.tables:
        parts += [f"## {markdown_text(table.title)}", markdown_table(table)]
    parts += map(markdown_text, tables.footnotes)
    return "\n\n".join(parts) + "\n"


def markdown_table(table: Table, *, align: str = "---:") -> str:
    """One table in Markdown, without its title; what a cell holds is shown as it is.

    All columns but the first are aligned to the right, unless `align` says `---`.
    """
    lines = [
        tuple(map(markdown_text, table.columns)),
        ("---", *[align] * (len(table.columns) - 1)),
        *(tuple(map(_markdown_cell, row)) for row in table.rows),
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def latex(tables: Tables) -> str:
    """The text of table.tex: one booktabs table for each, to be put in by \\input.

    The warnings stand in every caption, the notes below the first table, and footnotes below the
    tables that have their marks, as that is all that a reader of a table sees.
    """
    lines = [f"% {' '.join(tables.heading.split())}", "% needs \\usepackage{booktabs}"]
    for position, table in enumerate(tables.tables):
        remarks = [*(() if position else tables.notes), *_footnotes_of(table, tables)]
        body = [_shown(row, _latex_text, r"\textbf{{{}}}") for row in table.rows]
        caption = (tables.heading, *tables.warnings, table.title)
        lines += [
            "",
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex_text('. '.join(part.rstrip('.') for part in caption))}}}",
            rf"\begin{{tabular}}{{l{'r' * (len(table.columns) - 1)}}}",
            r"\toprule",
            rf"{' & '.join(map(_latex_text, table.columns))} \\",
            r"\midrule",
            *(rf"{{}}{' & '.join(row)} \\" for row in body),
            r"\bottomrule",
            r"\end{tabular}",
            *([_latex_remarks(remarks)] if remarks else []),
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def _latex_remarks(remarks: list[str]) -> str:
    text = _latex_text(" ".join(" ".join(remarks).split()))
    return rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {text}}}"


def _footnotes_of(table: Table, tables: Tables) -> list[str]:
    """The footnotes that begin with a mark which some cell of the table has."""
    text = " ".join(cell.text for row in table.rows for cell in row)
    marks = [(footnote.partition(" ")[0], footnote) for footnote in tables.footnotes]
    return [footnote for mark, footnote in marks if mark in text and not mark[0].isalpha()]


def terminal(tables: Tables) -> rich.console.Group:
    """The same tables for `rich.print`, a little narrower, without the wide ones."""
    parts: list[rich.console.RenderableType] = [
        Text(tables.heading, style="bold"),
        *(Text(warning, style="bold yellow") for warning in tables.warnings),
        Text(" ".join(tables.notes), style="dim"),
    ]
    for table in (table for table in tables.tables if not table.wide):
        shown = rich.table.Table(box=rich.box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        for position, column in enumerate(table.columns):
            shown.add_column(
                Text(column), justify="right" if position else "left", no_wrap=not position
            )
        for row in table.rows:
            texts = [cell.text.replace(" ± ", " ±") for cell in row]
            styles = ["bold" if cell.best else "" for cell in row]
            shown.add_row(*map(Text, texts, styles))
        parts += [Text(f"\n{table.title}", style="italic"), shown]
    parts += [Text(footnote, style="dim") for footnote in tables.footnotes]
    return rich.console.Group(*parts)


def _markdown_cell(cell: Cell) -> str:
    text = markdown_text(cell.text)
    text = f"**{text}**" if cell.best else text
    return f"[{text}]({quote(cell.link)})" if cell.link else text


def _shown(row: tuple[Cell, ...], escaped: Callable[[str], str], bold: str) -> tuple[str, ...]:
    texts = [escaped(cell.text) for cell in row]
    return tuple(
        bold.format(text) if cell.best else text for cell, text in zip(row, texts, strict=True)
    )


def markdown_text(text: str) -> str:
    """The text as Markdown that shows it as it is, in one line."""
    shown = re.sub(r"([\\`*<|])", r"\\\1", " ".join(text.split()))
    return shown.replace("](", "]\\(").replace("&", "&amp;")


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "±": r"$\pm$",
        "†": r"$\dagger$",
        "‡": r"$\ddagger$",
        "–": "--",
        "−": "$-$",
    }
)


def _latex_text(text: str) -> str:
    return text.translate(_LATEX)


MISSING = "–"
_FOOTNOTES = {
    EXEMPT: "exempt from the equal training budget, so not in the running for bold.",
    UNEQUAL: "spent another training budget than the others, so not in the running for bold.",
}
_SEARCH_BUDGETS = (
    "Search evaluations and widths visited are what each method's own search takes; the training"
    " budget (gradient steps, passes) is what is held equal."
)
_ONE_SEED = "One seed: numbers without deviation or interval, so no order of methods is claimed."
_OTHER_SEEDS = "Methods have different seeds: only the paired differences are over the same ones."
_OVER_SEEDS = (
    ", mean ± sample standard deviation over the seeds; in brackets the bootstrap 95% interval of"
    " the mean over the seeds."
)
_ENOUGH_SEEDS = 10
_FEW_SEEDS = (
    "With so few seeds the bootstrap's intervals are too narrow: of two seeds one is the two values"
    " themselves, and holds the true mean about every second time."
)
_PUBLISHED = (
    "Published: the least error of the networks that the source lists within the budget (its"
    " multiply-accumulates are rounded, so 1% of the full network's is let pass)."
)
_SLACK = 0.01


def experiment_tables(records: Records, published: pd.DataFrame, focus: str) -> Tables:
    """The tables of an experiment, one row per method, `focus` first.

    `published` are the published networks to set beside ours, see `published_for`; it may be
    empty. Methods whose training budget is exempt or unequal carry a mark, explained in a
    footnote, and do not count for the best of a column.
    """
    experiment, fronts = records.experiment, records.fronts
    methods = method_order(fronts["method"], focus)
    marks = budget_marks(fronts, experiment.budget_exempt, methods)
    labels = {method: f"{method} {marks.get(method, '')}".strip() for method in methods}
    measures = run_measures(fronts, experiment.cost, experiment.full_cost)
    compared = fronts[~fronts["method"].isin(list(marks))]
    seeds = (fronts if compared.empty else compared).groupby("method")["seed"].unique().map(set)
    several = seeds.map(len).min() > 1
    not_bold = marks if several else dict.fromkeys(methods, "")
    seed_warnings = [] if several else [_ONE_SEED]
    if len({frozenset(each) for each in seeds}) > 1:
        seed_warnings.append(_OTHER_SEEDS)
    statistics = seed_statistics(measures)
    shown = [
        _error_table(
            statistics, labels, not_bold, _published_rows(experiment, measures, published)
        ),
        _front_table(statistics, labels, not_bold),
        _difference_table(measures, labels),
        _budget_table(fronts, labels),
    ]
    return Tables(
        heading=experiment.title,
        warnings=(*experiment.warnings, *seed_warnings),
        notes=_notes(records, seeds.map(len).min()),
        tables=tuple(table for table in shown if table.rows),
        footnotes=(
            _SEARCH_BUDGETS,
            *([_PUBLISHED, *_references(published)] if len(published) else []),
            *(f"{mark} {text}" for mark, text in _FOOTNOTES.items() if mark in marks.values()),
        ),
    )


def measure_csv(records: Records, focus: str) -> str:
    """The text of table.csv: one row for each method and measure, and for each paired difference.

    `statistic` is `value`, or `difference to` a method: how much more, over the seeds that both
    have. Numbers have four digits after the point; one that is not there is empty.
    """
    experiment = records.experiment
    measures = run_measures(records.fronts, experiment.cost, experiment.full_cost)
    methods = method_order(records.fronts["method"], focus)
    marks = budget_marks(records.fronts, experiment.budget_exempt, methods)
    parts = [
        seed_statistics(measures).assign(statistic="value"),
        paired_differences(measures, methods[0]).assign(statistic=f"difference to {methods[0]}"),
    ]
    table = pd.concat([part for part in parts if len(part)])
    equal = table["method"].map(lambda method: "no" if method in marks else "yes")
    table = table.assign(cost=experiment.cost, equal_training_budget=equal)
    columns = ["method", "statistic", "cost", "measure", "n", "mean", "deviation", "low", "high"]
    return table[[*columns, "equal_training_budget"]].to_csv(
        index=False, float_format="%.4f", lineterminator="\n"
    )


def _notes(records: Records, least_seeds: int) -> tuple[str, ...]:
    experiment, fronts = records.experiment, records.fronts
    images = sorted(set(fronts["calibration_images"]))
    first = cost_percents(fronts, experiment.cost, experiment.full_cost)[0]
    return (
        "The full network: "
        + ", ".join(
            COST_WORDS[cost].full(value)
            + (f" ({COST_WORDS[cost].definition})" if COST_WORDS[cost].definition else "")
            for cost, value in experiment.full_costs.items()
        )
        + ".",
        "Test top-1 error in % (less is better)"
        + (_OVER_SEEDS if fronts["seed"].nunique() > 1 else "."),
        "A column x% is the error of the network with the lowest search loss among those of at"
        f" most x% of the full network's {experiment.words.name}"
        f" ({MISSING} where none fits in some seed); {AREA} is the mean of that error over"
        f" {first}% to 100%; {HYPERVOLUME} (more is better) is the part, in %, of the square up to"
        " 100% error and 100% cost that these networks dominate.",
        *_seed_notes(least_seeds),
        "Batch norm of each network re-calibrated on "
        + " to ".join(f"{count:,}" for count in dict.fromkeys((images[0], images[-1])))
        + " training images.",
    )


def _seed_notes(least_seeds: int) -> list[str]:
    """What there is to say of intervals and bold, by the least number of seeds of a method."""
    if least_seeds < 2:
        return []
    bold = "Bold: the best mean among methods of equal training budget."
    return [bold] if least_seeds >= _ENOUGH_SEEDS else [_FEW_SEEDS, bold]


def _error_table(
    statistics: pd.DataFrame,
    labels: Mapping[str, str],
    marks: Mapping[str, str],
    published: Sequence[tuple[Cell, ...]],
) -> Table:
    names = [name for name in statistics["measure"].unique() if name != HYPERVOLUME]
    columns = [
        _best(statistics, name, labels, marks, sign=1, text=_mean_and_deviation) for name in names
    ]
    return Table(
        title="Test top-1 error at a cost budget",
        columns=("method", "seeds", *names),
        rows=(*_rows(labels, _seed_counts(statistics, labels), *columns), *published),
    )


def _front_table(
    statistics: pd.DataFrame, labels: Mapping[str, str], marks: Mapping[str, str]
) -> Table:
    """Area and hypervolume, with their intervals where there are several seeds."""
    seeds = statistics["n"]
    columns = [
        _best(statistics, name, labels, marks, sign=sign, text=_mean_and_interval)
        for name, sign in ((AREA, 1), (HYPERVOLUME, -1))
    ]
    return Table(
        title="The whole front" + (": mean and 95% interval" if seeds.max() > 1 else ""),
        columns=("method", "seeds", AREA, HYPERVOLUME),
        rows=_rows(labels, _seed_counts(statistics, labels), *columns),
    )


def _difference_table(measures: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    """Differences to the first method; no rows where there is no other one."""
    reference, *others = labels
    statistics = paired_differences(measures, reference)
    present = {name: labels[name] for name in others if name in set(statistics["method"])}
    columns = [
        [Cell(_mean_and_interval(_of(statistics, method, name), signed=True)) for method in present]
        for name in measures.columns
    ]
    return Table(
        title=f"Paired difference to {reference}, seed by seed (positive errors: {reference} is"
        " better)",
        columns=("method", "seeds", *measures.columns),
        rows=_rows(present, _seed_counts(statistics, present), *columns),
        wide=True,
    )


def _budget_table(fronts: pd.DataFrame, labels: Mapping[str, str]) -> Table:
    budgets = budget_table(fronts, list(labels))
    return Table(
        title="Budget per run",
        columns=("method", *(name.replace("_", " ") for name in BUDGET_TYPES)),
        rows=tuple(
            (Cell(label), *(Cell(text) for text in budgets[method].values()))
            for method, label in labels.items()
        ),
    )


def _published_rows(
    experiment: ExperimentRecord, measures: pd.DataFrame, published: pd.DataFrame
) -> list[tuple[Cell, ...]]:
    """A row for each published method and source: its least error within each budget."""
    rows, sources = [], _sources(published)
    percents = [int(name[:-1]) for name in measures.columns if name.endswith("%")]
    for (method, source), networks in published.groupby(["method", "source"], sort=True):
        shares = networks["macs_millions"] * 1e6 / experiment.full_costs["macs"]
        least = [
            networks.loc[shares <= percent / 100 + _SLACK, "top1_error"].min()
            for percent in percents
        ]
        texts = [MISSING if isnan(error) else f"{error:.2f}" for error in least]
        label = f"{method}, published [{sources.index(str(source)) + 1}]"
        rows.append((Cell(label), Cell(MISSING), *map(Cell, texts), Cell(MISSING)))
    return rows


def _references(published: pd.DataFrame) -> list[str]:
    return [f"[{index}] {source}" for index, source in enumerate(_sources(published), start=1)]


def _sources(published: pd.DataFrame) -> list[str]:
    return sorted(set(published["source"]))


def _rows(labels: Mapping[str, str], *columns: Sequence[Cell]) -> tuple[tuple[Cell, ...], ...]:
    return tuple(zip(map(Cell, labels.values()), *columns, strict=True))


def _seed_counts(statistics: pd.DataFrame, labels: Mapping[str, str]) -> list[Cell]:
    counts = statistics.groupby("method")["n"].max()
    return [Cell(str(counts[method])) for method in labels]


def _of(statistics: pd.DataFrame, method: str, measure: str) -> pd.Series:
    row = statistics[(statistics["method"] == method) & (statistics["measure"] == measure)]
    return row.iloc[0]


def _best(
    statistics: pd.DataFrame,
    measure: str,
    labels: Mapping[str, str],
    marks: Mapping[str, str],
    *,
    sign: int,
    text: Callable[[pd.Series], str],
) -> list[Cell]:
    """A column's cells; bold the best mean without a mark: least for sign 1, greatest for -1."""
    rows = [_of(statistics, method, measure) for method in labels]
    means = np.array([sign * round(float(row["mean"]), 2) for row in rows])
    compared = [method not in marks for method in labels]
    lowest = np.fmin.reduce(means, initial=np.inf, where=compared)
    return [
        Cell(text(row), best=own and mean == lowest)
        for row, mean, own in zip(rows, means, compared, strict=True)
    ]


def _mean_and_deviation(row: pd.Series) -> str:
    if isnan(row["mean"]):
        return MISSING
    mean = f"{row['mean']:.2f}"
    return mean if isnan(row["deviation"]) else f"{mean} ± {row['deviation']:.2f}"


def _mean_and_interval(row: pd.Series, *, signed: bool = False) -> str:
    if isnan(row["mean"]):
        return MISSING
    sign = "+" if signed else ""
    mean, low, high = (f"{round(row[name], 2) + 0.0:{sign}.2f}" for name in ("mean", "low", "high"))
    return mean if isnan(row["low"]) else f"{mean} [{low}, {high}]"
