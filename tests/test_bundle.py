"""A finished run becomes one file; a budget in, a ready network out; damaged files are refused."""

import functools
import json
import random
import re
import shlex
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load as tensors_in
from safetensors.torch import save
from torch import Tensor, nn

import pareco
from pareco import BudgetError, Bundle, BundleError, FrontNetwork, save_bundle
from pareco.bundle import sealed as sealed_module
from pareco.bundle.from_run import write_bundle
from pareco.bundle.rebuilding import rebuilt
from pareco.bundle.sealed import Description, opened, sealed
from pareco.cli import main
from pareco.config import Experiment, Machine
from pareco.data import load_data
from pareco.models import create_model
from pareco.reporting.collection import records_of
from pareco.slimmable import NormStatistics, SlimmableNet, calibrated_statistics
from pareco.training import execute_run
from pareco.widths import Widths
from replications.catalogue import method_named
from tests.conftest import tiny_net
from tests.experiments import TINY

pytestmark = pytest.mark.filterwarnings("error")
ROOT = Path(__file__).parent.parent
CHANGED = replace(
    TINY,
    name="changed",
    network=replace(TINY.network, name="cifar_vgg11", base_width=6, divisor=2, slim_head=True),
    data=replace(TINY.data, image_size=16, mean=(60.0,), std=(70.0,), central_crop=0.8),
)
Finished = Callable[..., Path]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """Return a function that does a run once and returns its folder, which is not to be changed."""
    runs = tmp_path_factory.mktemp("runs")

    @functools.cache
    def run(method: str, experiment: Experiment = TINY) -> Path:
        path = runs / experiment.name / method / "seed0"
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("WANDB_MODE", "disabled")
            execute_run(experiment, method_named(method), 0, path)
        return path

    return run


@pytest.fixture(scope="module")
def bundled(finished: Finished) -> Callable[..., Path]:
    """Return a function that returns the bundle of a run."""

    @functools.cache
    def bundle(method: str, experiment: Experiment = TINY) -> Path:
        path = finished(method, experiment)
        write_bundle(path, path / "run.pareco")
        return path / "run.pareco"

    return bundle


def wrong(net: nn.Module, experiment: Experiment) -> tuple[str, str]:
    """Return the top-1 and top-5 errors on the test images as front.csv has them, by NumPy."""
    images, labels = load_data(experiment.data).test.normalized(torch.arange(997))
    with torch.no_grad():
        scores = np.concatenate([net(part).numpy() for part in images.split(100)])
    best = (-scores).argsort(axis=1, kind="stable") == labels.numpy()[:, None]
    return tuple(f"{100 * (1 - best[:, :k].any(1).mean()):.4f}" for k in (1, 5))  # type: ignore


@pytest.mark.parametrize(
    ("method", "experiment"),
    [("pareco", TINY), ("s_net", TINY), ("independent", TINY), ("us_net", CHANGED)],
    ids=["pareco", "s_net", "independent", "changed"],
)
def test_a_shipped_network_has_the_recorded_error_to_the_last_image(
    bundled: Callable[..., Path], method: str, experiment: Experiment
) -> None:
    """Of each network of the front, as a plain one and as the one that is switched."""
    path = bundled(method, experiment)
    bundle, front = pareco.load(path), pd.read_csv(path.with_name("front.csv"), dtype=str)
    assert len(bundle.front) == len(front) >= 3
    sets = set()
    for index, row in front.iterrows():
        assert isinstance(index, int)
        recorded = row["test_top1_error"], row["test_top5_error"]
        net = bundle.network(index)
        assert not net.training
        assert not any(isinstance(each, SlimmableNet) for each in net.modules())
        assert wrong(net, experiment) == recorded
        own = bundle._networks[index]
        own.net.set_widths(own.widths, own.statistics)
        assert wrong(own.net, experiment) == recorded
        assert int(own.net.cost.macs(own.widths)) == int(row["macs"])
        sets.add(id(own.net))
    assert len(sets) == (len(front) if method_named(method).budget_exempt else 1)
    for name in ("macs", "params", "activations", "peak_activations", "search_loss"):
        assert [*bundle.front[name]] == [*front[name].astype(bundle.front[name].dtype)]
    assert (bundle.front["memory_bytes"] == 4 * bundle.front["peak_activations"]).all()


