"""One line for each experiment: what ran, at which scale, on what, with which outcome."""

from collections.abc import Sequence
from dataclasses import astuple, dataclass
from math import isnan, nan

import pandas as pd

from pareco.reporting.claims import Verdict
from pareco.reporting.collection import duration
from pareco.reporting.records import Records
from pareco.reporting.rendering import Cell, Table, markdown_table, markdown_text
from pareco.reporting.statistics import AREA, Comparison, comparison, paired_differences

NOT_RUN = "not run"
_COLUMNS = ("experiment", "scale", "network and data", "runs", "outcome", "on what")


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """What a summary says of an experiment at one scale."""

    experiment: str
    scale: str
    subject: str
    """Network, data set and image size."""

    runs: str = ""
    """How many methods and seeds."""

    outcome: str = NOT_RUN
    machine: str = ""
    folder: str | None = None
    """The folder under results/, where there is one."""

    @property
    def cells(self) -> tuple[str, ...]:
        """The texts, in the order of the summary's columns."""
        return astuple(self)[:-1]


def summary_row(records: Records, focus: str) -> SummaryRow:
    """The summary of an experiment that has run."""
    experiment, found = records.experiment, comparison(records, focus)
    return SummaryRow(
        experiment=experiment.experiment,
        scale=experiment.scale,
        subject=f"{experiment.network} on {experiment.data}, {experiment.image_size} px",
        runs=f"{_count(len(found.labels), 'method')}, {seeds_text(records.fronts)}",
        outcome=_outcome(found),
        machine=_machine(records),
        folder=experiment.experiment,
    )


def seeds_text(fronts: pd.DataFrame) -> str:
    """How many seeds each method has, such as `2 seeds` or `1 to 3 seeds`."""
    counts = fronts.groupby("method")["seed"].nunique()
    least, most = int(counts.min()), int(counts.max())
    return _count(most, "seed") if least == most else f"{least} to {most} seeds"


def summary_markdown(
    rows: Sequence[SummaryRow],
    claims: Sequence[Verdict],
    sheets: Sequence[str] = (),
    measured: Sequence[Table] = (),
) -> str:
    """The text of results/README.md: what ran, what did not in one folded line, and the claims.

    `sheets` are the names of figures, beside it, that show several experiments; the tables
    `measured` say what running takes.
    """
    links = ", ".join(f"[{name}]({name}.png)" for name in sheets)
    side_by_side = f"\n\nSide by side: {links}." if links else ""
    taken = [f"\n## {each.title}\n\n{markdown_table(each, align='---')}\n" for each in measured]
    return f"""# Results

Made by `python -m replications report --all` from the records in `*/records/`; never edited by
hand (but [published/](published), the numbers of others, with their sources). The same records
give the same bytes. [index.html](index.html) shows all of it in one page that needs no network.

The outcome is the mean test top-1 error (%) over budgets of the experiment's cost, as in its
table. Only the paper's experiments, at the scale `paper`, say something about its numbers.

{_experiments(rows)}{side_by_side}

## Claims of the paper

{_claim_table([claim for claim in claims if claim.about == "the paper"])}

## Claims of ours

Written before their runs. No claim of the paper is settled by them.

{_claim_table([claim for claim in claims if claim.about == "ours"])}

## Published costs

Counts that others have published for the same networks; our cost model is held to them, and
nothing is trained.

{_claim_table([claim for claim in claims if claim.about == "costs"])}
{"".join(taken)}"""


def _experiments(rows: Sequence[SummaryRow]) -> str:
    """A table of those that ran, with links, and the names of the others in one folded line."""
    ran = [
        (Cell(row.experiment, link=f"{row.folder}/table.md"), *map(Cell, row.cells[1:]))
        for row in rows
        if row.folder is not None
    ]
    table = markdown_table(Table("", _COLUMNS, tuple(ran)), align="---")
    others = [f"{row.experiment} ({row.subject})" for row in rows if row.folder is None]
    if not others:
        return table
    title = f"{_count(len(others), 'experiment')} not run at the scale of the paper"
    names = markdown_text(", ".join(others))
    return f"{table}\n\n<details><summary>{title}</summary>\n\n{names}.\n\n</details>"


def _claim_table(claims: Sequence[Verdict]) -> str:
    rows = [
        tuple(map(Cell, (claim.statement, claim.outcome, claim.ours, claim.source, claim.why)))
        for claim in claims
    ]
    columns = ("claim", "outcome", "ours", "source", "how it is judged")
    return markdown_table(Table("", columns, tuple(rows)), align="---")


def _outcome(found: Comparison) -> str:
    """The area of the first method beside the least among the methods of equal budget.

    With the interval of their paired difference, as means alone say nothing of how sure an order
    is; with one seed only the areas.
    """
    focus = next(iter(found.labels))
    table = found.errors.statistics.query("measure == @AREA").set_index("method")
    order = table["mean"].loc[found.compared].dropna().sort_values(kind="stable")
    if focus not in order.index:
        return "no area to compare"
    own = f"{AREA}: {focus} {order[focus]:.2f}"
    others = order.drop(focus)
    if others.empty:
        return own
    if table.loc[order.index, "n"].min() < 2:
        return f"{own} (others {others.min():.2f} to {others.max():.2f}); one seed, no order"
    least = str(others.index[0])
    is_least = order[focus] <= order[least]
    place = (
        f"the least of {len(order)} with equal budgets, next"
        if is_least
        else (f"least of {len(order)} with equal budgets")
    )
    sure = order_text(found.errors.values, least, focus, len(others))
    return f"{own}, {place} {least} {order[least]:.2f} ({sure})"


def order_text(measures: pd.DataFrame, method: str, reference: str, comparisons: int) -> str:
    """How sure the order of two methods' areas is, one of which was chosen among `comparisons`.

    By the interval of their `paired_differences`, adjusted as one of so many; no order is settled
    where it holds zero, nor where there is none. Where not all seeds are common, with their number.
    """
    differences = paired_differences(measures[[AREA]], reference, comparisons)
    own = differences[differences["method"] == method]
    low, high = (float(own[end].iloc[0]) if len(own) else nan for end in ("low", "high"))
    if isnan(low):
        return "no interval of the difference, so no order"
    adjusted = f", adjusted for {comparisons}" if comparisons > 1 else ""
    common, methods = int(own["n"].iloc[0]), measures.index.get_level_values("method")
    of = (
        ""
        if {common} == {sum(methods == each) for each in (method, reference)}
        else (f" over the {common} common seeds")
    )
    text = f"{method} minus {reference}{of}: {low:+.2f} to {high:+.2f}, 95% t interval{adjusted}"
    return text if low > 0 or high < 0 else f"{text}: no order"


def _machine(records: Records) -> str:
    """Processors or GPUs of all sessions, and the time of all runs."""
    devices = dict.fromkeys(
        gpu if each.get("device") != "cpu" and each["gpus"] else each["cpu"]
        for each in records.environment["environments"]
        for gpu in (each["gpus"] or [""])
    )
    runs = records.environment["runs"].values()
    seconds = sum(run["seconds"] for seeds in runs for run in seeds.values())
    return f"{', '.join(devices)}; {duration(seconds)} in all runs"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
