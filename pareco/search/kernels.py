"""Matérn 5/2 covariances in closed form, with gradients, and the additive kernel that fits use."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior
from torch import Tensor

Pull = Callable[[Tensor], Tensor]
BLOCK = 200_000  # numbers of a temporary: it stays in a processor's cache


@dataclass(frozen=True)
class Matern:
    """Matérn 5/2 of unit variance with `d` length scales."""

    lengthscale: Tensor

    @property
    def variance(self) -> float:
        """The covariance of a point with itself."""
        return 1.0

    def __call__(self, points: Tensor, inputs: Tensor) -> Tensor:
        """Return the covariances `m x n` of `m x d` points with `n x d` inputs."""
        distance = self._distance(points, inputs)
        return (1.0 + distance + distance.square() / 3.0) * torch.exp(-distance)

    def with_slopes(self, points: Tensor, inputs: Tensor) -> tuple[Tensor, Pull]:
        """Return the covariances, and what maps weights `m x n` to sum_i w_ai dk(x_a, X_i)/dx_a."""
        distance = self._distance(points, inputs)
        decay = torch.exp(-distance)
        slopes = (1.0 + distance) * decay

        def pull(weights: Tensor) -> Tensor:
            pulls = weights * slopes * (-5.0 / 3.0)
            moments = points * pulls.sum(dim=1, keepdim=True) - pulls @ inputs
            return moments / self.lengthscale.square()

        return slopes + distance.square() * decay / 3.0, pull

    def _distance(self, points: Tensor, inputs: Tensor) -> Tensor:
        scale = self.lengthscale / math.sqrt(5.0)
        return torch.cdist(points / scale, inputs / scale)


@dataclass(frozen=True)
class AdditiveMatern:
    """Sum of `d` one-dimensional Matérn 5/2, each with its length and output scale (variance)."""

    lengthscale: Tensor
    outputscale: Tensor

    @property
    def variance(self) -> float:
        """The covariance of a point with itself."""
        return float(self.outputscale.sum())

    def __call__(self, points: Tensor, inputs: Tensor) -> Tensor:
        """Return the covariances `m x n` of `m x d` points with `n x d` inputs."""
        scale = math.sqrt(5.0) / self.lengthscale
        points, inputs = points * scale, inputs * scale
        covariances = points.new_empty(len(points), len(inputs))
        size = max(1, BLOCK // inputs.numel())
        for start in range(0, len(points), size):
            rows = slice(start, start + size)
            distance = (points[rows].unsqueeze(1) - inputs).abs_()
            polynomial = (distance / 3.0).add_(1.0).mul_(distance).add_(1.0)
            covariances[rows] = polynomial.mul_(distance.neg_().exp_()) @ self.outputscale
        return covariances

    def with_slopes(self, points: Tensor, inputs: Tensor) -> tuple[Tensor, Pull]:
        """Return the covariances, and what maps weights `m x n` to sum_i w_ai dk(x_a, X_i)/dx_a."""
        scale = math.sqrt(5.0) / self.lengthscale
        difference = (points * scale).unsqueeze(1) - inputs * scale
        distance = difference.abs()
        decay = torch.exp(-distance)
        slopes = (1.0 + distance).mul_(decay)

        def pull(weights: Tensor) -> Tensor:
            pulled = torch.einsum("mn,mnd->md", weights, slopes * difference)
            return pulled * (self.outputscale * scale * (-1.0 / 3.0))

        return (slopes + distance.square_().mul_(decay).div_(3.0)) @ self.outputscale, pull


class AdditiveMaternKernel(Kernel):
    """The kernel of `AdditiveMatern`, for fits: with priors and differentiable parameters.

    Priors are those of BoTorch's Matérn kernel, the output scale's shared out so that the sum
    of the d scales has the prior mean of a single kernel's. GPyTorch's batched form makes
    `d x n x n` temporaries, several times slower at n = 500; ours uses each pair once.
    """

    has_lengthscale = True

    def __init__(self, dimensions: int) -> None:
        super().__init__(ard_num_dims=dimensions, lengthscale_prior=GammaPrior(3.0, 6.0))
        self.register_parameter("raw_outputscale", torch.nn.Parameter(torch.zeros(dimensions)))
        self._positive = Positive()
        self.register_constraint("raw_outputscale", self._positive)
        equal = torch.full((dimensions,), 1.0 / dimensions)
        self.initialize(raw_outputscale=self._positive.inverse_transform(equal))
        self.register_prior(
            "outputscale_prior",
            GammaPrior(2.0, 0.15 * dimensions),
            lambda kernel: kernel.outputscale,
        )

    @property
    def outputscale(self) -> Tensor:
        """Return the `d` output scales (variances)."""
        return self._positive.transform(cast(Tensor, self.raw_outputscale))

    def forward(self, x1: Tensor, x2: Tensor, diag: bool = False, *_: Any, **__: Any) -> Tensor:
        """Return the covariances `n x m` of `n x d` with `m x d` inputs, or `n` with `diag`."""
        if diag:
            return self._covariance(x1 - x2)
        if x1.requires_grad or x1.shape != x2.shape or not torch.equal(x1, x2):
            return self._covariance(x1.unsqueeze(-2) - x2.unsqueeze(-3))
        rows, columns = torch.triu_indices(len(x1), len(x1), 1)
        pairs = self._covariance(x1[rows] - x1[columns])
        covariance = torch.diag(self.outputscale.sum().expand(len(x1)))
        covariance = covariance.index_put((rows, columns), pairs)
        return covariance.index_put((columns, rows), pairs)

    def _covariance(self, difference: Tensor) -> Tensor:
        distance = difference.abs() * (math.sqrt(5.0) / self.lengthscale.squeeze(0))
        return (
            (1.0 + distance + distance.square() / 3.0) * torch.exp(-distance)
        ) @ self.outputscale
