"""Networks by name or by the caller's code; what does not fit is refused."""

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import pareco
from pareco import BundleError, FrontNetwork, save_bundle
from pareco.bundle.rebuilding import rebuilt
from pareco.bundle.sealed import opened
from pareco.models import create_model
from pareco.slimmable import NormStatistics, calibrated_statistics, make_slimmable
from pareco.widths import Widths
from tests.bundle.making import loaded_as, loaded_with, made

pytestmark = pytest.mark.filterwarnings("error")


def test_no_file_says_what_code_runs(own: Path) -> None:
    with pytest.raises(BundleError, match=r"made by tests.no_such_module:made, which is not run"):
        pareco.load(own)
    assert "tests.no_such_module" not in sys.modules
    bundle = pareco.load(own, builder="tests.bundle.making:made")
    assert len(bundle.front) == 3
    with pytest.raises(BundleError, match=r"weights.0: bn1.bias is \[4\], the network has \[5\]"):
        pareco.load(own, model=create_model("cifar_resnet8", num_classes=10, in_chans=1,
                                            base_width=5))  # fmt: skip
    with pytest.raises(BundleError, match=r"weights.0: the file lacks layer1.1.bn1.bias"):
        pareco.load(own, model=create_model("cifar_resnet14", num_classes=10, in_chans=1,
                                            base_width=4))  # fmt: skip


@pytest.mark.parametrize("name", ["mobilenetv3_small_100", "repvit_m1"])
def test_a_network_of_timm_is_rebuilt_by_its_name(tmp_path: Path, name: str) -> None:
    """The second has batch norm of vectors too."""
    net = pareco.make_slimmable(create_model(name, num_classes=3), torch.zeros(1, 3, 64, 64))
    widths, images = net.space.uniform(0.5), torch.randn(2, 3, 64, 64)
    found, path = calibrated_statistics(net, widths, [images]), tmp_path / "a.pareco"
    front = [FrontNetwork(widths=widths, statistics=found, search_loss=0)]
    save_bundle(path, net, front, builder="", image_size=64, classes=["a", "b", "c"])
    named = {"name": name, "num_classes": 3, "in_chans": 3}
    bundle = loaded_as(path, *opened(path.read_bytes()), lambda d: d.update(architecture=named))
    with net.eval().at(widths, found), torch.no_grad():
        torch.testing.assert_close(bundle.for_budget()(images), net(images))


@pytest.mark.parametrize(
    "name",
    [
        *("hf-hub:timm/resnet18.a1_in1k", "local-dir:/network", "resnet18.a1_in1k"),
        *("cifar_resnet9", "cifar_resnet99999", "os", "", "../resnet18"),
    ],
)
def test_an_architecture_is_one_that_is_listed(bundled: Callable[..., Path], name: str) -> None:
    with pytest.raises(BundleError, match=r"neither of timm|cannot be built: depth must be"):
        loaded_with(bundled("us_net"), lambda each: each["architecture"].update(name=name))


def test_what_does_not_fit_is_refused_by_name(bundled: Callable[..., Path]) -> None:
    path = bundled("us_net")
    for change, message in (
        (lambda d: d["architecture"].update(pretrained=True), "architecture.pretrained: Extra"),
        (lambda d: d["architecture"].update(num_classes=11), r"fc.* is \[10.*\], the network"),
        (lambda d: d["architecture"].update(in_chans=3), r"conv1.weight is \[4, 1, 3, 3\]"),
        (lambda d: d["architecture"].update(base_width=4096), "the network has"),
        (lambda d: d["architecture"].update(base_width=4097), "architecture.base_width"),
        (lambda d: d["front"][0]["widths"].update(conv1=9), "front.0: conv1 has 4 channels, asked"),
        (
            lambda d: d["front"][0]["widths"].update({"layer1.0.conv1": 2}),
            "front.0: layer1.0.bn1.running_.* is not 2 finite numbers",
        ),
        (lambda d: d["front"][0]["widths"].update(conv9=1), "front.0: .* group 'conv9'"),
        (lambda d: d["front"][0].update(weights=1), "front.0 is on weights that it lacks"),
        (lambda d: d["front"].pop(), "tensors that nothing uses: front/"),
        (lambda d: d["front"].append(d["front"][0]), "does not fit the network at"),
        (lambda d: d["front"][0].update(search_loss=None), "front.0.search_loss"),
        (lambda d: d["reading"].update(std=[0.0]), "reading.std.0"),
        (lambda d: d["reading"].update(std=[1.0, 2.0]), "reading: .*mean and std are not as many"),
        (lambda d: d["reading"].update(classes=["a"]), r"\[1, 10\] for an image, of 1 classes"),
        (lambda d: d.update(front=[]), "front"),
        (lambda d: d.update(run="import os"), "run: Extra"),
    ):
        with pytest.raises(BundleError, match=message):
            loaded_with(path, change)


