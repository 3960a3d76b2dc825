"""Modules that run as they are, with all their channels, while the others are slimmed."""

import copy
import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from torch import Tensor, nn

from pareco import FrontNetwork, load, save_bundle
from pareco.cli import main
from pareco.slimmable import TracingError, calibrated_statistics, make_slimmable
from pareco.survey import fault_of
from pareco.training.preparation import initial_network, settled
from pareco.widths import Widths
from tests.experiments import TINY
from tests.slimmable.proofs import assert_proven


class Attention(nn.Module):
    """Attention over positions, with batch norm in it, and a mode of its own as in timm's LeViT."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm, self.qkv = nn.BatchNorm2d(channels), nn.Conv2d(channels, 3 * channels, 1)
        self.bias = nn.Parameter(torch.zeros(1, 16, 16))
        self.cached: Tensor | None = None

    def train(self, mode: bool = True) -> "Attention":
        self.cached = None
        return super().train(mode)

    def forward(self, features: Tensor) -> Tensor:
        queries, keys, values = self.qkv(self.norm(features)).flatten(2).chunk(3, 1)
        if not self.training and self.cached is None:
            self.cached = (2 * self.bias).detach()
        bias = 2 * self.bias if self.training else self.cached
        weights = (queries.transpose(1, 2) @ keys + bias).softmax(-1)
        return (values @ weights).view_as(features)


class Attending(nn.Module):
    """A bottleneck of attention (BoTNet, arXiv 2101.11605) in a residual block."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.narrow = nn.Conv2d(3, 10, 3, stride=2, padding=1), nn.Conv2d(10, 6, 1)
        self.attention, self.wide = Attention(6), nn.Conv2d(6, 10, 1)
        self.norm, self.more, self.last = nn.BatchNorm2d(10), nn.Conv2d(10, 8, 3), nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        attended = self.attention(self.narrow(features).relu())
        features = self.norm(self.wide(attended)) + features
        return self.last(self.more(features.relu()).mean((2, 3)))


def test_attention_keeps_its_channels_and_the_rest_is_slimmed() -> None:
    with pytest.raises(TracingError, match="train"):
        make_slimmable(Attending(), torch.zeros(1, 3, 8, 8))
    net = assert_proven(Attending(), 8, whole=("attention",))
    assert {group.name: group.maximum for group in net.space.groups} == {"stem": 10, "more": 8}
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert other.cost.full_costs == net.cost.full_costs


def test_what_a_whole_module_holds_inside_is_in_the_peak() -> None:
    """By hand, of 4 x 4 positions: while the scores take their softmax.

    288 queries, keys and values and two matrices of 16 x 16 beside 96 inputs of the attention and
    16 positions of each channel of the stem, which the sum needs later.
    """
    net = make_slimmable(Attending(), torch.zeros(2, 3, 8, 8), whole=["attention"])
    held = net.cost.peak_activations([Widths([10, 8]), Widths([5, 8])])
    assert held.tolist() == [288 + 2 * 256 + 96 + 16 * stem for stem in (10, 5)]


