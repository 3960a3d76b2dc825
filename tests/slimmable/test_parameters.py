"""Parameters are counted once and sliced; tied and frozen ones stay so."""

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from pareco.slimmable import SlimmableNet, TracingError, calibrated_statistics, make_slimmable
from pareco.widths import Widths
from tests.conftest import named_model, shapes_only
from tests.slimmable.proofs import assert_proven
from tests.slimmable.test_tracing import IMAGE, Net, assert_slims


def assert_counts(net: SlimmableNet) -> None:
    generator = torch.Generator().manual_seed(0)
    for widths in (net.space.largest, net.space.smallest, net.space.sample(generator)):
        plain = net.extract(widths)
        assert int(net.cost.params(widths)) == sum(p.numel() for p in plain.parameters())


def conv(inputs: int = 8, outputs: int = 8, kernel: int = 3, **options) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, **options)


def depthwise() -> nn.Conv2d:
    return conv(groups=8)


def tied(*paths: str, **modules: nn.Module) -> Net:
    """Return a network that runs these modules in turn; each path is tied to the first one."""
    model = Net(lambda m, x: m.parts(x), parts=nn.Sequential())
    for name, module in modules.items():
        model.get_submodule("parts").add_module(name, module)
    first = model.get_parameter(f"parts.{paths[0]}")
    for path in paths[1:]:
        name, _, kind = path.rpartition(".")
        setattr(model.get_submodule(f"parts.{name}"), kind, first)
    return model


TIED = {
    "convolutions": lambda: tied(
        "a.weight", "b.weight", a=conv(), norm=nn.BatchNorm2d(8), b=conv()
    ),
    "three": lambda: tied("a.weight", "b.weight", "c.weight", a=conv(), b=conv(), c=conv()),
    "depthwise": lambda: tied("a.weight", "b.weight", a=depthwise(), c=conv(), b=depthwise()),
    "biases": lambda: tied("a.bias", "b.bias", a=conv(), c=conv(8, 12), b=conv(12, 8, 1)),
    "norms": lambda: tied(
        "n.weight", "k.weight", n=nn.BatchNorm2d(8), a=conv(), k=nn.BatchNorm2d(8)
    ),
    "bias and norm": lambda: tied("a.bias", "n.bias", a=conv(), n=nn.BatchNorm2d(8)),
    "weight and bias": lambda: tied("n.weight", "n.bias", n=nn.BatchNorm2d(8)),
    "slopes": lambda: tied("a.weight", "b.weight", a=nn.PReLU(), c=conv(8, 8), b=nn.PReLU()),
}


@pytest.mark.parametrize("case", TIED)
def test_tied_parameters_are_counted_once_and_stay_tied(case: str) -> None:
    model = TIED[case]()
    own, every = sum(p.numel() for p in model.parameters()), dict(model.named_parameters())
    net = assert_slims(model)
    assert int(net.cost.params(net.space.largest)) == own
    assert_counts(net)
    for made in (net, copy.deepcopy(net), net.extract(net.space.smallest)):
        assert dict(made.named_parameters()).keys() == every.keys()
        assert made.state_dict().keys() == model.state_dict().keys()
    assert_trains_alike(net, model.train())


def assert_trains_alike(net: SlimmableNet, model: nn.Module) -> None:
    """Check two steps at full width, and one that moves a tie at the smallest widths."""
    images, labels = torch.rand(4, 3, 16, 16, dtype=torch.double), torch.arange(4)
    narrow = net.train().extract(net.space.smallest)

    def step(each: nn.Module) -> None:
        optimizer = torch.optim.SGD(each.parameters(), 0.1)
        nn.functional.cross_entropy(each(images), labels).backward()
        optimizer.step()

    with net.at(net.space.smallest):
        twin = copy.deepcopy(net)
    step(twin)
    step(narrow)
    found = twin.extract(net.space.smallest).state_dict()
    for name, parameter in narrow.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), msg=name)
    for _ in range(2):
        step(net)
        step(model)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(net.state_dict()[name], parameter.detach(), msg=name)


def test_a_tie_ties_the_channels_on_both_sides() -> None:
    model = tied("a.weight", "b.weight", a=conv(), e=conv(8, 12, 1), f=conv(12, 8, 1), b=conv())
    net = assert_slims(model)
    assert net.space.names == ("stem", "parts.a", "parts.e")
    model = Net(lambda m, x: m.f(m.b(m.e(m.a(x)))), a=conv(), e=conv(), b=conv(), f=conv())
    assert make_slimmable(model, IMAGE).space.names == ("stem", "a", "e", "b", "f")
    model.get_submodule("b").weight = model.get_submodule("a").weight
    net = assert_slims(model)
    assert net.space.names == ("stem", "a", "f")


