"""The weights that a network starts from: read from files and from timm, refused where they differ.

No test needs a network: files are made here, and what timm would download is put in its place.
"""

import argparse
import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from huggingface_hub import constants
from safetensors.torch import save_file
from torch import Tensor, nn

from pareco.config import NetworkConfig
from pareco.models import create_model
from pareco.starting import start_known, started_model

OURS = {"name": "cifar_resnet8", "base_width": 4}
State = dict[str, Tensor]


def network(name: str, classes: int, base_width: int | None = None) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(classes)
        return create_model(name, num_classes=classes, in_chans=1, base_width=base_width)


def state_of(classes: int = 10, **named: Any) -> State:
    return network(**(named or OURS), classes=classes).state_dict()


def started(path: Path, classes: int = 10, **named: Any) -> tuple[State, str]:
    """Return the state of a network that starts from a file, and what is said of it."""
    with torch.random.fork_rng():
        torch.manual_seed(5)
        config = NetworkConfig(**(named or OURS), weights=str(path))
        model, remark = started_model(config, classes, 1)
    assert remark is not None
    return model.state_dict(), remark


def assert_same(found: State, expected: State) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def wrapped(state: State) -> dict[str, Any]:
    return {"state_dict": state, "epoch": 3, "args": argparse.Namespace(lr=0.1)}


WRITERS: dict[str, Callable[[State, Path], object]] = {
    "a.safetensors": save_file,
    "plain.pth": torch.save,
    "lightning.pt": lambda state, path: torch.save(wrapped(state), path),
    "model.pth": lambda state, path: torch.save({"model": state}, path),
    "parallel.pth": lambda state, path: torch.save(
        wrapped({f"module.{name}": each for name, each in state.items()}), path
    ),
    "compiled.pt": lambda state, path: torch.save(
        {f"_orig_mod.{name}": each for name, each in state.items()}, path
    ),
    "averaged.pt": lambda state, path: torch.save(
        {"state_dict": {}, "state_dict_ema": state}, path
    ),
    "uncounted.pt": lambda state, path: torch.save(
        {name: each for name, each in state.items() if not name.endswith("_tracked")}, path
    ),
}


@pytest.mark.parametrize("name", WRITERS)
def test_weights_are_read_however_they_are_wrapped(name: str, tmp_path: Path) -> None:
    path, state = tmp_path / name, state_of()
    WRITERS[name](state, path)
    found, remark = started(path)
    assert_same(found, state)
    assert remark.startswith("started from a file of SHA-256 ")
    assert remark.endswith(", channels ordered by importance")


@pytest.mark.parametrize(
    ("named", "classifier"),
    [
        (OURS, "fc"),
        ({"name": "cifar_vgg11", "base_width": 4}, "fc"),
        ({"name": "resnet18"}, "fc"),
        ({"name": "mobilenetv3_small_050"}, "classifier"),
    ],
)
def test_a_classifier_of_other_classes_is_fresh_and_that_is_said(
    named: dict[str, Any], classifier: str, tmp_path: Path
) -> None:
    path, state = tmp_path / "full.safetensors", state_of(7, **named)
    save_file(state, path)
    found, remark = started(path, 1_200, **named)
    assert remark.endswith("; its classifier is fresh: 7 classes there, 1,200 here")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        fresh = create_model(**named, num_classes=1_200, in_chans=1).state_dict()
    heads = {name: fresh[name] for name in (f"{classifier}.weight", f"{classifier}.bias")}
    assert_same(found, state | heads)


def without(state: State, *names: str) -> State:
    return {name: each for name, each in state.items() if name not in names}


def with_bias(state: State, bias: torch.Tensor) -> State:
    return state | {"bn1.bias": bias}


