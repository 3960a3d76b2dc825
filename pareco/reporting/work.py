"""What the methods of an experiment took, in MACs and time, from the ledgers of their runs."""

from collections.abc import Callable, Collection, Mapping, Sequence

import pandas as pd

from pareco.reporting.records import Records, amount
from pareco.schema import LEDGER_TYPES, PHASES, RunResult

_KEPT = tuple(phase for phase in PHASES if phase != "lost")


def ledger_frame(results: Sequence[RunResult]) -> pd.DataFrame:
    """The ledgers of runs, a row for each phase of each run that has one, by method and seed."""
    rows = [
        (run.method, run.seed, phase, *vars(run.ledger[phase]).values())
        for run in sorted(results, key=lambda run: (run.method, run.seed))
        if run.ledger is not None
        for phase in PHASES
    ]
    return pd.DataFrame(rows, columns=list(LEDGER_TYPES)).astype(LEDGER_TYPES)


def kept_ledger(
    found: pd.DataFrame, before: pd.DataFrame, same: Collection[tuple[str, int]]
) -> pd.DataFrame:
    """The ledgers found, with the rows of `before` for these runs where the MACs are as found.

    Those lost may differ: they are no part of what was done.
    """
    parts = []
    earlier = dict(list(before.groupby(["method", "seed"])))
    for run, rows in found.groupby(["method", "seed"]):
        kept = earlier.get(run, rows) if run in same else rows
        parts.append(kept if _macs(kept).equals(_macs(rows)) else rows)
    return pd.concat([found.iloc[:0], *parts], ignore_index=True)


def _macs(rows: pd.DataFrame) -> pd.DataFrame:
    kept = rows[rows["phase"] != "lost"].set_index("phase")
    return kept.loc[list(_KEPT), ["forward_macs", "backward_macs"]]


def spending(records: Records, methods: Sequence[str]) -> pd.DataFrame:
    """What a run of each method took, means over seeds: MACs by phase, their total, and seconds.

    Columns are PHASES, `total`, `seconds` and `device_seconds` (these three without what was
    lost); NaN where a run of the method has no ledger.
    """
    ledger = records.ledger.assign(
        macs=records.ledger["forward_macs"].astype(float)
        + records.ledger["backward_macs"].astype(float)
    )
    by_run = ledger.pivot(index=["method", "seed"], columns="phase", values="macs")
    by_run = by_run.reindex(columns=list(PHASES))
    by_run["total"] = by_run[list(_KEPT)].sum(axis=1, skipna=False)
    times = ledger[ledger["phase"].isin(_KEPT)].groupby(["method", "seed"])
    by_run = by_run.join(times[["seconds", "device_seconds"]].sum())
    runs = pd.MultiIndex.from_tuples(records.runs, names=["method", "seed"])
    by_method = by_run.reindex(runs).groupby(level="method")
    return by_method.agg(lambda values: values.mean(skipna=False)).loc[list(methods)]


def spending_texts(
    records: Records, methods: Sequence[str], reference: str, missing: str
) -> tuple[tuple[str, ...], Mapping[str, list[str]]]:
    """The columns of the table of what methods took, and the cells of each method.

    Totals are in percent of the `reference`'s or, where it has not run, of the first method's. Lost
    work has a column where there is any, and device time where it is not the time.
    """
    spent = spending(records, methods)
    reference = reference if reference in methods else methods[0]
    phases = PHASES if spent["lost"].sum() > 0 else _KEPT
    several = (spent["device_seconds"] / spent["seconds"] - 1).abs().max() > 0.01
    times = {"seconds": "time"} | ({"device_seconds": "device time"} if several else {})
    spent["relative"] = 100 * spent["total"] / spent.loc[reference, "total"]
    texts = {
        str(method): [
            *(_text(row[phase], amount, missing) for phase in (*phases, "total")),
            _text(row["relative"], "{:.0f}".format, missing),
            *(_text(row[name], time_text, missing) for name in times),
        ]
        for method, row in spent.to_dict("index").items()
    }
    return (*phases, "total", f"% of {reference}", *times.values()), texts


def _text(value: float, text: Callable[[float], str], missing: str) -> str:
    return missing if pd.isna(value) else text(value)


def time_text(seconds: float) -> str:
    """A time in its largest unit, such as `42 s`, `12 min` or `2.5 h`."""
    if seconds < 120:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
