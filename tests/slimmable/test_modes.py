"""What a network does in training is kept, in its slimmable form and when extracted, or refused."""

import random
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.layers.drop import drop_path
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from pareco.slimmable import SlimmableNet, TracingError, make_slimmable
from tests.slimmable.test_tracing import IMAGE, Net, assert_same_gradients

Body = Callable[..., Tensor]


def seeded(model: nn.Module, images: Tensor, seed: int) -> Tensor:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - what the modules below draw from
    torch.manual_seed(seed)
    return model(images)


def assert_same_in_both_modes(model: nn.Module, *, noisy: bool = True) -> SlimmableNet:
    """Check the outputs of a slimmable network against its model and its extracted networks."""
    torch.manual_seed(0)
    images = torch.rand(4, 3, 16, 16)
    nets = [make_slimmable(model.train(mode), IMAGE, alpha_min=0.2) for mode in (False, True)]
    assert [net.training for net in nets] == [False, True]
    for net in nets:
        for mode in (True, False):
            model.train(mode)
            net.train(mode)
            assert_same_gradients(model, net, images)
            narrow = net.extract(net.space.smallest)
            for seed in range(4):
                assert torch.equal(seeded(net, images, seed), seeded(model, images, seed))
                with net.at(net.space.smallest):
                    torch.testing.assert_close(
                        seeded(net, images, seed), seeded(narrow, images, seed)
                    )
            first, *others = (seeded(net, images, seed) for seed in range(4))
            varies = any(not torch.equal(each, first) for each in others)
            assert varies == (mode and noisy)
    return nets[0]


class MyDepth(nn.Module):
    """Stochastic depth as one writes it oneself."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        mask = torch.rand(x.shape[0], 1, 1, 1, device=x.device) < 0.5
        return 2 * x * mask


class TraceableDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (
            x if not self.training else 2 * x * x.new_empty((x.shape[0], 1, 1, 1)).bernoulli_(0.5)
        )


class PythonCoin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training and random.random() < 0.5:
            return x * 0
        return F.relu(x)


class NumpyCoin(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * float(np.random.rand()) if self.training else x  # noqa: NPY002


class Noise(nn.Module):
    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return x + scale * torch.randn_like(x) if self.training else x


class Inside(nn.Module):
    """A module with parameters around one that acts by its mode."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.conv, self.inner = nn.Conv2d(8, 8, 3, padding=1), inner

    def forward(self, x: Tensor) -> Tensor:
        return x + self.inner(self.conv(x))


class Calls(Inside):
    """Functions of this file, in a module with parameters."""

    def __init__(self, body: Body) -> None:
        super().__init__(nn.Identity())
        self.body = body

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


@pytest.mark.parametrize("part", [MyDepth, TraceableDepth, PythonCoin, NumpyCoin, Noise])
def test_own_modules_without_parameters_are_kept_whole(part: type[nn.Module]) -> None:
    net = assert_same_in_both_modes(Net(lambda m, x: m.part(x), part=part()))
    assert type(net.get_submodule("part")) is part
    blocks = nn.Sequential(Inside(part()), Inside(part()))
    assert_same_in_both_modes(Net(lambda m, x: m.blocks(x), blocks=blocks))


def test_a_kept_module_may_be_told_more_and_called_again() -> None:
    part = Noise()
    assert_same_in_both_modes(Net(lambda m, x: m.part(m.part(x, 0.1), scale=0.2), part=part))


