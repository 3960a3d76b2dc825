"""Each operation that a network may use gives the right answer at every width, or is refused."""

import copy
import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torchvision.ops import StochasticDepth, stochastic_depth

from pareco.slimmable import SlimmableNet, TracingError, make_slimmable

Body = Callable[[Any, Any], Any]


def unpacked(x: Any, gate: Any) -> Any:
    """Return the features times their gate, in the words of many squeeze-excite modules."""
    n, c, _, _ = x.size()
    return x * gate(F.adaptive_avg_pool2d(x, 1).view(n, c)).view(n, c, 1, 1)


def unpacked_part(x: Any, gate: Any) -> Any:
    n, c = x.shape[:2]
    h, w = x.shape[-2:]
    return x * gate(x.reshape(n, c, h * w).mean(-1)).view(n, c, 1, 1).expand(n, c, h, w)


def unpacked_rest(x: Any, gate: Any) -> Any:
    h, w = x.size()[2:]
    return x * gate(x.sum((2, 3)) / (h * w)).reshape(-1, 8, 1, 1)


def last(x: Any) -> Any:
    """Return the features with their channels last."""
    return x.permute(0, 2, 3, 1)


class Net(nn.Module):
    """Two convolutions, with 8 channels, then what is tested: scores from these features."""

    def __init__(self, body: Body, **modules: nn.Module) -> None:
        super().__init__()
        self.stem = nn.Sequential(*(nn.Conv2d(inputs, 8, 3, padding=1) for inputs in (3, 8)))
        self.fc, self.body = nn.Linear(8, 4), body
        self.squeeze, self.excite = nn.Linear(8, 2), nn.Linear(2, 8)
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self, self.stem(images))

    def gate(self, pooled: Tensor) -> Tensor:
        """Return factors for the channels, `n x 8`, from pooled features `n x 8`."""
        return self.excite(self.squeeze(pooled).relu()).sigmoid()


def assert_right(model: nn.Module, size: int = 8, images: int = 1) -> SlimmableNet:
    """Check a network at full, smallest and random widths, for one image and for several.

    Against the model itself, the extracted networks and torch's flop counter.
    """
    torch.manual_seed(0)
    model = model.double().eval()
    example = torch.zeros(images, 3, size, size, dtype=torch.double)
    net = make_slimmable(model, example, alpha_min=0.1).eval()
    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(count, 3, size, size, dtype=torch.double) for count in (3, 2)]
    for batch in batches:
        assert torch.equal(net(batch), model(batch))
    for widths in (net.space.smallest, net.space.sample(generator), net.space.sample(generator)):
        plain = net.extract(widths)
        with net.at(widths):
            for batch in (*batches, batches[0][:1]):
                scores = net(batch)
                assert scores.shape[0] == len(batch)
                torch.testing.assert_close(scores, plain(batch))
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(batches[0][:1])
        assert int(net.cost.macs(widths)) == counter.get_total_flops() / 2
        assert int(net.cost.params(widths)) == sum(p.numel() for p in plain.parameters())
    return net


