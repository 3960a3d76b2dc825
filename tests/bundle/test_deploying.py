"""The commands, and the page, as a user meets them."""

import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from PIL import Image

import pareco
from pareco.bundle.serving import UnreadableImage
from pareco.cli import main
from tests.bundle.conftest import Finished
from tests.documents import blocks_of

pytestmark = pytest.mark.filterwarnings("error")


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
        ("predict {bundle} --macs nan {photos}", 2, "macs: nan is no limit"),
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


def test_one_unreadable_image_is_named_and_the_others_are_printed(
    bundled: Callable[..., Path], photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever is wrong with it; the status says that there was one."""
    path, folder = bundled("pareco"), tmp_path / "some"
    shutil.copytree(photos, folder)
    good = [*pareco.load(path).predict(folder).index]
    Image.new("F", (8, 8)).save(folder / "0.tiff")
    (folder / "z.png").write_bytes(b"no image")
    gone, again = str(folder / "gone.png"), str(folder / "0.tiff")
    assert main(["predict", str(path), str(folder), gone, again]) == 1
    out, err = capsys.readouterr()
    assert [line.split("\t")[0] for line in out.splitlines()] == good
    first, last, missing, again = err.splitlines()
    assert first == again
    assert missing == f"error: {gone}: No such file or directory"
    assert first.startswith(f"error: {folder}/0.tiff cannot be read as an image: pixels of 32 bits")
    assert "z.png cannot be read as an image" in last
    with pytest.raises(UnreadableImage, match=r"0\.tiff cannot be read"):
        pareco.load(path).predict(folder)
    twice = pareco.load(path).predict([Image.new("L", (8, 8))] * 2, unreadable=[].append)
    assert [*twice.index] == [0, 1]


def test_commands_take_a_network_of_ones_own_by_its_builder(
    own: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A function of a file, or of a module; a bundle never says which."""
    (tmp_path / "nets.py").write_text("from tests.bundle.making import made\n")
    for builder in (f"{tmp_path}/nets.py:made", "tests.bundle.making:made"):
        assert main(["predict", str(own), str(photos), "--builder", builder]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[: len(lines) // 2] == lines[len(lines) // 2 :] != []
    out = str(tmp_path / "a.safetensors")
    flags = ["--to", "safetensors", "-o", out, "--builder", builder]
    assert main(["export", str(own), *flags]) == 0
    capsys.readouterr()
    assert main(["export", str(own), *flags[:-2]]) == 1
    assert "which is not run because a file says so" in capsys.readouterr().err
    assert main(["latency", "resnet18", "--builder", builder]) == 2
    assert main(["latency", "resnet18", "-o", f"{tmp_path}/none/a.json"]) == 2
    assert "its folder is not there" in capsys.readouterr().err


def test_the_page_on_deploying_runs_as_it_stands(
    finished: Finished,
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    shutil.copytree(finished("pareco"), "runs/digits/pareco/seed0")
    names: dict[str, Any] = {}
    blocks = blocks_of("deploy.md", 120)
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