def test_parameters_in_one_vector_are_no_tie() -> None:
    model = Net(lambda m, x: m.b(m.a(x)), a=conv(), b=conv())
    vector = nn.utils.parameters_to_vector(model.parameters()).detach()
    nn.utils.vector_to_parameters(vector, model.parameters())
    net = make_slimmable(model, IMAGE)
    assert int(net.cost.params(net.space.largest)) == len(vector)
    assert_counts(net)


def test_a_tie_of_two_kinds_of_layers_is_refused() -> None:
    model = tied("a.weight", "b.weight", c=conv(8, 1), a=conv(1, 8), b=depthwise())
    with pytest.raises(TracingError, match=r"'parts.b': convolution and grouped .*'parts.a'"):
        make_slimmable(model, IMAGE)


def test_tied_linear_layers_on_features_beside_positions() -> None:
    """The features of the first are four for each channel of the stem: so are those it puts out."""
    head = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.Linear(32, 32), nn.Linear(32, 32))
    model = Net(lambda m, x: m.head(x), 32, flat=True, head=head)
    model.get_submodule("head.3").weight = model.get_parameter("head.2.weight")
    net = assert_slims(model)
    assert net.space.maxima == (8,)
    assert net.extract(net.space.decode([0.5])).get_parameter("head.3.weight").shape == (16, 16)
    assert_counts(net)


def test_tied_norms_stay_tied_where_sub_networks_have_their_own() -> None:
    net = make_slimmable(TIED["norms"](), IMAGE)
    net.privatize_norm([net.space.smallest])
    first, second = (net.get_parameter(f"parts.{name}.weight_switch0") for name in "nk")
    assert first is second
    assert_counts(net)


