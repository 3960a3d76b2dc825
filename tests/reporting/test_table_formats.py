"""Tables as LaTeX and Markdown: whatever is in a name, the structure stays whole."""

import re

import pytest
from markdown_it import MarkdownIt

from pareco.reporting.tables import Cell, Table, Tables, latex, markdown, markdown_table

HOSTILE = "a&b %c _d #e {f} ~g ^h \\i $j | k ± † ‡ – <l>"


def tables(name: str, **changes: tuple[str, ...]) -> Tables:
    """Two tables of two rows, one of which is called `name`, as are heading and a column."""
    table = Table(
        title=f"Errors of {name}",
        columns=("method", name, "area"),
        rows=(
            (Cell(name), Cell("5.00 ± 1.41", best=True), Cell("6.00")),
            (Cell("other"), Cell("7.00"), Cell("–")),
        ),
    )
    lines: dict[str, tuple[str, ...]] = {"warnings": (), "notes": (), "footnotes": ()}
    return Tables(heading=name, tables=(table, table), **{**lines, **changes})


@pytest.mark.parametrize("name", ["plain", HOSTILE, "\\end{tabular}", "a\\", "%", "{", "}"])
def test_latex_is_balanced_and_each_row_has_all_its_cells(name: str) -> None:
    text = latex(tables(name))
    code = [line for line in text.splitlines() if not line.startswith("%")]
    opened = []
    for kind, environment in re.findall(r"\\(begin|end)\{(\w+)\}", "\n".join(code)):
        if kind == "begin":
            opened.append(environment)
        else:
            assert opened.pop() == environment
    assert opened == []
    rows = [line for line in code if line.endswith(r" \\")]
    assert len(rows) == 2 * 3
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == 2, row
    for line in code:
        assert not re.search(r"(?<!\\)[%#_~^]", line), line
        assert len(re.findall(r"(?<!\\)\$", line)) % 2 == 0, line
        assert len(re.findall(r"(?<!\\)\{", line)) == len(re.findall(r"(?<!\\)\}", line)), line


def test_latex_of_every_special_character() -> None:
    text = latex(tables(HOSTILE))
    shown = (
        r"a\&b \%c \_d \#e \{f\} \textasciitilde{}g \textasciicircum{}h \textbackslash{}i \$j | k"
        r" $\pm$ $\dagger$ $\ddagger$ -- <l>"
    )
    assert rf"{{}}{shown} & \textbf{{5.00 $\pm$ 1.41}} & 6.00 \\" in text.splitlines()
    assert rf"\caption{{{shown}. Errors of {shown}}}" in text
    assert rf"method & {shown} & area \\" in text


def test_latex_says_warnings_in_the_caption_and_below_what_marks_mean() -> None:
    """A reader sees nothing else of it; what a table has no mark for is not below it."""
    parts = {"warnings": ("scale: 50% off", "One seed."), "notes": ("At most x%.",)}
    marked = latex(tables("a †", **parts, footnotes=("† one\ntwo", "‡ three", "Words.")))
    assert r"\caption{a $\dagger$. scale: 50\% off. One seed. Errors of a $\dagger$}" in marked
    assert r"{\footnotesize At most x\%. $\dagger$ one two}" in marked
    assert "three" not in marked
    assert "footnotesize" not in latex(tables("a", footnotes=("† one",)))


def test_markdown_bars_are_part_of_a_cell() -> None:
    """As a Markdown parser reads it: every row has as many cells as there are columns."""
    (table, _) = tables("a|b|c").tables
    html = MarkdownIt("commonmark").enable("table").render(markdown_table(table))
    assert html.count("<tr>") == 3
    assert html.count("<th") == 3 + 1  # <thead>
    assert html.count("<td") == 6
    assert "<td>a|b|c</td>" in html
    assert "<strong>5.00 ± 1.41</strong>" in html


def test_markdown_shows_any_text_as_it_is_in_one_line() -> None:
    hostile = "<img src=x onerror=alert(1)> `code` *a* [b](c) &lt; d\n\n# e"
    render = MarkdownIt("commonmark").enable("table").render
    html = render(markdown(tables(hostile, warnings=(hostile,))))
    assert html.count("<h1>") == 1
    for element in ("<img", "<code>", "<em>", "<a "):
        assert element not in html
    assert "&lt;img src=x onerror=alert(1)&gt; `code` *a* [b](c) &amp;lt; d # e" in html
    (row,) = [[Cell("a", link="a b/table.md")]]
    linked = markdown_table(Table("", ("x",), (tuple(row),)))
    assert '<a href="a%20b/table.md">a</a>' in render(linked)


def test_markdown_has_warnings_above_and_footnotes_below() -> None:
    parts = {"warnings": ("careful",), "notes": ("One.", "Two."), "footnotes": ("† exempt",)}
    lines = markdown(tables("a", **parts)).splitlines()
    assert lines[:5] == ["# a", "", "**careful**", "", "One. Two."]
    assert lines[-1] == "† exempt"
