"""The house holds: imports point one way, nothing branches on names, a word has one meaning."""

import re
import sys
from collections import Counter
from pathlib import Path, PurePath

import pytest

from replications.catalogue import experiment_named, experiment_names, method_names, scales_of
from replications.scales import SCALES
from tests import house_rules as rules

ROOT = Path(__file__).parent.parent
SOURCES = {
    file.relative_to(ROOT): file.read_text()
    for house in ("pareco", "baselines", "replications")
    for file in sorted((ROOT / house).rglob("*.py"))
}
LIBRARY = {file: source for file, source in SOURCES.items() if file.parts[0] == "pareco"}
BASELINES = {
    file: source
    for file, source in SOURCES.items()
    if file.parts[0] == "baselines" and file.stem != "__init__"
}
EXPERIMENTS = {
    file.parent.name: source for file, source in SOURCES.items() if file.name == "experiment.py"
}
CONFIGS = [LIBRARY[Path(f"pareco/{name}.py")] for name in ("search_config", "config")]
CONFIG = "".join(CONFIGS)

DATA_SETS = {"digits", "digits_rgb", "cifar10", "cifar100", "imagenet"}
MAY_HOLD = {
    "pareco/width_search.py": {"pareco"},  # what the method calls itself
    "pareco/data/loading.py": DATA_SETS,  # the table of data sets
    "pareco/config.py": {*DATA_SETS, "paper"},  # names are refused early; the scale unless set
}
MAY_BRANCH = {
    "pareco/models.py": {"cifar_resnet", "cifar_vgg"}  # these families have the depth in the name
}
MAY_SEED = {
    "pareco/randomness.py": {
        *("torch.manual_seed", "random"),
        *("np.random.seed", "np.random.get_state", "np.random.set_state"),
    }
}
"""Where global streams are seeded and put back, for layers, which are given no generator."""
MAY_SHARE_A_NAME = {
    "experiment",  # each replication's one configuration
    "run",  # the command, and what it starts
}


def names() -> set[str]:
    """Return the names of all methods, networks, data sets, experiments and scales."""
    found = {*method_names(), *SCALES, *experiment_names()}
    for name in experiment_names():
        for scale in scales_of(name):
            experiment = experiment_named(name, scale)
            found |= {experiment.network.name, experiment.data.name}
    return found


@pytest.mark.parametrize("file", SOURCES, ids=str)
def test_a_file_uses_only_rooms_before_its_own(file: Path) -> None:
    if file != Path("pareco/__init__.py"):  # whose names are imported on first use
        assert not rules.imported_too_early(file, SOURCES[file])


def test_the_configuration_imports_the_standard_library_alone() -> None:
    outside = {name for name in rules.imports(CONFIG) if name != "pareco.search_config"}
    assert {name.partition(".")[0] for name in outside} <= sys.stdlib_module_names


def test_nothing_branches_on_the_name_of_a_method_network_or_data_set() -> None:
    known = names()
    for file, source in SOURCES.items():
        if file.name != "experiment.py":
            assert rules.branches(source, known) <= MAY_BRANCH.get(str(file), set()), file
    for file, source in LIBRARY.items():
        assert rules.tables(source, known) <= MAY_HOLD.get(str(file), set()), file


def test_every_baseline_is_a_file_of_under_60_lines_with_the_methods_name() -> None:
    assert len(BASELINES) == len(method_names()) - 1
    for file, source in BASELINES.items():
        assert len(source.splitlines()) < 60, file
        assert rules.method_names_in(source) == [file.stem]


def test_no_file_draws_from_a_global_random_stream() -> None:
    for file, source in {**LIBRARY, **BASELINES}.items():
        allowed = MAY_SEED.get(str(file), set())
        assert rules.draws_from_a_global_stream(source) <= allowed, file


def test_every_field_of_the_configuration_is_documented_and_read() -> None:
    """What the scales make of a field is no use of it."""
    readers = [
        source
        for file, source in SOURCES.items()
        if source not in CONFIGS and file.name not in ("scales.py", "experiment.py")
    ]
    declared = rules.fields(CONFIG)
    parts = {"network", "data", "training", "evaluation", "search"}  # documented as classes
    assert {field for (_, field), documented in declared.items() if not documented} <= parts
    assert set(declared) <= rules.fields_read(CONFIG, readers)


def test_no_two_classes_and_no_two_modules_are_mixed_up() -> None:
    counts = Counter(name for source in SOURCES.values() for name in rules.classes(source))
    assert not [name for name, count in counts.items() if count > 1]
    assert rules.mixed_up(SOURCES) <= MAY_SHARE_A_NAME


def test_every_replication_but_a_parent_is_a_diff() -> None:
    assert not rules.not_derived(EXPERIMENTS)


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


def test_the_glossary_names_at_most_25_concepts_once() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    words = re.findall(r"^- \*([^*]+)\*:", text.partition("## Glossary")[2], re.MULTILINE)
    assert 20 <= len(words) <= 25
    assert len(set(words)) == len(words)


def test_the_map_of_the_rooms_names_every_room() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    here = {PurePath(file.parts[1]).stem for file in LIBRARY} - {"__init__"}
    assert [room for room in here if f"`{room}`" not in text] == []
    assert here <= set(rules.ROOMS)


def test_documents_name_no_place_of_a_machine_of_ours() -> None:
    for document in [*ROOT.glob("docs/**/*.md"), *ROOT.glob("replications/*/README.md")]:
        text = document.read_text()
        assert not rules.places_of_a_machine(text), document
        assert all(len(line) <= 120 for line in text.splitlines()), document


def test_links_in_documents_lead_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("replications/*/*.md")]
    for document in documents:
        assert not rules.dead_links(document.parent, document.read_text()), document
