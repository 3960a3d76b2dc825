"""An analytic problem with the shape of ours: importance differs, cost couples neighbours."""

import torch
from torch import Tensor

ALPHA_MIN = 0.4
IMPORTANCE = torch.tensor([1.0, 0.05, 0.4, 0.05], dtype=torch.double)
CHANNELS = torch.tensor([0.3, 1.0, 1.0, 0.5], dtype=torch.double)


def loss(alphas: Tensor) -> Tensor:
    """Return convex losses `n` of `n x 4` multipliers, 0 at the largest."""
    return ((1 - alphas).square() * IMPORTANCE).sum(dim=-1)


def cost(alphas: Tensor) -> Tensor:
    """Return bilinear costs `n`, like a chain of layers' multiply-accumulates; 1 at the largest."""
    inputs = torch.cat([torch.ones_like(alphas[..., :1]), alphas[..., :-1]], dim=-1)
    return (inputs * alphas * CHANNELS).sum(dim=-1) / CHANNELS.sum()


def uniform(count: int, seed: int, dimensions: int = 4) -> Tensor:
    """Return `count x dimensions` random multipliers."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.rand(count, dimensions, dtype=torch.double, generator=generator)
    return ALPHA_MIN + (1 - ALPHA_MIN) * drawn
