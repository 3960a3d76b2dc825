from typing import Any, Literal

import pytest
import torch
import torch.nn.functional as F

from pareco.config import DataConfig, EvaluationConfig
from pareco.data import Images, MemoryStore
from pareco.data.transforms import Preparation
from pareco.evaluation import (
    Counts,
    Evaluator,
    OverBudget,
    SearchEvaluations,
    batch_losses,
    calibration_images,
    counted,
)
from pareco.ledger import Ledger
from pareco.processes import Processes, Share
from pareco.slimmable import (
    SlimmableNet,
    calibrated_statistics,
    make_slimmable,
    normalized_by_batch,
)
from pareco.widths import Widths
from tests.conftest import tiny_net

ALONE = Processes(torch.device("cpu"))


@pytest.fixture
def net() -> SlimmableNet:
    return tiny_net()


def some_images(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator).byte()
    labels = torch.randint(0, 10, (count,), generator=generator)
    classes = tuple(str(label) for label in range(10))
    config = DataConfig(name="digits", image_size=8, mean=(127.0,), std=(70.0,))
    store = MemoryStore(pixels, labels, classes)
    return Images(store, torch.arange(count), Preparation(config))


def test_batch_losses_are_those_of_the_extracted_networks_on_the_batch(net: SlimmableNet) -> None:
    widths = net.space.uniform(0.6)
    images, labels = some_images(32, 1).normalized(torch.arange(32))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = net.extract(widths).train()
    expected = float(F.cross_entropy(plain(images), labels).detach())
    # The same float32 operations in the same order.
    losses = batch_losses(net, (images, labels), [widths, net.space.largest, widths])
    assert losses[[0, 2]].tolist() == pytest.approx([expected, expected], rel=1e-6)
    assert losses[1] != losses[0]
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.widths == net.space.largest


def test_batch_losses_in_parts_are_the_means_of_those_of_the_parts(net: SlimmableNet) -> None:
    """Fifteen images, at most six at once: five each, with batch norm of their own."""
    images, labels = some_images(15, 1).normalized(torch.arange(15))
    widths = net.space.uniform(0.6)
    parts = [(images[first : first + 5], labels[first : first + 5]) for first in (0, 5, 10)]
    expected = torch.stack([batch_losses(net, part, [widths]) for part in parts]).mean()
    found = batch_losses(net, (images, labels), [widths], 6)
    assert float(found) == pytest.approx(float(expected), rel=1e-6)  # float32, in another order
    whole = batch_losses(net, (images, labels), [widths])
    assert torch.equal(batch_losses(net, (images, labels), [widths], 15), whole)
    assert float(whole) != pytest.approx(float(expected), rel=1e-4)


def test_counts_by_hand() -> None:
    scores = torch.eye(10)[[3, 3, 5, 0]] * 5 + torch.arange(10) * 0.01
    labels = torch.tensor([3, 9, 0, 0])  # right, in the best five, not in them, right

    loss, first, in_five, images = counted(scores, labels).tolist()
    assert (first, in_five, images) == (2, 3, 4)
    assert loss / images == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-6)


def test_evaluator_matches_an_extracted_network_calibrated_by_torch(net: SlimmableNet) -> None:
    """torch's own cumulative average (momentum None) on a plain network gives the statistics."""
    train, search = some_images(96, 2), some_images(40, 3)
    config = EvaluationConfig(calibration_images=96, batch_size=32)
    widths = net.space.uniform(0.6)
    plain = net.extract(widths).train()
    for module in plain.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    evaluator = Evaluator(net, train, search, config, 0, ALONE)
    with torch.no_grad():
        for images, _ in evaluator.calibration.batches(32):
            plain(images)
        plain.eval()
        images, labels = search.normalized(torch.arange(40))
        expected = float(F.cross_entropy(plain(images), labels).detach())
    # Float32 sums over batches in another order: relative error near 1e-6.
    (loss,) = evaluator.search_losses([widths])
    assert loss == pytest.approx(expected, rel=1e-5)
    twice = evaluator.counts_on(search, [widths, widths], Counts(), print)
    assert [each.loss for each in twice.measurements] == [loss, loss]


