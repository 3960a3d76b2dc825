"""The survey finds what can be made slimmable, outlives what fails, and notices what is wrong."""

import json
import os
import re
import signal
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from pareco import survey as surveys
from pareco.cli import main
from pareco.slimmable import SlimmableNet
from pareco.slimmable.layers import SlicedConv2d
from pareco.survey import (
    Surveyed,
    architecture,
    architectures,
    convolutional,
    document,
    fault_of,
    read,
)


def test_one_network_of_each_architecture() -> None:
    alike = {
        "convnext_atto": "convnext",
        "convnextv2_base": "convnextv2",
        "mobilenetv3_large_100": "mobilenetv3",
        "resnext50_32x4d": "resnext_xd",
        "efficientnet_b0": "efficientnet",
        "resnetv2_50x1_bit": "resnetv2_x_bit",
        "regnety_002": "regnety",
    }
    assert {name: architecture(name) for name in alike} == alike
    chosen = architectures()
    kinds = [architecture(name) for name in chosen]
    assert len(set(kinds)) == len(kinds) == len({architecture(x) for x in timm.list_models()})
    assert all(timm.is_model(name) for name in chosen)


def test_what_is_convolutional() -> None:
    patches = nn.Sequential(nn.Conv2d(3, 8, 16, stride=16), nn.Conv2d(8, 8, 3, padding=1))
    assert not convolutional(patches)
    assert convolutional(nn.Sequential(*patches, nn.Conv2d(8, 8, (1, 7))))


@pytest.mark.slow
def test_each_network_is_tried_and_checked(capsys: pytest.CaptureFixture[str]) -> None:
    names = ["test_convnext", "test_efficientnet_gn", "test_coatnet", "pit_ti_224", "test_vit"]
    assert main(["survey", *names, "--check", "--json"]) == 0
    found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [each["network"] for each in found] == names[:4]  # a transformer is left out
    assert [each["whole"] for each in found] == [[], [], ["stages.#.blocks.#.attn"], []]
    for each in found[:3]:
        assert (each["checked"], each["fault"], each["reason"]) == (True, "", "")
        assert 0 < each["smallest"] < each["full"]
    assert found[3]["node"] == "cls_token"
    assert found[3]["reason"].startswith("a parameter or buffer is used outside")
    assert not found[3]["groups"]


def test_an_unknown_network_and_a_wrong_limit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["survey", "resnot18"]) == 2
    assert "timm has no 'resnot18'" in capsys.readouterr().err
    assert main(["survey", "resnet18", "--limit-s", "0"]) == 2
    assert "--limit-s must be more than 0" in capsys.readouterr().err
    assert main(["survey", "resnet18", "--limit-s", "inf"]) == 2
    assert "--limit-s must be more than 0 and finite" in capsys.readouterr().err


def test_what_was_found_before_is_not_tried_again(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file, names = tmp_path / "found.jsonl", ["resnet18", "vgg11"]
    rows = [
        Surveyed(network=name, node="n", reason=f"r{index}") for index, name in enumerate(names)
    ]
    again = Surveyed(network="vgg11", groups=2, full=10_000_000, smallest=1, checked=True)
    file.write_text("".join(f"{json.dumps(asdict(row))}\n" for row in (*rows, again)))
    assert main(["survey", *names, "--found", str(file)]) == 0
    text = capsys.readouterr().out
    assert "Of 2 networks **1 can be made slimmable, and" in text
    assert "| vgg11 | 0 | 2 | 10 M | 0 M (0%) | yes |" in text
    assert "| resnet18 | n | r0 |" in text
    file.write_text('{"network": "vgg11", "colour": 3}\n')
    assert main(["survey", "--found", str(file)]) == 2
    assert "line 1 is none of pareco survey --json" in capsys.readouterr().err
    assert main(["survey", "--found", str(tmp_path / "gone")]) == 1
    for line in (b'{"network": ["a"]}', b'{"network": "a", "groups": 1, "full": 0}', b"\xff"):
        file.write_bytes(line)
        assert main(["survey", "--found", str(file)]) == 2
        assert "line 1 is none of pareco survey --json" in capsys.readouterr().err


def _dies(connection: Any, name: str, *others: Any) -> None:
    """Hang, die at once, or after the first answer, as the name says."""
    if name == "hangs":
        time.sleep(60)
    if name == "stops":
        connection.send({"groups": 3, "full": 9, "smallest": 1})
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_dies_or_hangs_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(surveys, "_answer", _dies)
    died, stopped = surveys.survey(["dies", "stops"], limit_s=100, check=True)
    assert died.reason == "its process ended (-9)"
    assert (stopped.reason, stopped.groups, stopped.checked) == ("", 3, False)
    assert stopped.fault == "its process ended (-9)"
    (hung,) = surveys.survey(["hangs"], limit_s=1, check=True)
    assert hung.reason == "no answer in 1 s"


def small() -> nn.Module:
    layers = (nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU())
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4))


def test_faults_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fault_of(small(), 8) == ""
    monkeypatch.setattr(
        SlimmableNet, "forward", lambda net, images: net._program(net._modules, images) * 2
    )
    assert "other scores than the model" in fault_of(small(), 8)
    monkeypatch.undo()
    right = SlicedConv2d.forward

    def doubled(layer: SlicedConv2d, images: torch.Tensor) -> torch.Tensor:
        return right(layer, images) * (1 if layer.setting.full else 2)

    monkeypatch.setattr(SlicedConv2d, "forward", doubled)
    assert "other scores than the extracted" in fault_of(small(), 8)
    monkeypatch.undo()
    for cost, message in (("macs_at", "torch counts"), ("params", "not counted right")):
        monkeypatch.setattr(f"pareco.cost.CostModel.{cost}", lambda *_: torch.tensor(3))
        assert message in fault_of(small(), 8)
        monkeypatch.undo()


def test_the_page_is_what_its_lines_say() -> None:
    """Each network once, all that are slimmable checked and without a fault."""
    docs = Path(__file__).parent.parent / "docs"
    rows, text = read(docs / "survey.jsonl"), (docs / "survey.md").read_text()
    versions = re.search(r"^(timm .*)\. Of ", text, re.MULTILINE)
    assert versions is not None
    assert document([*rows.values()], versions[1]) == text
    assert all(each.checked and not each.fault for each in rows.values() if each.groups)


def test_the_document() -> None:
    found = [
        Surveyed(
            network="a", image_size=32, groups=3, full=4_000_000, smallest=900_000, checked=True
        ),
        Surveyed(network="b", groups=1, full=2_000_000, smallest=1_000_000, fault="wrong scores"),
        Surveyed(network="w", groups=1, full=100, smallest=50, whole=["stages.#.attn", "y" * 99]),
        Surveyed(network="c", node="cat in c", reason="no rule for 'cat'"),
        Surveyed(network="d", node="e", reason="grouped convolution (4 groups | 8)" + "x" * 200),
        Surveyed(network="f", node="e", reason="no rule for 'cat'"),
    ]
    text = document(found, "timm 1")
    assert "timm 1. Of 6 networks **2 can be made slimmable, and\n1 more around mod" in text
    assert "| w | 0 | 1 | 0 M | 0 M (50%) | no | stages.#.attn, yyy" in text
    assert "1 of them were checked as above, with 1 faults" in text
    assert "| a | 32 | 3 | 4 M | 1 M (22%) | yes |" in text
    assert "- `b`: wrong scores" in text
    assert "| no rule for 'cat' | 2 |\n| grouped convolution | 1 |" in text
    assert "| c | cat in c | no rule for 'cat' |" in text
    assert max(map(len, text.splitlines())) <= 120
