import math

import pytest
import torch
import torch.nn.functional as F

from pareco.config import EvaluationConfig
from pareco.data import Images
from pareco.evaluation import Evaluator, SearchEvaluations, batch_loss, front, measured
from pareco.models import create_model
from pareco.slimmable import SlimmableNet, make_slimmable
from pareco.widths import Widths


@pytest.fixture
def net() -> SlimmableNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = create_model("cifar_resnet8", num_classes=10, in_chans=1, base_width=4)
    return make_slimmable(model, torch.zeros(1, 1, 8, 8))


def some_images(count: int, seed: int) -> Images:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (count, 1, 8, 8), generator=generator).byte()
    return Images(pixels, torch.randint(0, 10, (count,), generator=generator), 127.0, 70.0)


def test_front_by_hand() -> None:
    losses = [3.0, 2.0, 2.5, 1.0, 1.0, math.nan, 1.0, 3.0]
    costs = [1.0, 2.0, 3.0, 4.0, 5.0, 0.5, 4.0, 1.0]
    assert front(losses, costs) == [0, 1, 3]
    assert front([], []) == []
    assert front([math.nan], [1.0]) == []


def test_batch_loss_is_that_of_the_extracted_network_on_the_batch(net: SlimmableNet) -> None:
    widths = net.space.uniform(0.6)
    images, labels = some_images(32, 1).normalized(torch.arange(32))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    plain = net.extract(widths).train()
    expected = float(F.cross_entropy(plain(images), labels).detach())
    # The same float32 operations in the same order.
    assert batch_loss(net, (images, labels), widths) == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert net.training
    assert net.widths == net.space.largest


def test_measured_counts_by_hand() -> None:
    scores = torch.eye(10)[[3, 3, 5, 0]] * 5 + torch.arange(10) * 0.01
    labels = torch.tensor([3, 9, 0, 0])  # right, in the best five, not in them, right

    class Fixed(torch.nn.Module):
        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return scores[images.flatten().long()]

    batches = [(torch.tensor([0.0, 1.0, 2.0]), labels[:3]), (torch.tensor([3.0]), labels[3:])]
    result = measured(Fixed(), batches)  # type: ignore[arg-type]
    assert result.top1_error == 50.0
    assert result.top5_error == 25.0
    assert result.loss == pytest.approx(float(F.cross_entropy(scores, labels)), rel=1e-6)


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
    evaluator = Evaluator(net, train, search, config, seed=0)
    with torch.no_grad():
        for images, _ in evaluator.calibration.batches(32):
            plain(images)
        plain.eval()
        images, labels = search.normalized(torch.arange(40))
        expected = float(F.cross_entropy(plain(images), labels).detach())
    # Float32 sums over batches in another order: relative error near 1e-6.
    assert evaluator.search_loss(widths) == pytest.approx(expected, rel=1e-5)


def test_evaluations_are_counted_once_until_the_weights_change() -> None:
    evaluations = SearchEvaluations()
    first, second = Widths((1, 2)), Widths((2, 2))
    with pytest.raises(RuntimeError, match="only in"):
        evaluations([first])
    evaluations.begin(lambda widths: float(sum(widths)))
    assert evaluations([first, second, first]).tolist() == [3.0, 4.0, 3.0]
    assert evaluations([second]).tolist() == [4.0]
    assert evaluations.count == 2
    evaluations.begin(lambda widths: 0.5)
    assert evaluations([first]).tolist() == [0.5]
    assert (evaluations.count, evaluations.visited) == (3, {first, second})
    again = SearchEvaluations()
    again.load_state(evaluations.state())
    assert (again.count, again.visited) == (3, {first, second})


def test_too_many_calibration_images_are_refused(net: SlimmableNet) -> None:
    config = EvaluationConfig(calibration_images=64, batch_size=32)
    with pytest.raises(ValueError, match="calibration_images: 64 asked for"):
        Evaluator(net, some_images(40, 0), some_images(40, 1), config, seed=0)
