"""The command line, as a user meets it."""

import json
from typing import Any

import pytest

from pareco.cli import main


def profile(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """Return what `pareco profile ARGUMENTS` prints."""
    assert main(["profile", *arguments]) == 0
    return capsys.readouterr().out


def record(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    return json.loads(profile(capsys, *arguments, "--json"))


def test_json_of_mobilenetv2(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(capsys, "mobilenetv2_100", "--width", "0.5")
    assert found["image_size"] == 224
    assert len(found["groups"]) == 24
    assert found["groups"][0] == {"name": "conv_stem", "stage": 0, "channels": 32, "step": 1}
    full, half, smallest = (found["networks"][name] for name in ("full", "width", "smallest"))
    assert (full["macs"], full["params"]) == (300_774_272, 3_504_872)
    assert half["multiplier"] == 0.5
    assert half["widths"][0] == 16
    assert smallest["widths"][0] == 13
    assert 0.15 < smallest["macs"] / full["macs"] < half["macs"] / full["macs"] < 0.35


def test_options_reach_the_network(capsys: pytest.CaptureFixture[str]) -> None:
    found = record(
        capsys,
        *("cifar_resnet8", "--image-size", "16", "--num-classes", "4"),
        *("--divisor", "8", "--alpha-min", "0.25"),
    )
    assert found["image_size"] == 16
    assert found["networks"]["smallest"]["widths"] == [8, 8, 8, 8, 16, 16]
    assert "width" not in found["networks"]
    assert record(capsys, "cifar_resnet8")["image_size"] == 32
    slim = record(capsys, "mobilenetv3_small_100", "--slim-head", "--image-size", "64")
    assert slim["groups"][-1]["name"] == "conv_head"


@pytest.mark.parametrize("columns", [80, 120])
def test_tables_fit_the_terminal(
    columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    out = profile(capsys, "mobilenetv2_100", "--width", "0.5")
    assert max(map(len, out.splitlines())) <= columns
    assert "…" not in out
    for text in ("blocks.6.0.conv_pwl", "300.77 M 100%", "full (1)", "smallest (0.42)", "MiB"):
        assert text in out


@pytest.mark.parametrize(
    ("arguments", "status", "messages"),
    [
        (["mobilenetv2"], 2, ["unknown network 'mobilenetv2'", "mobilenetv2_"]),
        (["cifar_resnet21"], 2, ["6k + 2"]),
        (
            ["efficientnet_cc_b0_4e", "--image-size", "64"],
            1,
            ["node 'blocks_4_0_conv_pw_weight", "a parameter or buffer is used", "Rewrite"],
        ),
        (["vit_tiny_patch16_224", "--image-size", "64"], 1, ["does not run on the example"]),
        (["cifar_resnet8", "--width", "0.3"], 2, ["--width must be in [0.42, 1]", "got 0.3"]),
        (["cifar_resnet8", "--width", "1.2"], 2, ["--width must be in"]),
        (["cifar_resnet8", "--width", "nan"], 2, ["--width must be in"]),
        (["cifar_resnet8", "--image-size", "0"], 2, ["--image-size must be at least 1"]),
        (["cifar_resnet8", "--num-classes", "0"], 2, ["--num-classes must be at least 1"]),
        (["cifar_resnet8", "--alpha-min", "0"], 2, ["alpha_min must be in (0, 1]"]),
        (["cifar_resnet8", "--divisor", "0"], 2, ["divisor must be at least 1"]),
    ],
)
def test_wrong_requests_end_with_a_message(
    arguments: list[str], status: int, messages: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["profile", *arguments]) == status
    out, err = capsys.readouterr()
    assert not out
    assert len(err.splitlines()) == 1
    assert all(message in err for message in messages), err
