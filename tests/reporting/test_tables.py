"""Tables of hand-made methods, in every form: numbers, marks, published rows, hostile names."""

import io
import re
from dataclasses import replace
from typing import Any

import pandas as pd
import pytest
import rich.console
from markdown_it import MarkdownIt

from pareco.reporting.records import Records
from pareco.reporting.rendering import (
    Cell,
    Table,
    Tables,
    latex,
    markdown,
    markdown_table,
    terminal,
)
from pareco.reporting.statistics import paired_differences, run_measures, seed_statistics
from pareco.reporting.tables import experiment_tables, measure_csv
from pareco.reporting.work import time_text
from pareco.schema import LEDGER_TYPES, PHASES
from tests.reporting.claim_records import FULL, records_of

NONE = pd.DataFrame(columns=["method", "source", "macs_millions", "top1_error"])


def front(*errors: float) -> list[tuple[int, float]]:
    """A network at 30% of the cost and, if two errors are given, one at 100%."""
    return list(zip((300, 1000), errors, strict=False))


def two(*errors: float, seeds: tuple[int, int] = (0, 0), **changes: Any) -> Records:
    """Two methods, a and b, with a seed and a network each."""
    fronts = zip("ab", seeds, errors, strict=True)
    return records_of({(name, seed): front(error) for name, seed, error in fronts}, **changes)


def published(*rows: tuple[str, str, float, float]) -> pd.DataFrame:
    """Published networks given as (method, source, millions of MACs, top-1 error)."""
    return pd.DataFrame(rows, columns=list(NONE.columns))


def shown(tables: Tables, width: int) -> str:
    """What a terminal of some columns shows."""
    console = rich.console.Console(file=io.StringIO(), width=width)
    with console.capture() as capture:
        console.print(terminal(tables))
    return capture.get()


def rows_below(text: str, columns: str) -> list[str]:
    """The rows of the Markdown table with these columns."""
    lines = text.splitlines()
    first = lines.index(columns) + 2
    return lines[first : lines.index("", first) if "" in lines[first:] else None]


@pytest.fixture
def records() -> Records:
    fronts = {
        ("pareco", 0): front(4.0, 2.0),
        ("pareco", 1): front(6.0, 3.0),
        ("alone", 0): front(1.0),
        ("big", 0): front(9.0, 2.5),
        ("big", 1): front(9.0, 2.5),
        ("cut", 0): front(1.5),
    }
    return records_of(fronts, steps={"cut": 50}, budget_exempt=("alone",))


@pytest.fixture
def tables(records: Records) -> Tables:
    return experiment_tables(records, NONE, "pareco")


def test_markdown(tables: Tables) -> None:
    """Errors, intervals of the whole front, differences seed by seed, and budgets.

    The networks at 30% dominate 70% of the costs: of 96, 94, 99, 91 and 98.5 points. The
    differences are those of alone and cut seed 0, where pareco has 4.00, and of big 9 less 4 and 6.
    Of two seeds an interval reaches 12.7062 x their half distance: 12.71 for the errors 4 and 6.
    """
    text = markdown(tables)
    assert text.startswith("# digits: resnet8 on cifar10, 32 x 32 pixels\n\ncifar10: - classes, ")
    assert "- for the search, - test images. The full network: 1 k MACs" in text
    assert "1 k MACs, 1 k parameters, 1 k activations (elements put out by layers), 1 k" in text
    assert "re-calibrated on 512 training images." in text
    assert "scale" not in text
    five, nine = "5.00 ± 1.41", "9.00 ± 0.00"
    one, cut = "1.00 ± –", "1.50 ± –"
    assert rows_below(text, "| method | seeds | 30% | 40% | 60% | 80% | 100% | area |") == [
        f"| pareco | 2 | {five} | {five} | {five} | {five} | 2.50 ± 0.71 | {five} |",
        f"| alone † | 1 | {one} | {one} | {one} | {one} | {one} | {one} |",
        f"| big | 2 | {nine} | {nine} | {nine} | {nine} | 2.50 ± 0.00 | {nine} |",
        f"| cut ‡ | 1 | {cut} | {cut} | {cut} | {cut} | {cut} | {cut} |",
    ]
    lines = text.splitlines()
    assert "| cut ‡ | 50 | 200 | 96 |" in lines
    assert lines[-3].startswith("† exempt")
    assert lines[-1].startswith("‡ spent another training budget")
    assert rows_below(text, "| method | seeds | area | hypervolume |") == [
        "| pareco | 2 | 5.00 [-7.71, 17.71] | 66.50 [57.61, 75.39] |",
        "| alone † | 1 | 1.00 [–] | 69.30 [–] |",
        "| big | 2 | 9.00 [–] | 63.70 [–] |",
        "| cut ‡ | 1 | 1.50 [–] | 68.95 [–] |",
    ]
    columns = "| method | seeds | 30% | 40% | 60% | 80% | 100% | area | hypervolume |"
    four, none = "+4.00 [-8.71, +16.71]", "-3.00 [–]"
    half = "-2.50 [–]"
    assert rows_below(text, columns) == [
        f"| alone † | 1 | {none} | {none} | {none} | {none} | -1.00 [–] | {none} | +2.10 [–] |",
        f"| big | 2 | {four} | {four} | {four} | {four} | +0.00 [-6.35, +6.35] | {four}"
        " | -2.80 [-11.69, +6.09] |",
        f"| cut ‡ | 1 | {half} | {half} | {half} | {half} | -0.50 [–] | {half} | +1.75 [–] |",
    ]
    assert "## Paired difference to pareco, seed by seed" in text


