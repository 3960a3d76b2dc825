"""Files of records: read whole and checked, or refused with file and field."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from pydantic import TypeAdapter, ValidationError

from pareco.schema import LIMITS, MAY_BE_ABSENT, MAY_LACK, OBJECTIVES

Content = TypeVar("Content")

_GREATEST = np.finfo(np.float64).max


class InvalidRecord(ValueError):
    """A record that is missing, incomplete, or at odds with itself or with another run."""


@contextmanager
def blaming(path: Path) -> Iterator[None]:
    """Raise InvalidRecord, naming `path`, for what goes wrong with it inside the `with` block."""
    try:
        yield
    except ValidationError as error:
        fault = error.errors()[0]
        texts = (
            str(path),
            ".".join(map(str, fault["loc"])),
            fault["msg"].removeprefix("Value error, "),
        )
        raise InvalidRecord(": ".join(filter(None, texts))) from error
    except KeyError as error:
        raise InvalidRecord(f"{path} lacks {error}") from error
    except (AttributeError, IndexError, OSError, TypeError, ValueError) as error:
        raise InvalidRecord(f"{path}: {error}") from error


def read_json(path: Path, kind: TypeAdapter[Content]) -> Content:
    """What a JSON file holds, if it is of this kind; else InvalidRecord, naming file and field."""
    with blaming(path):
        return kind.validate_json(path.read_bytes())


def read_table(path: Path, types: Mapping[str, str]) -> pd.DataFrame:
    """The columns of `types` in a CSV file, and OBJECTIVES, as the schema has them; no others.

    Raises InvalidRecord, naming file and column, and where it can the line, for one that is
    missing, holds something else, or lacks a value.
    """
    with blaming(path):
        header = pd.read_csv(path, nrows=0).columns
        types = {**types, **{name: OBJECTIVES[name] for name in header if name in OBJECTIVES}}
        numbers = [name for name, kind in types.items() if kind != "str"]
        absent = MAY_BE_ABSENT.difference(header)
        table = pd.read_csv(
            path,
            usecols=[name for name in types if name not in absent],
            dtype=dict(types),
            keep_default_na=False,
            na_values={name: [""] for name in numbers if name in MAY_LACK},
        ).reindex(columns=list(types))
        table = table.astype({name: types[name] for name in absent.intersection(types)})
        for name in types:
            _check_column(table[name], name in numbers)
        return table


def _check_column(values: pd.Series, numeric: bool) -> None:
    """Raise ValueError, naming column and line, for an empty cell or a number beyond its limits."""
    name = str(values.name)
    if numeric:
        low, high = LIMITS.get(name, (-_GREATEST, _GREATEST))
        fine = values.isna() if name in MAY_LACK else False
        fine |= values.between(low, high)
        wanted = f"a number from {low:g} to {high:g}" if name in LIMITS else "a finite number"
    else:
        fine = values.str.strip().ne("") | (name in MAY_LACK)
        wanted = "a text"
    for index in np.flatnonzero(~fine.to_numpy(dtype=bool))[:1]:
        raise ValueError(f"line {index + 2}: {name} is {values.tolist()[index]!r}, not {wanted}")


def read_if_there(path: Path) -> str | None:
    """The text of a file; None where there is none."""
    return path.read_text(encoding="utf-8") if path.exists() else None


def empty_table(types: Mapping[str, str]) -> pd.DataFrame:
    """A table with these columns and no row."""
    return pd.DataFrame(columns=list(types)).astype(dict(types))


def table_text(table: pd.DataFrame, types: Mapping[str, str]) -> str:
    """The columns of `types` as CSV, numbers with six digits after the point."""
    columns = [*types, *(name for name in OBJECTIVES if name in table)]
    return table[columns].to_csv(index=False, float_format="%.6f", lineterminator="\n")