def test_costs_that_are_not_its_own_are_warned_of(bundled: Callable[..., Path]) -> None:
    """Counted by an earlier version, or at another image size: budgets go by what is said."""
    path = bundled("us_net")
    for change, message in (
        (lambda d: d["front"][0].update(macs=9), r"takes \S+ MACs at 8 x 8 pixels, and 9 are said"),
        (lambda d: d["reading"].update(image_size=16), r"takes \S+ MACs at 16 x 16 pixels, and"),
    ):
        with pytest.warns(UserWarning, match=message):
            loaded_with(path, change)


def test_a_bundle_needs_no_search_to_be_read() -> None:
    """Serving takes no time and memory for what only training uses."""
    code = "import sys, pareco.bundle; print({'botorch', 'gpytorch'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.double])
def test_networks_of_another_precision_are_shipped(tmp_path: Path, dtype: torch.dtype) -> None:
    """With statistics in the precision that calibration gives, or that of before."""
    net, path = make_slimmable(Uneven(), torch.zeros(1, 3, 8, 8), slim_head=True), tmp_path / "a"
    images, widths = torch.randn(9, 3, 8, 8), Widths((4, 4))
    before = calibrated_statistics(net, widths, [images])
    net.to(dtype)
    after = calibrated_statistics(net, widths, [images.to(dtype)])
    for statistics in (before, after) if dtype == torch.bfloat16 else (after,):
        front = [FrontNetwork(widths=widths, statistics=statistics, search_loss=0)]
        save_bundle(path, net, front, builder="", image_size=8, classes=["a", "b", "c"])
        with torch.no_grad(), net.eval().at(widths, statistics):
            for model in (Uneven().to(dtype), Uneven()):
                scores = pareco.load(path, model=model).for_budget()(images.to(dtype))
                assert scores.dtype == dtype
                torch.testing.assert_close(scores, net(images.to(dtype)), rtol=0.05, atol=0.05)


def test_what_load_would_refuse_is_not_written(tmp_path: Path) -> None:
    """Nor what it could not see: statistics of other widths, where the norms are as wide."""
    net, path = make_slimmable(Uneven(), torch.zeros(1, 3, 8, 8), slim_head=True), tmp_path / "a"
    widths, other = net.space.uniform(0.5), Widths((4, 5))
    found, theirs = (
        calibrated_statistics(net, each, [torch.randn(9, 3, 8, 8)]) for each in (widths, other)
    )
    assert widths == (4, 4)
    broken = replace(found, means={"1": found.means["1"] * torch.nan})

    def written(
        count: int = 1, size: int = 8, classes: str = "abc", std: Any = (1, 1, 1), **own: Any
    ) -> None:
        shipped = {"widths": widths, "statistics": found, "search_loss": 0.5}
        reading = {"classes": [*classes], "std": std, "mean": own.pop("mean", (0, 0, 0))}
        front = [FrontNetwork(**{**shipped, **own})] * count
        save_bundle(path, net, front, builder="", image_size=size, **reading)

    refused: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"size": 16}, BundleError, "an image of 3 x 8 x 8, not 3 x 16 x 16: give make_slimmable"),
        ({"std": (0.2,) * 3, "mean": (0.5,) * 3}, BundleError, "from 0 to 1: multiply them by 255"),
        ({"classes": "ab"}, BundleError, r"puts out \[1, 3\] for an image, of 2 classes"),
        ({"std": [1.0]}, BundleError, "reading: .*mean and std are not as many"),
        ({"count": 2}, BundleError, "a network of the front twice"),
        ({"statistics": theirs}, BundleError, r"front.0: .* of the widths 4 5, not 4 4: calibrate"),
        ({"statistics": broken}, BundleError, "front.0: 1.running_mean is not 4 finite numbers"),
        ({"statistics": None}, TypeError, "front.0: statistics must be those that were calibrated"),
        ({"widths": Widths((4, 9))}, ValueError, "asked for 9"),
    ]
    for options, kind, message in refused:
        with pytest.raises(kind, match=message):
            written(**options)
    assert not path.exists()
    net.train()
    written(search_loss=torch.tensor(0.25))
    assert net.training
    assert net.widths == net.space.largest
    bundle = pareco.load(path, model=Uneven())
    assert [*bundle.front["search_loss"]] == [0.25]
    assert not bundle.network(0).training


class Uneven(nn.Sequential):
    """A convolution with batch norm, and one without, whose width no norm shows."""

    def __init__(self) -> None:
        first = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3))
        super().__init__(*first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3))


