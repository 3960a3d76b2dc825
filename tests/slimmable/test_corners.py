"""The gradients of first entries against those of torch's own slices."""

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.slimmable.corners import Size, corner, corners
from tests.conftest import tiny_net

SIZES: tuple[Size, ...] = ((2, 3), (3,), (4, 1), (3, 2))
RUNS: tuple[Size, ...] = (
    (2, ((0, 1), (3, 5))),
    (((1, 2), (3, 6)),),
    (4, 1),
    (((0, 1), (2, 3)), ((0, 2), (3, 4))),
)
"""What is in use of concatenated features."""


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    shapes = ((4, 5, 3, 3), (6,), (4, 1, 2, 2), (3, 4))
    return [
        nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.double))
        for shape in shapes
    ]


def sliced(held: Sequence[nn.Parameter], sizes: Sequence[Size] = SIZES) -> list[Tensor]:
    """Return what is in use, by indices of torch."""
    found = []
    for tensor, size in zip(held, sizes, strict=True):
        part: Tensor = tensor
        for dimension, each in enumerate(size):
            runs = ((0, each),) if isinstance(each, int) else each
            index = [at for first, stop in runs for at in range(first, stop)]
            part = part.index_select(dimension, torch.tensor(index))
        found.append(part)
    return found


def loss(parts: Sequence[Tensor]) -> Tensor:
    """Return something whose gradients depend on all entries, the last ones on nothing else."""
    first, *others = parts
    return (first.square().sum() * others[0].sin().sum()) + sum(x.pow(3).sum() for x in others)


def same(ours: Sequence[Tensor | None], expected: Sequence[Tensor | None]) -> bool:
    pairs = zip(ours, expected, strict=True)
    return all(a is not None and b is not None and torch.equal(a, b) for a, b in pairs)


def test_values_are_views_of_the_first_entries() -> None:
    held = parameters()
    ours = corners(held, SIZES)
    assert same(ours, sliced(held))
    assert [each.data_ptr() for each in ours] == [each.data_ptr() for each in held]


def test_runs_are_put_together() -> None:
    held = parameters()
    ours = corners(held, RUNS)
    assert same(ours, sliced(held, RUNS))
    assert corner(held[0], (4, 5, 3)) is held[0]