class Encoded(nn.Module):
    """Torch's own attention between two convolutions, beside what a test puts there."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.stem, self.inner = nn.Conv2d(3, 8, 3, padding=1), inner
        self.more, self.last = nn.Conv2d(8, 12, 3, padding=1), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.stem(images).flatten(2).transpose(1, 2)
        features = self.inner(tokens).transpose(1, 2).view(-1, 8, 8, 8)
        return self.last(self.more(features).mean((2, 3)))


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_where_torch_would_run_it_at_once(device: str) -> None:
    """By hand: projections, two products of 64 x 64 positions, and two linear layers.

    In evaluation, torch runs all of it as one operation, which its flop counter takes for nothing.
    """
    model = Encoded(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)).to(device)
    net = make_slimmable(model, torch.zeros(1, 3, 8, 8, device=device), whole=["inner"])
    rest = 64 * 27 * 8 + 64 * 72 * 12 + 12 * 4
    encoder = 64 * 8 * 24 + 2 * 64 * 64 * 8 + 64 * 8 * 8 + 2 * 64 * 8 * 16
    assert net.cost.full_costs["macs"] == rest + encoder


class Recurrent(nn.LSTM):
    def forward(self, tokens: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(tokens)[0]


class Remembering(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(8))

    def forward(self, tokens: Tensor) -> Tensor:
        assert isinstance(self.seen, Tensor)
        self.seen.add_(tokens.detach().mean((0, 1)))
        return tokens - self.seen


@pytest.mark.parametrize(
    ("inner", "reason"),
    [
        (Remembering(), "it changes its buffer seen in evaluation"),
        (nn.Sequential(nn.InstanceNorm1d(64, track_running_stats=True)), "no rule for the norm"),
        (Recurrent(8, 8, batch_first=True), "nothing counts what Recurrent takes"),
    ],
)
def test_what_would_be_wrong_within_is_refused(inner: nn.Module, reason: str) -> None:
    """And leaves the model as it was."""
    model = Encoded(inner)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(TracingError, match=reason):
        make_slimmable(model, torch.ones(2, 3, 8, 8), whole=["inner"])
    torch.testing.assert_close(model.state_dict(), before, rtol=0, atol=0)


def test_a_norm_that_is_called_outside_too_is_refused() -> None:
    """Its statistics would be those of two layers."""
    norm = nn.BatchNorm2d(8, affine=False)
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 1), norm, nn.Sequential(nn.Softmax(1), norm)),
        *(
            nn.Conv2d(8, 8, 1),
            nn.Conv2d(8, 8, 1),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 4),
        ),
    )
    with pytest.raises(TracingError, match="called outside of what is whole, too"):
        make_slimmable(model, torch.zeros(1, 3, 4, 4), whole=["2"])


class Transformed(nn.Module):
    """A block of attention and of two pointwise layers around its hidden channels, and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attention = nn.Conv2d(3, 6, 3, stride=2, padding=1), Attention(6)
        self.hidden, self.back = nn.Conv2d(6, 12, 1), nn.Conv2d(12, 6, 1)
        self.head, self.last = nn.Conv2d(6, 9, 1), nn.Linear(9, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images)
        features = features + self.attention(features)
        features = features + self.back(self.hidden(features).relu())
        return self.last(self.head(features).relu().mean((2, 3)))


def test_only_what_feeds_the_scores_alone_is_a_head() -> None:
    """Not what feeds channels that stay for another reason."""
    net = assert_proven(Transformed(), 8, whole=("attention",))
    assert net.space.names == ("hidden",)
    slim = assert_proven(Transformed(), 8, whole=("attention",), slim_head=True)
    assert slim.space.names == ("hidden", "head")


def test_what_has_no_rule_runs_whole_and_what_is_like_it() -> None:
    net = assert_proven(Attending(), 8, whole=("auto",))
    assert net.whole == ("attention",)
    several = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1),
        *(nn.Sequential(Attention(6), nn.Conv2d(6, 6, 1)) for _ in range(2)),
        nn.Conv2d(6, 8, 1),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    )
    image = torch.zeros(1, 3, 4, 4)
    net = make_slimmable(several, image, whole=["auto"])
    assert net.whole == ("1.0", "2.0")
    assert net.space.names == ("2.1",)
    assert make_slimmable(several, image, whole="auto").whole == net.whole
    net = make_slimmable(several, image, whole=["auto", "0"])  # and what is named besides
    assert (net.whole, net.space.names) == (("0", "1.0", "2.0"), ("2.1",))
    with pytest.raises(
        TracingError, match=r"'1\.0': it has a train\(\) of its own.* no free channel"
    ):
        make_slimmable(several[:3], image, whole=["auto"])
    with pytest.raises(TracingError, match=r"'3x': it is no part.* Name"):
        make_slimmable(several, image, whole=["auto", "3x"])
    assert (
        make_slimmable(nn.Sequential(several[0], *several[3:]), image, whole=["auto"]).whole == ()
    )


