import torch

from pareco.randomness import derived_generator, derived_seed


def test_equal_purposes_give_equal_streams_and_others_do_not() -> None:
    def draw(*purpose: str | int) -> float:
        return float(torch.rand(1, generator=derived_generator(7, *purpose)))

    assert draw("order", 1) == draw("order", 1)
    draws = {draw("order", 1), draw("order", 2), draw("augmentation", 1), draw("order", 1, 0)}
    assert len(draws) == 4


def test_seeds_fit_a_generator() -> None:
    seeds = [derived_seed(seed, "x") for seed in range(1000)]
    assert len(set(seeds)) == 1000
    assert all(0 <= seed < 2**63 for seed in seeds)
