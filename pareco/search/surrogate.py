"""The two Gaussian processes of the search: loss and cost as functions of the multipliers."""

import logging
import math
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, cast

import torch
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.constraints import Positive
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.priors import GammaPrior
from gpytorch.settings import cholesky_jitter, cholesky_max_tries
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

logger = logging.getLogger(__name__)

FIRST_ITERATIONS = 40
WARM_ITERATIONS = 10
PLAIN_JITTER = 1e-8
JITTER = 1e-4
# What bad numerics raise in a fit or an optimizer; SurrogateError and NanError are RuntimeErrors.
NUMERICAL_ERRORS = (RuntimeError, ValueError, ArithmeticError)

Hyperparameters = dict[str, Any]


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


KERNELS: dict[str, Callable[[int], Kernel]] = {
    "loss": partial(get_covar_module_with_dim_scaled_prior, use_rbf_kernel=False),
    "cost": AdditiveMaternKernel,
}


class SurrogateError(RuntimeError):
    """No Gaussian process could be had, not even with the last good hyperparameters."""


class GaussianProcess:
    """One output's GP on unit-cube inputs `n x d` and outputs `n`, which it standardizes.

    `centre` and `scale` are the outputs' mean and standard deviation (n); a constant output has
    the scale 0 and becomes zero.
    """

    def __init__(self, inputs: Tensor, outputs: Tensor, kernel: Kernel) -> None:
        self.centre = outputs.mean()
        self.scale = (outputs - self.centre).square().mean().sqrt()
        # Rounding leaves a constant with a deviation of about 1e-16 of its size.
        if self.scale <= 1e-12 * outputs.abs().max():
            self.scale = torch.zeros_like(self.scale)
        self.outputs = (outputs - self.centre) / self.scale if self.scale else 0 * outputs
        self.inputs, self.kernel = inputs, kernel
        model = SingleTaskGP(
            inputs, self.outputs.unsqueeze(-1), covar_module=kernel, outcome_transform=None
        )
        self.model = model.double()

    def hyperparameters(self) -> Hyperparameters:
        """Return the raw (unconstrained) hyperparameters as plain lists fit for JSON."""
        return {name: value.tolist() for name, value in self.model.named_parameters()}

    def set_hyperparameters(self, values: Hyperparameters) -> None:
        """Set the raw hyperparameters."""
        for name, parameter in self.model.named_parameters():
            parameter.data = torch.tensor(values[name], dtype=torch.double)

    def fit(self, iterations: int) -> None:
        """Maximize the marginal likelihood by at most `iterations` steps of L-BFGS-B.

        Raises FloatingPointError where a hyperparameter ends up non-finite.
        """
        likelihood = ExactMarginalLogLikelihood(self.model.likelihood, self.model)
        with warnings.catch_warnings(action="ignore"):  # a stop at the iteration limit is expected
            fit_gpytorch_mll_scipy(likelihood, options={"maxiter": iterations})
        if not all(value.isfinite().all() for value in self.model.parameters()):
            raise FloatingPointError("non-finite hyperparameters")

    def condition(self) -> None:
        """Cache what predictions need: K^-1 and K^-1 (y - mean). Raises NotPSDError, NanError."""
        self.model.requires_grad_(False)
        self.mean = cast(Tensor, self.model.mean_module.constant)
        noise = cast(GaussianLikelihood, self.model.likelihood).noise
        covariance = self.kernel(self.inputs).to_dense()
        covariance = covariance + noise * torch.eye(len(covariance))
        with warnings.catch_warnings(action="ignore"):  # the fall-back to jitter is logged by us
            root = psd_safe_cholesky(covariance)
        self.precision = torch.cholesky_inverse(root)
        self.weights = torch.cholesky_solve((self.outputs - self.mean).unsqueeze(-1), root)

    def moments(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and standard deviation at `m x d` inputs, `m` each.

        In standard deviations of the outputs, observation noise left out. Differentiable in the
        inputs; needs `condition` before.
        """
        covariance = self.kernel(inputs, self.inputs).to_dense()
        mean = self.mean + (covariance @ self.weights).squeeze(-1)
        explained = (covariance @ self.precision * covariance).sum(dim=-1)
        variance = cast(Tensor, self.kernel(inputs, diag=True)) - explained
        return mean, variance.clamp_min(1e-12).sqrt()


class Surrogate:
    """GPs of loss (Matérn 5/2, ARD) and cost (additive Matérn 5/2), in double precision.

    The loss has BoTorch's length-scale prior for many dimensions (arXiv 2402.02229), under which
    fronts came out better than under its older Gamma prior, and unit output scale.
    Multipliers in [alpha_min, 1] are scaled to the unit cube. The last good hyperparameters are
    kept: the next fit starts from them.
    """

    def __init__(self, alpha_min: float, dimensions: int, beta: float) -> None:
        self.alpha_min, self.dimensions, self.beta = alpha_min, dimensions, beta
        self.processes: list[GaussianProcess] = []
        self.last_good: dict[str, Hyperparameters] = {}

    def fit(self, alphas: Tensor, losses: Tensor, costs: Tensor) -> None:
        """Fit both GPs to `n x d` alphas, `n` losses and `n` costs, all finite.

        Falls back, with a warning in the log, to a fit with jitter from the default
        hyperparameters and then to the last good hyperparameters; raises SurrogateError where
        these fail too or there are none.
        """
        inputs = self._unit(alphas)
        outputs = {"loss": losses, "cost": costs}
        self.processes = [self._fitted(name, inputs, values) for name, values in outputs.items()]

    def optimistic_bounds(self, alphas: Tensor) -> Tensor:
        """Return mu - sqrt(beta) sigma of (loss, cost) at `m x d` alphas, `m x 2`.

        In standard deviations of the fitted data; less is better. Differentiable in the alphas.
        PareCO, section 3.2.
        """
        moments = [process.moments(self._unit(alphas)) for process in self.processes]
        return torch.stack([mean - self.beta**0.5 * sigma for mean, sigma in moments], dim=-1)

    @torch.no_grad()
    def predicted_losses(self, alphas: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and standard deviation of the loss at `m x d` alphas, `m` each.

        In the units of the fitted losses, observation noise left out.
        """
        loss = self.processes[0]
        mean, sigma = loss.moments(self._unit(alphas))
        return loss.centre + loss.scale * mean, loss.scale * sigma

    def _unit(self, alphas: Tensor) -> Tensor:
        return (alphas - self.alpha_min) / (1.0 - self.alpha_min)

    def _fitted(self, name: str, inputs: Tensor, outputs: Tensor) -> GaussianProcess:
        last_good = self.last_good.get(name)
        warm = FIRST_ITERATIONS if last_good is None else WARM_ITERATIONS
        attempts = [
            ("plain fit", last_good, warm, PLAIN_JITTER, 1),
            ("fit with jitter", None, FIRST_ITERATIONS, JITTER, 3),
        ]
        if last_good is not None:
            attempts.append(("last good hyperparameters", last_good, 0, JITTER, 3))
        for attempt, start, iterations, jitter, tries in attempts:
            try:
                with cholesky_max_tries(tries), cholesky_jitter(double_value=jitter):
                    process = GaussianProcess(inputs, outputs, KERNELS[name](self.dimensions))
                    if start is not None:
                        process.set_hyperparameters(start)
                    if iterations:
                        process.fit(iterations)
                    process.condition()
            except NUMERICAL_ERRORS as error:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("GP of the %s: %s failed (%s)", name, attempt, reason)
            else:
                self.last_good[name] = process.hyperparameters()
                return process
        raise SurrogateError(f"no GP of the {name} for {len(inputs)} entries")