@pytest.mark.filterwarnings("ignore:Validating sparse")
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: without(state, "fc.bias", "conv1.weight"), "it lacks conv1.weight, fc.bias"),
        (lambda state: state | {"b.c": torch.ones(1)}, "the network lacks b.c"),
        (
            lambda state: state | {"conv1.weight": torch.ones(4, 3, 3, 3)},
            "another shape has conv1.weight (4 x 3 x 3 x 3 there, 4 x 1 x 3 x 3 here)",
        ),
        (
            lambda state: state | {"fc.weight": torch.ones(7, 99), "fc.bias": torch.ones(7)},
            "another shape has fc.weight (7 x 99 there, 10 x 16 here), fc.bias (7 there, 10 here)",
        ),
        (
            lambda state: state | {"fc.weight": torch.tensor(1.0), "fc.bias": torch.tensor(1.0)},
            "another shape has fc.weight (a number there, 10 x 16 here)",
        ),
        (lambda state: state | {"bn1.bias": torch.full((4,), torch.nan)}, "not finite is bn1.bias"),
        (
            lambda state: {f"net.{name}": each for name, each in state.items()},
            "and 33 more; the network lacks net.conv1.weight, net.bn1.weight",
        ),
        (
            lambda state: with_bias(state, torch.ones(4, dtype=torch.int8)),
            "no floats has bn1.bias",
        ),
        (lambda state: with_bias(state, torch.ones(4).to_sparse()), "bn1.bias is no tensor of pl"),
        (lambda state: with_bias(state, torch.ones(4) + 1j), "bn1.bias is no tensor of plain num"),
        (lambda state: with_bias(state, torch.ones(4, device="meta")), "bn1.bias is no tensor of"),
        (
            lambda state: with_bias(state, torch.ones(4).to(torch.float8_e4m3fn)),
            "bn1.bias is no tensor of plain numbers",
        ),
        (lambda state: state | {"epoch": 3}, "epoch is no tensor; it must hold a state dict"),
        (lambda state: {"net": state}, "net is no tensor"),
        (lambda state: [state], "is no safetensors file, and none of torch.save that holds tenso"),
        (lambda state: network(**OURS, classes=10), "(RuntimeError): write it by safetensors"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(
    change: Callable[[State], Any], message: str, tmp_path: Path
) -> None:
    path = tmp_path / "full.pt"
    torch.save(change(state_of()), path)
    with pytest.raises(ValueError, match=r"^network\.weights .*full\.pt") as refusal:
        started(path)
    assert message in str(refusal.value)
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("content", [b"", b"no weights", b"\x08\0\0\0\0\0\0\0{}      "])
@pytest.mark.parametrize("name", ["a.safetensors", "a.pt"])
def test_what_is_no_file_of_weights_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=r"^network\.weights .*(is no safetensors|does not fit)"):
        started(tmp_path / name)


def test_weights_are_known_by_what_they_are_and_not_by_where_they_lie(tmp_path: Path) -> None:
    first, second, other = (tmp_path / f"{name}.safetensors" for name in "abc")
    save_file(state_of(10), first)
    second.write_bytes(first.read_bytes())
    save_file(state_of(9), other)
    configs = [start_known(NetworkConfig(**OURS, weights=str(each))) for each in (first, second)]
    known = configs[0].started_from
    assert known is not None
    assert known.startswith("sha256:")
    assert configs[1].started_from == known
    assert start_known(configs[0]) == configs[0]
    asked = NetworkConfig(**OURS, weights=str(other), started_from=known)
    with pytest.raises(ValueError, match=f"these are sha256:.*, and not {known}, which network"):
        start_known(asked)
    with pytest.raises(ValueError, match="say where these weights are, with network"):
        started_model(NetworkConfig(**OURS, started_from=known), 10, 1)
    with pytest.raises(ValueError, match=r"^network\.weights .*gone.pt: No such file"):
        start_known(NetworkConfig(**OURS, weights="gone.pt"))
    fresh = NetworkConfig(**OURS)
    assert start_known(fresh) == fresh
    assert started_model(fresh, 10, 1)[1] is None


