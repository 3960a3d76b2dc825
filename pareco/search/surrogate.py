"""The Gaussian processes of the search: loss and cost as functions of points in the unit cube."""

import logging
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, cast

import torch
from botorch.models import SingleTaskGP
from botorch.models.utils.gpytorch_modules import get_covar_module_with_dim_scaled_prior
from botorch.optim.fit import fit_gpytorch_mll_scipy
from gpytorch.kernels import Kernel
from gpytorch.likelihoods import GaussianLikelihood
from gpytorch.mlls import ExactMarginalLogLikelihood
from gpytorch.settings import cholesky_jitter, cholesky_max_tries
from linear_operator.utils.cholesky import psd_safe_cholesky
from torch import Tensor

from pareco.config import SearchConfig
from pareco.search.kernels import AdditiveMatern, AdditiveMaternKernel, Matern

logger = logging.getLogger(__name__)

PLAIN_JITTER = 1e-8
JITTER = 1e-4
# What bad numerics raise in a fit or an optimizer; SurrogateError and NanError are RuntimeErrors.
NUMERICAL_ERRORS = (RuntimeError, ValueError, ArithmeticError)

Hyperparameters = dict[str, Any]

KERNELS: dict[str, Callable[[int], Kernel]] = {
    "loss": partial(get_covar_module_with_dim_scaled_prior, use_rbf_kernel=False),
    "cost": AdditiveMaternKernel,
}


class SurrogateError(RuntimeError):
    """No Gaussian process could be had, not even with the last good hyperparameters."""