def test_a_bundle_says_where_it_comes_from(bundled: Callable[..., Path]) -> None:
    path = bundled("s_net")
    bundle = pareco.load(path)
    (session,) = json.loads(path.with_name("env.json").read_text())
    assert {name: bundle.origin[name] for name in ("experiment", "method", "seed", "data")} == {
        "experiment": "tiny",
        "method": "s_net",
        "seed": 0,
        "data": "digits",
    }
    for name in ("commit", "packages", "data_fingerprint"):
        assert bundle.origin[name] == session[name]
    assert bundle.classes == tuple("0123456789")


def test_weights_are_held_once_by_the_names_of_the_plain_network(
    bundled: Callable[..., Path],
) -> None:
    plain = create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4).state_dict()
    for method in ("pareco", "s_net"):
        tensors = tensors_in(bundled(method).read_bytes())
        weights = {name for name in tensors if name.startswith("weights/")}
        assert weights == {f"weights/0/{name}" for name in plain}
        own = {name.split("/", 2)[2] for name in tensors if name not in weights}
        kinds = {name.rpartition(".")[2] for name in own}
        private = {"weight", "bias"} if method == "s_net" else set()
        assert kinds == {"running_mean", "running_var"} | private
        assert own <= plain.keys()


def test_latency_is_taken_up_where_it_was_measured(finished: Finished, tmp_path: Path) -> None:
    run = tmp_path / "tiny" / "us_net" / "seed0"
    shutil.copytree(finished("us_net"), run)
    widths = [*pd.read_csv(run / "front.csv")["widths"]]
    times = {each: 1.5 + place for place, each in enumerate(widths[1:])}
    record = {"cpu": "x", "device": "cpu", "gpus": [], "cpu_threads": 1, "batch_size": 1}
    (tmp_path / "tiny" / "latency.json").write_text(json.dumps({**record, "milliseconds": times}))
    bundle = write_bundle(run, tmp_path / "a.pareco")
    assert [*bundle.front["latency_ms"].fillna(0)] == [0, *times.values()]
    assert bundle.choice(latency_ms=2) == 1  # not the first, of which nothing is known
    with pytest.raises(BudgetError, match=r"latency_ms 1: the least is 1.5 ms"):
        bundle.for_budget(latency_ms=1)


def as_before(run: Path, folder: Path) -> Path:
    """Return a copy of a run as an earlier version left it: without statistics and classes."""
    copied = folder / "tiny" / run.parent.name / "seed0"
    shutil.copytree(run, copied)
    shutil.rmtree(copied / "statistics")
    result = json.loads((copied / "result.json").read_text())
    del result["class_names"]
    (copied / "result.json").write_text(json.dumps(result))
    return copied


