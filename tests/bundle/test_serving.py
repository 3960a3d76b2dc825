"""A budget in, a ready network out; images in, probabilities out."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import pareco
from pareco import BudgetError, Bundle, FrontNetwork, save_bundle
from pareco.bundle.rebuilding import rebuilt
from pareco.bundle.sealed import opened
from pareco.data import load_data
from pareco.models import create_model
from pareco.slimmable import NormStatistics, calibrated_statistics
from tests.bundle.making import made, saved, statistics_of
from tests.conftest import tiny_net
from tests.experiments import TINY

pytestmark = pytest.mark.filterwarnings("error")


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
        save_bundle(path, net, front, builder="", image_size=8, classes=list("0123456789"),
                    mean=[0], std=[1])  # fmt: skip
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
    options: dict[str, Any] = {"builder": "", "image_size": 8, "classes": list("0123456789")}
    save_bundle(path, net, front, mean=[0], std=[1], **options)
    bundle = pareco.load(path, builder=made)
    with net.eval().at(widths, found), torch.no_grad():
        torch.testing.assert_close(bundle.for_budget()(images), net(images))
    assert bundle.predict([Image.new("L", (8, 8))]).shape == (1, 10)


def test_a_switch_takes_milliseconds(tmp_path: Path) -> None:
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
    save_bundle(path, net, front, builder="", image_size=images, classes=list("ab"))
    bundle = pareco.load(path, model=create_model("mobilenetv2_100", num_classes=2))
    times = []
    for limit in [None, float(bundle.front["macs"].min())] * 10:
        start = time.perf_counter()
        bundle.switch(macs=limit)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.02


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


def test_a_budget_is_said_as_it_was_asked(own: Path) -> None:
    bundle = pareco.load(own, builder=made)
    least = int(bundle.front["macs"].min())
    with pytest.raises(BudgetError, match=f"macs {least - 1:,}: the least is {least:,} MACs"):
        bundle.choice(macs=least - 1)
    with pytest.raises(BudgetError, match=r"macs 0.5: the least"):
        bundle.choice(macs=0.5)


def test_a_folder_without_an_image_is_named(own: Path, tmp_path: Path) -> None:
    bundle, empty = pareco.load(own, builder=made), tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(ValueError, match="empty: no image is there"):
        bundle.predict(empty)
    told: list[Exception] = []
    found = bundle.predict([empty, Image.new("L", (8, 8))], unreadable=told.append)
    assert (len(found), len(told)) == (1, 1)


def test_images_of_other_colours_are_the_callers(tmp_path: Path) -> None:
    model = torch.nn.Sequential(
        *(torch.nn.Conv2d(4, 8, 3), torch.nn.Conv2d(8, 8, 3), torch.nn.AdaptiveAvgPool2d(1)),
        *(torch.nn.Flatten(), torch.nn.Linear(8, 2)),
    )
    net = pareco.make_slimmable(model, torch.zeros(1, 4, 8, 8))
    widths = net.space.smallest
    front = [FrontNetwork(widths=widths, statistics=NormStatistics(), search_loss=0)]
    options: dict[str, Any] = {"image_size": np.int64(8), "classes": ["a", "b"]}
    options |= {"mean": np.zeros(4), "std": torch.ones(4)}
    save_bundle(tmp_path / "a", net, front, builder="", **options)
    bundle = pareco.load(tmp_path / "a", model=model)
    with pytest.raises(ValueError, match=r"images have 1 or 3 colours, and the .* take 4: give"):
        bundle.predict(Image.new("RGB", (8, 8)))
    images = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(bundle.for_budget()(images), net.extract(widths)(images))