class GaussianProcess:
    """A GP on unit-cube inputs `n x d` and standardized outputs `n`, with a kernel for fits."""

    def __init__(self, inputs: Tensor, outputs: Tensor, kernel: Kernel) -> None:
        self.inputs, self.outputs, self.kernel = inputs, outputs, kernel
        model = SingleTaskGP(
            inputs, outputs.unsqueeze(-1), covar_module=kernel, outcome_transform=None
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

    @torch.no_grad()
    def log_likelihood(self) -> float:
        """Return the marginal log likelihood with the priors, per entry; more is better."""
        likelihood = ExactMarginalLogLikelihood(self.model.likelihood, self.model)
        self.model.train()
        with warnings.catch_warnings(action="ignore"):
            value = likelihood(self.model(self.inputs), self.outputs)
        return float(cast(Tensor, value))

    @torch.no_grad()
    def posterior(self, inputs: Tensor, outputs: Tensor) -> "Posterior":
        """Return the posterior given data, with these hyperparameters. Raises NotPSDError."""
        kernel = self.kernel
        if isinstance(kernel, AdditiveMaternKernel):
            lengths = kernel.lengthscale.detach().squeeze(0)
            covariance = AdditiveMatern(lengths, kernel.outputscale.detach())
        else:
            covariance = Matern(cast(Tensor, kernel.lengthscale).detach().squeeze(0))
        mean = cast(Tensor, self.model.mean_module.constant)
        noise = cast(GaussianLikelihood, self.model.likelihood).noise
        full = covariance(inputs, inputs)
        full.diagonal().add_(noise)
        with warnings.catch_warnings(action="ignore"):  # the fall-back to jitter is logged by us
            root = psd_safe_cholesky(full)
        weights = torch.cholesky_solve((outputs - mean).unsqueeze(-1), root).squeeze(-1)
        return Posterior(
            inputs=inputs,
            covariance=covariance,
            mean=float(mean),
            noise=float(noise),
            weights=weights,
            precision=torch.cholesky_inverse(root),
        )


@dataclass(frozen=True, kw_only=True)
class Posterior:
    """A GP given `n` observations: K^-1 is `precision`, K^-1 (y - mean) is `weights`."""

    inputs: Tensor
    covariance: Matern | AdditiveMatern
    mean: float
    noise: float
    weights: Tensor
    precision: Tensor

    def moments(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and standard deviation at `m x d` points, `m` each.

        In standard deviations of the outputs, observation noise left out.
        """
        covariance = self.covariance(points, self.inputs)
        return self.mean + covariance @ self.weights, self._deviation(
            covariance, covariance @ self.precision
        )

    def bounds_with_slopes(self, points: Tensor, width: float) -> tuple[Tensor, Tensor]:
        """Return `bounds` at a few points, `m`, and their gradients `m x d`."""
        covariance, pull = self.covariance.with_slopes(points, self.inputs)
        solved = covariance @ self.precision
        deviation = self._deviation(covariance, solved)
        value = self.mean + covariance @ self.weights - width * deviation
        pulled = self.weights + (width / deviation).unsqueeze(-1) * solved
        return value, pull(pulled)

    def bounds(self, points: Tensor, width: float) -> Tensor:
        """Return mean - `width` x deviation at many points, `m`."""
        mean, deviation = self.moments(points)
        return mean - width * deviation

    def given_mean_at(self, point: Tensor) -> "Posterior":
        """Return the posterior as if the mean had been observed at a point `d`, noise included.

        The mean stays as it is everywhere; the deviation shrinks.
        """
        column = self.covariance(point.unsqueeze(0), self.inputs).squeeze(0)
        solved = self.precision @ column
        schur = self.covariance.variance + self.noise - column @ solved
        corner = torch.cat([-solved, solved.new_ones(1)])
        precision = torch.nn.functional.pad(self.precision, (0, 1, 0, 1))
        return Posterior(
            inputs=torch.cat([self.inputs, point.unsqueeze(0)]),
            covariance=self.covariance,
            mean=self.mean,
            noise=self.noise,
            weights=torch.cat([self.weights, self.weights.new_zeros(1)]),
            precision=precision + torch.outer(corner, corner) / schur,
        )

    def _deviation(self, covariance: Tensor, solved: Tensor) -> Tensor:
        explained = (covariance * solved).sum(dim=-1)
        return (self.covariance.variance - explained).clamp_min(1e-12).sqrt()


@dataclass
class Fit:
    """The last good hyperparameters of one GP, how many fits there were, and posteriors since."""

    hyperparameters: Hyperparameters = field(default_factory=dict)
    fits: int = 0
    asks: int = 0


class Surrogate:
    """GPs of loss (Matérn 5/2, ARD) and, where wanted, of cost (additive Matérn 5/2), in double.

    The loss has BoTorch's length-scale prior for many dimensions (arXiv 2402.02229), under which
    fronts came out better than under its older Gamma prior, and unit output scale. The last good
    hyperparameters are kept: the next fit starts from them, and every `restart_every`-th from the
    defaults too, of which the likelier stay. A fit sees at most `fit_entries` entries, evenly
    spread over the history; the posterior sees all.
    """

    def __init__(self, dimensions: int, config: SearchConfig, outputs: Sequence[str]) -> None:
        self.dimensions, self.config = dimensions, config
        self.width = config.beta**0.5
        self.fits = {name: Fit() for name in outputs}
        self.posteriors: list[Posterior] = []
        self._units: list[tuple[Tensor, Tensor]] = []

    def fit(self, inputs: Tensor, *outputs: Tensor) -> None:
        """Make the posteriors of `n x d` inputs and `n` outputs each, all finite.

        Falls back, with a warning in the log, to a fit with jitter from the default
        hyperparameters and then to the last good hyperparameters; raises SurrogateError where
        these fail too or there are none.
        """
        standardized = [_standardized(each) for each in outputs]
        self._units = [(centre, scale) for _, centre, scale in standardized]
        self.posteriors = [
            self._posterior(name, inputs, values)
            for name, (values, _, _) in zip(self.fits, standardized, strict=True)
        ]

    def optimistic_bounds(self, points: Tensor) -> Tensor:
        """Return mu - sqrt(beta) sigma of each output at `m x d` points, `m x k`.

        In standard deviations of the fitted data; less is better. PareCO, section 3.2.
        """
        return torch.stack([each.bounds(points, self.width) for each in self.posteriors], dim=1)

    def bounds_with_slopes(self, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the optimistic bounds at a few points, and their gradients `m x k x d`."""
        both = [each.bounds_with_slopes(points, self.width) for each in self.posteriors]
        values, slopes = zip(*both, strict=True)
        return torch.stack(values, dim=1), torch.stack(slopes, dim=1)

    def predicted(self, output: int, points: Tensor) -> tuple[Tensor, Tensor]:
        """Return the posterior mean and standard deviation at `m x d` points, `m` each.

        In the units of the fitted output, observation noise left out.
        """
        centre, scale = self._units[output]
        mean, sigma = self.posteriors[output].moments(points)
        return centre + scale * mean, scale * sigma

    def state(self) -> dict[str, Any]:
        """Return the hyperparameters and what they were fitted to, fit for JSON."""
        return {name: dict(vars(each)) for name, each in self.fits.items() if each.fits}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Take up what `state` returned. Raises `ValueError` for anything else."""
        try:
            self.fits = {name: Fit(**state.get(name, {})) for name in self.fits}
        except TypeError as error:
            raise ValueError(f"the state of the fits is none of ours: {error}") from error

    def _posterior(self, name: str, inputs: Tensor, outputs: Tensor) -> Posterior:
        last, config = self.fits[name], self.config
        warm = config.warm_iterations if last.fits else config.first_iterations
        due = not last.fits or last.asks + 1 >= (config.fit_every or 1)
        known = last.hyperparameters or None
        attempts: list[tuple[str, list[Hyperparameters | None], int, float, int]] = [
            ("plain fit", [known], warm if due else 0, PLAIN_JITTER, 1),
            ("fit with jitter", [None], config.first_iterations, JITTER, 3),
        ]
        if due and last.fits and last.fits % config.restart_every == 0:
            attempts[0][1].append(None)
        if known is not None:
            attempts.append(("last good hyperparameters", [known], 0, JITTER, 3))
        for attempt, starts, iterations, jitter, tries in attempts:
            try:
                with cholesky_max_tries(tries), cholesky_jitter(double_value=jitter):
                    process = self._fitted(name, inputs, outputs, starts, iterations)
                    posterior = process.posterior(inputs, outputs)
            except NUMERICAL_ERRORS as error:
                reason = f"{type(error).__name__}: {error}"
                logger.warning("GP of the %s: %s failed (%s)", name, attempt, reason)
            else:
                self.fits[name] = Fit(
                    hyperparameters=process.hyperparameters(),
                    fits=last.fits + bool(iterations),
                    asks=0 if iterations else last.asks + 1,
                )
                return posterior
        raise SurrogateError(f"no GP of the {name} for {len(inputs)} entries")

    def _fitted(
        self,
        name: str,
        inputs: Tensor,
        outputs: Tensor,
        starts: Sequence[Hyperparameters | None],
        iterations: int,
    ) -> GaussianProcess:
        """Return the likeliest of the fits from each of `starts` (None: the defaults)."""
        count = min(len(inputs), self.config.fit_entries)
        seen = torch.linspace(0, len(inputs) - 1, count, dtype=torch.double).round().long()
        fitted: list[GaussianProcess] = []
        for start in starts:
            process = GaussianProcess(inputs[seen], outputs[seen], KERNELS[name](self.dimensions))
            if start is not None:
                process.set_hyperparameters(start)
            if iterations:
                steps = iterations if start is not None else self.config.first_iterations
                process.fit(steps)
            fitted.append(process)
        return fitted[0] if len(fitted) == 1 else max(fitted, key=_log_likelihood)


def _log_likelihood(process: GaussianProcess) -> float:
    value = process.log_likelihood()
    return value if math.isfinite(value) else -math.inf


def _standardized(outputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return outputs `n` in standard deviations from their mean, the mean and the deviation.

    The deviation is that of `n`; a constant output has 0 and becomes zero.
    """
    centre = outputs.mean()
    scale = (outputs - centre).square().mean().sqrt()
    # Rounding leaves a constant with a deviation of about 1e-16 of its size.
    if scale <= 1e-12 * outputs.abs().max():
        return 0 * outputs, centre, torch.zeros_like(scale)
    return (outputs - centre) / scale, centre, scale