@pytest.mark.parametrize(
    "flattened",
    [
        lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
        lambda x: F.adaptive_avg_pool2d(x, 1).view(-1, 8),
        lambda x: F.adaptive_avg_pool2d(x, (1, 1)).view(x.size(0), 8),
        lambda x: F.adaptive_avg_pool2d(x, 1).view(x.shape[0], x.shape[1]),
        lambda x: F.adaptive_avg_pool2d(x, 1).view(x.shape[:2]),
        lambda x: F.adaptive_avg_pool2d(x, 1).reshape((-1, x.size(1))),
        lambda x: torch.reshape(F.adaptive_avg_pool2d(x, 1), (x.size(0), -1)),
        lambda x: torch.reshape(input=F.adaptive_avg_pool2d(x, 1), shape=(x.size(0), 8)),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(-1).squeeze(-1),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(3).squeeze(2),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze((2, 3)),
        lambda x: F.adaptive_avg_pool2d(x, 1).squeeze(dim=(-1, -2)),
        lambda x: torch.squeeze(F.adaptive_avg_pool2d(x, 1)),
        lambda x: torch.squeeze(input=F.adaptive_avg_pool2d(x, 1), dim=3).squeeze(2),
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, 0, 0],
        lambda x: F.adaptive_avg_pool2d(x, 1)[..., 0, 0],
        lambda x: F.adaptive_avg_pool2d(x, 1)[:, :, -1, 0],
        lambda x: x[:, :, 3, 4],
        lambda x: x[:, :, x.size(2) // 2, 4],
        lambda x: F.avg_pool2d(x, x.size()[2:]).flatten(1),
        lambda x: F.avg_pool2d(input=x, kernel_size=(x.size(2), x.size(3))).flatten(1, -1),
        lambda x: F.avg_pool2d(x, 8).flatten(1, 3),
        lambda x: F.adaptive_max_pool2d(x, 1).flatten(-3),
        lambda x: x.mean([2, 3]),
        lambda x: x.mean(dim=(-1, -2)),
        lambda x: x.mean((2, 3), keepdim=True).flatten(1),
        lambda x: x.mean(3).mean(2),
        lambda x: x.mean(-1).mean(-1),
        lambda x: x.flatten(2).mean(2),
        lambda x: x.flatten(2).amax(-1),
        lambda x: x.view(x.size(0), x.size(1), -1).mean(2),
        lambda x: x.view(-1, 8, 64).mean(-1),
        lambda x: x.reshape(x.shape[0], 8, x.shape[2] * x.shape[3]).mean(dim=-1),
        lambda x: torch.mean(x, (2, 3)),
        lambda x: torch.mean(input=x, dim=(2, 3)),
        lambda x: torch.flatten(input=torch.mean(input=x, dim=(2, 3), keepdim=True), start_dim=1),
        lambda x: x.amax((2, 3)),
        lambda x: torch.amax(input=x, dim=(2, 3)),
        lambda x: x.sum((2, 3)) / 64,
        lambda x: torch.sum(x, dim=[2, 3]) / (x.size(2) * x.size(3)),
        lambda x: x.mean(axis=(2, 3)),
        lambda x: x.unsqueeze(1).mean((1, 3)).mean(2),
        lambda x: x.permute(0, 2, 3, 1).mean((1, 2)),
        lambda x: x.permute((0, 2, 3, 1)).relu().flatten(1, 2).mean(1),
        lambda x: torch.permute(x, dims=(0, 3, 1, 2)).mean(1).mean(2),
        lambda x: x.transpose(1, -1).sum((1, 2)) / (x.size(2) * x.size(3)),
        lambda x: x.permute(0, 2, 3, 1).amax((1, 2), keepdim=True).squeeze(1).squeeze(1),
        lambda x: x.flatten(2).transpose(1, 2).mean(1, keepdim=True).squeeze(),
        lambda x: torch.swapaxes(x.flatten(2), 2, 1).norm(2, 1),
        lambda x: last(x)[:, 0, 0],
        lambda x: last(x).view(x.size(0), 64, 8).mean(1),
        lambda x: x[:, :8].mean((2, 3)),
        lambda x: x.unbind(2)[1].mean(2),
        lambda x: x.split(4, 2)[1].mean((2, 3)),
        lambda x: x.narrow(2, 1, 3).mean((2, 3)),
        lambda x: torch.cat([x, x.relu()], 2).mean((2, 3)),
        lambda x: torch.stack([x, x.relu()], 1).amax(1).mean((2, 3)),
        lambda x: torch.stack([x, x.relu()], -1).sum(-1).mean((2, 3)),
    ],
)
def test_pooled_and_flattened(flattened: Callable[[Any], Any]) -> None:
    assert_right(Net(lambda m, x: m.fc(flattened(x))))


@pytest.mark.parametrize(
    "flattened",
    [
        lambda x: x.flatten(1),
        lambda x: x.view(x.size(0), -1),
        lambda x: x.view(-1, 8 * 16),
        lambda x: x.view(-1, x.size(1) * x.size(2) * x.size(3)),
        lambda x: x.reshape(x.size(0), 128),
        lambda x: x.flatten(2).flatten(1),
        lambda x: x.view(x.size(0), -1, 16).flatten(1),
        lambda x: x.flatten(1).view(x.size(0), 8, 4, 4).relu().flatten(1),
    ],
)
def test_positions_beside_channels(flattened: Callable[[Any], Any]) -> None:
    model = Net(lambda m, x: m.fc(flattened(F.max_pool2d(x, 2))), fc=nn.Linear(128, 4))
    assert assert_right(model).space.maxima == (8, 8)


