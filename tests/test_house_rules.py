"""Each rule of the house finds what breaks it, and only that."""

from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest

from tests import house_rules as rules

drawing = rules.draws_from_a_global_stream


def early(place: str) -> Callable[[str], set[str]]:
    return lambda source: rules.imported_too_early(PurePath(place), source)


def branching(source: str) -> set[str]:
    return rules.branches(source, {"us_net", "cifar10", "cifar_resnet20", "imagenet"})


def holding(source: str) -> set[str]:
    return rules.tables(source, {"us_net", "cifar10"})


DECLARED = """
class Data:
    mean: float
    std: float
    def __post_init__(self):
        assert self.mean > self.std
class Whole:
    data: Data
"""
OF_THE_WHOLE = """
class Reader:
    def __init__(self, whole: Whole):
        self.whole = whole
    def read(self):
        data, other = self.whole.data, 1
        return lambda: data.std
"""


def dead(text: str) -> list[str]:
    return rules.dead_links(Path(__file__).parent, text)


def mixed(files: str) -> set[str]:
    return rules.mixed_up(map(PurePath, files.split()))


def undocumented(source: str) -> set[str]:
    return {field for (_, field), documented in rules.fields(source).items() if not documented}


def unread(source: str) -> set[str]:
    """Return the fields of DECLARED that code does not read."""
    left = set(rules.fields(DECLARED)) - rules.fields_read(DECLARED, [source])
    return {field for _, field in left}


PARENT = 'EXPERIMENT = Experiment(data=DataConfig(name="digits"))'
DIFF = "from replications.a.experiment import EXPERIMENT as P\nEXPERIMENT = replace(P, name=2)"


@pytest.mark.parametrize(
    ("rule", "source", "found"),
    [
        (early("pareco/cost.py"), "def f():\n    from pareco.models import a", {"pareco.models"}),
        (early("pareco/cost.py"), "from pareco import models", {"pareco.models"}),
        (early("pareco/cost.py"), "from pareco import CostModel", {"pareco.CostModel"}),
        (early("pareco/cost.py"), "import pareco", {"pareco"}),
        (early("pareco/training/run.py"), "import pareco.cli as c", {"pareco.cli"}),
        (early("pareco/cost.py"), 'import_module("pareco.cli")', {"pareco.cli"}),
        (early("pareco/cost.py"), "from . import cli", {"."}),
        (early("pareco/cost.py"), "from baselines.s_net import SNet", {"baselines.s_net"}),
        (early("baselines/s_net.py"), "import replications.scales", {"replications.scales"}),
        (early("replications/a.py"), "import tests.a", {"tests.a"}),
        (early("pareco/cost.py"), "import torch, pareco.config, pareco.cost", set()),
        (branching, 'if method == "us_net": pass', {"us_net"}),
        (branching, 'a = method in ("us_net", other)', {"us_net"}),
        (branching, 'match data:\n    case "cifar10" | "x": pass', {"cifar10"}),
        (branching, 'a = TABLE["cifar10"]', {"cifar10"}),
        (branching, 're.fullmatch(r"cifar_resnet(\\d+)", name)', {"cifar_resnet"}),
        (branching, 'name.startswith("cifar")', {"cifar"}),
        (branching, '"resnet" in name', {"resnet"}),
        (branching, 're.match("cifar-checkpoint", text)', set()),
        (branching, 'print("us_net"); a = "other" in name', set()),
        (holding, 'TABLE = {"cifar10": 1}', {"cifar10"}),
        (holding, 'NAMES = ("us_net", "s")', {"us_net"}),
        (holding, 'def draw(*, focus="us_net"): pass', {"us_net"}),
        (holding, 'class A:\n    focus: str = "us_net"', {"us_net"}),
        (holding, 'draw(focus="us_net")', {"us_net"}),
        (holding, 'def draw():\n    """us_net"""\n    print("us_net")', set()),
        (drawing, "import random", {"random"}),
        (drawing, "from random import choice", {"random.choice"}),
        (drawing, "import numpy as np\nnp.random.rand(3)", {"np.random.rand"}),
        (drawing, "torch.randn(3)", {"torch.randn"}),
        (drawing, "a.normal_()", {"a.normal_"}),
        (drawing, "torch.manual_seed(1)", {"torch.manual_seed"}),
        (drawing, "torch.randn(3, generator=g).normal_(generator=g)", set()),
        (unread, "def f(data: Data, w: Whole): return data.mean, w.data.std", set()),
        (unread, "def f(x): return x.mean(), x.std, x.data", {"mean", "std", "data"}),
        (unread, OF_THE_WHOLE, {"mean"}),
        (unread, "def f(data: 'Data | None', w: Whole): data.std = w.data", {"mean", "std"}),
        (undocumented, 'class A:\n    a: int\n    """Text."""\n    b: int = 0', {"b"}),
        (rules.method_names_in, 'class A:\n    name = "us_net"', ["us_net"]),
        (rules.classes, "class A:\n    class B: pass", ["A", "B"]),
        (rules.places_of_a_machine, "see /home/me/runs", ["/home/"]),
        (dead, "[a](conftest.py#top) [b](gone.md#x)", ["gone.md"]),
        (mixed, "pareco/cost.py pareco/data/costs.py", {"cost"}),
        (mixed, "pareco/run.py replications/run.py", {"run"}),
        (mixed, "pareco/search/__init__.py replications/search.py", {"search"}),
        (mixed, "pareco/__init__.py pareco/data/__init__.py pareco/cost.py", set()),
        (rules.not_derived, {"a": PARENT, "b": DIFF}, set()),
        (rules.not_derived, {"a": PARENT}, set()),
        (rules.not_derived, {"a": PARENT, "b": DIFF, "c": PARENT}, {"c"}),
        (rules.not_derived, {"a": PARENT, "b": PARENT}, {"a", "b"}),
        (rules.not_derived, {"a": PARENT, "b": DIFF.replace("replace(P,", "replace(OWN,")}, {"b"}),
    ],
)
def test_a_rule_finds_what_breaks_it(
    rule: Callable[[Any], Any], source: Any, found: set[str] | list[str]
) -> None:
    assert rule(source) == found