@pytest.mark.parametrize("method", ["us_net", "independent"])
def test_a_run_from_before_statistics_were_kept_gets_the_same_bundle(
    finished: Finished, bundled: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    run, path = as_before(finished(method), tmp_path), tmp_path / "a.pareco"
    before, after = records_of([finished(method)]), records_of([run])
    pd.testing.assert_frame_equal(after.fronts, before.fronts)
    assert after.experiment == before.experiment
    write_bundle(run, path, Machine(device="cpu"))
    assert path.read_bytes() == bundled(method).read_bytes()


def test_a_run_that_does_not_tell_enough_is_not_bundled(finished: Finished, tmp_path: Path) -> None:
    run, path = as_before(finished("s_net"), tmp_path), tmp_path / "a.pareco"
    with pytest.raises(BundleError, match=r"batch-norm weights of each network .*: run it again"):
        write_bundle(run, path, Machine(device="cpu"))
    sessions = json.loads((run / "env.json").read_text())
    (run / "env.json").write_text(json.dumps([{**sessions[0], "data_fingerprint": "other"}]))
    with pytest.raises(BundleError, match="of other images: say with --images"):
        write_bundle(run, path, Machine(device="cpu"))
    (run / "DONE").unlink()
    with pytest.raises(BundleError, match="seed0 holds no finished run"):
        write_bundle(run, path)
    assert not path.exists()


def statistics_of(net: SlimmableNet, widths: Widths, seed: int = 0) -> NormStatistics:
    generator = torch.Generator().manual_seed(seed)
    side = 8
    return calibrated_statistics(net, widths, [torch.randn(9, 1, side, side, generator=generator)])


def saved(path: Path, net: SlimmableNet, **losses: tuple[float, float]) -> Path:
    """Save uniform networks by their multipliers in percent, with search loss and test error."""
    networks = {net.space.uniform(int(name[1:]) / 100): each for name, each in losses.items()}
    front = [
        FrontNetwork(
            widths=widths,
            statistics=statistics_of(net, widths),
            search_loss=loss,
            test_top1_error=error,
        )
        for widths, (loss, error) in networks.items()
    ]
    save_bundle(
        path,
        net,
        front,
        builder="tests.no_such_module:made",
        image_size=8,
        classes=[*map(str, range(10))],
        mean=[100],
        std=[50],
    )
    return path


def made() -> nn.Module:
    return create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4)


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Return a bundle of a user's own network: three widths, the middle one of least search loss.

    The smallest has the least test error.
    """
    path, net = tmp_path / "own.pareco", tiny_net()
    return saved(path, net, _100=(0.4, 3.0), _75=(0.3, 4.0), _42=(0.5, 1.0))


def test_budgets_choose_by_search_loss_within_all_limits(own: Path) -> None:
    bundle = pareco.load(own, builder=made)
    front = bundle.front
    assert bundle.choice() == 1  # neither the largest nor that of the least test error
    macs, params, memory = ([*map(int, front[n])] for n in ("macs", "params", "memory_bytes"))
    assert bundle.choice(macs=macs[0]) == 1
    assert bundle.choice(macs=macs[1]) == 1
    assert bundle.choice(macs=macs[1] - 1) == 2
    assert bundle.choice(macs=None, params=params[1] - 1) == 2
    assert bundle.choice(macs=macs[0], memory_bytes=memory[2]) == 2
    assert bundle.for_budget(params=params[1]).get_parameter("fc.weight").shape == (10, 12)
    with pytest.raises(BudgetError, match=rf"macs 10: the least is {macs[2]:,} MACs$"):
        bundle.for_budget(macs=10, params=1e9)
    with pytest.raises(TypeError, match="no limit is called 'mac'; known: macs, params"):
        bundle.for_budget(mac=10)  # type: ignore[call-arg]
    with pytest.raises(BudgetError, match="latency_ms: it was not measured"):
        bundle.switch(latency_ms=1)


def test_limits_that_only_together_exclude_all_say_what_each_can_be() -> None:
    """The one network is small, the other fast."""
    net = tiny_net()
    widths = net.space.largest, net.space.smallest
    front = [
        FrontNetwork(
            widths=each, statistics=statistics_of(net, each), search_loss=1, latency_ms=time
        )
        for each, time in zip(widths, (1.0, 2.0), strict=True)
    ]
    path = Path("unused.pareco")
    with pytest.MonkeyPatch.context() as patch:
        kept: list[bytes] = []
        patch.setattr("pareco.bundle.shipping.write_bytes", lambda path, x: kept.append(x))
        save_bundle(path, net, front, builder="", image_size=8, classes="0123456789", mean=[0],
                    std=[1])  # fmt: skip
    description, tensors = opened(kept[0])
    bundle = Bundle(description, rebuilt(description, tensors, made))
    macs = [f"{int(net.cost.macs(each)):,}" for each in widths]
    with pytest.raises(BudgetError) as told:
        bundle.choice(macs=10_000, latency_ms=1.5)
    assert f"macs 10,000: the least within the other limits is {macs[0]} MACs" in str(told.value)
    assert "latency_ms 1.5: the least within the other limits is 2.0 ms" in str(told.value)
    assert bundle.choice() == 1  # of equal losses the one of fewest MACs


def test_one_network_is_switched_and_gives_what_the_plain_ones_give(own: Path) -> None:
    bundle = pareco.load(own, builder=made)
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    macs = [int(each) for each in bundle.front["macs"]]
    first = bundle.switch()
    held = {id(each) for each in first.state_dict(keep_vars=True).values()}
    for limit in (macs[2], macs[1], macs[2]):
        net = bundle.switch(macs=limit)
        assert net is first
        assert {id(each) for each in net.state_dict(keep_vars=True).values()} == held
        torch.testing.assert_close(net(images), bundle.for_budget(macs=limit)(images))
    assert not torch.allclose(bundle.switch()(images), bundle.switch(macs=macs[2])(images))


def test_saved_networks_give_what_they_gave(own: Path) -> None:
    """With the weights of the file, whatever the model holds that is given."""
    net, bundle = tiny_net().eval(), pareco.load(own, model=made())
    images = torch.randn(5, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for index, multiplier in enumerate((1.0, 0.75, 0.42)):
        widths = net.space.uniform(multiplier)
        with net.at(widths, statistics_of(net, widths)), torch.no_grad():
            torch.testing.assert_close(bundle.network(index)(images), net(images))


def test_private_batch_norm_is_saved(tmp_path: Path) -> None:
    net = tiny_net()
    widths = net.space.smallest
    net.privatize_norm([widths, net.space.uniform(0.6)])
    with torch.no_grad():
        net.get_parameter("bn1.weight_switch0").mul_(3)
    bundle = pareco.load(saved(tmp_path / "a", net, _100=(1, 1), _42=(2, 2)), builder=made)
    images = torch.randn(5, 1, 8, 8)
    with net.eval().at(widths, statistics_of(net, widths)), torch.no_grad():
        torch.testing.assert_close(bundle.network(1)(images), net(images))
    plain = bundle.network(0).get_parameter("bn1.weight")
    assert torch.equal(plain, net.get_parameter("bn1.weight"))


def test_networks_of_other_floats_keep_them(tmp_path: Path) -> None:
    net = tiny_net().double()
    widths, images = net.space.smallest, torch.randn(5, 1, 8, 8, dtype=torch.double)
    found, path = calibrated_statistics(net, widths, [images]), tmp_path / "a.pareco"
    front = [FrontNetwork(widths=widths, statistics=found, search_loss=0)]
    options: dict[str, Any] = {"builder": "", "image_size": 8, "classes": "0123456789"}
    save_bundle(path, net, front, mean=[0], std=[1], **options)
    bundle = pareco.load(path, builder=made)
    with net.eval().at(widths, found), torch.no_grad():
        torch.testing.assert_close(bundle.for_budget()(images), net(images))
    assert bundle.predict([Image.new("L", (8, 8))]).shape == (1, 10)


def test_a_switch_takes_less_than_five_milliseconds(tmp_path: Path) -> None:
    """Of MobileNetV2, the least of some: other work on the machine only adds to it."""
    images = 64
    net = pareco.make_slimmable(create_model("mobilenetv2_100", num_classes=2),
                                torch.zeros(1, 3, images, images))  # fmt: skip
    batch, path = torch.randn(2, 3, images, images), tmp_path / "a.pareco"
    widths = net.space.smallest, net.space.largest
    front = [
        FrontNetwork(
            widths=each, statistics=calibrated_statistics(net, each, [batch]), search_loss=0
        )
        for each in widths
    ]
    save_bundle(path, net, front, builder="", image_size=images, classes="ab")
    bundle = pareco.load(path, model=create_model("mobilenetv2_100", num_classes=2))
    times = []
    for limit in [None, float(bundle.front["macs"].min())] * 10:
        start = time.perf_counter()
        bundle.switch(macs=limit)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.005


def test_no_file_says_what_code_runs(own: Path) -> None:
    with pytest.raises(BundleError, match=r"made by tests.no_such_module:made, which is not run"):
        pareco.load(own)
    assert "tests.no_such_module" not in sys.modules
    bundle = pareco.load(own, builder=f"{__name__}:made")
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
        *("hf-hub:timm/resnet18.a1_in1k", "local-dir:/tmp/network", "resnet18.a1_in1k"),
        *("cifar_resnet9", "cifar_resnet99999", "os", "", "../resnet18"),
    ],
)
def test_an_architecture_is_one_that_is_listed(bundled: Callable[..., Path], name: str) -> None:
    with pytest.raises(BundleError, match=r"neither of timm|cannot be built: depth must be"):
        loaded_with(bundled("us_net"), lambda each: each["architecture"].update(name=name))


def loaded_with(path: Path, change: Callable[[dict[str, Any]], Any]) -> Bundle:
    """Load a bundle after its description is changed, and sealed again."""
    description, tensors = opened(path.read_bytes())
    return loaded_as(path.with_name("changed.pareco"), description, tensors, change)


def loaded_as(
    path: Path,
    description: Description,
    tensors: dict[str, Tensor],
    change: Callable[[dict[str, Any]], Any] = lambda each: None,
) -> Bundle:
    fields = json.loads(description.model_dump_json(exclude={"sha256", "format"}))
    change(fields)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sealed_module, "_described", lambda text: None)
        content = sealed(fields, tensors)
    path.write_bytes(content)
    return pareco.load(path)


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
        (lambda d: d["reading"].update(std=[1.0, 2.0]), "mean and std"),
        (lambda d: d["reading"].update(classes=["a"]), r"\[1, 10\] for an image, of 1 classes"),
        (lambda d: d.update(front=[]), "front"),
        (lambda d: d.update(run="import os"), "run: Extra"),
    ):
        with pytest.raises(BundleError, match=message):
            loaded_with(path, change)


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


def test_files_that_are_no_bundle_are_refused_with_what_is_wrong(
    bundled: Callable[..., Path], tmp_path: Path
) -> None:
    content, path = bundled("us_net").read_bytes(), tmp_path / "some.pareco"
    size = int.from_bytes(content[:8], "little")
    changed = bytearray(content)
    changed[-1] ^= 1
    for damaged, message in (
        (b"", "truncated, or no bundle: 0 bytes"),
        (content[:5], "truncated, or no bundle: 5 bytes"),
        (content[: size - 9], "truncated, or no bundle"),
        (content[:-1], rf"truncated: {len(content) - 1} bytes of {len(content)}"),
        (content + b"0", "checksum is another"),
        (bytes(changed), "checksum is another"),
        (content.replace(b"bundle-1", b"bundle-2"), "newer bundle: of format 2, .* up to 1"),
        (content.replace(b"pareco-bundle-1", b"pareco-checkpt-3"), "truncated|damaged|no bundle"),
        (b"\x89PNG\r\n\x1a\n" + bytes(99), "it is no bundle"),
        (save({"a": torch.zeros(3)}), "a safetensors file, but no bundle"),
        (save({"a": torch.zeros(3)}, {"pareco": "x"}), "header is damaged"),
        (save({"a": torch.zeros(3)}, {"pareco": "[" * 100_000}), "header is damaged"),
    ):
        path.write_bytes(damaged)
        with pytest.raises(BundleError, match=message) as told:
            pareco.load(path)
        assert str(told.value).startswith(f"{path}: ")
    with pytest.raises(FileNotFoundError):
        pareco.load(tmp_path / "none")
    assert {name: each.tolist() for name, each in tensors_in(content).items()}  # by any reader


def test_thousands_of_damaged_files_are_refused(bundled: Callable[..., Path]) -> None:
    """Flips, truncations, insertions, deletions, blocks that are swapped or zero: 20,000 files."""
    content, source = bundled("us_net").read_bytes(), random.Random(0)
    size = int.from_bytes(content[:8], "little")
    refused = 0
    for number in range(20_000):
        end = (8, 8 + size, len(content))[number % 3]  # the length, the header, everything
        at, data = source.randrange(end), bytearray(content)
        other, count = source.randrange(len(content)), source.randrange(1, 64)
        match number // 3 % 7:
            case 0:
                data[at] ^= 1 << source.randrange(8)
            case 1:
                del data[at:]
            case 2:
                data[at:at] = source.randbytes(count)
            case 3:
                del data[at : at + count]
            case 4:
                data[at : at + count] = content[other : other + count]
            case 5:
                data[at : at + count] = bytes(len(data[at : at + count]))
            case 6:
                data[at : at + count] = source.randbytes(len(data[at : at + count]))
        if bytes(data) != content:
            with pytest.raises(BundleError):
                opened(bytes(data))
            refused += 1
    assert refused > 19_000


@pytest.mark.slow
def test_descriptions_that_are_sealed_again_load_or_are_refused(
    bundled: Callable[..., Path],
) -> None:
    """Every field of a description replaced by every kind of nonsense, with a right checksum."""
    path = bundled("us_net")
    description, tensors = opened(path.read_bytes())
    fields = json.loads(description.model_dump_json(exclude={"sha256", "format"}))
    fields["origin"]["packages"] = {"torch": "2"}  # one of many is enough
    nonsense = (None, True, -1, 0, 2**70, 1e308, "", "os:system", [], {}, ["a"], {"a": 1})
    images, places = torch.zeros(2, 1, 8, 8), [*_places(fields)]
    scores = pareco.load(path).network(0)(images)
    refused = 0
    for *parents, last in places:
        for value in nonsense:

            def change(each: Any, path: Any = parents, key: Any = last, value: Any = value) -> None:
                each["origin"]["packages"] = {"torch": "2"}
                for part in path:
                    each = each[part]
                each[key] = value

            try:
                bundle = loaded_as(path.with_name("n.pareco"), description, tensors, change)
            except BundleError:
                refused += 1
            else:  # a number that is only told
                assert torch.equal(bundle.network(0)(images), scores)
    assert 0.5 < refused / (len(places) * len(nonsense)) < 1


def _places(fields: Any, *above: Any) -> Any:
    """Yield the path of every field, of lists that of the first item."""
    items = fields.items() if isinstance(fields, dict) else enumerate(fields[:1])
    for key, value in items:
        yield (*above, key)
        if isinstance(value, dict | list):
            yield from _places(value, *above, key)


def test_a_network_of_mobilenetv2_takes_at_most_two_percent_of_the_weights(tmp_path: Path) -> None:
    """The full one, whose statistics are the most, with its names in the file's header."""
    model = create_model("mobilenetv2_100", num_classes=1000)
    net = pareco.make_slimmable(model, torch.zeros(1, 3, 224, 224))
    front = []
    for widths in (net.space.largest, net.space.uniform(0.99), net.space.smallest):
        with net.at(widths):
            channels = {layer.name: layer.used_outputs for layer in net.norms()}
        means = {name: torch.zeros(count) for name, count in channels.items()}
        variances = {name: torch.ones(count) for name, count in channels.items()}
        found = NormStatistics(means, variances)
        front.append(FrontNetwork(widths=widths, statistics=found, search_loss=0))
    sizes = []
    for count in (1, 2, 3):
        path = tmp_path / "a.pareco"
        save_bundle(path, net, front[:count], builder="", image_size=224, classes=["a"])
        sizes.append(path.stat().st_size)
    weights = sum(each.numel() * each.element_size() for each in net.state_dict().values())
    assert sizes[0] < 1.02 * weights
    assert sizes[1] - sizes[0] < 0.014 * weights
    assert 0.005 * weights < sizes[2] - sizes[1] < 0.006 * weights


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder of four test images of the digits as files of eight by eight pixels."""
    folder = tmp_path_factory.mktemp("there") / "photos"
    (folder / "more").mkdir(parents=True)
    test = load_data(TINY.data).test
    (pixels, _), *_ = test.store.read([test.indices[:4]], None)
    names = ("a2.png", "a10.png", "more/b.png", "three.png")
    for name, each in zip(names, pixels, strict=True):
        Image.fromarray(each[0].numpy()).save(folder / name)
    (folder / "notes.txt").write_text("no image")
    return folder


def test_predictions_are_those_of_the_test_images(
    bundled: Callable[..., Path], photos: Path
) -> None:
    bundle = pareco.load(bundled("pareco"))
    seen, _ = load_data(TINY.data).test.normalized(torch.arange(4))
    files = [photos / name for name in ("a2.png", "a10.png", "more/b.png", "three.png")]
    images = [Image.open(file) for file in files]
    assert torch.equal(bundle.prepared(images), seen)
    with torch.no_grad():
        expected = bundle.for_budget(macs=30_000)(seen).softmax(1).numpy()
    for given in (photos, str(photos), [photos], files, images, [files[0], *images[1:]]):
        table = bundle.predict(given, macs=30_000)
        assert np.array_equal(table.to_numpy(), expected)
        assert tuple(table.columns) == bundle.classes
    assert [*bundle.predict(photos).index] == list(map(str, files))
    assert [*bundle.predict(images).index] == [0, 1, 2, 3]
    assert bundle.predict([]).shape == (0, 10)
    assert not np.array_equal(bundle.predict(images).to_numpy(), expected)


def test_images_of_any_kind_are_seen_upright_and_left_as_they_are(
    bundled: Callable[..., Path], tmp_path: Path
) -> None:
    bundle = pareco.load(bundled("pareco"))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    plain, turned = Image.fromarray(pixels), Image.fromarray(np.rot90(pixels).copy())
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees clockwise
    turned.save(tmp_path / "a.png", exif=exif)
    palette = plain.convert("P")
    palette.info["transparency"] = 3
    expected = bundle.prepared([plain])
    assert torch.equal(bundle.prepared([Image.open(tmp_path / "a.png")]), expected)
    table = bundle.predict([tmp_path / "a.png"])
    assert np.array_equal(table.to_numpy(), bundle.predict([plain]).to_numpy())
    assert torch.equal(bundle.prepared([palette]), expected)
    assert palette.info["transparency"] == 3
    large = Image.new("RGB", (60, 31), (255, 255, 255))
    assert torch.allclose(bundle.prepared([large]), torch.full((1, 1, 8, 8), (255 - 73) / 90))


def test_the_commands(
    finished: Finished, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "digits.pareco"
    assert main(["bundle", str(finished("pareco")), "-o", str(path)]) == 0
    out = capsys.readouterr().out
    count = len(pd.read_csv(finished("pareco") / "front.csv"))
    assert out.startswith(f"{path}: {count} networks, 5,460 to 48,544 MACs; ")
    assert main(["predict", str(path), "--macs", "30000", str(photos), "--top", "2"]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    table = pareco.load(path).predict(photos, macs=30_000)
    assert [line[:2] for line in lines[::2]] == [[*each] for each in table.idxmax(axis=1).items()]
    assert len(lines) == 8
    assert all(float(a[2]) >= float(b[2]) for a, b in zip(lines[::2], lines[1::2], strict=True))


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("bundle {photos} -o a", 1, "photos holds no finished run"),
        ("predict {photos}/three.png {photos}", 1, "three.png: it is no bundle"),
        ("predict {photos}/none {photos}", 1, "none: No such file"),
        ("predict {bundle} {photos}/none.png", 1, "none.png: No such file"),
        ("predict {bundle} {photos}/notes.txt", 1, "notes.txt cannot be read as an image"),
        ("predict {bundle} --macs 9 {photos}", 2, "macs 9: the least is 5,460 MACs"),
        ("predict {bundle} --latency-ms 9 {photos}", 2, "latency_ms: it was not measured"),
        ("predict {bundle}", 2, "at least one image"),
    ],
)
def test_wrong_requests_end_with_a_message(
    line: str,
    status: int,
    message: str,
    bundled: Callable[..., Path],
    photos: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(line.format(photos=photos, bundle=bundled("pareco")).split()) == status
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert message in err


def test_the_page_on_deploying_runs_as_it_stands(
    finished: Finished,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = (ROOT / "docs" / "deploy.md").read_text()
    assert len(text.splitlines()) <= 120
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    shutil.copytree(finished("pareco"), "runs/digits/pareco/seed0")
    names: dict[str, Any] = {}
    blocks = re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert [kind for kind, _ in blocks] == ["console", *["python"] * 4]
    for kind, block in blocks:
        if kind == "console":
            for line in block.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "pareco"
                assert main(arguments) == 0
        else:
            exec(block, names)
    assert names["table"].shape == (4, 10)
    assert "memory_bytes 10: the least is" in capsys.readouterr().out
    assert names["careful"].shape == names["quick"].shape == (1, 10)
    assert isinstance(names["net"], torch.fx.GraphModule)
