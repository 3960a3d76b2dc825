"""Methods of the user's own, by the commands: named by their files, known by their names."""

import json
import shutil
from pathlib import Path

import pytest

import replications
from pareco.bundle.from_run import write_bundle
from pareco.reporting import InvalidRecord
from pareco.reporting.report import collect_records
from pareco.training import execute_run
from replications.__main__ import main
from replications.catalogue import method_at, method_places
from replications.searches.trained import TrainedNetwork
from tests.experiments import TINY
from tests.replications.test_makefile import PYTHON, given

HALVES = """
from pareco import Method

class Halves(Method):
    name = "halves"

    def widths_for_step(self, step):
        return self.completed([self.task.space.uniform(0.5)], self.random_widths)

    def candidates(self):
        return self.task.space.spread(4)
"""
MINE = ("run", "tiny", "--name", "mine", "--results", "made")


@pytest.fixture(autouse=True)
def _tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WANDB_MODE", "disabled")
    folders = [*replications.__path__, str(Path(__file__).parent)]
    monkeypatch.setattr(replications, "__path__", folders)
    monkeypatch.chdir(tmp_path)
    Path("halves.py").write_text(HALVES)


def test_a_request_becomes_a_name_and_a_place() -> None:
    place = f"{Path('halves.py').resolve()}"
    found = method_places(["us_net", "./halves.py", "halves.py"])
    assert found == {"us_net": "us_net", "halves": place}
    assert method_places(["halves", "s_net"], found) == {"halves": place, "s_net": "s_net"}
    assert method_at(place).name == "halves"
    Path("mine.py").write_text(f"{HALVES}class Other(Halves): name = 'other'")
    module = method_places(["mine.py:Other"])
    assert module == {"other": f"{Path('mine.py').resolve()}:Other"}
    assert method_at(module["other"]).name == "other"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "pareco", "own.py"], "own.py: us_net is another method, give yours its own"),
        (["--methods", "halves.py", "other/halves.py"], "are both named 'halves', rename one"),
        (["--methods", "halves.py", "--method", "other/halves.py"], "are both named 'halves'"),
        (["--methods", "halves"], "one of your own is FILE.py or MODULE:CLASS"),
        (["--methods", "halves.py", "halfs"], "unknown method 'halfs'. Did you mean 'halves'?"),
        (["--methods", "us_net", "--method", "none.py"], "none.py: no such file"),
        (["--methods", "broken.py"], "method broken: widths_for_step must return widths of task"),
    ],
)
def test_what_cannot_be_taken_is_refused_before_anything_is_begun(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("other").mkdir()
    Path("own.py").write_text(HALVES.replace('"halves"', '"us_net"'))
    Path("other/halves.py").write_text(HALVES)
    body = "return self.completed([self.task.space.uniform(0.5)], self.random_widths)"
    Path("broken.py").write_text(HALVES.replace(body, "return 7").replace('"halves"', '"broken"'))
    before = set(Path().rglob("*.*"))
    assert main([*MINE, *arguments]) == 2
    out, err = capsys.readouterr()
    assert len(err.splitlines()) == 1
    assert message in err
    assert not out
    assert {each for each in Path().rglob("*.*") if each.suffix != ".pyc"} == before


def test_make_and_plan_take_it_too(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*PYTHON, "run", "digits", "--methods", "pareco", "./halves.py"]
    assert given("replicate-digits", "METHODS=pareco ./halves.py") == [asked]
    assert main(["plan", "tiny", "--methods", "us_net", "halves.py", "--json"]) == 0
    planned = [run["method"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert planned == ["us_net", "halves"]


@pytest.mark.slow
def test_it_is_trained_and_reported_by_its_name(tmp_path: Path) -> None:
    """By a process of the sweep; then without its file: the report, and a bundle."""
    assert main([*MINE, "--methods", "./halves.py"]) == 0
    run = Path("runs/mine/halves/seed0")
    table = Path("made/mine/table.md").read_bytes()
    for written in ("table.md", "error_vs_flops.svg", "../index.html"):
        assert b"halves" in Path("made/mine", written).read_bytes()
    Path("halves.py").unlink()
    shutil.rmtree("made")
    assert main(["report", "mine", "--results", "made"]) == 0
    assert Path("made/mine/table.md").read_bytes() == table
    bundle = write_bundle(run, tmp_path / "own.pareco")
    assert bundle.origin["method"] == "halves"
    assert main([*MINE, "--methods", "halves"]) == 2


def test_what_is_loaded_never_says_what_code_to_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A run whose configuration has a path for its method: that is a name there, and no more."""
    run, evil = tmp_path / "runs/tiny/halves/seed0", tmp_path / "evil.py"
    execute_run(TINY, method_at("./halves.py"), 0, run)
    evil.write_text("raise SystemExit('was run')")
    for name in ("config.json", "result.json"):
        stored = json.loads((run / name).read_text())
        assert stored["method"] == "halves"
        (run / name).write_text(json.dumps(stored | {"method": f"{evil}"}))
    assert TrainedNetwork(folder=run).net.space.dimensions
    assert write_bundle(run, tmp_path / "own.pareco").origin["method"] == f"{evil}"
    with pytest.raises(InvalidRecord, match="not to its folder"):
        collect_records("tiny", tmp_path / "runs", tmp_path / "made")
    assert main(["run", "tiny", "--methods", "us_net", "--check", "1"]) == 2
    assert "holds a run of another configuration" in capsys.readouterr().err
