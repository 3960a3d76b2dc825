"""A network leaves as a file: others read it and get its scores, or nothing is written."""

import errno
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import timm
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor, nn

import pareco
from pareco import Bundle, ExportError, FrontNetwork, calibrated_statistics, save_bundle
from pareco.bundle import export as export_module
from pareco.bundle.standalone import load_narrowed
from pareco.cli import main
from pareco.config import ExportKind
from pareco.models import create_model
from pareco.slimmable import make_slimmable
from tests.bundle.making import loaded_with, made, saved
from tests.conftest import Network, tiny_net

pytestmark = pytest.mark.filterwarnings("error")
KINDS: tuple[ExportKind, ...] = get_args(ExportKind)
ENDINGS = {"onnx": "onnx", "torch": "pt2", "safetensors": "safetensors"}


def scores_of(path: Path, images: Tensor, model: nn.Module) -> Tensor:
    """Return what somebody else gets from a file; `model` is the network at full width."""
    if path.suffix == ".onnx":
        session: Any = onnxruntime.InferenceSession(path)
        return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
    if path.suffix == ".pt2":
        return torch.export.load(path).module()(images)
    with torch.no_grad():
        return load_narrowed(path, model)(images)


def told_in(path: Path) -> dict[str, Any]:
    """Return what a file tells of its network."""
    if path.suffix == ".onnx":
        (text,) = [each.value for each in onnx.load(path).metadata_props]
    elif path.suffix == ".pt2":
        files = {"pareco.json": ""}
        torch.export.load(path, extra_files=files)
        text = files["pareco.json"]
    else:
        with safe_open(path, "pt") as file:  # type: ignore[no-untyped-call]
            text = file.metadata()["pareco.json"]
    return json.loads(text)


def drawn(count: int, *size: int) -> Tensor:
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def slow(*values: Any) -> Any:
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("method", "to"),
    [
        *(("s_net", "torch"), ("independent", "safetensors"), slow("pareco", "onnx")),
        *(slow("s_net", "onnx"), slow("s_net", "safetensors"), slow("independent", "onnx")),
        *(slow("pareco", "torch"), slow("independent", "torch"), slow("pareco", "safetensors")),
    ],
)
def test_a_file_gives_the_networks_scores_and_says_what_it_is(
    method: str, to: ExportKind, bundled: Callable[..., Path], photos: Path, tmp_path: Path
) -> None:
    """Of a network with batch norm of its own, with weights of its own, and padding shortcuts."""
    bundle, path = pareco.load(bundled(method)), tmp_path / f"a.{ENDINGS[to]}"
    row = bundle.choice(macs=30_000)
    table = bundle.export(path, to, macs=30_000, images=photos)
    assert [*table.index] == [row]
    assert table.loc[row, "file"] == path.name
    pd.testing.assert_frame_equal(table[bundle.front.columns], bundle.front.loc[[row]])
    for count in (1, 3, 16):
        images = drawn(count, 1, 8, 8)
        expected = bundle.network(row)(images)
        torch.testing.assert_close(scores_of(path, images, made()), expected)
    told = told_in(path)
    widths = [int(each) for each in str(bundle.front.loc[row, "widths"]).split()]
    assert told["network"]["widths"] == dict(zip(bundle.groups, widths, strict=True))
    assert told["network"]["macs"] == bundle.front.loc[row, "macs"]
    assert told["reading"]["classes"] == [*bundle.classes]
    assert told["reading"]["mean"] == [73.0]
    assert told["origin"]["method"] == method
    content = path.read_bytes()
    for place in (Path(torch.__file__).parents[1], Path(__file__).parents[2], photos, tmp_path):
        assert str(place).encode() not in content
    for each in sorted(photos.glob("*.png")):
        pixels = bundle.prepared([Image.open(each)]).numpy().tobytes()
        assert pixels[64:128] not in content


