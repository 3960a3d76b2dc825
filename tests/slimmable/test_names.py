"""Any name of a module is as good as another: for what is added, and for SlimmableNet itself."""

import copy
import io
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from timm.layers import LayerScale2d
from timm.layers.drop import drop_path
from torch import Tensor, nn
from torchvision.ops import stochastic_depth

from pareco.slimmable import SlimmableNet, TracingError, make_slimmable
from pareco.slimmable.layers import ChannelPad
from tests.slimmable.test_tracing import IMAGE, Net, assert_slims

MADE: dict[str, Callable[..., Tensor]] = {
    "pad": lambda m, x: F.pad(x, (0, 0, 0, 0, 0, 8)) + m.widen(x),
    "dropout": lambda m, x: m.widen(F.dropout(x, 0.5, m.training)),
    "dropout1d": lambda m, x: m.widen(F.dropout1d(x[:, :, 0], 0.5, m.training)[:, :, None]),
    "dropout2d": lambda m, x: m.widen(F.dropout2d(x, 0.5, m.training)),
    "dropout3d": lambda m, x: m.widen(F.dropout3d(x, 0.5, m.training)),
    "alpha_dropout": lambda m, x: m.widen(F.alpha_dropout(x, 0.5, m.training)),
    "feature_alpha_dropout": lambda m, x: m.widen(F.feature_alpha_dropout(x, 0.5, m.training)),
    "drop_path": lambda m, x: m.widen(drop_path(x, 0.5, m.training)),
    "stochastic_depth": lambda m, x: m.widen(stochastic_depth(x, 0.5, "row", m.training)),
}


class Block(nn.Module):
    """Runs a function of this file, and holds a module of any name."""

    def __init__(self, body: Callable[..., Tensor], name: str, module: nn.Module) -> None:
        super().__init__()
        self.body, self.name = body, name
        self.widen = nn.Conv2d(8, 16, 1)
        self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.get_submodule(self.name)(self.body(self, x))


def layer() -> nn.Module:
    return nn.Conv2d(16, 16, 3, padding=1)


def clashing(made: str, place: str) -> nn.Module:
    body = MADE[made]
    if place == "inside":
        return Net(lambda m, x: m.part(x), 16, part=Block(body, made, layer()))
    if place == "a container":
        parts = nn.Sequential(Block(body, "other", nn.ReLU()), layer())
        return Net(lambda m, x: m.get_submodule(made)(x), 16, **{made: parts})  # type: ignore[arg-type]
    if place == "numbered":
        parts = {made: layer(), f"{made}_1": layer(), f"{made}_2": layer()}
        block = Block(body, "other", nn.ReLU())

        def run(m: Net, x: Tensor) -> Tensor:
            for name in ("block", *parts):
                x = m.get_submodule(name)(x)
            return x

        return Net(run, 16, block=block, **parts)  # type: ignore[arg-type]
    block = Block(body, "other", nn.ReLU())
    model = Net(lambda m, x: m.get_submodule(made)(m.block(x)), 16, block=block)
    model.add_module(made, layer())
    return model


@pytest.mark.parametrize("place", ["at the top", "inside", "a container", "numbered"])
@pytest.mark.parametrize("made", MADE)
def test_what_is_made_of_a_function_takes_no_name_of_the_model(made: str, place: str) -> None:
    model = clashing(made, place)
    net = assert_slims(model)
    assert net.state_dict().keys() == model.state_dict().keys()
    assert int(net.cost.params(net.space.largest)) == sum(p.numel() for p in model.parameters())
    images = torch.rand(4, 3, 16, 16, dtype=torch.double)
    scores = []
    for each in (model.train(), net.train(), net.extract(net.space.largest)):
        torch.manual_seed(0)
        scores.append(each(images))
    assert torch.equal(scores[0], scores[1])
    assert torch.equal(scores[0], scores[2])
    added = set(dict(net.named_modules())) - set(dict(model.named_modules()))
    assert len(added) == 1
    kind = type(net.get_submodule(added.pop()))
    assert kind is ChannelPad if made == "pad" else kind.__module__.split(".")[0] != "pareco"


def test_a_parameter_of_that_name_is_left_alone() -> None:
    model = Net(lambda m, x: F.dropout(x, 0.5, m.training))
    model.dropout = nn.Parameter(torch.ones(3))
    model.register_buffer("dropout_1", torch.ones(3))
    net = make_slimmable(model, IMAGE)
    assert isinstance(net.get_submodule("dropout_2"), nn.Dropout)


OWN = sorted(
    name
    for name in {*dir(SlimmableNet), "space", "cost", "whole"} - set(dir(torch.fx.GraphModule))
    if not name.startswith("_")
)


@pytest.mark.parametrize("name", OWN)
def test_a_module_may_have_the_name_of_an_attribute_of_the_network(name: str) -> None:
    part = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), LayerScale2d(8))
    model = Net(lambda m, x: m.get_submodule(name)(x), **{name: part})  # type: ignore[arg-type]
    net = assert_slims(model)
    assert net.state_dict().keys() == model.state_dict().keys()
    net.load_state_dict(model.state_dict())
    assert net.widths == net.space.largest
    assert len(net.norms()) == 1
    assert int(net.cost.params(net.space.largest)) == sum(p.numel() for p in model.parameters())
    file = io.BytesIO()
    torch.save(net, file)
    for twin in (copy.deepcopy(net), torch.load(io.BytesIO(file.getvalue()), weights_only=False)):
        with twin.at(net.space.smallest), net.at(net.space.smallest):
            assert torch.equal(twin(IMAGE.double()), net(IMAGE.double()))


@pytest.mark.parametrize("name", ["graph", "code", "recompile", "_setting", "_layers"])
def test_other_names_are_refused(name: str) -> None:
    model = Net(lambda m, x: m.get_submodule(name)(x), **{name: nn.ReLU()})  # type: ignore[arg-type]
    with pytest.raises(TracingError, match=f"node '{name}'.*Rename"):
        make_slimmable(model, IMAGE)