@pytest.mark.parametrize(
    "gated",
    [
        lambda m, x: unpacked(x, m.gate),
        lambda m, x: unpacked_part(x, m.gate),
        lambda m, x: unpacked_rest(x, m.gate),
        lambda m, x: x * m.gate(x.mean((2, 3))).view(x.size(0), x.size(1), 1, 1),
        lambda m, x: m.gate(x.mean((2, 3))).view(-1, 8, 1, 1) * x,
        lambda m, x: x * m.gate(x.mean((2, 3))).view(x.size(0), -1, 1, 1).expand_as(x),
        lambda m, x: x * m.gate(x.mean((2, 3))).reshape(x.shape[0], 8, 1, 1).expand(x.size()),
        lambda m, x: x * m.gate(x.mean((2, 3)))[:, :, None, None].expand(-1, -1, 8, 8),
        lambda m, x: x * m.gate(x.mean((2, 3)))[..., None, None].expand(x.shape),
        lambda m, x: x.mul(m.gate(x.mean((2, 3))).view(operator.add(x.shape[:2], (1, 1)))),
        lambda m, x: x * m.gate(x.mean((2, 3))).unsqueeze(-1).unsqueeze(-1),
        lambda m, x: x * m.gate(x.mean(2).mean(2)).unsqueeze(2).unsqueeze(3),
        lambda m, x: x * torch.unsqueeze(m.gate(x.mean((2, 3))), dim=2)[:, :, :, None],
        lambda m, x: x * m.gate(F.avg_pool2d(x, x.shape[2:]).squeeze())[:, :, None, None],
        lambda m, x: (
            x
            * m.gate(x.mean(2, keepdim=True).mean(3, keepdim=True)[:, :, 0, 0])
            .view(x.size(0), x.size(1), 1, 1)
            .sigmoid()
        ),
        lambda m, x: (
            x * (m.gate(x.mean((2, 3))) + m.gate(x.amax((2, 3)))).view(x.size(0), x.size(1), 1, 1)
        ),
        lambda m, x: x + m.gate(x.mean((2, 3)))[:, :, None, None],
    ],
)
def test_squeeze_and_excitation(gated: Body) -> None:
    """However it is written: its bottleneck stays, and the gate has the channels of its features.

    Features of 1 x 1 and other batches make no difference.
    """
    model = Net(lambda m, x: m.fc(gated(m, x).mean((2, 3))))
    space = assert_right(copy.deepcopy(model)).space
    assert space.maxima == (8, 8)
    assert make_slimmable(model.float(), torch.zeros(3, 3, 8, 8), alpha_min=0.1).space == space


def test_a_gate_without_batch_or_size() -> None:
    """At 1 x 1, where everything is as small as what is pooled, the groups are the same."""

    def gated(model: Any, x: Tensor) -> Tensor:
        factors = model.gate(x.mean((2, 3))).view(x.size(0), x.size(1), 1, 1)
        return model.fc((x * factors).mean((2, 3)))

    for size in (1, 2, 8):
        assert assert_right(Net(gated), size).space.names == ("stem.0", "stem.1")
    net = make_slimmable(Net(lambda m, x: m.fc(m.gate(x.mean((2, 3))))), torch.zeros(1, 3, 8, 8))
    assert net.space.names == ("stem.0", "stem.1", "squeeze")  # without a gate no bottleneck


