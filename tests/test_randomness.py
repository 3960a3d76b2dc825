import random

import numpy as np
import torch

from pareco.randomness import (
    derived_generator,
    derived_seed,
    global_streams_kept,
    seed_global_streams,
)


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


def test_global_streams_are_put_back_and_watched() -> None:
    draws = (random.random, lambda: np.random.rand(), lambda: torch.rand(1).item())  # noqa: NPY002
    for draw in draws:
        seed_global_streams(3)
        expected = draw()
        seed_global_streams(3)
        with global_streams_kept() as drawn:
            assert not drawn()
            assert draw() == expected
            assert drawn()
        assert draw() == expected
