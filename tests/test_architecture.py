"""The house holds: imports point one way, methods are small, nothing branches on names."""

import ast
import re
from pathlib import Path

import pytest

import pareco.config
from replications.catalogue import (
    experiment_named,
    experiment_names,
    method_named,
    method_names,
    scales_of,
)
from replications.scales import SCALES

ROOT = Path(__file__).parent.parent
LIBRARY = sorted((ROOT / "pareco").rglob("*.py"))


def imported(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            names.add((node.module or "").partition(".")[0])
    return names


def compared_strings(file: Path) -> set[str]:
    """Return the string constants that a file compares something with."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            constants = [each for side in sides for each in ast.walk(side)]
        elif isinstance(node, ast.MatchValue):
            constants = list(ast.walk(node))
        else:
            continue
        found |= {
            c.value for c in constants if isinstance(c, ast.Constant) and type(c.value) is str
        }
    return found


@pytest.mark.parametrize("file", LIBRARY, ids=lambda file: str(file.relative_to(ROOT)))
def test_the_library_imports_neither_baselines_nor_replications(file: Path) -> None:
    assert not imported(file) & {"baselines", "replications", "tests"}


def test_baselines_import_no_replication() -> None:
    for file in (ROOT / "baselines").glob("*.py"):
        assert "replications" not in imported(file)


def test_nothing_branches_on_the_name_of_a_method_network_or_data_set() -> None:
    names = {*method_names(), *SCALES}
    for name in experiment_names():
        for scale in scales_of(name):
            experiment = experiment_named(name, scale)
            names |= {name, experiment.network.name, experiment.data.name}
    for file in [*LIBRARY, *(ROOT / "replications").glob("*.py")]:
        assert not compared_strings(file) & names, file


def test_every_method_is_a_file_of_under_60_lines() -> None:
    for method in map(method_named, method_names()):
        source = ROOT / (method.__module__.replace(".", "/") + ".py")
        assert len(source.read_text().splitlines()) < 60


def test_no_file_draws_from_a_global_random_stream() -> None:
    """The trainer seeds torch's, for layers that draw from it; so are initial weights drawn."""
    allowed = {"training/trainer.py", "training/network.py"}
    for file in LIBRARY:
        text = file.read_text()
        assert "np.random." not in text
        assert "import random" not in text
        if str(file.relative_to(ROOT / "pareco")) not in allowed:
            assert "torch.manual_seed" not in text


def test_every_field_of_the_configuration_is_documented_and_read() -> None:
    tree = ast.parse(Path(pareco.config.__file__).read_text())
    everything = "".join(
        file.read_text() for file in [*LIBRARY, *(ROOT / "replications").rglob("*.py")]
    )
    nested = {"network", "data", "training", "evaluation", "search"}
    for configuration in (node for node in tree.body if isinstance(node, ast.ClassDef)):
        body = configuration.body
        for position, node in enumerate(body):
            if not isinstance(node, ast.AnnAssign) or not isinstance(node.target, ast.Name):
                continue
            field = node.target.id
            assert f".{field}" in everything, field
            if field not in nested:
                following = body[position + 1]
                assert isinstance(following, ast.Expr), field
                assert isinstance(following.value, ast.Constant), field


@pytest.mark.parametrize("name", experiment_names())
def test_every_replication_has_a_configuration_and_a_short_readme(name: str) -> None:
    experiment = experiment_named(name)
    assert experiment.name == name
    assert set(experiment.methods) <= set(method_names())
    readme = (ROOT / "replications" / name / "README.md").read_text()
    assert 0 < len(readme.splitlines()) <= 15
    assert f"make replicate-{name.replace('_', '-')}" in readme
    for word in ("Claim tested", "Ours", "Published", "ime"):
        assert word in readme, word


@pytest.mark.parametrize("name", experiment_names())
def test_every_replication_but_a_parent_is_a_diff(name: str) -> None:
    parents = {"digits", "imagenet_mbv2", "cifar10_resnet20"}
    source = (ROOT / "replications" / name / "experiment.py").read_text()
    derived = "EXPERIMENT = replace(" in source
    assert derived is (name not in parents)


def test_documents_name_no_place_of_a_machine_of_ours() -> None:
    places = ("/work/", "/tmp/", "/home/", "/root/", "/Users/")
    for document in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("replications/*/README.md")]:
        text = document.read_text()
        assert not [place for place in places if place in text], document
        assert all(len(line) <= 120 for line in text.splitlines()), document


def test_links_in_documents_lead_somewhere() -> None:
    documents = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("replications/*/*.md")]
    for document in documents:
        for target in re.findall(r"\]\(([^)#:]+)\)", document.read_text()):
            assert (document.parent / target).exists(), f"{document}: {target}"