class SharesAModule(nn.Module):
    """One norm under two names, as where a block is given the layer of another."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(conv(3, 8), nn.BatchNorm2d(8), nn.ReLU())
        self.second = nn.Sequential(conv(), self.first[1], self.first[2])
        self.fc = nn.Linear(8, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.second(self.first(images)).mean((2, 3)))


def test_one_module_under_two_names_keeps_both() -> None:
    model = SharesAModule()
    net = assert_slims(model)
    for made in (net, copy.deepcopy(net), net.extract(net.space.smallest)):
        assert made.state_dict().keys() == model.state_dict().keys()
        assert made.get_submodule("first.1") is made.get_submodule("second.1")
    net.load_state_dict(model.state_dict())
    model.load_state_dict(net.state_dict())
    assert_counts(net)


@pytest.mark.parametrize(
    ("parts", "slopes"),
    [
        ([nn.PReLU()], 1),
        ([nn.PReLU(8)], 8),
        ([nn.PReLU(8), conv(), nn.PReLU(8), nn.BatchNorm2d(8)], 16 + 8 * 72 + 8 + 16),
    ],
)
def test_slopes_are_counted_and_sliced(parts: list[nn.Module], slopes: int) -> None:
    for index, part in enumerate(parts):
        if isinstance(part, nn.PReLU):
            nn.init.uniform_(part.weight, index, index + 1)
    net = assert_slims(Net(lambda m, x: m.parts(x), parts=nn.Sequential(*parts)))
    assert int(net.cost.params(net.space.largest)) == slopes + 8 * 27 + 8 + 8 * 4 + 4
    assert_counts(net)


def test_slopes_of_flattened_features() -> None:
    head = nn.Sequential(nn.AvgPool2d(8), nn.Flatten(), nn.PReLU(32), nn.Linear(32, 12))
    head.append(nn.PReLU(12))
    nn.init.uniform_(head.get_parameter("2.weight"))
    net = assert_slims(Net(lambda m, x: m.head(x), 12, flat=True, head=head))
    plain = net.extract(Widths((5,)))
    assert plain.get_parameter("head.2.weight").shape == (20,)
    assert plain.get_parameter("head.4.weight").shape == (12,)
    assert_counts(net)


def test_one_slope_in_many_places_ties_no_channels() -> None:
    act = nn.PReLU()
    model = Net(lambda m, x: m.act(m.b(m.act(m.a(m.act(x))))), act=act, a=conv(8, 12), b=conv(12))
    net = assert_slims(model)
    assert len(net.space.groups) == 3
    assert int(net.cost.params(net.space.largest)) == sum(p.numel() for p in model.parameters())
    assert_counts(net)


def test_slopes_per_channel_in_two_places_tie_these() -> None:
    model = Net(lambda m, x: m.act(m.b(m.act(m.a(x)))), act=nn.PReLU(8), a=conv(), b=conv())
    net = assert_slims(model)
    assert net.space.names == ("stem", "a")
    assert_counts(net)


def test_frozen_parameters_stay_frozen() -> None:
    parts = nn.Sequential(nn.BatchNorm2d(8), conv(), nn.PReLU(8))
    model = Net(lambda m, x: m.parts(x), parts=parts)
    frozen = {"stem.weight", "parts.0.weight", "parts.1.bias", "parts.2.weight", "fc.bias"}
    for name in frozen:
        model.get_parameter(name).requires_grad_(False)
    net = make_slimmable(model, IMAGE)
    net.privatize_norm([net.space.smallest])
    for made in (net, net.extract(net.space.largest), net.extract(net.space.smallest)):
        found = {name for name, p in made.named_parameters() if not p.requires_grad}
        assert found - {"parts.0.weight_switch0"} == frozen
    assert not net.get_parameter("parts.0.weight_switch0").requires_grad
    assert net.get_parameter("parts.0.bias_switch0").requires_grad
    scores = net(torch.rand(2, 3, 16, 16))
    scores.sum().backward()
    assert {name for name, p in net.named_parameters() if p.grad is None} >= frozen
    calibrated_statistics(net, net.space.smallest, [torch.rand(2, 3, 16, 16)])


def norms_of_vectors() -> Net:
    """Return a network with norms of sequences and of vectors, two of them with one weight."""

    def body(m: Net, x: Tensor) -> Tensor:
        sequences = m.get_submodule("n")(x.flatten(2))
        return m.get_submodule("parts")(sequences.mean(2))

    a, b = nn.BatchNorm1d(8), nn.BatchNorm1d(8)
    b.weight = a.weight
    parts = nn.Sequential(a, nn.PReLU(8), nn.Linear(8, 8), b)
    return Net(body, flat=True, n=nn.BatchNorm1d(8), parts=parts)


def test_norms_of_vectors_are_tied_and_train_as_those_of_images_do() -> None:
    model = norms_of_vectors()
    net = assert_slims(model)
    assert net.space.names == ("stem",)
    assert int(net.cost.params(net.space.largest)) == sum(p.numel() for p in model.parameters())
    assert_counts(net)
    assert_trains_alike(net, model.train())


def test_norms_of_vectors_keep_mode_and_grad_and_may_be_private() -> None:
    model = norms_of_vectors().train()
    model.get_submodule("n").eval()
    nn.init.normal_(model.get_buffer("n.running_mean"))
    model.get_parameter("parts.0.bias").requires_grad_(False)
    images, net = torch.randn(4, 3, 16, 16), make_slimmable(model, IMAGE, alpha_min=0.2)
    assert torch.equal(net(images), model(images))
    net.privatize_norm([net.space.smallest])
    assert net.get_parameter("parts.0.weight_switch0") is net.get_parameter(
        "parts.3.weight_switch0"
    )
    assert not net.get_parameter("parts.0.bias_switch0").requires_grad
    with torch.no_grad():
        net.get_parameter("parts.0.weight_switch0").mul_(2)
    plain = net.extract(net.space.smallest)
    for made in (net, plain, copy.deepcopy(net)):
        assert [name for name, m in made.named_modules() if not m.training] == ["n"]
    assert not plain.get_parameter("parts.0.bias").requires_grad
    with net.at(net.space.smallest):
        torch.testing.assert_close(net(images), plain(images))
    assert_counts(net)


def test_a_hook_on_a_norm_of_vectors_is_refused() -> None:
    model = norms_of_vectors()
    model.get_submodule("parts.0").register_forward_hook(print)
    with pytest.raises(TracingError, match=r"'parts.0': it has a hook"):
        make_slimmable(model, IMAGE)


class PartlyUnused(nn.Module):
    """Parts that do not run, before and between those that do."""

    def __init__(self) -> None:
        super().__init__()
        self.idle = nn.Parameter(torch.ones(3))
        self.register_buffer("epoch", torch.zeros(1))
        self.register_buffer("scratch", torch.zeros(1), persistent=False)
        self.auxiliary = nn.Sequential(conv(), nn.BatchNorm2d(8), nn.Sequential())
        self.fc = nn.Linear(8, 4)  # registered before what it runs after
        self.blocks = nn.ModuleDict({"b": conv(), "unused": conv(), "a": conv()})
        self.blocks.scale = nn.Parameter(torch.ones(2))
        self.stem = conv(3, 8)
        self.alias = self.auxiliary

    def forward(self, images: Tensor) -> Tensor:
        x = self.blocks["b"](self.blocks["a"](self.stem(images)))
        return self.fc(x.mean((2, 3)))


def test_what_does_not_run_is_kept_in_its_place() -> None:
    model = PartlyUnused()
    net = assert_slims(model)
    for made in (net, copy.deepcopy(net)):
        assert list(made.state_dict()) == list(model.state_dict())
        assert [name for name, _ in made.named_parameters()] == [
            name for name, _ in model.named_parameters()
        ]
        assert [name for name, _ in made.named_buffers()] == [
            name for name, _ in model.named_buffers()
        ]
        made.load_state_dict(model.state_dict())
    assert net.to(torch.float32).get_parameter("idle").dtype == torch.float32


def test_what_does_not_run_is_not_counted_and_not_extracted() -> None:
    model = PartlyUnused()
    net = make_slimmable(model, IMAGE)
    assert net.space.names == ("stem", "blocks.a", "blocks.b")
    assert_counts(net)
    plain = net.extract(net.space.largest)
    running = [name for name in model.state_dict() if name.startswith(("fc", "stem", "blocks"))]
    running = [name for name in running if "unused" not in name and "scale" not in name]
    assert list(plain.state_dict()) == running == list(copy.deepcopy(plain).state_dict())
    assert torch.equal(plain(IMAGE), model(IMAGE))


@pytest.mark.parametrize("name", ["resnetv2_50", "repvgg_a0", "xception41", "gernet_s"])
def test_parameters_are_in_the_order_of_the_model(name: str) -> None:
    """Optimizers tell them apart by it."""
    with torch.device("meta"):
        model = named_model(name, 1000)
    net = shapes_only(name, 64)
    assert list(net.state_dict()) == list(model.state_dict())
    assert list(net.extract(net.space.smallest).state_dict()) == list(model.state_dict())
    assert [n for n, _ in net.named_parameters()] == [n for n, _ in model.named_parameters()]


def test_parameters_inside_a_norm_are_refused() -> None:
    """Its activation is kept whole: slopes were neither sliced nor counted."""
    for layer in (nn.PReLU, nn.Softmax2d):
        norm = BatchNormAct2d(8, act_layer=layer)
        with pytest.raises(TracingError, match=f"'n': no rule for {layer.__name__} inside a norm"):
            make_slimmable(Net(lambda m, x: m.n(x), n=norm), IMAGE)
    norm = BatchNormAct2d(8, act_layer=nn.Hardswish, drop_layer=nn.Dropout2d)
    assert_counts(assert_slims(Net(lambda m, x: m.n(x), n=norm)))


class Reads(nn.Module):
    """A function of this file, and tensors that it uses: normalization, a learned scalar, a map."""

    def __init__(self, body: Callable[..., Tensor]) -> None:
        super().__init__()
        self.body, self.stem, self.fc = body, conv(3, 8), nn.Linear(8, 4)
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(3, 1, 1) + 1, persistent=False)
        self.gamma = nn.Parameter(torch.rand(1))
        self.tint = nn.Parameter(torch.rand(3, 1, 1))
        self.part = nn.Sequential(conv(), nn.BatchNorm2d(8))
        self.part.scale = nn.Parameter(torch.rand(()))
        self.part.map = nn.Parameter(torch.rand(16, 16))

    def forward(self, images: Tensor) -> Tensor:
        return self.body(self, images)


def scored(m: Any, x: Tensor) -> Tensor:
    return m.fc(m.part(m.stem(x)).mean((2, 3)))


def residual(m: Any, x: Tensor) -> Tensor:
    x = m.stem(x)
    return m.fc((x + m.gamma * m.part(x)).mean((2, 3)))


READS: dict[str, tuple[Callable[..., Tensor], int]] = {
    "normalization": (lambda m, x: scored(m, (x - m.mean) / m.std), 0),
    "in place": (lambda m, x: scored(m, x.sub(m.mean).div_(m.std)), 0),
    "a learned colour": (lambda m, x: scored(m, torch.mul(x, m.tint)), 3),
    "a learned scalar": (residual, 1),
    "inside a module": (lambda m, x: m.part.scale * scored(m, x), 1),
    "a map": (lambda m, x: scored(m, x + m.part.map), 256),
    "once though twice": (lambda m, x: scored(m, x * m.gamma) + m.gamma, 1),
}


@pytest.mark.parametrize("case", READS)
def test_tensors_that_go_with_any_width(case: str) -> None:
    body, read = READS[case]
    model = Reads(body)
    net = assert_slims(model)
    layers = sum(p.numel() for each in (model.stem, model.fc) for p in each.parameters())
    layers += 8 * 72 + 8 + 16
    assert int(net.cost.params(net.space.largest)) == layers + read
    assert_counts(net)
    assert list(net.state_dict()) == list(model.state_dict())
    for weight in model.state_dict().values():
        weight.add_(1)
    model.std.mul_(2)  # type: ignore[operator]
    net.load_state_dict(model.state_dict())
    net.std.mul_(2)  # type: ignore[operator]
    assert torch.equal(net(IMAGE.double() + 1), model(IMAGE.double() + 1))
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        plain = twin.extract(net.space.smallest)
        again = pickle.loads(pickle.dumps(plain))
        with net.at(net.space.smallest):
            torch.testing.assert_close(plain(IMAGE.double() + 1), net(IMAGE.double() + 1))
            assert torch.equal(plain(IMAGE.double()), again(IMAGE.double()))


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (lambda m, x: scored(m, x - m.mean.view(1, 3, 1, 1)), "no parameter or buffer.*register"),
        (lambda m, x: scored(m, x - m.tint.mul_(2)), "'mul_'.*outside"),
        (lambda m, x: scored(m, x - m.tint.cumsum(0)), "'tint'.*outside convolution"),
        (lambda m, x: scored(m, x - m.tint[[2, 1, 0]]), "'getitem'.*outside convolution"),
        (lambda m, x: scored(m, x)[:, :1] * m.stem(x).mean((2, 3)) * m.part[0].bias, "layer is"),
        (lambda m, x: scored(m, x) * m.part[1].weight.mean(), "'part_1_weight.*outside conv"),
        (lambda m, x: m.part(m.stem(x) * m.part[1].weight[:, None, None]).mean((2, 3)), "layer is"),
        (lambda m, x: scored(m, F.pad(x, (1, 1, 1, 1), value=m.gamma)), "'gamma'.*outside|not run"),
        (lambda m, x: scored(m, x.unsqueeze(0).add(m.mean)[0]), "keep the batch|does not run"),
    ],
)
def test_other_uses_of_tensors_are_refused(body: Callable[..., Tensor], message: str) -> None:
    with pytest.raises(TracingError, match=message):
        make_slimmable(Reads(body), IMAGE)


@pytest.mark.parametrize(
    "gated",
    [
        lambda m, x: x * torch.sigmoid(m.one(x)),
        lambda m, x: m.one(x).sigmoid() * x,
        lambda m, x: x + m.one(x) * m.one(x),
        lambda m, x: x * m.one(m.part(x)).mean((2, 3), keepdim=True),
        lambda m, x: torch.add(m.one(x), other=x.mean((2, 3), keepdim=True)),
    ],
)
def test_one_channel_goes_with_any_number(gated: Callable[..., Tensor]) -> None:
    """As in the spatial attention of CBAM (Woo et al. 2018, arXiv 1807.06521, equation 5)."""
    model = Net(gated, one=conv(8, 1, 7), part=conv())
    net = assert_slims(model)
    assert "one" not in net.space.names
    assert "stem" in net.space.names
    assert_counts(net)


class Embedded(nn.Module):
    """A position embedding: of its dimensions several are long, and one is that of the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.embedding = nn.Conv2d(3, 8, 3), nn.Parameter(torch.randn(1, 8, 6, 6))
        self.squeezed, self.last = nn.Conv2d(8, 1, 1), nn.Linear(1, 4)

    def forward(self, images: Tensor) -> Tensor:
        features = self.stem(images) + self.embedding
        return self.last(self.squeezed(features.relu()).mean((2, 3)))


def test_an_embedding_of_positions_follows_and_one_channel_is_no_group() -> None:
    assert assert_proven(Embedded(), 8).space.names == ("stem",)