@pytest.mark.parametrize("sizes", [SIZES, RUNS], ids=["first", "runs"])
@pytest.mark.parametrize("hook", ["none", "gradient", "accumulated"])
@pytest.mark.parametrize("before", [False, True])
def test_gradients_add_up_as_those_of_slices(
    hook: str, before: bool, sizes: Sequence[Size]
) -> None:
    found, calls = [], 0

    def doubled(gradient: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return 2 * gradient

    def noted(_: Tensor) -> None:
        nonlocal calls
        calls += 1

    for way in (corners, sliced):
        held = parameters()
        if before:
            for each in held:
                each.grad = torch.ones_like(each)
        if hook == "gradient":
            held[0].register_hook(doubled)
        if hook == "accumulated":
            held[0].register_post_accumulate_grad_hook(noted)
        for _ in range(2):
            loss(way(held, sizes)).backward()
        found.append([each.grad for each in held])
    assert same(*found)
    assert calls == (0 if hook == "none" else 4)


def test_existing_gradients_are_added_to_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is padded."""
    monkeypatch.setattr("pareco.slimmable.corners._padded", None)
    held = parameters()
    for each in held:
        each.grad = torch.zeros_like(each)
    grads = [each.grad for each in held]
    loss(corners(held, SIZES)).backward()
    assert all(each.grad is grad for each, grad in zip(held, grads, strict=True))
    assert all(grad is not None and grad.any() for grad in grads)


def test_two_passes_differentiated_at_once() -> None:
    ours, theirs = parameters(), parameters()
    (loss(corners(ours, SIZES)) * 2 + loss(ours) + loss(corners(ours, SIZES))).backward()
    (loss(sliced(theirs)) * 2 + loss(theirs) + loss(sliced(theirs))).backward()
    for one, other in zip(ours, theirs, strict=True):  # doubles added in another order
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-13, atol=1e-13)


def test_gradients_that_are_asked_for_are_returned_and_added_to_nothing() -> None:
    held = parameters()
    for each in held:
        each.grad = torch.zeros_like(each)
    ours = torch.autograd.grad(loss(corners(held, SIZES)), held)
    assert same(ours, torch.autograd.grad(loss(sliced(held)), held))
    assert not any(each.grad is None or each.grad.any() for each in held)
    loss(corners(held, SIZES)).backward(inputs=held[:1])
    assert held[0].grad is not None
    assert torch.equal(held[0].grad, ours[0])
    assert not any(each.grad is None or each.grad.any() for each in held[1:])


@pytest.mark.parametrize("sizes", [SIZES, RUNS], ids=["first", "runs"])
def test_gradients_of_gradients(sizes: Sequence[Size]) -> None:
    held = parameters()

    def second(parts: Sequence[Tensor]) -> tuple[Tensor, ...]:
        firsts = torch.autograd.grad(loss(parts), held, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in firsts), held)  # type: ignore[arg-type]

    assert same(second(corners(held, sizes)), second(sliced(held, sizes)))


class Tied(nn.Module):
    """A weight that two convolutions use, one that a depthwise convolution uses twice."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 6, 3, padding=1)
        self.c = nn.Conv2d(6, 6, 3, padding=1)
        self.c.weight = self.b.weight
        self.d, self.fc = nn.Conv2d(6, 6, 3, padding=1, groups=6), nn.Linear(6, 10)

    def forward(self, images: Tensor) -> Tensor:
        features = self.d(self.d(self.c(self.b(self.a(images)).relu()).relu()).relu())
        return self.fc(features.mean((2, 3)))


def tied_net() -> SlimmableNet:
    torch.manual_seed(0)
    return make_slimmable(Tied(), torch.zeros(1, 1, 8, 8))


@pytest.mark.parametrize("build", [tiny_net, tied_net])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_second_network_adds_what_it_would_alone(build, precision: torch.dtype) -> None:
    """Bit for bit: one addition to each entry, in the precision of the weights."""
    net = build().train()
    images = torch.linspace(-1, 1, 4 * 64).reshape(4, 1, 8, 8)

    def differentiated(alpha: float) -> dict[str, Tensor]:
        with net.at(net.space.uniform(alpha)):
            with torch.autocast("cpu", precision, enabled=precision != torch.float32):
                scores = net(images)
            F.cross_entropy(scores.float(), torch.arange(4)).backward()
        return {n: p.grad.clone() for n, p in net.named_parameters() if p.grad is not None}

    narrow = differentiated(0.6)
    net.zero_grad()
    full = differentiated(1.0)
    both = differentiated(0.6)
    assert full.keys() == narrow.keys() == both.keys()
    assert any(torch.count_nonzero(narrow[name]) < narrow[name].numel() for name in narrow)
    for name in both:
        # A tied weight's two gradients are added first, then to what is there.
        assert torch.equal(both[name], full[name] + narrow[name]), name


def test_what_the_scores_do_not_depend_on_has_no_gradient() -> None:
    used, unused = (nn.Parameter(torch.ones(4, 3)) for _ in range(2))
    parts = corners([used, unused], [(2,), (3, 1)])
    parts[0].sum().backward()
    assert used.grad is not None
    assert used.grad.sum() == 6
    assert unused.grad is None
    unused.grad = torch.ones(4, 3)
    corners([used, unused], [(2,), (3, 1)])[0].sum().backward()
    assert used.grad.sum() == 12
    assert torch.equal(unused.grad, torch.ones(4, 3))


def test_no_pass_leaves_what_is_in_use_behind() -> None:
    net = tiny_net()
    with net.at(net.space.smallest):
        net(torch.zeros(2, 1, 8, 8))
        with pytest.raises(RuntimeError):
            net(torch.zeros(2, 3, 8, 8))
    assert not net._setting.corners