def test_an_evaluator_computes_in_the_precision_it_is_given(net: SlimmableNet) -> None:
    """As the extracted network does under torch's autocast, whose losses are not float32's."""
    train, search = some_images(64, 2), some_images(32, 3)
    config = EvaluationConfig(calibration_images=64, batch_size=32)
    widths = net.space.uniform(0.6)
    kinds: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    evaluators = [
        Evaluator(net, train, search, config, 0, ALONE, precision=precision) for precision in kinds
    ]
    exact, rounded = (each.search_losses([widths])[0] for each in evaluators)
    assert exact != rounded
    plain = net.extract(widths, evaluators[1].statistics(widths)).eval()
    images, labels = search.normalized(torch.arange(32))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        scores = plain(images)
    assert scores.dtype == torch.bfloat16
    # The same operations; a mean of 32 losses in float32.
    assert rounded == pytest.approx(float(F.cross_entropy(scores.float(), labels)), rel=1e-6)


def test_losses_and_statistics_of_mixed_precision_are_in_float32(net: SlimmableNet) -> None:
    """Bfloat16 has three digits: a loss of it would differ from that of its own scores."""
    images, labels = some_images(32, 1).normalized(torch.arange(32))
    widths = net.space.uniform(0.6)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = batch_losses(net, (images, labels), [widths])
        with normalized_by_batch(net), net.at(widths):
            scores = net(images)
        statistics = calibrated_statistics(net, widths, [images])
    assert (found.dtype, scores.dtype) == (torch.float32, torch.bfloat16)
    # The same operations on the same scores.
    assert float(found) == pytest.approx(float(F.cross_entropy(scores.float(), labels)), rel=1e-6)
    for tensors in (statistics.means, statistics.variances):
        assert {each.dtype for each in tensors.values()} == {torch.float32}