def test_one_seed_is_warned_of(tables: Tables) -> None:
    warning = "One seed: numbers without deviation or interval, so no order of methods is claimed."
    one = experiment_tables(two(4.0, 5.0), NONE, "a")
    assert one.warnings == (warning,)
    assert f"**{warning}**" in markdown(one)
    assert warning in " ".join(shown(one, 80).split())
    assert tables.warnings == ()
    assert "Student's 95% t interval" in " ".join(tables.notes)
    assert "no method is bold with fewer than 3" in " ".join(tables.notes)
    assert "Student" not in " ".join(one.notes)
    for text in (markdown(one), markdown(tables).partition("\n\n## ")[2]):
        assert "**" not in text.replace(f"**{warning}**", "")
        assert "Bold" not in text
    assert "[–]" not in markdown(one)
    assert not {"†", "‡"} & {*markdown(one)}


def test_unreadable_images_are_warned_of_as_the_test_counts_others_twice(tables: Tables) -> None:
    """Most of a run: each has them all, or is of other splits."""
    records = two(4.0, 5.0)
    (first, second), runs = records.environment["runs"], records.environment["runs"]
    for method, count in ((first, 2), (second, 3)):
        for seed, run in runs[method].items():
            runs[method][seed] = {**run, "damaged_images": count}
    (warning, _) = experiment_tables(records, NONE, "a").warnings
    assert warning.startswith("3 of the images could not be read (run.log names them): in place")
    assert not any("could not be read" in each for each in tables.warnings)


def test_bold_are_the_best_and_what_three_seeds_do_not_tell_apart_from_it() -> None:
    """near is worse by 1, -1 and 1 points, far by 9.0, 9.1 and 9.2; free is in no running."""
    errors = {"own": (4.0, 5.0, 6.0), "near": (5.0, 4.0, 7.0), "far": (13.0, 14.1, 15.2)}
    errors["free"] = (1.0, 1.1, 1.2)
    fronts = {(name, seed): front(e) for name, own in errors.items() for seed, e in enumerate(own)}
    tables = experiment_tables(records_of(fronts, budget_exempt=("free",)), NONE, "own")
    errors_table, took, whole_front, *_ = tables.tables
    assert not any(cell.best for row in took.rows for cell in row)
    for table in (errors_table, whole_front):
        bold = {row[0].text: {cell.best for cell in row[2:]} for row in table.rows}
        assert bold == {"own": {True}, "far": {False}, "free †": {False}, "near": {True}}
    assert "Bold: the best mean among methods of equal training budget, and" in markdown(tables)


def test_different_seeds_are_warned_of_and_one_method_with_two_does_not_hide_it() -> None:
    other = experiment_tables(two(4.0, 5.0, seeds=(0, 1)), NONE, "a")
    uneven = {("a", 0): front(4.0), ("a", 1): front(4.5), ("b", 0): front(5.0)}
    both = experiment_tables(records_of(uneven), NONE, "a")
    titles = [table.title.partition(" ")[0] for table in other.tables]
    # no difference without a common seed
    assert titles == ["Test", "What", "The", "Where", "Budget"]
    for tables in (other, both):
        assert [warning.split(":")[0] for warning in tables.warnings] == [
            "One seed",
            "Methods have different seeds",
        ]


