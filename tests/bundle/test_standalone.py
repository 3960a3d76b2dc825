"""The page on export runs as it stands, outside this package where it says so."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

import pareco
from pareco import models
from pareco.bundle import standalone
from pareco.cli import main
from tests.bundle.conftest import Finished
from tests.bundle.test_export import bundle_of_timm, drawn

pytestmark = pytest.mark.filterwarnings("error")
TEXT = (Path(__file__).parents[2] / "docs" / "export.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
_SAVED = """
import sys
from safetensors.torch import save_file

assert not [name for name in sys.modules if name.partition(".")[0] == "pareco"]
ours, onnx, program = network, session, torch.export.load("small.pt2").module()
of_timm = load_narrowed("of-timm.safetensors")
digits, photos = torch.load("images.pt", weights_only=True)
with torch.inference_mode():
    scores = {
        "weights": ours(digits),
        "onnx": torch.from_numpy(onnx.run(None, {"images": digits.numpy()})[0]),
        "torch": program(digits),
        "timm": of_timm(photos),
    }
save_file(scores, "scores.safetensors")
"""


def test_what_was_exported_runs_where_pareco_is_not(
    finished: Finished, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The commands and what uses them here; the other blocks, one after the other, elsewhere."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(photos, "photos")
    assert main(["bundle", str(finished("pareco")), "-o", "digits.pareco"]) == 0
    assert [kind for kind, _ in BLOCKS] == ["console", *["python"] * 6]
    (_, commands), (_, here), *elsewhere = BLOCKS
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "pareco"
        assert main(arguments) == 0
    names: dict[str, Any] = {}
    exec(here, names)
    assert (tmp_path / "programs" / "index.csv").exists()
    assert len(names["table"]) == (names["bundle"].front["macs"] <= 10_000).sum()

    folder = tmp_path / "empty"
    folder.mkdir()
    for kind in ("onnx", "pt2", "safetensors"):
        shutil.copy(f"small.{kind}", folder)
    shutil.copy(models.__file__, folder)
    timm = bundle_of_timm(tmp_path / "timm.pareco", "mobilenetv3_small_050", size=64)
    macs = float(timm.front["macs"].min())
    timm.export(folder / "of-timm.safetensors", "safetensors", macs=macs)
    images = drawn(3, 1, 8, 8), drawn(3, 3, 64, 64)
    torch.save(images, folder / "images.pt")
    (folder / "main.py").write_text("".join(text for _, text in elsewhere) + _SAVED)
    environment = {name: each for name, each in os.environ.items() if name != "PYTHONPATH"}
    run = subprocess.run(
        [sys.executable, "main.py"], cwd=folder, env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() in pareco.load("digits.pareco").classes
    scores = load_file(folder / "scores.safetensors")
    digits = pareco.load("digits.pareco").for_budget(macs=50_000)(images[0])
    for kind in ("weights", "onnx", "torch"):
        torch.testing.assert_close(scores[kind], digits)
    expected = timm.network(1)(images[1])
    assert (scores["timm"] - expected).abs().max() < 1e-5 * expected.abs().max()


def test_the_page_shows_the_loader_as_it_is() -> None:
    assert Path(standalone.__file__).read_text() in [text for _, text in BLOCKS]


def test_a_network_that_timm_makes_otherwise_is_to_be_given(tmp_path: Path) -> None:
    """With undone strides: the weights would fit timm's, and mean something else there."""
    known = {"name": "mobilenetv2_050", "num_classes": 2, "in_chans": 3, "undone_strides": 2}
    about = json.dumps({"architecture": known})
    save_file({}, tmp_path / "a.safetensors", {"pareco.json": about})
    with pytest.raises(ValueError, match="give it at full width"):
        standalone.load_narrowed(tmp_path / "a.safetensors")
