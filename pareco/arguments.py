"""The arguments of a command: tyro reads them, and what is no request is refused in one line."""

from __future__ import annotations

import inspect
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import Any

import tyro
from rich.console import Console
from rich.text import Text

Flag = tyro.conf.FlagCreatePairsOff[bool]
"""A flag that is off unless it is given."""


def chosen_command(
    commands: Mapping[str, Any], arguments: Sequence[str] | None, *, prog: str, description: str
) -> Any:
    """Return the command that the arguments (None: the process's own) ask for, with its flags set.

    `commands` holds the defaults of each by name. Raises `SystemExit` for what is no request, and
    once --help is printed.
    """
    about = {name: inspect.getdoc(each) or "" for name, each in commands.items()}
    kind: Any = tyro.extras.subcommand_type_from_defaults(commands, about, prefix_names=False)
    return tyro.cli(kind, prog=prog, description=description, args=arguments)


def every_nth(part: str | None) -> slice:
    """Return what a part K/N takes of a list: every N-th, from the K-th on; None: all."""
    match = re.fullmatch(r"([0-9]+)/([0-9]+)", part or "1/1")
    first, parts = map(int, match.groups()) if match else (0, 0)
    if not 1 <= first <= parts:
        raise ValueError(f"part must be K/N with K from 1 to N, such as 2/4, got {part}")
    return slice(first - 1, None, parts)


@contextmanager
def in_one_line() -> Iterator[None]:
    """Raise `ValueError` in place of the box of lines with which tyro refuses arguments."""
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            yield
    except SystemExit as end:
        if not end.code:
            raise
        raise ValueError(_one_line(said.getvalue())) from None


def _one_line(box: str) -> str:
    """Return the message in a box, and the nearest flag or the known commands where it has them."""
    rows = [row.strip(" │╭╮╰╯") for row in Text.from_ansi(box).plain.strip().splitlines()]
    # Without the title, and with empty rows for rules and edges.
    text = "\n".join("" if set(row) <= {*"─-"} else row for row in rows[1:]).strip()
    message = text.partition("\n\n")[0].replace("\n", " ").strip()
    message = re.sub(r"^Error parsing (?!--)\S+: ", "", message)
    if near := re.search(r"Perhaps you meant:\s+(--\S+)", text):
        message += f"; did you mean {near[1]}?"
    if known := re.search(r"Available subcommands: (.*?)(?=\n\n|$)", text, re.DOTALL):
        message += f"; known: {known[1]}".replace("\n", " ")
    return message


def plain_console(*, quiet: bool = False, stderr: bool = False) -> Console:
    """Return a console that shows text as it is: brackets and colons of a path are no markup."""
    return Console(quiet=quiet, stderr=stderr, highlight=False, markup=False, emoji=False)
