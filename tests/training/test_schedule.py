import pytest

from pareco.training.step import learning_rate


def test_hand_worked_rates() -> None:
    rates = [learning_rate(step, steps=10, warmup_steps=2, peak=0.8) for step in range(10)]
    expected = [0.4, 0.8, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1]
    assert rates == pytest.approx(expected, rel=1e-12)  # a few roundings of doubles


def test_without_warmup_it_starts_at_the_peak() -> None:
    assert learning_rate(0, steps=5, warmup_steps=0, peak=1.0) == 1.0
    assert learning_rate(4, steps=5, warmup_steps=0, peak=1.0) == pytest.approx(0.2)