def test_calibration_images_are_read_once_for_sub_networks_together(
    net: SlimmableNet, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = EvaluationConfig(calibration_images=64, batch_size=32)
    widths = [net.space.uniform(alpha) for alpha in (0.5, 0.7, 0.9, 0.7)]
    alone, together = (
        Evaluator(net, some_images(96, 2), some_images(40, 3), config, 0, ALONE) for _ in "ab"
    )
    expected = [alone.search_losses([each])[0] for each in widths]
    passes: list[int] = []
    batches = Images.batches

    def noted(images: Images, *others: Any) -> Any:
        passes.append(len(images))
        return batches(images, *others)

    monkeypatch.setattr(Images, "batches", noted)
    assert together.search_losses(widths) == expected
    assert passes == [64, 40]
    assert together.search_losses(widths) == expected
    assert passes == [64, 40, 40]


def test_evaluations_are_counted_once_until_the_weights_change() -> None:
    evaluations = SearchEvaluations(lambda widths: 10 * widths[0])
    first, second = Widths((1, 2)), Widths((2, 2))
    with pytest.raises(RuntimeError, match="only in"):
        evaluations([first])
    evaluations.begin(lambda widths: [float(sum(each)) for each in widths])
    assert evaluations([first, second, first]).tolist() == [3.0, 4.0, 3.0]
    assert evaluations([second]).tolist() == [4.0]
    assert evaluations.count == 2
    evaluations.begin(lambda widths: [0.5] * len(widths))
    assert evaluations([first]).tolist() == [0.5]
    assert (evaluations.count, evaluations.visited) == (3, {first, second})
    again = SearchEvaluations(len)
    again.load_state(evaluations.state())
    assert (again.count, again.visited) == (3, {first, second})


def test_evaluations_have_a_price_and_are_paid_from_what_is_left() -> None:
    evaluations = SearchEvaluations(lambda widths: 10 * widths[0])
    first, second, third = Widths((1, 2)), Widths((2, 2)), Widths((3, 3))
    measured: list[Widths] = []

    def losses(widths: list[Widths]) -> list[float]:
        measured.extend(widths)
        return [0.5] * len(widths)

    evaluations.begin(losses, images=4, limit=130)
    assert evaluations.price([first, second, first]) == 4 * (10 + 20)
    evaluations([first])
    assert (evaluations.spent, evaluations.left) == (40, 90)
    assert evaluations.price([first, second]) == 80
    with pytest.raises(OverBudget, match="of 2 networks on 4 images each, 200 MACs, where 90 are"):
        evaluations([first, second, third])
    assert (measured, evaluations.spent) == ([first], 40)
    evaluations([second])
    assert (evaluations.spent, evaluations.left) == (120, 10)
    evaluations.begin(losses, images=100, limit=100, final=True)
    assert evaluations.left == 0  # what was spent before counts
    evaluations.begin(losses, images=1, final=True)
    evaluations([third])
    again = SearchEvaluations(lambda widths: 10 * widths[0])
    again.load_state(evaluations.state())
    again.begin(losses, images=1, limit=150, final=True)
    assert (again.spent, again.left, again.price([third])) == (150, 0, 0)
    assert again([third]).tolist() == [0.5]


def test_too_many_calibration_images_are_refused(net: SlimmableNet) -> None:
    config = EvaluationConfig(calibration_images=64, batch_size=32)
    with pytest.raises(ValueError, match="calibration_images: 64 asked for"):
        Evaluator(net, some_images(40, 0), some_images(40, 1), config, 0, ALONE)


@pytest.mark.parametrize("count", [2, 5])
def test_shares_of_the_calibration_make_the_whole(
    net: SlimmableNet, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Each share gets the sum over all, as processes exchange it; of 5, two have no batch."""
    images = some_images(96, 2)
    config = EvaluationConfig(calibration_images=96, batch_size=32)  # 3 batches: 2 and 1
    widths = net.space.uniform(0.6)
    whole = Evaluator(net, images, images, config, 0, ALONE).statistics(widths)
    sent: list[torch.Tensor] = []
    for rank in range(count):
        with monkeypatch.context() as patch:
            patch.setattr(Processes, "total", lambda self, values: sent.append(values) or values)
            processes = Processes(torch.device("cpu"), Share(rank, count))
            Evaluator(net, images, images, config, 0, processes).statistics(widths)
    monkeypatch.setattr(Processes, "total", lambda self, values: sum(sent))
    processes = Processes(torch.device("cpu"), Share(1, count))
    joined = Evaluator(net, images, images, config, 0, processes).statistics(widths)
    assert joined.batches == 3
    for name, mean in whole.means.items():
        # float32 averages in another order
        torch.testing.assert_close(joined.means[name], mean, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(joined.variances[name], whole.variances[name], rtol=1e-5, atol=0)


def test_without_batch_norm_nothing_is_calibrated(monkeypatch: pytest.MonkeyPatch) -> None:
    """No image is read for it and no MAC spent; losses are the plain network's."""
    layers = (torch.nn.Conv2d(1, 4, 3), torch.nn.GroupNorm(2, 4), torch.nn.ReLU())
    head = (torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(4, 10))
    net = make_slimmable(torch.nn.Sequential(*layers, *head), torch.zeros(1, 1, 8, 8))
    monkeypatch.setattr(Evaluator, "calibration", None)
    search, ledger = some_images(32, 3), Ledger()
    config = EvaluationConfig(calibration_images=64, batch_size=32)
    evaluator = Evaluator(net, search, search, config, 0, ALONE, ledger=ledger)
    net.book_in(ledger)
    widths = net.space.smallest
    assert calibration_images(config, net) == 0
    assert evaluator.own_norm(widths) == {}
    with ledger.during("choice"):
        (loss,) = evaluator.search_losses([widths])
    assert ledger.state()["choice"]["forward_macs"] == 32 * net.cost.macs_at(widths)
    images, labels = search.normalized(torch.arange(32))
    expected = F.cross_entropy(net.extract(widths)(images), labels).detach()
    assert loss == pytest.approx(float(expected), rel=1e-6)  # float32, in another order