def bundle_of_timm(path: Path, name: str, size: int) -> Bundle:
    """Return the bundle of the full and the smallest network of one of timm, of drawn weights."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model(name, num_classes=10)
    net = make_slimmable(model, torch.zeros(1, 3, size, size), slim_head=True)
    front = [
        FrontNetwork(
            widths=widths,
            statistics=calibrated_statistics(net, widths, [drawn(16, 3, size, size)]),
            search_loss=0,
        )
        for widths in (net.space.largest, net.space.smallest)
    ]
    save_bundle(path, net, front, builder="", image_size=size, classes=list("0123456789"))
    architecture = {"name": name, "num_classes": 10, "in_chans": 3, "base_width": None}
    change = {"builder": None, "architecture": architecture}
    return loaded_with(path, lambda told: told.update(change))


def test_what_was_narrowed_is_timms_own_network_and_its_layers_say_their_widths(
    own: Path, bundled: Callable[..., Path], tmp_path: Path
) -> None:
    """Of MobileNetV3, with squeeze-excite, hard-swish and depthwise convolutions."""
    bundle = bundle_of_timm(tmp_path / "a.pareco", "mobilenetv3_small_050", size=64)
    macs, images = float(bundle.front["macs"].min()), drawn(4, 3, 64, 64)
    bundle.export(tmp_path / "a.safetensors", "safetensors", macs=macs)
    narrow = load_narrowed(tmp_path / "a.safetensors")
    expected = bundle.network(1)(images)
    assert (narrow(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert type(narrow) is type(timm.create_model("mobilenetv3_small_050"))
    trained = [each.numel() for each in narrow.parameters() if each.requires_grad]
    full, smallest = bundle.front["params"].astype(int)
    assert sum(trained) == smallest < 0.5 * full
    for layer in narrow.modules():
        if type(layer) is nn.Conv2d:
            size: Any = layer.kernel_size
            like = nn.Conv2d(layer.in_channels, layer.out_channels, size, groups=layer.groups)
        elif isinstance(layer, nn.Linear):
            like = nn.Linear(layer.in_features, layer.out_features)
        elif isinstance(layer, nn.BatchNorm2d):
            like = nn.BatchNorm2d(layer.num_features)
        else:
            continue
        assert like.weight.shape == layer.weight.shape
    for file in (bundled("s_net"), own):
        pareco.load(file, builder=made).export(tmp_path / "b.safetensors", "safetensors")
        with pytest.raises(ValueError, match="timm does not have its network: give it at full"):
            load_narrowed(tmp_path / "b.safetensors")
    with pytest.raises(ValueError, match=r"a.safetensors is of another network: blocks"):
        load_narrowed(tmp_path / "a.safetensors", made())


def test_the_front_is_exported_as_a_folder_with_an_index(
    bundled: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle, folder = pareco.load(bundled("independent")), tmp_path / "all"
    line = f"export {bundled('independent')} --all --to safetensors -o {folder}"
    assert main(line.split()) == 0
    index = pd.read_csv(folder / "index.csv", index_col="row")
    assert {each.name for each in folder.iterdir()} == {"index.csv", *index["file"]}
    told = [f"{folder}/{each.file}: {each.macs:,} MACs" for each in index.itertuples()]
    out = capsys.readouterr().out.splitlines()
    assert all(a.startswith(b) for a, b in zip(out, told, strict=True))
    pd.testing.assert_frame_equal(
        index[bundle.front.columns], bundle.front, check_names=False, check_column_type=False
    )
    images = drawn(3, 1, 8, 8)
    for row, each in index.iterrows():
        assert each["file"] == f"{row:02}-{each['macs']}-macs.safetensors"
        expected = bundle.network(int(str(row)))(images)
        torch.testing.assert_close(scores_of(folder / str(each["file"]), images, made()), expected)
    table = bundle.export_front(tmp_path / "some", "safetensors", macs=30_000)
    assert [*table.index] == [*bundle.front.index[bundle.front["macs"] <= 30_000]]


@pytest.mark.parametrize("to", ["safetensors", slow("torch"), slow("onnx")])
def test_a_file_that_gives_other_scores_is_not_written(
    own: Path, to: ExportKind, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exporter that changes a single bias by a hundredth of the largest score."""
    form = export_module._FORMS[to]

    def wrong(exported: Any, path: Path) -> None:
        changed = exported.network.get_parameter("fc.bias")
        shift = 0.01 * exported.network(exported.noise(8)).abs().max()
        with torch.no_grad():
            changed[3] += shift
            form.write(exported, path)
            changed[3] -= shift

    kinds = {**export_module._FORMS, to: export_module._Form(ending=form.ending, write=wrong,
                                                             read=form.read)}  # fmt: skip
    monkeypatch.setattr(export_module, "_FORMS", kinds)
    bundle, path = pareco.load(own, builder=made), tmp_path / f"a.{ENDINGS[to]}"
    for old in (None, b"old"):
        if old:
            path.write_bytes(old)
        with pytest.raises(ExportError, match=rf"^{path.name}: .* differ by 1.0e-02 of the larg"):
            bundle.export(path, to)
        assert sorted(each.name for each in tmp_path.iterdir()) == (
            sorted([own.name, path.name]) if old else [own.name]
        )
    assert path.read_bytes() == b"old"
    with pytest.raises(ExportError, match=r"02-1?[0-9]{4}-macs|0[01]-"):
        bundle.export_front(tmp_path / "all", to)
    assert not (tmp_path / "all").exists()


