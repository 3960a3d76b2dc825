"""What a console shows, and how a request is refused."""

from pathlib import Path

import pytest
from rich.table import Table

from pareco.arguments import plain_console
from replications.__main__ import main

ODD = "data [red]a[/red] [/b] :smile: [0]"


def test_text_with_brackets_and_colons_is_shown_as_it_is(
    capsys: pytest.CaptureFixture[str],
) -> None:
    console, table = plain_console(), Table(ODD, title=ODD)
    table.add_row(ODD)
    console.print(f"{ODD}/1")
    console.print(table)
    console.out(f"{ODD}/2")
    said = capsys.readouterr().out
    assert said.count(ODD) == 5
    plain_console(quiet=True).print(ODD)
    assert not capsys.readouterr().out


def test_a_path_with_brackets_is_named_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    results = tmp_path / ODD
    assert main(["report", "digits", "--results", str(results)]) == 2
    assert f"no records in {results}" in capsys.readouterr().err
    assert main(["run", "cifar10_resnet20", "--images", ODD]) == 2
    assert f"--images {ODD}: no such folder" in capsys.readouterr().err
