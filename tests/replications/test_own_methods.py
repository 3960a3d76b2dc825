"""Methods of the user's own, by the commands: named by their files, known by their names."""

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

import pareco
import replications
from pareco.bundle.from_run import write_bundle
from pareco.cli import main as pareco_main
from pareco.reporting import InvalidRecord
from pareco.reporting.report import collect_records
from pareco.training import execute_run
from pareco.training.interruption import RunError
from replications.__main__ import main
from replications.catalogue import method_at, method_places
from replications.searches.trained import TrainedNetwork
from tests.documents import blocks_of, python_in
from tests.experiments import TINY
from tests.replications.test_makefile import PYTHON, given

HALVES, REMEMBERING = python_in("methods.md", 70)
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
    Path("remembering.py").write_text(REMEMBERING)
    files = ("halves.py", "remembering.py")
    assert main(["plan", "tiny", "--methods", "us_net", *files, "--json"]) == 0
    planned = [run["method"] for run in json.loads(capsys.readouterr().out)["runs"]]
    assert planned == ["us_net", "halves", "remembering"]


@pytest.mark.parametrize("raises", ["1 / 0", "max([])", "torch.zeros(2) @ torch.zeros(3)"])
def test_an_error_of_its_own_code_is_told_in_a_line(
    raises: str, capsys: pytest.CaptureFixture[str]
) -> None:
    body = "return self.completed([self.task.space.uniform(0.5)], self.random_widths)"
    code = HALVES.replace(body, raises).replace('"halves"', '"raises"')
    Path("raises.py").write_text(f"import torch\n{code}")
    for command in ("plan tiny", "run tiny --name mine --check 1"):
        assert main([*command.split(), "--methods", "us_net", "./raises.py"]) == 2
        (line,) = said(capsys).splitlines()
        number = 2 + code[: code.index(raises)].count("\n")
        assert f"method raises: {Path('raises.py').resolve()}, line {number}: " in line


def test_a_method_that_trains_too_few_networks_is_told_what_fills_them_up(
    capsys: pytest.CaptureFixture[str],
) -> None:
    body = "return self.completed([self.task.space.uniform(0.5)], self.random_widths)"
    Path("few.py").write_text(HALVES.replace(body, "return []").replace('"halves"', '"few"'))
    assert main([*MINE, "--methods", "us_net", "./few.py", "--check", "1"]) == 2
    told = "method few finds only 2 distinct networks for a step, us_net 4"
    message = said(capsys)
    assert told in message
    assert "What helps: self.completed in its widths_for_step, " in message


@pytest.mark.slow
def test_the_commands_of_the_page_on_methods_run_as_they_stand() -> None:
    """Runs by processes of a sweep; then, without the file, the same report, and a bundle."""
    console = [text for kind, text in blocks_of("methods.md", 70) if kind == "console"]
    run, *later = "".join(console).splitlines()
    made = Path("results/with-halves-smoke")
    assert commanded(run) == 0
    table = (made / "table.md").read_bytes()
    for written in ("table.md", "error_vs_flops.svg", "../index.html"):
        assert b"halves" in Path(made, written).read_bytes()
    Path("halves.py").unlink()
    shutil.rmtree("results")
    assert [commanded(line) for line in later] == [0, 0]
    assert (made / "table.md").read_bytes() == table
    assert pareco.load("halves.pareco").origin["method"] == "halves"
    assert commanded(run) == 2


def test_code_that_has_changed_is_another_method(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Refused beside finished runs and those on record, before anything runs, and in reports."""
    flags = [*MINE, "--methods", "us_net", "./halves.py"]

    def trained(seed: int) -> None:
        experiment = replace(TINY, name="mine")
        execute_run(
            experiment, method_at("./halves.py"), seed, Path(f"runs/mine/halves/seed{seed}")
        )

    trained(0)
    collect_records("mine", tmp_path / "runs", tmp_path / "made")
    assert main([*flags, "--check", "1"]) == 0
    changed = HALVES.replace("0.5", "0.75")
    Path("halves.py").write_text(changed)
    before, after = (hashlib.sha256(text.encode()).hexdigest() for text in (HALVES, changed))
    difference = f"method_code: {before} there, {after} now"
    capsys.readouterr()
    assert main([*flags, "--check", "1"]) == 2
    assert f"halves/seed0 holds a run of another configuration ({difference})" in said(capsys)
    with pytest.raises(RunError, match="method_code"):
        trained(0)
    assert main([*flags, "--check", "1", "--runs", "others", "--add"]) == 2
    assert f"of another configuration (method_code of halves: {before}" in said(capsys)
    assert main([*flags, "--check", "1", "--runs", "others"]) == 0
    trained(1)
    with pytest.raises(InvalidRecord, match=r"seed0 and .*/seed1 differ in method_code: "):
        collect_records("mine", tmp_path / "runs", tmp_path / "made", add=True)


def said(capsys: pytest.CaptureFixture[str]) -> str:
    """Return what was said to stderr."""
    return capsys.readouterr().err


def commanded(line: str) -> int:
    """Return the exit status of a command line of the page."""
    words = line.split()
    if words[:3] == ["python", "-m", "replications"]:
        return main(words[3:])
    assert words[0] == "pareco"
    return pareco_main(words[1:])


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
