"""A table of text, and several together: as Markdown, LaTeX and for the terminal."""

import re
from dataclasses import dataclass
from urllib.parse import quote

import rich.box
import rich.console
import rich.table
from rich.text import Text


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
    parts = [f"% {' '.join(tables.heading.split())}\n% needs \\usepackage{{booktabs}}"]
    for position, table in enumerate(tables.tables):
        caption = ". ".join(
            part.rstrip(".") for part in (tables.heading, *tables.warnings, table.title)
        )
        remarks = [*(() if position else tables.notes), *_footnotes_of(table, tables)]
        text = _latex_text(" ".join(" ".join(remarks).split()))
        # Without the braces a bracket that begins a row would be an argument of the line break.
        rows = "\n".join(rf"{{}}{' & '.join(map(_latex_cell, row))} \\" for row in table.rows)
        parts.append(rf"""
\begin{{table}}
\centering
\caption{{{_latex_text(caption)}}}
\begin{{tabular}}{{l{"r" * (len(table.columns) - 1)}}}
\toprule
{" & ".join(map(_latex_text, table.columns))} \\
\midrule
{rows}
\bottomrule
\end{{tabular}}""")
        if remarks:
            parts.append(rf"\par\smallskip\parbox{{\linewidth}}{{\footnotesize {text}}}")
        parts.append(r"\end{table}")
    return "\n".join(parts) + "\n"


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


def _latex_cell(cell: Cell) -> str:
    text = _latex_text(cell.text)
    return rf"\textbf{{{text}}}" if cell.best else text
