"""Files at the top that other programs read: each says what the project says elsewhere."""

import importlib.metadata
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def read(name: str) -> dict[Any, Any]:
    return yaml.safe_load((ROOT / name).read_text())


def test_the_citation_has_what_its_format_requires_and_our_version() -> None:
    """As the guide to CFF 1.2.0 says, of the file and of every reference."""
    citation = read("CITATION.cff")
    assert citation["cff-version"] == "1.2.0"
    assert citation["message"]
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    for work in (citation, *citation["references"]):
        assert {"type", "title", "authors"} <= work.keys()
        for author in work["authors"]:
            assert author.keys() in ({"name"}, {"family-names", "given-names"})
    titles = [work["title"].partition(":")[0] for work in citation["references"]]
    assert (titles, [work["year"] for work in citation["references"]]) == (
        ["Joslim", "PareCO"],
        [2021, 2020],
    )
    assert "2007.11752" in citation["references"][1]["url"]


def test_pushes_and_pull_requests_are_checked_with_the_oldest_python() -> None:
    workflow = read(".github/workflows/check.yml")
    assert workflow[True].keys() == {"push", "pull_request"}  # what YAML 1.1 takes `on` for
    job = workflow["jobs"]["check"]
    oldest = PROJECT["requires-python"].removeprefix(">=")
    assert job["strategy"]["matrix"]["python"][0] == oldest
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["make check PYTHON=python"]
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^check: .*\n", makefile, re.MULTILINE)
    assert "PYTHON ?=" in makefile


def test_what_runs_before_a_commit_is_the_pinned_ruff(tmp_path: Path) -> None:
    pinned = re.findall(r"^ruff==(.+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert pinned == [importlib.metadata.version("ruff")]
    (local,) = read(".pre-commit-config.yaml")["repos"]
    assert local["repo"] == "local"
    code, ended = tmp_path / "bad.py", {}
    for hook in local["hooks"]:
        assert hook["language"] == "system"
        program, *arguments = hook["entry"].split()
        assert program == ".venv/bin/ruff"
        code.write_text("import  os\n")
        ruff = Path(sys.executable).with_name("ruff")
        done = subprocess.run([ruff, *arguments, "--isolated", code], capture_output=True)
        ended[hook["id"]] = (done.returncode, code.read_text())
    assert ended == {"ruff-check": (1, "import  os\n"), "ruff-format": (0, "import os\n")}


@pytest.mark.parametrize("name", ["CITATION.cff", ".github/workflows/check.yml"])
def test_no_file_names_a_registry(name: str) -> None:
    addresses = re.findall(r"https?://([^/\s]+)", (ROOT / name).read_text())
    assert set(addresses) <= {"arxiv.org"}
