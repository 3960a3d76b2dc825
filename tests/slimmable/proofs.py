"""The proof that a slimmable network is its sub-networks, for networks of a few layers."""

import copy
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.slimmable.corners import corner
from pareco.widths import Widths


def randomized(model: nn.Module) -> nn.Module:
    """Return the model in double precision, its scales, shifts and statistics none that is 0 or 1.

    Layer scales of 1e-6, or of zeros, would hide what lies behind them.
    """
    torch.manual_seed(0)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and (tensor.dim() < 2 or tensor[0].numel() == 1):
            nn.init.uniform_(tensor, 0.5, 1.5)
            if "bias" in name or "mean" in name:
                tensor.data -= 1
    return model.double()


def assert_proven(
    model: nn.Module, size: int = 32, *, slim_head: bool = False, whole: Collection[str] = ()
) -> SlimmableNet:
    """Check a network against the model, and three sub-networks against the extracted ones.

    Outputs and gradients, multiply-accumulates by torch's counter, parameters by their count, and
    the state dict both ways. Returns the slimmable network.
    """
    model = randomized(model)
    images = torch.randn(2, 3, size, size, dtype=torch.double)
    net = make_slimmable(model, images[:1], alpha_min=0.3, slim_head=slim_head, whole=whole)
    for mode in (False, True):
        expected, found = model.train(mode)(images), net.train(mode)(images)
        assert torch.equal(found, expected)
        theirs, ours = _gradients(model, expected), _gradients(net, found)
        assert theirs.keys() == ours.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    generator = torch.Generator().manual_seed(1)
    for widths in (net.space.smallest, *(net.space.sample(generator) for _ in range(2))):
        _assert_extracted(net, widths, images)
    assert net.extract(net.space.largest).state_dict().keys() == model.state_dict().keys()
    _assert_states_load(model, net, images)
    return net


def _gradients(model: nn.Module, scores: Tensor) -> dict[str, Tensor]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    loss = nn.functional.cross_entropy(scores, torch.arange(len(scores)))
    found = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
    return {name: g for name, g in zip(named, found, strict=True) if g is not None}


def _assert_extracted(net: SlimmableNet, widths: Widths, images: Tensor) -> None:
    plain = net.extract(widths)
    assert not any(type(m).__module__.startswith("pareco") for m in plain.modules())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        plain.eval()(images[:1])
    assert int(net.cost.macs(widths)) == net.cost.macs_at(widths) == counter.get_total_flops() / 2
    assert int(net.cost.params(widths)) == sum(p.numel() for p in plain.parameters())
    with net.at(widths):
        for mode in (False, True):
            scores, expected = net.train(mode)(images), plain.train(mode)(images)
            torch.testing.assert_close(scores, expected, rtol=1e-9, atol=1e-11)
        wide, narrow = _gradients(net, scores), _gradients(plain, expected)
        in_use = {
            id(layer.parameter_in_use(kind)): layer.size_in_use(parameter)
            for layer in net._layers.values()
            for kind in layer.kinds
            if (parameter := layer.parameter_in_use(kind)) is not None
        }
    named = dict(net.named_parameters())
    assert wide.keys() == narrow.keys()
    scale = max(float(gradient.abs().max()) for gradient in narrow.values())
    for name, gradient in narrow.items():
        used = corner(wide[name], in_use.get(id(named[name]), ()))
        torch.testing.assert_close(used, gradient, rtol=1e-7, atol=1e-9 * scale, msg=name)
        unused = wide[name].count_nonzero() - used.count_nonzero()
        assert not unused, f"{name}: unused channels get a gradient"


def _assert_states_load(model: nn.Module, net: SlimmableNet, images: Tensor) -> None:
    state = copy.deepcopy(model.state_dict())
    assert list(net.state_dict()) == list(state)
    net.load_state_dict({name: each * 2 for name, each in state.items()})
    model.load_state_dict(net.state_dict())
    assert all(torch.equal(model.state_dict()[name], each * 2) for name, each in state.items())
    net.load_state_dict(state, assign=True)
    with net.eval().at(net.space.smallest):
        torch.testing.assert_close(net(images), net.extract(net.space.smallest).eval()(images))