@pytest.mark.parametrize(
    "function",
    [
        lambda x: torch.clamp(x, 0, 6),
        lambda x: torch.clamp(input=x, min=-1.0),
        lambda x: x.clamp_(max=1),
        lambda x: torch.clip(x, -1, 1).pow(2),
        lambda x: x * x.sigmoid() - torch.tanh(input=x),
        lambda x: torch.add(input=x, other=F.relu(input=x)),
        lambda x: torch.mul(input=x, other=torch.sigmoid(input=x)),
        lambda x: torch.sub(other=x, input=torch.relu(input=x)),
        lambda x: torch.div(x, 2).abs().sqrt() + torch.exp(-x),
        lambda x: torch.maximum(x, -x),
        lambda x: F.hardswish(input=x) + F.gelu(input=x, approximate="tanh"),
        lambda x: F.leaky_relu(input=x, negative_slope=0.3) + F.elu(input=x) + F.silu(input=x),
        lambda x: F.max_pool2d(input=x, kernel_size=2) + F.avg_pool2d(input=x, kernel_size=2),
        lambda x: torch.max_pool2d(input=x, kernel_size=2),
        lambda x: F.adaptive_avg_pool2d(input=x, output_size=3),
        lambda x: F.interpolate(size=x.shape[2:], input=F.adaptive_max_pool2d(x, 2)),
        lambda x: F.pad(input=x, pad=(1, 1, 1, 1)),
        lambda x: F.pad(pad=(0, 0, 0, 0, 0, 0), input=x),
        lambda x: x.flatten(2).softmax(-1).view(x.size(0), -1, 8, 8) * x,
        lambda x: x.mean(2, keepdim=True) * x.mean(3, keepdim=True),
        lambda x: x[:, :, 1:, ::2],
        lambda x: x[..., : x.size(3) // 2],
        lambda x: x.expand(-1, -1, -1, -1) + x.expand_as(x),
        lambda x: (x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2),
        lambda x: x.permute(0, 3, 1, 2).contiguous().transpose(1, 2).transpose(2, 3),
        lambda x: x.flatten(2).transpose(1, 2).softmax(1).transpose(1, 2).view(x.size(0), -1, 8, 8),
        lambda x: (x.permute(0, 2, 3, 1) / x.permute(0, 2, 3, 1).size(2)).permute(0, 3, 1, 2),
        lambda x: (x - x.mean(1, keepdim=True)) / (1 + x.var(1, unbiased=False, keepdim=True)),
        lambda x: x * x.permute(0, 2, 3, 1).mean(-1, keepdim=True).permute(0, 3, 1, 2),
        lambda x: (
            x / x.norm(dim=1, keepdim=True) + x / torch.linalg.vector_norm(x, 2, (2, 3), True)
        ),
    ],
)
def test_functions_of_features(function: Callable[[Any], Any]) -> None:
    assert_right(Net(lambda m, x: m.fc(function(x).mean((2, 3)))))


def test_modules_called_by_name() -> None:
    modules = {"act": nn.ReLU(), "pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten()}
    modules |= {"norm": nn.BatchNorm2d(8), "conv": nn.Conv2d(8, 8, 1), "drop": nn.Dropout()}

    def body(model: Any, x: Tensor) -> Tensor:
        x = model.act(input=model.norm(input=model.conv(input=x)))
        return model.fc(input=model.drop(input=model.flat(input=model.pool(input=x))))

    assert_right(Net(body, **modules))


@pytest.mark.parametrize(
    "last",
    [
        lambda scores: F.log_softmax(scores, 1),
        lambda scores: F.log_softmax(input=scores, dim=-1),
        lambda scores: F.softmax(scores, dim=1),
        lambda scores: torch.softmax(scores, -1),
        lambda scores: torch.log_softmax(input=scores, dim=1),
        lambda scores: scores.softmax(dim=1),
        lambda scores: scores.log_softmax(-1).clamp(-5, 0),
        nn.LogSoftmax(1),
        nn.Softmax(dim=-1),
    ],
)
def test_a_softmax_over_classes(last: Callable[[Any], Any]) -> None:
    if isinstance(last, nn.Module):
        assert_right(Net(lambda m, x: m.last(m.fc(x.mean((2, 3)))), last=last))
    else:
        assert_right(Net(lambda m, x: last(m.fc(x.mean((2, 3))))))


DROPOUTS = [
    (F.dropout, nn.Dropout(0.5)),
    (F.dropout2d, nn.Dropout2d(0.5)),
    (F.dropout3d, nn.Dropout3d(0.5)),
    (F.alpha_dropout, nn.AlphaDropout(0.5)),
    (F.feature_alpha_dropout, nn.FeatureAlphaDropout(0.5)),
]


@pytest.mark.parametrize(
    ("function", "module"), DROPOUTS, ids=lambda case: getattr(case, "__name__", "")
)
def test_dropout(function: Callable[..., Tensor], module: nn.Module) -> None:
    """As functions and as modules; training drops what torch drops, evaluation nothing."""
    bodies: list[Body] = [
        lambda m, x: m.fc(function(x, 0.5, m.training).mean((2, 3))),
        lambda m, x: m.fc(function(input=x, p=0.5, training=m.training).mean((2, 3))),
        lambda m, x: m.fc(m.drop(x).mean((2, 3))),
    ]
    for body in bodies:
        assert_trains_alike(Net(body, drop=module))


def test_dropout_of_sequences() -> None:
    model = Net(lambda m, x: m.fc(F.dropout1d(x.flatten(2), 0.5, m.training).mean(2)))
    assert_trains_alike(model)


@pytest.mark.parametrize("mode", ["row", "batch"])
def test_stochastic_depth(mode: str) -> None:
    def body(model: Any, x: Tensor) -> Tensor:
        return model.fc((x + model.depth(x.relu())).mean((2, 3)))

    assert_trains_alike(Net(body, depth=StochasticDepth(0.5, mode)))
    assert_trains_alike(
        Net(lambda m, x: m.fc((x + stochastic_depth(x, 0.5, mode, m.training)).mean((2, 3))))
    )


def assert_trains_alike(model: nn.Module) -> None:
    """Check that a network draws in training as the model does, and in evaluation nothing."""
    net = assert_right(model)
    images = torch.ones(4, 3, 8, 8, dtype=torch.double)
    torch.manual_seed(1)
    expected = model.train()(images)
    plain = net.train().extract(net.space.largest)
    for trained in (net, plain):
        torch.manual_seed(1)
        assert torch.equal(trained(images), expected)
    assert not torch.equal(net.eval()(images), expected)


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_before_the_classifier(affine: bool) -> None:
    modules: dict[str, nn.Module] = {"norm": nn.BatchNorm1d(8, affine=affine)}
    assert_right(Net(lambda m, x: m.fc(m.norm(x.mean((2, 3)))), **modules))
    assert_right(Net(lambda m, x: m.fc(m.norm(x.flatten(2)).mean(2)), **modules))
    modules = {"norm": nn.BatchNorm1d(128, affine=affine), "fc": nn.Linear(128, 4)}
    assert_right(Net(lambda m, x: m.fc(m.norm(F.max_pool2d(x, 2).flatten(1))), **modules))


def test_batch_norm_of_a_hidden_layer_and_of_scores() -> None:
    hidden = nn.Sequential(nn.Linear(8, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6))
    net = assert_right(
        Net(
            lambda m, x: m.norm(m.fc(m.hidden(x.mean((2, 3))))),
            hidden=hidden,
            fc=nn.Linear(6, 4),
            norm=nn.BatchNorm1d(4),
        )
    )
    assert net.space.names == ("stem.0", "stem.1", "hidden.0")
    assert [len(layer.running_mean) for layer in net.norms()] == [6, 4]  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda m, x: m.fc(torch.mean(input=x)), "'mean'.*keep the batch and channel"),
        (lambda m, x: m.fc(x.view(*x.shape).mean((2, 3))), "torch.fx cannot trace it.*of its own"),
        (lambda m, x: m.fc(x[:, :, None].relu()[0]), "'getitem_1'.*channels by slices"),
        (lambda m, x: m.fc(torch.flatten(input=x)), "'flatten'.*from 0 to -1.*dimension 1"),
        (lambda m, x: m.fc(x.mean(1).flatten(1)), "'mean'.*keep the batch and channel"),
        (lambda m, x: m.fc(x.mean(())), "'mean'.*keep the batch and channel"),
        (
            lambda m, x: m.fc(F.pad(x.flatten(2), (0, 0, 0, 0, 0, 1)).mean(2)),
            "'pad'.*n x c x h x w",
        ),
        (
            lambda m, x: m.fc(x.view(x.shape[2:] + x.shape[:2]).mean((2, 3))),
            "'view'.*keep the batch",
        ),
        (lambda m, x: m.fc(x.view(x.new_zeros(2, 8).shape)), "'view'|'new_zeros'"),
        (lambda m, x: m.fc(x.mean((1, 2))), "'mean'.*keep the batch and channel"),
        (lambda m, x: m.fc(x.sum(0).mean((1, 2))), "'sum_1'.*keep the batch and chan"),
        (lambda m, x: m.fc(x.amax(-3).flatten(1)), "'amax'.*keep the batch and channel"),
        (lambda m, x: m.fc(x[:, ::2].mean((2, 3))), "'getitem'.*takes channels that are no run"),
        (lambda m, x: m.fc(x[:1].mean((2, 3))), "'getitem'.*part of the batch"),
        (lambda m, x: m.fc(x[:, : x.size(2)].mean((2, 3))), "'getitem'.*size of something else"),
        (lambda m, x: m.fc(x[:, 1:1].mean((2, 3))), "'getitem'.*no run|does not run"),
        (lambda m, x: m.fc(x.unbind(1)[1].mean(2)), "'unbind'.*one by one"),
        (lambda m, x: m.fc(x.split(1)[0].mean((2, 3))), "'split'.*splits the batch"),
        (lambda m, x: m.fc(x.chunk(2, 1)[:1][0].mean((2, 3))), "'getitem'.*by numbers|not run"),
        (lambda m, x: m.fc(x.narrow(1, x.size(1) - 8, 8).mean((2, 3))), "'narrow'.*no number"),
        (lambda m, x: m.fc(torch.cat([x, x], 0).mean((2, 3))), "'cat'.*it joins batches"),
        (lambda m, x: m.fc(torch.stack([x, x]).mean((0, 3, 4))), "'stack'.*it joins batches"),
        (lambda m, x: m.fc(torch.cat(x.chunk(2, 1), 2).mean((2, 3))), "'cat'.*no traced|not run"),
        (lambda m, x: m.fc(torch.cat([x, last(x)], 1).mean((2, 3))), "'cat'.*laid out differently"),
        (
            lambda m, x: m.fc(torch.cat([x, m.one.weight + x], 1)[0]),
            "'getitem'.*channels by slices",
        ),
        (lambda m, x: m.fc(x.view(x.size(0), 4, -1).mean(2)), "'view'.*mixes channels with posit"),
        (lambda m, x: m.fc(x[:, 0]), "'getitem'.*channels by slices"),
        (lambda m, x: m.fc(x[:, [1, 0]]), "'getitem'.*channels by slices"),
        (lambda m, x: m.fc(x[:, None, 0]), "'getitem'.*channels by slices"),
        (lambda m, x: m.fc(x[0]), "'getitem'.*channels by slices"),
        (lambda m, x: m.fc(x[..., x.size(1) - 1, 0]), "'getitem'.*channels by slices"),
        (lambda m, x: m.fc(x[:, :, [0, 1]]), "'getitem'.*channels by slices"),
        (lambda m, x: m.fc(x.view(-1, 8)), "'view'.*keep the batch as it is.*flatten"),
        (lambda m, x: m.fc(x.mean((2, 3)).view(1, 8)), "'view'.*one image alone|does not run"),
        (lambda m, x: m.fc(x.mean((2, 3)).view(8)), "'view'.*one image alone|does not run"),
        (lambda m, x: m.fc(x.view(-1)), "'view'.*a reshape to"),
        (lambda m, x: m.fc(x.view(x.size(0), x.size(2), -1)), "'view'.*mixes channels with posit"),
        (
            lambda m, x: m.fc(x.view(x.size(0), 8, x.size(1), 8).mean((2, 3))),
            "'view'.*whose positions depend on batch or channels",
        ),
        (lambda m, x: m.fc(x.flatten(0, 1)), "'flatten'.*from 0 to 1.*dimension 1"),
        (lambda m, x: m.fc(x.mean((2, 3)).softmax(1)), "'softmax'.*not the classes"),
        (lambda m, x: m.fc(F.softmax(x, 1).mean((2, 3))), "'softmax'.*not the classes"),
        (lambda m, x: m.fc(x.mean((2, 3))).softmax(0), "'softmax'.*over the batch"),
        (lambda m, x: m.fc((x * m.one(x).expand_as(x)).mean((2, 3))), "'expand_as'.*1 and 8 chan"),
        (lambda m, x: m.fc(m.one(x).expand(-1, 8, 8, 8).mean((2, 3))), "'expand'.*expansion from"),
        (lambda m, x: m.fc(x.unsqueeze(0).mean((0, 3))), "'unsqueeze'.*keep the batch and chan"),
        (lambda m, x: m.fc((x @ x).mean((2, 3))), "'matmul'.*none of features by weights"),
        (lambda m, x: m.fc((x @ m.one(x)).mean((2, 3))), "'matmul'.*none of features by weights"),
        (lambda m, x: m.fc((m.one(x) @ x).mean((2, 3))), "'matmul'.*none of features by weights"),
        (lambda m, x: m.fc((last(x) @ last(m.one(x))).mean((1, 2))), "'matmul'|not run"),
        (lambda m, x: m.fc(x.squeeze(1).mean((2, 3))), "'squeeze'.*keep the batch and channel"),
        (lambda m, x: m.one(x).mean((2, 3)).squeeze(), "'squeeze'.*takes away the batch or chan"),
        (lambda m, x: m.fc((last(x) / last(x).size(3)).mean((1, 2))), "'truediv'.*not a traced"),
        (lambda m, x: m.fc((last(x) * last(x).shape[-1]).mean((1, 2))), "'mul'.*not a traced"),
        (lambda m, x: m.fc((last(x) + x).mean((1, 2))), "'add'.*laid out differently"),
        (lambda m, x: m.fc((last(x) + m.one(x)).mean((1, 2))), "'add'.*laid out differently"),
        (lambda m, x: m.fc(last(x).softmax(-1).mean((1, 2))), "'softmax'.*not the classes"),
        (lambda m, x: m.fc(last(x).expand(-1, 8, 8, 8).mean((1, 2))), "'expand'.*are dimension 3"),
        (lambda m, x: m.fc(F.avg_pool2d(last(x), 1).mean((1, 2))), "'avg_pool2d'.*are dimension 3"),
        (lambda m, x: m.fc(F.pad(last(x), (0, 0, 1, 1)).mean((1, 2))), "'pad'.*are dimension 3"),
        (lambda m, x: m.fc(m.one(last(x)).flatten(1)), "'one'.*are dimension 3"),
        (lambda m, x: m.fc(last(x).mean((1, 3))), "'mean'.*keep the batch and channel"),
        (lambda m, x: m.fc(x.permute(1, 0, 2, 3).mean((2, 3))), "'permute'.*Keep the batch"),
        (lambda m, x: m.fc(x.permute(1, 2, 0, 3).mean((1, 2))), "'permute'.*Keep the batch"),
        (lambda m, x: m.fc(x.transpose(0, 1).mean((2, 3))), "'transpose'.*Keep the batch"),
        (lambda m, x: m.fc(x.transpose(1, 2).mean((2, 3))), "'mean'.*keep the batch and channel"),
        (lambda m, x: m.fc(x.mean((2, 3)) * x.mean((2, 3)).sum()), "'sum_1'.*keep the batch"),
        (lambda m, x: m.fc(x.mean((2, 3)) + x[:, :, :1, :]), "laid out differently"),
        (lambda m, x: m.fc(x.mean((2, 3)) / x.size(1)), "'truediv'.*not a traced tensor or a numb"),
        (lambda m, x: m.fc(F.pad(x.flatten(2), (0, 0, 4, 4)).mean(2)), "'pad'.*batch and channel"),
        (lambda m, x: m.fc(F.max_pool2d(x.flatten(2), 2).mean(2)), "'max_pool2d'.*n x c x h x w"),
        (lambda m, x: m.fc(x.flatten(2).mean(2, True)), "'fc'.*flattened|does not run"),
        (lambda m, x: m.fc(x.mean(3)), "'fc'.*flattened features"),
        (lambda m, x: m.fc(x.view(x.size(0), 8, 64)[:, :, :8]), "'fc'.*flattened features"),
    ],
)
def test_refused(body: Body, message: str) -> None:
    """By the node that is the cause, for one image or several; the message says what helps."""
    for count in (1, 3):
        with pytest.raises(TracingError, match=message):
            make_slimmable(Net(body, one=nn.Conv2d(8, 1, 1)), torch.zeros(count, 3, 8, 8))