@pytest.mark.parametrize(
    "body",
    [
        lambda m, x: F.dropout(x, 0.5, m.training),
        lambda m, x: F.dropout(x, training=m.training),
        lambda m, x: F.dropout(input=x, p=0.3, training=m.training),
        lambda m, x: F.dropout(x, 0.5, m.training, True),
        lambda m, x: F.dropout2d(x, 0.5, m.training),
        lambda m, x: F.alpha_dropout(x, 0.5, m.training),
        lambda m, x: F.feature_alpha_dropout(x, 0.5, m.training),
        lambda m, x: drop_path(x, 0.5, m.training),
        lambda m, x: x + drop_path(m.conv(x), 0.5, m.training, scale_by_keep=False),
        lambda m, x: x + stochastic_depth(m.conv(x), 0.5, "batch", m.training),
        lambda m, x: F.dropout(m.conv(x), 0.5) + x if m.training else m.conv(x) + x,
        lambda m, x: F.dropout(F.dropout(x, 0.2, m.training) if m.training else x, 0.5, m.training),
    ],
)
def test_functions_that_are_told_the_mode_follow_it(body: Body) -> None:
    assert_same_in_both_modes(Net(lambda m, x: m.part(x), part=Calls(body)))


def test_functions_that_never_act_are_nothing() -> None:
    model = Net(lambda m, x: F.dropout(x, 0.5, False) + F.alpha_dropout(x, 0.5))
    net = assert_same_in_both_modes(model, noisy=False)
    assert not any(isinstance(each, nn.Dropout) for each in net.modules())


def two_constants(m: Calls, x: Tensor) -> Tensor:
    """Only the second one is added in both modes: torch.fx numbers them."""
    torch.ones(8, 1, 1)
    return x + torch.ones(8, 1, 1)


def functional(m: nn.Module, x: Tensor) -> Tensor:
    return F.batch_norm(x, m.p.running_mean, m.p.running_var, training=m.training)  # type: ignore


class Auxiliary(Net):
    """A second head in training, as GoogLeNet's."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | Tensor:  # type: ignore[override]
        features = self.stem(images)
        scores = self.fc(features.mean((2, 3)))
        return (scores, self.fc(features.amax((2, 3)))) if self.training else scores


class Scaled(Inside):
    """Parameters, and another computation in training."""

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(self.conv(x)) * (2.0 if self.training else 1.0)


class Skips(Inside):
    """Stochastic depth whose coin is thrown in a module with parameters."""

    def forward(self, x: Tensor) -> Tensor:
        return x if self.training and torch.rand(1).item() < 0.5 else x + self.conv(x)


class Averages(nn.Module):
    """In training it mixes channels."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean((1, 2, 3), keepdim=True) if self.training else x


class EightChannels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x * torch.ones(1, 8, 1, 1) if self.training else x


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[:, :, ::2, ::2] if self.training else x


class Convolves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        kernel = x.new_ones((x.shape[1], 1, 3, 3)) if self.training else None
        return x if kernel is None else F.conv2d(x, kernel, padding=1, groups=x.shape[1])