def test_published_networks_have_a_row_for_each_method_and_source(records: Records) -> None:
    """Of 1 k MACs 30% are 300: 310, or 31%, are let pass, 311 are not."""
    networks = published(
        ("PareCO", "paper, table 2", 310e-6, 8.125),
        ("PareCO", "paper, table 2", 400e-6, 9.0),
        ("PareCO", "paper, table 2", 1000e-6, 3.0),
        ("PareCO", "a release", 311e-6, 7.0),
        ("AutoSlim", "paper, table 2", 1011e-6, 5.0),
    )
    tables = experiment_tables(records, networks, "pareco")
    lines = markdown(tables).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| cut ‡ | 1 |"))
    assert lines[start + 1 : start + 5] == [
        "| AutoSlim, published [2] | – | – | – | – | – | – | – |",
        "| PareCO, published [1] | – | – | 7.00 | 7.00 | 7.00 | 7.00 | – |",
        "| PareCO, published [2] | – | 8.12 | 8.12 | 8.12 | 8.12 | 3.00 | – |",
        "",
    ]
    footnotes = "\n".join(tables.footnotes)
    assert "Published: the least error of the networks that the source lists" in footnotes
    assert "[1] a release\n[2] paper, table 2" in footnotes
    assert "8.12" in shown(tables, 120)
    assert "ublished" not in markdown(experiment_tables(records, NONE, "pareco"))


def test_no_number_is_cut_in_a_terminal_of_80_columns(tables: Tables) -> None:
    """Though all columns are there but the differences'; a cell may take two lines."""
    assert "Paired difference" not in shown(tables, 200)
    for expected in ("5.00 ±1.41", "alone †", "‡ spent another", "66.50 [57.61, 75.39]"):
        assert expected in shown(tables, 120)
    runs = {("independent", 0): front(44.0, 42.0), ("independent", 1): front(86.5, 83.5)}
    wide = records_of({**runs, ("pareco", 0): [(160, 91.5)]}, budget_exempt=("independent",))
    text = shown(experiment_tables(wide, NONE, "pareco"), 80)
    assert "…" not in text
    assert max(map(len, text.splitlines())) <= 80
    words = text.split()
    for expected in (
        "65.25",
        "±30.05",
        "62.75",
        "±29.34",
        "[-164.68,",
        "213.33]",
        "91.50",
    ):
        assert expected in words


def test_columns_follow_the_cost() -> None:
    records = two(4.0, 5.0, cost="activations")
    records = replace(records, fronts=records.fronts.assign(activations=[440, 440]))
    text = markdown(experiment_tables(records, NONE, "b"))
    assert "| method | seeds | 45% | 60% | 80% | 100% | area |" in text
    assert "at most x% of the full network's activations (" in text
    assert "over 45% to 100%" in text


def test_a_budget_that_no_network_fits_is_a_dash() -> None:
    late = records_of({("a", 0): front(4.0), ("b", 0): [(640, 9.0)]})
    text = markdown(experiment_tables(late, NONE, "a"))
    assert "| b | 1 | – | – | – | 9.00 | 9.00 | – |" in text
    assert "| b | 1 | – | – | – | +5.00 | +5.00 | – | -34.44 |" in text


def test_the_csv_has_every_statistic_to_four_digits(records: Records) -> None:
    table = pd.read_csv(io.StringIO(measure_csv(records, "pareco")))
    measures = run_measures(records.fronts, "macs", FULL)
    expected = [
        seed_statistics(measures).assign(statistic="value"),
        paired_differences(measures, "pareco").assign(statistic="difference to pareco"),
    ]
    columns = ["method", "statistic", "measure", "n", "mean", "deviation", "low", "high"]
    pd.testing.assert_frame_equal(
        table[columns], pd.concat(expected, ignore_index=True)[columns], rtol=0, atol=5.1e-5
    )
    assert set(table["cost"]) == {"macs"}
    equal = table.groupby("method")["equal_training_budget"].unique()
    assert {method: list(values) for method, values in equal.items()} == {
        "pareco": ["yes"],
        "alone": ["no"],
        "big": ["yes"],
        "cut": ["no"],
    }
    assert len(table) == 7 * (4 + 3)