def hub(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., State]) -> None:
    at_hand = SimpleNamespace(head=lambda *_, **__: None)
    monkeypatch.setattr("pareco.models.get_session", lambda: at_hand)
    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", answer)


def test_timms_weights_are_taken_by_their_tag(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = timm.create_model("resnet18", num_classes=1000).state_dict()
    asked: list[Any] = []
    hub(monkeypatch, lambda *names, **options: asked.append(names) or dict(theirs))
    for name, tag in (("resnet18", "a1_in1k"), ("resnet18.a2_in1k", "a2_in1k")):
        config = start_known(NetworkConfig(name=name, pretrained=True))
        assert config.started_from == f"timm:resnet18.{tag}"
        model, remark = started_model(config, 5, 3)
        assert remark == (
            f"started from timm's resnet18.{tag}, channels ordered by importance; its classifier "
            "is fresh: 1,000 classes there, 5 here"
        )
        found = model.state_dict()
        assert found.pop("fc.weight").shape == (5, 512)
        assert found.pop("fc.bias").shape == (5,)
        assert_same(found, without(theirs, "fc.weight", "fc.bias"))
    assert asked == [("timm/resnet18.a1_in1k",), ("timm/resnet18.a2_in1k",)]
    model, remark = started_model(NetworkConfig(name="resnet18", pretrained=True), 1000, 3)
    assert_same(model.state_dict(), theirs)
    assert remark == "started from timm's resnet18.a1_in1k, channels ordered by importance"


@pytest.mark.parametrize("answers", [True, False])
def test_a_hub_out_of_reach_is_not_waited_for(
    answers: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is asked once, by a port that nobody listens at; the client's pauses would raise."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    asked: list[str] = []

    def head(url: str, *, timeout: float) -> None:
        asked.append(url)
        if not answers:
            raise TimeoutError

    def paused(seconds: float) -> None:
        raise AssertionError(f"it waits for {seconds} s")

    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", paused)
    monkeypatch.setattr("pareco.models.get_session", lambda: SimpleNamespace(head=head))
    with pytest.raises(ValueError, match=r"^network\.pretrained: .* cannot be had here") as refusal:
        create_model("resnet18", num_classes=5, pretrained=True)
    assert ("it waits for" in str(refusal.value)) == answers
    assert asked == [f"http://127.0.0.1:{port}"]
    assert len(str(refusal.value).splitlines()) == 1
    assert not constants.HF_HUB_OFFLINE


def test_timms_weights_that_cannot_be_had_are_one_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*names: Any, **options: Any) -> State:
        raise ConnectionError("no route to host\nat all")

    hub(monkeypatch, unreachable)
    with pytest.raises(ValueError, match=r"^network\.pretrained: timm's weights") as refusal:
        started_model(NetworkConfig(name="resnet18", pretrained=True), 5, 3)
    assert str(refusal.value) == (
        "network.pretrained: timm's weights resnet18.a1_in1k cannot be had here (ConnectionError: "
        "no route to host). Run this once where there is a network, bring the cache of Hugging "
        "Face along, or give a file with network.weights"
    )


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("cifar_resnet8", "timm has no weights of cifar_resnet8. Give a file with network.weights"),
        ("resnet18.best", "timm has no weights of resnet18.best; there are resnet18.a1_in1k, "),
        ("mobilenetv3_large_075", "timm has no weights of mobilenetv3_large_075. Give"),
        ("resnet1", "timm has no weights of resnet1. Give"),
    ],
)
def test_networks_without_weights_of_timms_are_told_so(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=r"^network\.pretrained") as refusal:
        start_known(NetworkConfig(name=name, pretrained=True))
    assert message in str(refusal.value)


def test_contradictions_are_refused_by_their_fields() -> None:
    with pytest.raises(ValueError, match=r"network\.pretrained and network\.weights: give one"):
        NetworkConfig(name="resnet18", pretrained=True, weights="a.pt")
    with pytest.raises(ValueError, match=r"network\.order_channels False is about weights"):
        NetworkConfig(name="resnet18", order_channels=False)