def test_the_paths_are_what_an_experiment_records(capsys: pytest.CaptureFixture[str]) -> None:
    network = replace(TINY.network, name="halonet26t", base_width=None, whole=("auto",))
    found = settled(replace(TINY, network=network, data=replace(TINY.data, image_size=256)))
    attention = [f"stages.{stage}.1.self_attn" for stage in (2, 3)]
    assert set(attention) <= set(found.network.whole)
    assert settled(found) == found
    assert settled(replace(TINY, network=replace(TINY.network, whole=("auto",)))) == TINY
    assert main(["profile", "halonet26t"]) == 1
    assert "name it, or auto, in whole" in capsys.readouterr().err
    assert main(["profile", "halonet26t", "--whole", "auto", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["whole"] == list(found.network.whole)


def test_norms_in_it_have_statistics_for_each_network() -> None:
    torch.manual_seed(0)
    net = make_slimmable(Attending(), torch.zeros(1, 3, 8, 8), whole=("attention",))
    widths, images = net.space.smallest, torch.randn(16, 3, 8, 8)
    before = {name: each.clone() for name, each in net.named_buffers()}
    statistics = calibrated_statistics(net, widths, [images])
    assert {"attention.norm", "norm"} <= statistics.means.keys()
    with net.train().at(widths):
        net(images)  # trains a narrow network: the full one's statistics stay
    assert all(torch.equal(each, before[name]) for name, each in net.named_buffers())
    plain = net.eval().extract(widths, statistics)
    with net.at(widths, statistics):
        torch.testing.assert_close(plain(images), net(images))
    inner = plain.get_submodule("attention.norm")
    assert torch.equal(inner.running_mean, statistics.means["attention.norm"])  # type: ignore[arg-type]


def test_a_norm_that_two_modules_share_is_counted_once() -> None:
    class Twice(Attending):
        def __init__(self) -> None:
            super().__init__()
            self.again = Attention(6)
            self.again.norm = self.attention.norm

        def forward(self, images: Tensor) -> Tensor:
            attended = self.again(self.attention(self.narrow(self.stem(images))))
            return self.last(self.more(self.wide(attended)).mean((2, 3)))

    net = make_slimmable(Twice(), torch.zeros(1, 3, 8, 8), whole=["attention", "again"])
    widths = net.space.smallest
    expected = sum(each.numel() for each in net.extract(widths).parameters())
    assert int(net.cost.params(widths)) == expected


@pytest.mark.parametrize(
    ("whole", "said"),
    [
        (["attentions"], "'attentions': it is no part"),
        (["attention", "attention.qkv"], r"'attention\.qkv': it is a part of attention"),
    ],
)
def test_wrong_names_are_refused(whole: list[str], said: str) -> None:
    with pytest.raises(TracingError, match=said):
        make_slimmable(Attending(), torch.zeros(1, 3, 8, 8), whole=whole)


def test_a_parameter_that_is_a_sliced_layers_too_is_refused() -> None:
    model = Attending()
    model.attention.qkv.bias = model.more.bias = nn.Parameter(torch.zeros(8))
    model.attention.qkv = nn.Conv2d(6, 18, 1, bias=False)
    model.attention.register_parameter("unused", model.more.bias)
    with pytest.raises(TracingError, match="'attention': a parameter of it is 'more''s, too"):
        make_slimmable(model, torch.zeros(1, 3, 8, 8), whole=["attention"])


def test_a_bundle_and_a_configuration_say_what_is_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    net = make_slimmable(Attending(), torch.zeros(1, 3, 8, 8), whole=["attention"])
    widths, images = net.space.smallest, torch.randn(8, 3, 8, 8)
    statistics = calibrated_statistics(net, widths, [images])
    shipped = FrontNetwork(widths=widths, statistics=statistics, search_loss=1.0)
    path, classes = tmp_path / "attending.pareco", ["a", "b", "c", "d"]
    save_bundle(path, net, [shipped], builder="Attending", image_size=8, classes=classes)
    served = load(path, builder=Attending).for_budget(macs=net.cost.macs_at(widths))
    with net.eval().at(widths, statistics):
        torch.testing.assert_close(served(images), net(images))
    configured = replace(TINY, network=replace(TINY.network, whole=("layer2.0",)))
    names = initial_network(configured, 10, 1, 0).space.names
    assert names == ("layer1.0.conv1", "layer3.0.conv1")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["halonet26t", "lambda_resnet26t", "botnet26t_256"])
def test_networks_of_timm_with_attention_kept_whole(name: str) -> None:
    model = timm.create_model(name, num_classes=10)
    whole = [path for path, _ in model.named_modules() if path.endswith("self_attn")]
    assert not fault_of(model, 256, whole=whole)