class TwoTensors(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y if self.training else x


class WithBuffer(MyDepth):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("rate", torch.tensor(0.5))


@pytest.mark.parametrize(
    ("model", "node", "message"),
    [
        (Auxiliary(lambda m, x: x), "Auxiliary", "other things in training.*DropPath"),
        (
            Net(functional, p=nn.BatchNorm2d(8)),
            "Net",
            r"it calls torch.nn.functional.batch_norm, .* Make it a module, nn.BatchNorm1d, 2d",
        ),
        (Net(lambda m, x: m.p(x), p=Scaled(nn.ReLU())), "p", "other things in training"),
        (
            Net(lambda m, x: m.p(x), p=Calls(lambda m, x: x + torch.full((1,), 1.0 + m.training))),
            "p",
            "other things in training",
        ),
        (
            Net(lambda m, x: m.p(x), p=Calls(lambda m, x: x + torch.ones(1))),
            "_tensor_constant0 in p",
            "a tensor that is no parameter or buffer.*register_buffer",
        ),
        (
            Net(lambda m, x: m.p(x), p=Calls(two_constants)),
            "_tensor_constant0 in p",
            "a tensor that is no parameter or buffer.*register_buffer",
        ),
        (Net(lambda m, x: m.p(x), p=Skips(nn.ReLU())), "p", "draws random numbers"),
        (Net(lambda m, x: m.p(x), p=Inside(WithBuffer())), "p.inner", "in training, torch.fx"),
        (Net(lambda m, x: m.p(x), p=Averages()), "p", "mixes channels.*each channel by itself"),
        (Net(lambda m, x: m.p(x), p=EightChannels()), "p", "with 4 channels it fails"),
        (Net(lambda m, x: m.p(x), p=Halves()), "p", "not keep the shape"),
        (Net(lambda m, x: m.p(x), p=Convolves()), "p", "convolves"),
        (Net(lambda m, x: m.p(x, m.c(x)), p=TwoTensors(), c=nn.Conv2d(8, 8, 1)), "p", "one tensor"),
        (
            Net(lambda m, x: F.dropout(x)),
            "dropout",
            "act in evaluation too.*training=self.training",
        ),
        (
            Net(lambda m, x: F.dropout(x, training=not m.training)),
            "Net",
            "other things in training",
        ),
        (Net(lambda m, x: F.rrelu(x, training=m.training)), "Net", "other things in training"),
        (Net(lambda m, x: F.dropout(x, 0.1 * x.shape[1], m.training)), "dropout", "rate.*number"),
    ],
)
def test_other_differences_are_refused_by_name(model: nn.Module, node: str, message: str) -> None:
    for mode in (True, False):
        with pytest.raises(TracingError, match=message) as refusal:
            make_slimmable(model.train(mode), IMAGE)
        assert refusal.value.node == node


@pytest.mark.parametrize("mode", [True, False])
def test_a_network_for_one_image_is_refused_alike_in_both_modes(mode: bool) -> None:
    def body(m: Net, x: Tensor) -> Tensor:
        x = F.dropout(x.mean((2, 3)), 0.5, m.training)
        return m.get_submodule("norm")(x).view(1, 8)  # in training, the norm fails on one

    model = Net(body, flat=True, norm=nn.BatchNorm1d(8)).train(mode)
    before = torch.get_rng_state()
    with pytest.raises(TracingError, match="'view': it runs on one image alone"):
        make_slimmable(model, IMAGE)
    assert torch.equal(torch.get_rng_state(), before)


class AnyDepth(nn.Module):
    """Stochastic depth of images, sequences and vectors."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return 2 * x * (torch.rand(len(x), *[1] * (x.dim() - 1)) < 0.5)


@pytest.mark.parametrize(
    ("body", "features"),
    [
        (lambda m, x: m.part(x.flatten(2)).mean(2), 8),
        (lambda m, x: m.part(x.mean((2, 3))), 8),
        (lambda m, x: m.part(F.max_pool2d(x, 8).flatten(1)), 32),
        (lambda m, x: F.dropout(x.view(x.size(0), x.size(1), -1), 0.5, m.training).mean(2), 8),
        (lambda m, x: F.dropout1d(x.flatten(2), 0.5, m.training).mean(2), 8),
    ],
)
def test_modes_of_sequences_and_vectors(body: Body, features: int) -> None:
    assert_same_in_both_modes(Net(body, features, flat=True, part=AnyDepth()))


def test_what_is_kept_whole_is_not_to_blame_for_a_later_failure() -> None:
    model = Net(lambda m, x: m.part(x.mean((2, 3))).view(1, 8), flat=True, part=AnyDepth())
    with pytest.raises(TracingError, match="'view': it runs on one image alone"):
        make_slimmable(model, IMAGE)


def test_making_a_network_slimmable_draws_nothing() -> None:
    model = Net(lambda m, x: m.part(F.dropout(x, 0.5, m.training)), part=PythonCoin())
    before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())  # noqa: NPY002
    make_slimmable(model, IMAGE)
    assert torch.equal(torch.get_rng_state(), before[0])
    assert (random.getstate(), repr(np.random.get_state())) == before[1:]  # noqa: NPY002


def test_each_module_keeps_its_mode() -> None:
    parts = nn.Sequential(nn.BatchNorm2d(8), Inside(nn.BatchNorm2d(8)), nn.Dropout(), MyDepth())
    model = Net(lambda m, x: m.parts(F.dropout(x, 0.5, m.training)), parts=parts).train()
    for name in ("parts.0", "parts.1.inner", "parts.2"):
        model.get_submodule(name).eval()
    modes = {name: module.training for name, module in model.named_modules()}
    net = make_slimmable(model, IMAGE)
    assert {name: module.training for name, module in model.named_modules()} == modes
    for made in (net, net.extract(net.space.largest), net.extract(net.space.smallest)):
        found = {name: module.training for name, module in made.named_modules()}
        assert found == {**modes, "dropout": True}


def test_a_frozen_batch_norm_normalizes_by_its_statistics() -> None:
    model = Net(lambda m, x: m.norm(x), norm=nn.BatchNorm2d(8)).train()
    nn.init.normal_(model.norm.running_mean)  # type: ignore[arg-type]
    model.norm.eval()  # type: ignore[operator]
    net, images = make_slimmable(model, IMAGE, alpha_min=0.2), torch.randn(4, 3, 16, 16)
    assert torch.equal(net(images), model(images))
    assert torch.equal(net.get_buffer("norm.running_mean"), model.get_buffer("norm.running_mean"))
    with net.at(net.space.smallest):
        torch.testing.assert_close(net(images), net.extract(net.space.smallest)(images))


def assert_follows(model: nn.Module, *frozen: str) -> SlimmableNet:
    """Check a network, and what is extracted, when only these modules are in evaluation."""
    net = make_slimmable(model, IMAGE)
    plain, images = net.extract(net.space.largest), torch.rand(4, 3, 16, 16)
    for each in (model, net, plain):
        each.train()
        for name in frozen:
            each.get_submodule(name).eval()
    for seed in range(4):
        scores = seeded(model, images, seed)
        assert torch.equal(seeded(net, images, seed), scores)
        assert torch.equal(seeded(plain, images, seed), scores)
    return net


@pytest.mark.parametrize("frozen", [(), ("part",), ("part.inner",), ("part", "part.inner")])
def test_functions_follow_the_module_that_they_are_told_of(frozen: tuple[str, ...]) -> None:
    def body(m: Calls, x: Tensor) -> Tensor:
        x = F.dropout(x, 0.5, m.training)
        return F.dropout2d(m.inner(m.conv(x)), 0.5, training=m.inner.training)

    model = Net(lambda m, x: m.part(F.dropout(x, 0.1, m.training)), part=Calls(body))
    model.get_submodule("part").inner = nn.Sequential(nn.ReLU())
    net = assert_follows(model, *frozen)
    added = set(dict(net.named_modules())) - set(dict(model.named_modules()))
    assert added == {"dropout", "part.dropout_1", "part.inner.dropout2d"}


def test_a_module_that_runs_twice_is_frozen_with_all_that_it_drops() -> None:
    part = Calls(lambda m, x: F.dropout(m.conv(x), 0.5, m.training))
    net = assert_follows(Net(lambda m, x: m.part(m.part(x)), part=part), "part")
    assert [type(each) for each in net.part.children()].count(nn.Dropout) == 2  # type: ignore[union-attr]


def test_a_function_that_follows_a_layer_is_refused() -> None:
    part = Calls(lambda m, x: F.dropout(m.conv(x), 0.5, m.conv.training))
    with pytest.raises(TracingError, match=r"follows the mode of the layer 'part.conv'"):
        make_slimmable(Net(lambda m, x: m.part(x), part=part), IMAGE)


def test_a_module_that_changes_modes_when_it_runs_is_refused() -> None:
    part = Calls(lambda m, x: m.conv.eval()(x))
    with pytest.raises(TracingError, match=r"'part.conv': it changes its attribute 'training'"):
        make_slimmable(Net(lambda m, x: m.part(x), part=part), IMAGE)
