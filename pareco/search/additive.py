"""The additive kernel of the cost GP."""

import math
from typing import Any, cast

import torch
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from gpytorch.priors import GammaPrior
from torch import Tensor


class AdditiveMaternKernel(Kernel):
    """Sum of d one-dimensional Matérn 5/2 kernels, each with its own length and output scale.

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

    def forward(
        self,
        x1: Tensor,
        x2: Tensor,
        diag: bool = False,
        last_dim_is_batch: bool = False,
        **params: Any,
    ) -> Tensor:
        """Return the covariances `n x m` of `n x d` with `m x d` inputs, or `n` with `diag`.

        Raises NotImplementedError for `last_dim_is_batch`, which has no use here.
        """
        if last_dim_is_batch:
            raise NotImplementedError("last_dim_is_batch")
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