def test_a_single_method_has_no_differences_in_the_csv() -> None:
    table = pd.read_csv(io.StringIO(measure_csv(records_of({("a", 3): front(4.0)}), "absent")))
    assert set(table["statistic"]) == {"value"}
    assert table["low"].isna().all()


HOSTILE = "a&b %c _d #e {f} ~g ^h \\i $j | k ± † ‡ – <l>"


def named_tables(name: str, **changes: tuple[str, ...]) -> Tables:
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
    text = latex(named_tables(name))
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
    text = latex(named_tables(HOSTILE))
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
    marked = latex(named_tables("a †", **parts, footnotes=("† one\ntwo", "‡ three", "Words.")))
    assert r"\caption{a $\dagger$. scale: 50\% off. One seed. Errors of a $\dagger$}" in marked
    assert r"{\footnotesize At most x\%. $\dagger$ one two}" in marked
    assert "three" not in marked
    assert "footnotesize" not in latex(named_tables("a", footnotes=("† one",)))


def test_markdown_bars_are_part_of_a_cell() -> None:
    """As a Markdown parser reads it: every row has as many cells as there are columns."""
    (table, _) = named_tables("a|b|c").tables
    html = MarkdownIt("commonmark").enable("table").render(markdown_table(table))
    assert html.count("<tr>") == 3
    assert html.count("<th") == 3 + 1  # <thead>
    assert html.count("<td") == 6
    assert "<td>a|b|c</td>" in html
    assert "<strong>5.00 ± 1.41</strong>" in html


def test_markdown_shows_any_text_as_it_is_in_one_line() -> None:
    hostile = "<img src=x onerror=alert(1)> `code` *a* [b](c) &lt; d\n\n# e"
    render = MarkdownIt("commonmark").enable("table").render
    html = render(markdown(named_tables(hostile, warnings=(hostile,))))
    assert html.count("<h1>") == 1
    for element in ("<img", "<code>", "<em>", "<a "):
        assert element not in html
    assert "&lt;img src=x onerror=alert(1)&gt; `code` *a* [b](c) &amp;lt; d # e" in html
    (row,) = [[Cell("a", link="a b/table.md")]]
    linked = markdown_table(Table("", ("x",), (tuple(row),)))
    assert '<a href="a%20b/table.md">a</a>' in render(linked)


@pytest.mark.parametrize(
    ("choice", "note", "columns", "row"),
    [
        (
            {"held_out_images": 5000, "search_images": 5000},
            "on 5,000 held-out images, which no network has trained on.",
            "| method | networks | training images | held-out images (chosen by) |",
            "| pareco | 4 | – | 0.375 |",
        ),
        (
            {"held_out_images": 0, "search_images": 300},
            "on 300 of the training images: the networks have trained on them.",
            "| method | networks | training images (chosen by) | held-out images |",
            "| pareco | 4 | 0.375 | – |",
        ),
        (
            {},
            "On which images the search losses were measured was not recorded.",
            "| method | networks | training images | held-out images |",
            "| pareco | 4 | – | – |",
        ),
    ],
)
def test_tables_say_on_which_images_the_front_was_chosen(
    records: Records, choice: dict[str, Any], note: str, columns: str, row: str
) -> None:
    """PareCO's losses are 0.4 and 0.2 with one seed, 0.6 and 0.3 with the other: 0.375."""
    chosen = replace(records, experiment=replace(records.experiment, **choice))
    tables = experiment_tables(chosen, NONE, "pareco")
    assert note in " ".join(tables.notes)
    assert rows_below(markdown(tables), columns)[0] == row
    assert note in " ".join(shown(tables, 400).split())


def test_the_loss_that_the_front_was_not_chosen_by_stands_beside(records: Records) -> None:
    """The mean over seeds of the mean over a front: here 0.1 to 0.4, two networks for each seed."""
    held_out = replace(records.experiment, held_out_images=300, search_images=300)
    fronts = records.fronts.assign(training_loss=records.fronts["search_loss"] / 2)
    tables = experiment_tables(replace(records, experiment=held_out, fronts=fronts), NONE, "pareco")
    columns = "| method | networks | training images | held-out images (chosen by) |"
    assert rows_below(markdown(tables), columns)[0] == "| pareco | 4 | 0.188 | 0.375 |"