@pytest.mark.parametrize(
    ("builder", "message"),
    [
        ("made", "builder must be MODULE:FUNCTION or FILE.py:FUNCTION, got 'made'"),
        ("no_such_module:made", "ModuleNotFoundError: No module named 'no_such_module'"),
        ("tests.bundle.making:no", "builder tests.bundle.making:no: no function no is there"),
        ("none.py:made", "FileNotFoundError"),
        ("pareco:__doc__", "no function __doc__ is there"),
        ("wrong.py:made", "wrong.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_builder_that_is_not_there_is_told(
    own: Path, builder: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("wrong.py").write_text("def made(): pass\n1 / 0")
    with pytest.raises(ValueError, match=re.escape(message)):
        pareco.load(own, builder=builder)


def test_tensors_that_do_not_fit_are_refused(bundled: Callable[..., Path]) -> None:
    path = bundled("us_net")
    description, tensors = opened(path.read_bytes())
    mean, variance = "front/0/bn1.running_mean", "front/0/bn1.running_var"
    for name, tensor, message in (
        (mean, torch.zeros(9), "finite numbers"),
        (mean, tensors[mean] * torch.nan, "finite numbers"),
        (mean, torch.zeros_like(tensors[mean], dtype=torch.int64), "finite numbers"),
        (mean, tensors[mean].double(), "is torch.float64, the full network has"),
        (variance, -1 - tensors[variance], "negative"),
        ("front/0/bn1.weight", tensors[mean], "does not fit the network at"),
        ("front/0/other", tensors[mean], "does not fit the network at"),
        ("weights/0/other", tensors[mean], "the network lacks other"),
        ("weights/2/other", tensors[mean], "not numbered"),
        ("stray", tensors[mean], "nothing uses: stray"),
        ("weights/0/conv1.weight", torch.zeros(1), "conv1.weight is"),
        ("weights/0/conv1.weight", torch.zeros(4, 1, 3, 3, dtype=torch.int8), "torch.int8"),
        ("weights/0/fc.weight", torch.zeros(10, 16, dtype=torch.half), "does not run on an image"),
    ):
        with pytest.raises(BundleError, match=message):
            loaded_as(path.with_name("b.pareco"), description, {**tensors, name: tensor})


class Tied(nn.Sequential):
    """Two convolutions of one weight."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(3, 8, 1), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
        self.append(nn.Conv2d(8, 8, 3))
        self[4].weight = self[2].weight
        self.extend([nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)])


def test_what_is_tied_stays_tied(tmp_path: Path) -> None:
    net, path = make_slimmable(Tied(), torch.zeros(1, 3, 8, 8)), tmp_path / "a"
    front = [
        FrontNetwork(widths=each, statistics=NormStatistics(), search_loss=0)
        for each in (net.space.largest, net.space.smallest)
    ]
    save_bundle(path, net, front, builder="", image_size=8, classes=["a", "b", "c"])
    bundle = pareco.load(path, builder=Tied)
    for index, parameters in enumerate(bundle.front["params"]):
        network = bundle.network(index)
        assert sum(each.numel() for each in network.parameters()) == parameters
        images = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(network(images), net.extract(front[index].widths)(images))
    assert len([*bundle.switch().parameters()]) == len([*net.parameters()])


def test_weights_that_should_be_tied_and_differ_are_refused(tmp_path: Path) -> None:
    net, path = make_slimmable(Tied(), torch.zeros(1, 3, 8, 8)), tmp_path / "a"
    widths = net.space.largest
    own = FrontNetwork(widths=widths, statistics=NormStatistics(), search_loss=0)
    save_bundle(path, net, [own], builder="", image_size=8, classes=["a", "b", "c"])
    description, tensors = opened(path.read_bytes())
    tensors = {**tensors, "weights/0/4.weight": tensors["weights/0/4.weight"] + 1}
    with pytest.raises(BundleError, match=r"weights.0: 4.weight and 2.weight are one in the net"):
        rebuilt(description, tensors, Tied)


def test_lists_of_widths_and_classes_of_one_name(tmp_path: Path) -> None:
    """ImageNet has two cranes."""
    net, path = make_slimmable(Uneven(), torch.zeros(1, 3, 8, 8)), tmp_path / "a"
    found = calibrated_statistics(net, net.space.smallest, [torch.randn(9, 3, 8, 8)])
    widths: Any = [*net.space.smallest]
    front = [FrontNetwork(widths=widths, statistics=found, search_loss=0)]
    classes = ["crane", "crane", "maillot"]
    save_bundle(path, net, front, builder="", image_size=8, classes=classes)
    assert [*pareco.load(path, builder=Uneven).classes] == classes
    with pytest.raises(BundleError, match="reading: classes must be a list of names, got 'abc'"):
        save_bundle(path, net, front, builder="", image_size=8, classes="abc")


def test_a_builder_that_makes_nothing_and_both_ways_at_once(own: Path) -> None:
    with pytest.raises(BundleError, match="its builder must return a module, and gave NoneType"):
        pareco.load(own, builder=lambda: None)  # type: ignore[arg-type, return-value]
    with pytest.raises(ValueError, match="give load a model or a builder, not both"):
        pareco.load(own, model=made(), builder=made)
