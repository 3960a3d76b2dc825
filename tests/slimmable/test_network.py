"""A slimmable network is its sub-networks, in outputs, gradients, costs and state."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from pareco.slimmable import SlimmableNet, calibrated_statistics, make_slimmable
from pareco.slimmable.layers import SlicedLayer
from pareco.widths import Widths
from tests.conftest import Network, shapes_only, tiny_net

# Double precision (2e-16) through at most 60 layers, with some room for batch norm over as few as
# two values, whose derivative is large. A wrong channel would show in the first digit.
RELATIVE, ABSOLUTE = 1e-8, 1e-10


def loss_of(scores: Tensor) -> Tensor:
    labels = torch.arange(len(scores), device=scores.device)
    return nn.functional.cross_entropy(scores, labels)


def gradients(model: nn.Module, scores: Tensor) -> dict[str, Tensor]:
    """Return the gradient of each parameter, by name, of the loss of its scores."""
    model.zero_grad()
    loss_of(scores).backward()
    named = model.named_parameters()
    return {name: weight.grad for name, weight in named if weight.grad is not None}


def snapshot(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_same_state(model: nn.Module, before: dict[str, Tensor]) -> None:
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)


def test_costs_equal_counts_on_the_extracted_network(
    network: Network, generator: torch.Generator
) -> None:
    """Against torch's flop counter, the parameters and what convolutions and linears put out."""
    net, space = network.net, network.net.space
    sizes: list[int] = []

    def note(_: nn.Module, __: object, output: Tensor) -> None:
        sizes.append(output.numel())

    for widths in (space.largest, space.smallest, space.sample(generator), space.sample(generator)):
        plain = net.extract(widths).eval()
        sizes.clear()
        for module in plain.modules():
            if isinstance(module, (nn.Conv2d, nn.Linear)):
                module.register_forward_hook(note)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            plain(network.images[:1])
        assert int(net.cost.macs(widths)) == counter.get_total_flops() / 2
        assert int(net.cost.params(widths)) == sum(p.numel() for p in plain.parameters())
        assert int(net.cost.activations(widths)) == sum(sizes)


def test_network_equals_extracted(network: Network) -> None:
    net, images = copy.deepcopy(network.net).double(), network.images.double()
    for widths in (net.space.smallest, net.space.sample(torch.Generator().manual_seed(1))):
        plain = net.extract(widths)
        assert not any(type(m).__module__.startswith("pareco") for m in plain.modules())
        with net.at(widths):
            for mode in (False, True):
                scores = net.train(mode)(images)
                expected = plain.train(mode)(images)
                torch.testing.assert_close(scores, expected, rtol=RELATIVE, atol=ABSOLUTE)
        wide, narrow = gradients(net, scores), gradients(plain, expected)
        assert narrow.keys() == wide.keys()
        scale = max(float(gradient.abs().max()) for gradient in narrow.values())
        for name, gradient in narrow.items():
            in_use = tuple(slice(size) for size in gradient.shape)
            torch.testing.assert_close(
                wide[name][in_use], gradient, rtol=RELATIVE, atol=ABSOLUTE * scale, msg=name
            )
            wide[name][in_use] = 0
            assert not wide[name].any(), f"{name}: unused channels get a gradient"


def test_full_width_is_the_untouched_model_bit_for_bit(network: Network) -> None:
    model, net = copy.deepcopy(network.model).eval(), copy.deepcopy(network.net).eval()
    assert torch.equal(net(network.images), model(network.images))
    assert_same_state(net.extract(net.space.largest), snapshot(model))
    model.train()
    net.train()
    expected, found = gradients(model, model(network.images)), gradients(net, net(network.images))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(net(network.images), model(network.images))
    assert_same_state(net, snapshot(model))  # running statistics after two training batches


def test_switching_leaves_no_trace(network: Network, generator: torch.Generator) -> None:
    net = copy.deepcopy(network.net).train()
    before = snapshot(net)
    for _ in range(2):
        widths = net.space.sample(generator)
        with net.at(widths):
            assert net.widths == widths
            with net.at(net.space.smallest):
                net(network.images)
            assert net.widths == widths
            net(network.images)
    assert net.widths == net.space.largest
    assert_same_state(net, before)  # sub-networks leave the full network's statistics alone
    net.eval()
    assert torch.equal(net(network.images), network.model.eval()(network.images))


