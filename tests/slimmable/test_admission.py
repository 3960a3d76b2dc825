"""What a model must not hold to be made slimmable is named, with what helps."""

import threading
import warnings
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune, remove_spectral_norm
from torch.nn.utils import spectral_norm as old_spectral_norm

from pareco.slimmable import SlimmableNet, TracingError, make_slimmable
from tests.slimmable.test_tracing import IMAGE, Net, assert_slims


def plain() -> Net:
    return Net(lambda m, x: m.part(x), part=nn.Conv2d(8, 8, 3, padding=1))


def with_part(change: Callable[[nn.Module], object]) -> nn.Module:
    model = plain()
    change(model.get_submodule("part"))
    return model


def old_weight_norm(part: nn.Module) -> None:
    with warnings.catch_warnings(action="ignore"):
        nn.utils.weight_norm(part)


def scripted() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return torch.jit.trace(plain(), IMAGE)  # type: ignore[return-value]


def compiled_in_place() -> nn.Module:
    model = plain()
    model.part.compile(backend="eager")  # type: ignore[operator]
    return model


def with_attribute(value: object) -> nn.Module:
    model = plain()
    model.part.kept = value  # type: ignore[assignment]
    return model


class Frozen(nn.Sequential):
    """Batch norm that is never trained, by the usual trick."""

    def train(self, mode: bool = True) -> "Frozen":
        super().train(mode)
        self[1].eval()
        return self


def overlapping() -> nn.Module:
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1))
    turned = model.get_parameter("a.weight").detach().transpose(0, 1)
    model.get_submodule("b").weight = nn.Parameter(turned)
    return model


def shared_memory() -> nn.Module:
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1))
    model.get_submodule("b").weight = nn.Parameter(model.get_parameter("a.weight").detach())
    return model


def quantized() -> nn.Module:
    with warnings.catch_warnings(action="ignore"):
        return Net(lambda m, x: m.part(x), part=torch.ao.nn.quantized.Conv2d(8, 8, 3))


REFUSED = {
    "weight_norm": (
        lambda: with_part(old_weight_norm),
        "part",
        r"weight norm\. .*remove_weight_norm",
    ),
    "spectral_norm": (
        lambda: with_part(old_spectral_norm),
        "part",
        r"spectral norm\. .*remove_spectral_norm",
    ),
    "parametrized weight_norm": (
        lambda: with_part(parametrizations.weight_norm),
        "part",
        "parametrization.*remove_parametrizations",
    ),
    "parametrized spectral_norm": (
        lambda: with_part(parametrizations.spectral_norm),
        "part",
        "parametrization.*remove_parametrizations",
    ),
    "prune": (
        lambda: with_part(lambda part: prune.l1_unstructured(part, "weight", 0.5)),
        "part",
        "pruning.*prune.remove",
    ),
    "several times pruned": (
        lambda: with_part(
            lambda part: [prune.random_unstructured(part, "weight", 0.5) for _ in range(2)]
        ),
        "part",
        "pruning.*prune.remove",
    ),
    "lazy": (
        lambda: Net(lambda m, x: m.part(x), part=nn.LazyConv2d(8, 3)),
        "part",
        "shapes are not known yet.*Run the model once",
    ),
    "lazy batch norm": (
        lambda: Net(lambda m, x: m.part(x), part=nn.LazyBatchNorm2d()),
        "part",
        "shapes are not known yet.*Run the model once",
    ),
    "DataParallel": (
        lambda: nn.DataParallel(plain()),
        "DataParallel",
        "DataParallel.*plain module: its attribute `module`",
    ),
    "DataParallel inside": (
        lambda: nn.Sequential(nn.DataParallel(plain())),
        "0",
        "DataParallel.*plain module: its attribute `module`",
    ),
    "compiled": (
        lambda: torch.compile(plain(), backend="eager"),
        "OptimizedModule",
        "`_orig_mod`",
    ),
    "compiled in place": (compiled_in_place, "part", "before compile"),
    "scripted": (scripted, "Net|TopLevelTracedModule", "ScriptModule.*plain module"),
    "quantized": (quantized, "part", r"quantized \(Conv2d\).*floating point"),
    "forward hook": (
        lambda: with_part(lambda part: part.register_forward_hook(print)),
        "part",
        "hook.*slimmable network",
    ),
    "forward pre-hook with keywords": (
        lambda: with_part(lambda part: part.register_forward_pre_hook(print, with_kwargs=True)),
        "part",
        "hook.*slimmable network",
    ),
    "backward hook": (
        lambda: with_part(lambda part: part.register_full_backward_hook(print)),
        "part",
        "hook.*slimmable network",
    ),
    "backward pre-hook": (
        lambda: with_part(lambda part: part.register_full_backward_pre_hook(print)),
        "part",
        "hook.*slimmable network",
    ),
    "gradient hook": (
        lambda: with_part(lambda part: part.weight.register_hook(print)),  # type: ignore[union-attr]
        "part",
        "hook.*slimmable network",
    ),
    "hook after accumulation": (
        lambda: with_part(
            lambda part: part.weight.register_post_accumulate_grad_hook(print)  # type: ignore[union-attr]
        ),
        "part",
        "hook.*slimmable network",
    ),
    "hook on a container": (
        lambda: Net(lambda m, x: m.part(x), part=hooked(nn.Sequential(nn.ReLU()))),
        "part",
        "hook.*slimmable network",
    ),
    "train method": (
        lambda: Net(lambda m, x: m.part(x), part=Frozen(nn.ReLU(), nn.BatchNorm2d(8))),
        "part",
        r"train\(\) of its own.*Remove",
    ),
    "train attribute": (
        lambda: with_part(lambda part: setattr(part, "train", lambda mode=True: part)),
        "part",
        r"train\(\) of its own.*Remove",
    ),
    "overlap": (overlapping, "b.weight", "shares memory with a.weight"),
    "shared memory": (shared_memory, "b.weight", "shares memory with a.weight"),
    "a computed tensor": (
        lambda: with_attribute(torch.ones(1, requires_grad=True) * 2),
        "part",
        "deepcopy fails.*graph leaves.*cannot be copied",
    ),
    "a lock": (lambda: with_attribute({"x": threading.Lock()}), "part", "deepcopy fails.*lock"),
}


