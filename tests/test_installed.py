"""The wheel, installed and used from an empty folder: nothing needs the checkout."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

from tests.documents import python_in

ROOT = Path(__file__).parent.parent
PIP = ("-m", "pip", "--disable-pip-version-check", "--quiet")
NOTHING_ELSE = ("--no-index", "--no-deps")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installation:
    """A folder with the packages of the wheel, and one to work in."""

    packages: Path
    work: Path

    def run(self, *command: str | Path) -> str:
        """Return what a command says that succeeds, with the installed packages first of all."""
        own = {name: each for name, each in os.environ.items() if not name.startswith("PYTHON")}
        own |= {"PYTHONPATH": str(self.packages), "PYTHONDONTWRITEBYTECODE": "1"}
        own |= {"WANDB_MODE": "disabled", "COLUMNS": "100"}
        done = subprocess.run(command, capture_output=True, text=True, cwd=self.work, env=own)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def python(self, *arguments: str) -> str:
        """Return what Python says with these arguments."""
        return self.run(sys.executable, *arguments)

    def files(self) -> set[Path]:
        """Return all that is installed."""
        return set(self.packages.rglob("*"))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    """Build the wheel from a copy, as building writes beside the sources, and install it."""
    folder = tmp_path_factory.mktemp("installed")
    copy, work = folder / "copy", folder / "work"
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info", "build")
    for name in ("pareco", "baselines", "replications"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    work.mkdir()
    here = Installation(folder / "packages", work)
    options = (*NOTHING_ELSE, "--no-build-isolation", "--wheel-dir", str(folder))
    here.python(*PIP, "wheel", *options, str(copy))
    (wheel,) = folder.glob("*.whl")
    here.python(*PIP, "install", *NOTHING_ELSE, "--target", str(here.packages), str(wheel))
    shutil.rmtree(copy)
    return here


def test_packages_and_their_files_are_the_installed_ones(installed: Installation) -> None:
    code = (
        "import pareco, baselines, replications; from pareco import Method, make_slimmable; "
        "print(pareco.__file__, baselines.__file__, replications.__file__, sep='\\n')"
    )
    places = [Path(line).parent.parent for line in installed.python("-c", code).splitlines()]
    assert places == [installed.packages] * 3
    shown = installed.run(installed.packages / "bin" / "pareco", "profile", "cifar_resnet8")
    assert "cifar_resnet8, 32 x 32: 6 channel groups" in shown
    known = installed.python("-m", "replications", "list")
    assert all(file.parent.name in known for file in ROOT.glob("replications/*/experiment.py"))
    code = (
        "from pathlib import Path; from pareco.reporting.records import read_published; "
        "print(len(read_published(Path('results'))))"
    )
    tables = [pd.read_csv(file) for file in (ROOT / "results" / "published").glob("*.csv")]
    assert int(installed.python("-c", code)) == sum(map(len, tables)) > 0


def test_a_smoke_run_of_ones_own_method_and_its_report(installed: Installation) -> None:
    """From a folder with the method alone; a clone around it would be none of the package's."""
    before, work = installed.files(), installed.work
    subprocess.run(["git", "init", "--quiet", work], check=True)
    (work / "halves.py").write_text(python_in("methods.md", 70)[0])
    command = ("-m", "replications", "run", "digits", "--scale", "smoke", "--name", "mine")
    installed.python(*command, "--methods", "us_net", "./halves.py", "--device", "cpu")
    made = work / "results" / "mine-smoke"
    table = (made / "table.md").read_bytes()
    assert b"halves" in table
    assert (work / "results" / "index.html").stat().st_size > 200_000  # with its script
    run = work / "runs" / "mine-smoke" / "halves" / "seed0"
    (session,) = json.loads((run / "env.json").read_text())
    assert (session["commit"], session["dirty"]) == (None, None)
    assert session["packages"]["pareco"]
    (work / "halves.py").unlink()
    shutil.rmtree(work / "results")
    installed.python("-m", "replications", "report", "mine", "--scale", "smoke")
    assert (made / "table.md").read_bytes() == table
    program = installed.packages / "bin" / "pareco"
    assert "networks" in installed.run(program, "bundle", run, "-o", "mine.pareco")
    assert installed.files() == before