def test_state_dicts_load_into_each_other(network: Network) -> None:
    model, net = copy.deepcopy(network.model), copy.deepcopy(network.net)
    for weight in model.state_dict().values():
        weight.add_(1)
    net.load_state_dict(model.state_dict(), strict=True)
    assert_same_state(net, snapshot(model))
    for weight in net.state_dict().values():
        weight.add_(1)
    model.load_state_dict(net.state_dict(), strict=True)
    assert_same_state(net, snapshot(model))


@pytest.fixture
def model() -> nn.Module:
    """Return a small network whose last batch norm keeps its channels at every width."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(
            *(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()),
            *(nn.Conv2d(8, 12, 1, bias=False), nn.BatchNorm2d(12), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.5), nn.Linear(12, 4)),
        )


@pytest.fixture
def net(model: nn.Module) -> SlimmableNet:
    return make_slimmable(model, torch.zeros(1, 3, 8, 8))


IMAGES = torch.linspace(-1, 1, 4 * 3 * 8 * 8).reshape(4, 3, 8, 8)


def test_make_slimmable_leaves_the_model_alone(model: nn.Module) -> None:
    before, classes = snapshot(model), [type(module) for module in model.modules()]
    net = make_slimmable(model.train(), torch.zeros(1, 3, 8, 8))
    assert model.training
    assert net.training
    assert classes == [type(module) for module in model.modules()]
    with torch.no_grad():
        next(net.parameters()).add_(1)
    assert_same_state(model, before)


def test_set_widths_stays_and_at_restores_after_an_error(net: SlimmableNet) -> None:
    net.set_widths(Widths([5]))
    assert net.widths == Widths([5])
    with pytest.raises(KeyError), net.at(Widths([4])):
        raise KeyError
    assert net.widths == Widths([5])


@pytest.mark.parametrize(
    ("widths", "error", "message"),
    [
        ((4, 4), ValueError, "expected 1 widths, got 2"),
        ((9,), ValueError, "0 has 8 channels, asked for 9"),
        ((0,), ValueError, "at least 1"),
        ((4.0,), TypeError, "integer"),
    ],
)
def test_wrong_widths_are_refused(
    net: SlimmableNet, widths: Any, error: type[Exception], message: str
) -> None:
    for use in (net.set_widths, net.extract, net.space.check):
        with pytest.raises(error, match=message):
            use(widths)
    assert net.widths == net.space.largest


def test_private_norms(net: SlimmableNet) -> None:
    widths, other = Widths([4]), Widths([6])
    shared = set(dict(net.named_parameters()))
    net.privatize_norm([widths, net.space.largest, widths])
    private = set(dict(net.named_parameters())) - shared
    assert private == {f"{layer}.{kind}_switch0" for layer in "14" for kind in ("weight", "bias")}
    with torch.no_grad():
        for name in private:
            net.get_parameter(name).add_(0.5)
    net.eval()
    with net.at(widths):
        scores = net(IMAGES)
    plain = net.extract(widths)
    assert torch.equal(plain.get_parameter("1.weight"), net.get_parameter("1.weight")[:4] + 0.5)
    torch.testing.assert_close(plain(IMAGES), scores)
    with net.at(widths):
        used = gradients(net, net(IMAGES))
    assert private <= used.keys()
    assert not {"1.weight", "4.bias"} & used.keys()
    with net.at(other):
        assert not private & gradients(net, net(IMAGES)).keys()
    assert not private & gradients(net, net(IMAGES)).keys()


def test_a_deep_copy_is_independent(net: SlimmableNet) -> None:
    net.eval()
    before = net(IMAGES)
    twin = copy.deepcopy(net)
    assert {id(p) for p in twin.parameters()}.isdisjoint({id(p) for p in net.parameters()})
    twin.set_widths(Widths([4]))
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(1)
    assert net.widths == net.space.largest
    assert torch.equal(net(IMAGES), before)
    narrow = twin(IMAGES)
    torch.testing.assert_close(twin.extract(Widths([4]))(IMAGES), narrow)


def test_extract_draws_nothing_and_copies_the_weights(net: SlimmableNet) -> None:
    state = torch.get_rng_state()
    plain = net.extract(Widths([4]))
    assert torch.equal(torch.get_rng_state(), state)
    assert plain.training == net.training
    before = snapshot(net)
    with torch.no_grad():
        for weight in plain.parameters():
            weight.zero_()
    assert_same_state(net, before)


def test_extract_keeps_device_type_and_mode() -> None:
    net = copy.deepcopy(shapes_only("cifar_resnet8", 32)).bfloat16().eval()
    plain = net.extract(net.space.smallest)
    assert not plain.training
    assert {p.device.type for p in plain.parameters()} == {"meta"}
    assert {p.dtype for p in plain.parameters()} == {torch.bfloat16}
    assert not any(isinstance(module, SlicedLayer) for module in plain.modules())


def test_images_and_weights_lie_with_the_channel_last() -> None:
    net, seen = copy.deepcopy(shapes_only("cifar_resnet8", 32)).to_empty(device="cpu"), []
    for weight in net.state_dict().values():
        weight.fill_(0.01)
    last, images = copy.deepcopy(net).train(), torch.linspace(0, 1, 2 * 3 * 32 * 32)
    last.keep_channels_last()

    def note(_: nn.Module, inputs: tuple[Tensor], output: Tensor) -> None:
        seen.extend([*inputs, output])

    layout = {"memory_format": torch.channels_last}
    for name in ("conv1", "layer3.0.conv2"):
        last.get_submodule(name).register_forward_hook(note)
    with last.at(net.space.smallest), net.train().at(net.space.smallest):
        scores = last(images.view(2, 3, 32, 32))
        # Float32 sums in another order.
        torch.testing.assert_close(scores, net(images.view(2, 3, 32, 32)), rtol=1e-5, atol=1e-5)
    loss_of(scores).backward()
    assert len(seen) == 4
    assert all(each.is_contiguous(**layout) for each in seen)
    weights = [each for each in last.parameters() if each.dim() == 4]
    grads = [each.grad for each in weights if each.grad is not None]
    assert len(grads) == len(weights) == 7
    assert all(each.is_contiguous(**layout) for each in (*weights, *grads))


def test_views_that_are_kept_are_those_of_the_widths_and_weights_in_use() -> None:
    """After a switch, a change in place, other floats and new weights; of trained weights none."""
    net, images = tiny_net().requires_grad_(False).eval(), torch.randn(3, 1, 8, 8)
    for multiplier in (0.42, 0.7, 0.42):
        net.set_widths(net.space.uniform(multiplier))
        net.keep_views()
        kept = [view for _, view in net._setting.kept.values()]
        assert {each.untyped_storage().data_ptr() for each in kept} == {
            each.untyped_storage().data_ptr() for each in net.parameters()
        }
        torch.testing.assert_close(net(images), net.extract(net.widths)(images))
    before = net(images)
    net.get_parameter("conv1.weight").mul_(-1)
    assert not torch.allclose(net(images), before)
    torch.testing.assert_close(net(images), net.extract(net.widths)(images))
    net.load_state_dict({name: 2 * each for name, each in net.state_dict().items()}, assign=True)
    torch.testing.assert_close(net(images), net.extract(net.widths)(images))
    net.keep_views()
    net.double()
    assert not net._setting.kept
    torch.testing.assert_close(net(images.double()), net.extract(net.widths)(images.double()))
    net.requires_grad_(True).keep_views()
    assert not net._setting.kept


@pytest.mark.parametrize(("layer", "kind"), [("0", "weight"), ("4", "bias"), ("9", "bias")])
def test_a_parameter_that_is_none_any_more_is_named(
    net: SlimmableNet, layer: str, kind: str
) -> None:
    """Pruning keeps it elsewhere: the layer would run without it."""
    prune.identity(net.get_submodule(layer), kind)
    with pytest.raises(RuntimeError, match=rf"^{layer}.{kind} is no parameter any more"):
        net(IMAGES)


def test_a_module_that_was_replaced_is_named(net: SlimmableNet) -> None:
    setattr(net, "9", nn.Linear(12, 5))
    for act in (net.extract, net.set_widths):
        with pytest.raises(RuntimeError, match="the module 9 was replaced, or wrapped, after"):
            act(net.space.smallest)


def test_a_switch_with_kept_views_compiles_in_one_graph() -> None:
    net, images = tiny_net().requires_grad_(False).eval(), torch.randn(3, 1, 8, 8)
    widths = net.space.smallest
    net.set_widths(widths, calibrated_statistics(net, widths, [images]))
    net.keep_views()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), net(images))


def test_views_are_not_kept_of_weights_that_lie_elsewhere() -> None:
    net = tiny_net().requires_grad_(False).eval()
    net.set_widths(net.space.smallest)
    net.keep_views()
    values = nn.utils.parameters_to_vector(net.parameters())
    nn.utils.vector_to_parameters(values * 0, net.parameters())
    assert not net(torch.randn(3, 1, 8, 8)).any()