def test_losses_of_some_methods_make_none_the_best() -> None:
    """Of three seeds each, the first is told apart from the second in error and in loss."""
    runs = {
        (name, seed): front(error * (1 + seed / 10))
        for name, error in (("a", 1.0), ("b", 9.0))
        for seed in range(3)
    }
    records = records_of(runs)
    known = replace(records, fronts=records.fronts.assign(test_loss=records.fronts["search_loss"]))
    some = known.fronts.assign(
        test_loss=known.fronts["test_loss"].where(known.fronts["method"] == "a")
    )

    def best(fronts: pd.DataFrame) -> list[bool]:
        tables = experiment_tables(replace(known, fronts=fronts), NONE, "a").tables
        (table,) = (each for each in tables if each.title.startswith("Test loss"))
        return [row[-1].best for row in table.rows]

    assert best(known.fronts) == [True, False]
    assert best(some) == [False]


def test_test_losses_are_of_the_networks_that_the_errors_are_of(records: Records) -> None:
    """Chosen by the search loss; a run without one of them counts for nothing. All by hand.

    pareco has 0.4, then 0.2, with one seed, 0.6 and 0.3 with the other; the losses are made ten
    times as large, with 30 more for the full network, and one of two of the method named `big` is
    unknown with seed 1.
    """
    fronts = records.fronts
    losses = 10 * fronts["search_loss"] + 30 * (fronts["macs"] == FULL)
    unknown = (fronts["method"] == "big") & (fronts["seed"] == 1) & (fronts["macs"] == FULL)
    known = replace(records, fronts=fronts.assign(test_loss=losses.mask(unknown)))
    tables = experiment_tables(known, NONE, "pareco")
    errors, means, differences = (
        next(table for table in tables.tables if table.title.startswith(title))
        for title in ("Test top-1", "Test loss (nats)", "Paired difference of test loss to pareco")
    )
    assert means.columns == errors.columns
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in means.rows}
    assert texts["pareco"] == ["2", *["5.000 ± 1.414"] * 4, "32.500 ± 0.707", "5.000 ± 1.414"]
    assert texts["big"] == ["1", *["9.000 ± –"] * 4, "32.500 ± –", "9.000 ± –"]
    texts = {row[0].text: [cell.text for cell in row[1:]] for row in differences.rows}
    assert texts["big"] == ["1", *["+5.000"] * 4, "+0.500", "+5.000"]
    csv = pd.read_csv(io.StringIO(measure_csv(known, "pareco"))).set_index("measure")
    (value, difference) = csv.loc["test_loss 100%"].query("method == 'big'").to_dict("records")
    assert (value["statistic"], value["n"], value["mean"]) == ("value", 1, 32.5)
    assert (difference["statistic"], difference["mean"]) == ("difference to pareco", 0.5)
    pd.testing.assert_frame_equal(
        csv[~csv.index.str.startswith("test_loss")].reset_index(),
        pd.read_csv(io.StringIO(measure_csv(records, "pareco")))[[csv.index.name, *csv.columns]],
    )
    other_seeds = (
        "Test losses of methods are of different seeds: only their paired differences are over the"
        " same ones."
    )
    assert other_seeds in tables.warnings
    all_known = replace(records, fronts=fronts.assign(test_loss=losses))
    assert experiment_tables(all_known, NONE, "pareco").warnings == ()
    before = experiment_tables(records, NONE, "pareco").tables
    assert not any("test loss" in table.title.lower() for table in before)


def ledger_of(method: str, seed: int, **macs: int) -> list[tuple[Any, ...]]:
    """The ledger of a run with these MACs in its phases, a third of them forward."""
    rows = []
    for place, phase in enumerate(PHASES):
        forward = macs.get(phase, 0) // 3
        spent = (forward, macs.get(phase, 0) - forward, 10.0 * place, 20.0 * place)
        rows.append((method, seed, phase, *spent))
    return rows