def hooked(part: nn.Module) -> nn.Module:
    part.register_forward_hook(print)
    return part


@pytest.mark.parametrize("case", REFUSED)
def test_what_would_get_lost_is_refused_by_name(case: str) -> None:
    make, node, message = REFUSED[case]
    model = make()
    with pytest.raises(TracingError, match=message) as refusal:
        make_slimmable(model, IMAGE)
    assert refusal.value.node in node.split("|")


def test_parameters_that_lie_between_each_other_share_nothing() -> None:
    model = Net(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(8, 8, 1), b=nn.Conv2d(8, 8, 1))
    both = torch.rand(8, 8, 1, 1, 2)
    for index, name in enumerate("ab"):
        model.get_submodule(name).weight = nn.Parameter(both[..., index])
    assert_slims(model)
    model.fc.bias = nn.Parameter(model.a.weight.detach()[5, :4, 0, 0])  # type: ignore[union-attr]
    with pytest.raises(TracingError, match=r"'fc.bias': it shares memory with a.weight"):
        make_slimmable(model, IMAGE.double())


class OptimizedModule(nn.Conv2d):
    """A module of the user's, which has the name of one of torch's."""


class DataParallel(nn.Sequential):
    """Another one."""


def test_a_name_alone_is_no_reason() -> None:
    part = DataParallel(OptimizedModule(8, 8, 1))
    model = Net(lambda m, x: m.part(x), part=DataParallel(nn.Conv2d(8, 8, 3)))
    assert make_slimmable(model, IMAGE).space.names == ("stem", "part.0")
    with pytest.raises(TracingError, match="no rule for the convolution OptimizedModule"):
        make_slimmable(Net(lambda m, x: m.part(x), part=part), IMAGE)


def test_only_modules_are_taken() -> None:
    with pytest.raises(TypeError, match=r"expected a torch[.]nn[.]Module, got function"):
        make_slimmable(lambda images: images, IMAGE)  # type: ignore[arg-type]


def test_what_the_advice_says_helps() -> None:
    model = with_part(old_spectral_norm)
    remove_spectral_norm(model.get_submodule("part"))
    assert_slims(model)
    model = with_part(lambda part: prune.l1_unstructured(part, "weight", 0.5))
    prune.remove(model.get_submodule("part"), "weight")
    assert_slims(model)
    model = with_part(parametrizations.weight_norm)
    nn.utils.parametrize.remove_parametrizations(model.get_submodule("part"), "weight")
    assert_slims(model)
    model = Net(lambda m, x: m.part(x), part=nn.LazyConv2d(8, 3))
    model(IMAGE)
    assert_slims(model)
    assert_slims(nn.DataParallel(plain()).module)
    model.part.register_forward_hook(print).remove()  # type: ignore[operator]
    assert_slims(model)


def test_hooks_on_the_slimmable_network_go_along_when_it_is_extracted() -> None:
    parts = nn.Sequential(nn.BatchNorm2d(8), nn.ReLU())
    net: SlimmableNet = make_slimmable(Net(lambda m, x: m.parts(x), parts=parts), IMAGE)
    seen: list[tuple[int, ...]] = []

    def note(module: nn.Module, arguments: tuple[Tensor], output: Tensor) -> None:
        seen.append(tuple(output.shape))

    for name in ("stem", "parts.0", "parts.1", "fc"):
        net.get_submodule(name).register_forward_hook(note)
    plain = net.extract(net.space.smallest)
    plain(IMAGE.repeat(2, 1, 1, 1))
    channels = net.space.smallest[0]
    assert seen == [(2, channels, 16, 16)] * 3 + [(2, 4)]
    before = len(seen)
    plain.get_submodule("stem").register_forward_hook(note)
    net(IMAGE.repeat(2, 1, 1, 1))
    assert len(seen) == before + 4  # the extracted network's own hook is not the other's
