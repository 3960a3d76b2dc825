"""Networks drawn at random from what moves channels: each is proven, or refused with its reason."""

import random
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from pareco.slimmable import TracingError
from tests.slimmable.proofs import assert_proven

Step = tuple[Callable[..., Tensor], nn.Module | None, int]
"""What it makes of a layer and two features, the layer, and how many channels come out."""


def drawn_step(chance: random.Random, c: int, d: int) -> Step:
    """Return a step on features of `c` channels, and others of `d`."""
    groups = chance.choice([count for count in range(1, c + 1) if c % count == 0])
    at, width = chance.randrange(c), chance.choice([4, 6, 8])

    def grouped(x: Tensor) -> Tensor:
        return x.view(x.size(0), groups, c // groups, x.shape[2], x.shape[3])

    steps: list[Step] = [
        (lambda layer, x, y: layer(x).relu(), nn.Conv2d(c, width, 3, padding=1), width),
        (lambda layer, x, y: layer(x), nn.Conv2d(c, 2 * c, 3, 1, 1, groups=groups), 2 * c),
        (lambda layer, x, y: layer(x), nn.BatchNorm2d(c), c),
        (lambda layer, x, y: layer(x), nn.GroupNorm(groups, c), c),
        (lambda layer, x, y: x + layer(y), nn.Conv2d(d, c, 1), c),
        (lambda layer, x, y: x * layer(x).sigmoid(), nn.Conv2d(c, 1, 1), c),
        (lambda layer, x, y: layer(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), nn.LayerNorm(c), c),
        (lambda layer, x, y: torch.cat([x, y], 1), None, c + d),
        (lambda layer, x, y: x[:, at:], None, c - at),
        (lambda layer, x, y: torch.split(x, [at + 1, c - at - 1], 1)[0], None, at + 1),
        (lambda layer, x, y: grouped(x).transpose(1, 2).flatten(1, 2), None, c),
        (lambda layer, x, y: grouped(x).sum(1), None, c // groups),
        (lambda layer, x, y: torch.stack([x, 2 * x], 2).flatten(1, 2), None, 2 * c),
    ]
    return chance.choice(steps)


REASONS = {
    "no free channel group: all channels must stay",
    "it must keep the batch and channel dimensions",  # a sum over channels, in groups
}


class Drawn(nn.Module):
    """Six steps, each on features drawn from those before it, then scores of the last ones."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        chance, channels = random.Random(seed), [8]
        self.stem, self.layers = nn.Conv2d(3, 8, 3, padding=1), nn.ModuleList()
        self.steps: list[tuple[Callable[..., Tensor], int, int]] = []
        while len(self.steps) < 6:
            source, other = (chance.randrange(len(channels)) for _ in range(2))
            step, layer, count = drawn_step(chance, channels[source], channels[other])
            if count <= 32:
                self.steps.append((step, source, other))
                self.layers.append(layer or nn.Identity())
                channels.append(count)
        self.fc = nn.Linear(sum(channels[-3:]), 4)

    def forward(self, images: Tensor) -> Tensor:
        features = [self.stem(images)]
        for (step, source, other), layer in zip(self.steps, self.layers, strict=True):
            features.append(step(layer, features[source], features[other]))
        return self.fc(torch.cat(features[-3:], 1).mean((2, 3)))


@pytest.mark.parametrize("first", [0, 10])
def test_networks_drawn_at_random(first: int) -> None:
    refused: dict[int, str] = {}
    for seed in range(first, first + 10):
        try:
            assert_proven(Drawn(seed), 8)
        except TracingError as error:
            refused[seed] = error.reason
    assert set(refused.values()) <= REASONS, refused
    assert len(refused) < 6