def test_a_network_that_keeps_numbers_beside_its_layers_is_not_exported_as_weights(
    tmp_path: Path,
) -> None:
    class Padded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 8, 1)
            self.fc = nn.Linear(8, 10)

        def forward(self, images: Tensor) -> Tensor:
            first = self.first(images)
            wide = nn.functional.pad(first, (0, 0, 0, 0, 0, 4))  # by four, whatever the layers say
            return self.fc((self.second(first) + wide).mean((2, 3)))

    net, path = make_slimmable(Padded(), torch.zeros(1, 1, 8, 8)), tmp_path / "a.pareco"
    bundle = pareco.load(saved(path, net, _60=(1, 1)), builder=Padded)
    with pytest.raises(
        ExportError, match=r"^a.safetensors: the network cannot be exported to safetensors, try"
    ):
        bundle.export(tmp_path / "a.safetensors", "safetensors")
    bundle.export(tmp_path / "a.pt2", "torch")
    images = drawn(2, 1, 8, 8)
    torch.testing.assert_close(
        scores_of(tmp_path / "a.pt2", images, Padded()), bundle.network(0)(images)
    )


def test_parts_that_do_not_run_are_in_the_weights_too(tmp_path: Path) -> None:
    class Whole(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = made(), nn.Conv2d(5, 7, 1)

        def forward(self, images: Tensor) -> Tensor:
            return self.used(images)

    net, path = make_slimmable(Whole(), torch.zeros(1, 1, 8, 8)), tmp_path / "a.safetensors"
    bundle = pareco.load(saved(tmp_path / "a.pareco", net, _50=(1, 1)), builder=Whole)
    bundle.export(path, "safetensors")
    network = load_narrowed(path, Whole())
    assert torch.equal(network.get_parameter("unused.weight"), net.get_parameter("unused.weight"))
    images = drawn(2, 1, 8, 8)
    torch.testing.assert_close(network(images), bundle.network(0)(images))


def test_networks_of_other_floats_are_exported_or_refused(tmp_path: Path) -> None:
    net = tiny_net().double()
    widths = net.space.smallest
    statistics = calibrated_statistics(net, widths, [drawn(5, 1, 8, 8).double()])
    front = [FrontNetwork(widths=widths, statistics=statistics, search_loss=0)]
    save_bundle(tmp_path / "a", net, front, builder="", image_size=8, classes=list("0123456789"),
                mean=[0], std=[1])  # fmt: skip
    bundle, images = pareco.load(tmp_path / "a", builder=made), drawn(3, 1, 8, 8).double()
    for path in (tmp_path / "a.pt2", tmp_path / "a.safetensors"):
        table = bundle.export(path, "torch" if path.suffix == ".pt2" else "safetensors")
        assert table["largest_difference"].max() < 1e-14
        torch.testing.assert_close(scores_of(path, images, made()), bundle.network(0)(images))
    with torch.no_grad():
        net.get_parameter("fc.bias")[0] = np.nan
    save_bundle(tmp_path / "b", net, front, builder="", image_size=8, classes=list("0123456789"),
                mean=[0], std=[1])  # fmt: skip
    with pytest.raises(ExportError, match=r"a.pt2: the network's own scores are not finite"):
        pareco.load(tmp_path / "b", builder=made).export(tmp_path / "a.pt2", "torch")


def test_a_missing_package_is_named(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    bundle = pareco.load(own, builder=made)
    with pytest.raises(ExportError, match=r"onnx needs onnxscript: pip install onnx onnxscript on"):
        bundle.export(tmp_path / "a.onnx", "onnx")
    assert [each.name for each in tmp_path.iterdir()] == [own.name]
    bundle.export(tmp_path / "a.safetensors", "safetensors")


@pytest.mark.parametrize(
    ("line", "status", "message"),
    [
        ("{photos}/three.png --to torch -o a.pt2", 1, "three.png: it is no bundle"),
        ("{bundle} --to timm -o a", 2, "invalid choice 'timm'"),
        ("{bundle} --to onnx -o a.pt2", 2, "a.pt2: a file of the kind onnx must end in .onnx"),
        ("{bundle} --to torch", 2, "required"),
        ("{bundle} --to torch -o a.pt2 --macs 9", 2, "macs 9: the least is 5,460 MACs"),
        ("{bundle} --to torch -o a.pt2 --macs 9 --all", 2, "macs 9: the least is 5,460 MACs"),
        ("{bundle} --to torch -o a.pt2 --images {photos}/no", 1, "no: No such file"),
        ("{bundle} --to torch -o a.pt2 --images {photos}/notes.txt", 1, "notes.txt cannot be"),
        ("{bundle} --to torch -o a.pt2 --images {empty}", 1, "empty: no image is there"),
        ("{bundle} --to torch -o no/a.pt2", 1, "no: no such folder"),
        ("{bundle} --to torch -o {empty}/full.pt2", 1, "full.pt2: a folder is there al"),
        ("{bundle} --to torch -o {empty}/full.pt2 --all", 1, "full.pt2: a folder is there al"),
        ("{bundle} --to torch -o {bundle} --all", 1, ": a file is there already"),
    ],
)
def test_wrong_requests_end_with_a_message(
    line: str,
    status: int,
    message: str,
    bundled: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "full.pt2").mkdir(parents=True)
    places = {"photos": photos, "bundle": bundled("s_net"), "empty": tmp_path / "empty"}
    assert main(["export", *line.format(**places).split()]) == status
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert message in err
    assert [each.name for each in tmp_path.iterdir()] == ["empty"]


def test_a_full_disk_is_said_as_such(
    own: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "a.pt2")

    monkeypatch.setattr(torch.export, "save", full)
    with pytest.raises(OSError, match="No space left"):
        pareco.load(own, builder=made).export(tmp_path / "a.pt2", "torch")
    assert [each.name for each in tmp_path.iterdir()] == [own.name]


@pytest.mark.slow
def test_every_network_is_exported_in_every_kind(network: Network, tmp_path: Path) -> None:
    """At widths that differ by layer; the scores are seven times nearer than what is let pass."""
    net, size = network.net, network.images.shape[-1]
    generator = torch.Generator().manual_seed(0)
    widths = net.space.sample(generator)
    statistics = calibrated_statistics(net, widths, [drawn(16, 3, size, size)])
    front = [FrontNetwork(widths=widths, statistics=statistics, search_loss=0)]
    save_bundle(tmp_path / "a", net, front, builder="", image_size=size, classes=list("0123456789"))
    bundle = pareco.load(tmp_path / "a", model=network.model)
    for to in KINDS:
        path = tmp_path / f"a.{ENDINGS[to]}"
        off = float(bundle.export(path, to)["largest_difference"].max())
        print(network.name, to, f"{off:.1e}")
        assert off < 5e-5