def with_ledgers(records: Records, *ledgers: list[tuple[Any, ...]]) -> Records:
    rows = [row for ledger in ledgers for row in ledger]
    table = pd.DataFrame(rows, columns=list(LEDGER_TYPES)).astype(LEDGER_TYPES)
    return replace(records, ledger=table)


TOOK = "| method | training | search | choice | test | total |"


def test_what_methods_took_is_the_mean_of_their_runs_relative_to_one(records: Records) -> None:
    """pareco: (900 + 300 + 60 + 40) and (1100 + 100 + 60 + 40) G; big 1 and 1 T; by hand."""
    giga = 10**9
    known = with_ledgers(
        records,
        ledger_of(
            "pareco", 0, training=900 * giga, search=300 * giga, choice=60 * giga, test=40 * giga
        ),
        ledger_of(
            "pareco", 1, training=1100 * giga, search=100 * giga, choice=60 * giga, test=40 * giga
        ),
        ledger_of("big", 0, training=950 * giga, test=50 * giga),
        ledger_of("big", 1, training=950 * giga, test=50 * giga),
    )
    time = " time | device time |"  # 10 + 20 + 30 s; on two processes
    text = markdown(experiment_tables(known, NONE, "pareco", "big"))
    assert rows_below(text, f"{TOOK} % of big |{time}") == [
        "| pareco | 1 T | 200 G | 60 G | 40 G | 1.3 T | 130 | 60 s | 2 min |",
        "| alone † | – | – | – | – | – | – | – | – |",
        "| big | 950 G | 0 | 0 | 50 G | 1 T | 100 | 60 s | 2 min |",
        "| cut ‡ | – | – | – | – | – | – | – | – |",
    ]
    first = markdown(experiment_tables(known, NONE, "pareco", "us_net"))  # which has no runs
    assert "| big | 950 G | 0 | 0 | 50 G | 1 T | 77 |" in first
    assert f"{TOOK} % of pareco |" in first
    assert "work is not" in text


def test_lost_work_has_a_column_where_there_is_any_and_is_in_no_total() -> None:
    records = two(4.0, 5.0)
    known = with_ledgers(
        records, ledger_of("a", 0, test=300, lost=3000), ledger_of("b", 0, test=600)
    )
    text = markdown(experiment_tables(known, NONE, "a", "b"))
    columns = "| method | training | search | choice | test | lost | total | % of b |"
    assert rows_below(text, f"{columns} time | device time |") == [
        "| a | 0 | 0 | 0 | 300 | 3 k | 300 | 50 | 60 s | 2 min |",
        "| b | 0 | 0 | 0 | 600 | 0 | 600 | 100 | 60 s | 2 min |",
    ]


def test_a_method_one_of_whose_runs_has_no_ledger_has_none(records: Records) -> None:
    known = with_ledgers(records, ledger_of("big", 0, test=600), ledger_of("cut", 0, test=600))
    text = markdown(experiment_tables(known, NONE, "pareco"))
    assert "| big | – | – | – | – | – | – | – | – |" in text
    assert "| cut ‡ | 0 | 0 | 0 | 600 | 600 | – | 60 s | 2 min |" in text  # pareco has none either


def test_a_run_of_one_process_has_no_other_time_than_its_own() -> None:
    known = with_ledgers(two(4.0, 5.0), ledger_of("a", 0, test=3), ledger_of("b", 0, test=6))
    alone = known.ledger.assign(device_seconds=known.ledger["seconds"])
    text = markdown(experiment_tables(replace(known, ledger=alone), NONE, "a"))
    assert f"{TOOK} % of a | time |\n" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.04, "0.0 s"), (119.4, "119 s"), (130, "2 min"), (9000, "2.5 h")]
)
def test_times_have_their_largest_unit(seconds: float, text: str) -> None:
    assert time_text(seconds) == text


def test_a_table_says_what_is_held_equal() -> None:
    records = records_of({("pareco", 0): [(160, 91.5)], ("us_net", 0): [(160, 91.0)]})
    shared = replace(records, experiment=replace(records.experiment, equal_macs=10**9))
    texts = [markdown(experiment_tables(each, NONE, "pareco")) for each in (records, shared)]
    assert "Gradient steps and passes are held equal" in texts[0]
    assert "The MACs before the test are held equal" in texts[1]
    assert "passes are held equal" not in texts[1]
