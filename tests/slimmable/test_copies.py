"""Copies, pickles and other processes run the same network at the same widths."""

import copy
import io
import multiprocessing
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pareco.slimmable import SlimmableNet, calibrated_statistics, make_slimmable
from pareco.slimmable.forms import FORMS
from tests.conftest import Network, tiny_net
from tests.slimmable.test_tracing import Net


class EveryKind(nn.Module):
    """Functions that pickle keeps by name, and such that it cannot keep; a module made of one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.widen, self.act, self.space = nn.Conv2d(8, 12, 1), nn.PReLU(8), nn.Linear(12, 4)

    def forward(self, images: Tensor) -> Tensor:
        x = F.max_pool2d(self.act(self.norm(self.stem(images))), 2)
        x = F.adaptive_max_pool2d(F.pad(x, (0, 0, 0, 0, 2, 2)) + self.widen(x), 1)
        return self.space(F.dropout(x.reshape(x.shape[0], -1), 0.5, self.training))


IMAGES = torch.linspace(-1, 1, 4 * 3 * 16 * 16).reshape(4, 3, 16, 16)


def every_kind() -> SlimmableNet:
    torch.manual_seed(0)
    return make_slimmable(EveryKind(), IMAGES[:1], alpha_min=0.2)


def by_pickle(net: SlimmableNet) -> SlimmableNet:
    return pickle.loads(pickle.dumps(net))


def by_torch(net: SlimmableNet) -> SlimmableNet:
    file = io.BytesIO()
    torch.save(net, file)
    return torch.load(io.BytesIO(file.getvalue()), weights_only=False)


WAYS = {"pickle": by_pickle, "torch": by_torch, "deepcopy": copy.deepcopy, "copy": copy.copy}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("training", [False, True])
def test_a_copy_gives_the_same_outputs(way: str, training: bool) -> None:
    net = every_kind().train(training)
    net.privatize_norm([net.space.smallest])
    statistics = calibrated_statistics(net, net.space.uniform(0.5), [IMAGES])
    net.set_widths(net.space.uniform(0.5), statistics)
    twin = WAYS[way](net)
    assert twin.widths == net.widths
    assert twin.state_dict().keys() == net.state_dict().keys()
    assert twin.space == net.space
    assert [m.training for m in twin.modules()] == [m.training for m in net.modules()]
    for widths in (net.widths, net.space.smallest, net.space.largest):
        assert twin.cost.macs(widths) == net.cost.macs(widths)
        with twin.at(widths), net.at(widths):
            scores = []
            for each in (net, twin):
                torch.manual_seed(0)
                scores.append(each(IMAGES))
            assert torch.equal(*scores)
        plain, other = net.extract(widths).eval(), twin.extract(widths).eval()
        assert torch.equal(plain(IMAGES), other(IMAGES))
    assert torch.equal(by_pickle(twin).eval()(IMAGES), net.eval()(IMAGES))


@pytest.mark.parametrize("form", FORMS)
def test_forms_of_layers_can_be_pickled(form: type[nn.Module]) -> None:
    assert pickle.loads(pickle.dumps(FORMS[form])) == FORMS[form]


@pytest.mark.parametrize("way", ["pickle", "torch", "deepcopy"])
def test_a_copy_is_independent(way: str) -> None:
    net = every_kind().eval()
    before = net(IMAGES)
    twin = WAYS[way](net)
    twin.set_widths(net.space.smallest)
    with torch.no_grad():
        for weight in twin.parameters():
            weight.add_(1)
    assert net.widths == net.space.largest
    assert torch.equal(net(IMAGES), before)
    narrow = twin(IMAGES)
    torch.testing.assert_close(twin.extract(net.space.smallest)(IMAGES), narrow)


def test_known_networks_pickle(network: Network) -> None:
    net, twin = copy.deepcopy(network.net).eval(), by_pickle(network.net).eval()
    with net.at(net.space.smallest), twin.at(net.space.smallest):
        assert torch.equal(twin(network.images), net(network.images))
    assert_layers_are_shared_with_nobody(net, twin)


def assert_layers_are_shared_with_nobody(net: nn.Module, twin: nn.Module) -> None:
    assert {id(m) for m in net.modules()}.isdisjoint({id(m) for m in twin.modules()})


def scores_at(net: SlimmableNet, results: "multiprocessing.Queue[list[float]]") -> None:
    torch.set_num_threads(1)
    results.put(net(IMAGES[:, :1, :8, :8]).flatten().tolist())


@pytest.mark.slow
def test_a_spawned_process_runs_the_same_network() -> None:
    net = tiny_net().eval()
    net.set_widths(net.space.smallest)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    process = context.Process(target=scores_at, args=(net, results))
    process.start()
    found = results.get(timeout=120)
    process.join()
    expected = net(IMAGES[:, :1, :8, :8]).flatten()
    torch.testing.assert_close(torch.tensor(found), expected.detach())


def test_extracted_networks_pickle() -> None:
    plain = every_kind().eval().extract(every_kind().space.smallest)
    pickled = pickle.dumps(plain)
    assert b"pareco" not in pickled
    assert torch.equal(pickle.loads(pickled)(IMAGES), plain(IMAGES))


def test_a_model_of_lambdas_is_copied_all_the_same() -> None:
    net = make_slimmable(Net(lambda m, x: F.relu(x)), IMAGES[:1]).eval()
    assert torch.equal(by_pickle(net)(IMAGES), net(IMAGES))
