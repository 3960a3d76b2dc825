import pytest
import torch
import torch.nn.functional as F

from pareco.slimmable import SlimmableNet
from pareco.training.step import accumulate_gradients, learning_rate, sandwich_widths
from tests.conftest import tiny_net


@pytest.fixture
def net() -> SlimmableNet:
    return tiny_net().double().train()


def test_the_order_is_largest_between_smallest_and_none_twice(net: SlimmableNet) -> None:
    space = net.space
    middle = space.uniform(0.7)
    widths = sandwich_widths(net, [middle, space.smallest, middle, space.largest])
    assert widths == [space.largest, middle, space.smallest]


def test_gradients_are_the_sum_over_the_extracted_networks(net: SlimmableNet) -> None:
    """Against plain autograd on plain networks: labels for the first, its soft output for all."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(6, 1, 8, 8, generator=generator, dtype=torch.double)
    labels = torch.randint(0, 10, (6,), generator=generator)
    widths = sandwich_widths(net, [net.space.sample(generator)])
    plain = [net.extract(each).train() for each in widths]
    losses = accumulate_gradients(net, images, labels, widths, label_smoothing=0.1)
    assert net.widths == net.space.largest

    scores = plain[0](images)
    smoothed = 0.9 * F.one_hot(labels, 10).double() + 0.01
    expected = [-(smoothed * scores.log_softmax(1)).sum(1).mean()]
    soft = scores.detach().softmax(1)
    expected += [-(soft * other(images).log_softmax(1)).sum(1).mean() for other in plain[1:]]
    torch.stack(expected).sum().backward()
    # Doubles through a few layers: the same sums in another order, relative error near 1e-13.
    torch.testing.assert_close(
        losses.learned, torch.stack(expected).detach(), rtol=1e-10, atol=1e-12
    )
    with torch.no_grad():
        rows = [each(images).log_softmax(1)[range(6), labels] for each in plain]
    on_labels = torch.stack([-row.mean() for row in rows])
    torch.testing.assert_close(losses.on_labels, on_labels, rtol=1e-10, atol=1e-12)
    assert not any(each.requires_grad for each in losses)
    total = torch.zeros_like(net.get_parameter("layer2.0.conv1.weight"))
    for other in plain:
        gradient = other.get_parameter("layer2.0.conv1.weight").grad
        assert gradient is not None
        total[: gradient.shape[0], : gradient.shape[1]] += gradient
    found = net.get_parameter("layer2.0.conv1.weight").grad
    torch.testing.assert_close(found, total, rtol=1e-9, atol=1e-12)


def test_hand_worked_rates() -> None:
    rates = [learning_rate(step, steps=10, warmup_steps=2, peak=0.8) for step in range(10)]
    expected = [0.4, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates == pytest.approx(expected, rel=1e-12)  # a few roundings of doubles
    assert learning_rate(0, steps=5, warmup_steps=0, peak=1.0) == 1.0
    assert learning_rate(4, steps=5, warmup_steps=0, peak=1.0) == pytest.approx(0.2)
