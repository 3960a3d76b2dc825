"""GP bounds against numpy, and each fall-back of the fit with its line in the log."""

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from gpytorch.kernels import Kernel, MaternKernel
from numpy.typing import NDArray

from pareco.config import SearchConfig
from pareco.search.kernels import AdditiveMatern, AdditiveMaternKernel, Matern
from pareco.search.surrogate import (
    KERNELS,
    GaussianProcess,
    Hyperparameters,
    Surrogate,
    SurrogateError,
)
from tests.search.problems import ALPHA_MIN, cost, loss, uniform

Array = NDArray[np.float64]
CONFIG = SearchConfig(beta=0.1).resolved()


def surrogate_of(**settings: int) -> Surrogate:
    return Surrogate(4, replace(CONFIG, **settings), ("loss", "cost"))


def unit(alphas: torch.Tensor) -> torch.Tensor:
    return (alphas - ALPHA_MIN) / (1 - ALPHA_MIN)


def matern(distance: Array) -> Array:
    scaled = np.sqrt(5.0) * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def softplus(value: object) -> Array:
    return np.log1p(np.exp(np.asarray(value, dtype=float)))


def bound(hyper: Hyperparameters, y: Array, x: Array, z: Array, beta: float) -> Array:
    """Return mu - sqrt(beta) sigma at z by hand: standardize, Cholesky, solve."""
    additive = "covar_module.raw_outputscale" in hyper
    # The loss' length scales and noise are constrained without a transform; the cost's are not.
    length = np.asarray(hyper["covar_module.raw_lengthscale"])
    length = softplus(length) if additive else length
    noise = np.asarray(hyper["likelihood.noise_covar.raw_noise"])

    def kernel(a: Array, b: Array) -> Array:
        difference = np.abs(a[:, None] - b[None]) / length.reshape(1, 1, -1)
        if additive:
            return matern(difference) @ softplus(hyper["covar_module.raw_outputscale"])
        return matern(np.sqrt((difference**2).sum(-1)))

    standardized = (y - y.mean()) / y.std()
    mean = float(hyper["mean_module.raw_constant"])
    root = np.linalg.cholesky(kernel(x, x) + noise * np.eye(len(x)))
    cross = np.linalg.solve(root, kernel(x, z))
    mu = mean + cross.T @ np.linalg.solve(root, standardized - mean)
    return mu - np.sqrt(beta) * np.sqrt(np.diag(kernel(z, z)) - (cross**2).sum(0))


def test_bounds_and_predictions_are_those_of_a_posterior_computed_by_hand() -> None:
    alphas, points = uniform(25, seed=1), uniform(7, seed=2)
    outputs = (3.0 + 0.2 * loss(alphas)).numpy(), cost(alphas).numpy()
    surrogate = surrogate_of()
    surrogate.fit(unit(alphas), *map(torch.from_numpy, outputs))
    x, z = (unit(each).numpy() for each in (alphas, points))
    fits = [surrogate.fits[name].hyperparameters for name in ("loss", "cost")]
    expected = [bound(hyper, y, x, z, beta=0.1) for hyper, y in zip(fits, outputs, strict=True)]
    # Condition numbers reach about 1e5 (noise >= 1e-4): 1e5 * 2e-16, and a square root near 0.
    np.testing.assert_allclose(
        surrogate.optimistic_bounds(unit(points)).numpy(), np.stack(expected, 1), rtol=0, atol=1e-7
    )
    # In the units of the losses: mean and deviation from bounds at beta 0 and 1, scaled back.
    mean, deviation = (each.numpy() for each in surrogate.predicted(0, unit(points)))
    y = outputs[0]
    centre, below = (bound(fits[0], y, x, z, beta) for beta in (0.0, 1.0))
    np.testing.assert_allclose(mean, y.mean() + y.std() * centre, rtol=1e-8)
    np.testing.assert_allclose(deviation, y.std() * (centre - below), rtol=1e-5)


def test_additive_kernel_gradients_and_forms_agree() -> None:
    kernel = AdditiveMaternKernel(3).double()
    inputs = uniform(6, seed=0, dimensions=3)
    square = kernel(inputs).to_dense()  # each pair once
    cross = kernel(inputs, inputs.clone().requires_grad_()).to_dense()  # all pairs
    diagonal = kernel(inputs, diag=True)
    assert isinstance(diagonal, torch.Tensor)
    # The same sums in another order: a few roundings of numbers of order 1.
    torch.testing.assert_close(square, cross.detach(), rtol=0, atol=1e-14)
    torch.testing.assert_close(square.diagonal(), diagonal, rtol=0, atol=1e-14)
    other = uniform(4, seed=1, dimensions=3).requires_grad_()
    torch.autograd.gradcheck(lambda x: kernel(x, inputs).to_dense(), other)


@pytest.mark.parametrize("additive", [False, True])
def test_closed_forms_are_those_of_the_kernels_of_the_fit(additive: bool) -> None:
    """And their slopes what autograd makes of these."""
    lengths, scales = torch.tensor([0.3, 1.0, 2.0]).double(), torch.tensor([0.2, 1.0, 0.5]).double()
    inputs, points = uniform(6, seed=0, dimensions=3), uniform(4, seed=1, dimensions=3)
    if additive:
        kernel = AdditiveMaternKernel(3).double()
        kernel.initialize(raw_outputscale=torch.log(torch.expm1(scales)))
        closed = AdditiveMatern(lengths, scales)
    else:
        kernel, closed = MaternKernel(nu=2.5, ard_num_dims=3).double(), Matern(lengths)
    kernel.lengthscale = lengths
    points.requires_grad_()
    expected = kernel(points, inputs).to_dense()
    weights = uniform(4, seed=2, dimensions=6) - 0.7
    (slopes,) = torch.autograd.grad((expected * weights).sum(), points)
    found, pull = closed.with_slopes(points.detach(), inputs)
    # Order-1 sums of a few terms; distances of at least 0.1 keep their derivatives' rounding small.
    for values in (found, closed(points.detach(), inputs)):
        torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-12)
    torch.testing.assert_close(pull(weights), slopes, rtol=0, atol=1e-11)
    assert closed.variance == pytest.approx(float(closed(inputs[:1], inputs[:1])), abs=1e-12)


def test_an_observation_at_the_mean_moves_nothing_but_the_deviation() -> None:
    alphas, points = unit(uniform(20, seed=3)), unit(uniform(6, seed=4))
    surrogate = surrogate_of()
    surrogate.fit(alphas, loss(alphas), cost(alphas))
    posterior = surrogate.posteriors[0]
    mean, deviation = posterior.moments(points)
    given = posterior.given_mean_at(points[0])
    # The whole posterior anew, with the mean as a further output.
    process = GaussianProcess(alphas, posterior.weights, surrogate_kernel())
    process.set_hyperparameters(surrogate.fits["loss"].hyperparameters)
    y = (loss(alphas) - loss(alphas).mean()) / loss(alphas).std(correction=0)
    again = process.posterior(torch.cat([alphas, points[:1]]), torch.cat([y, mean[:1]]))
    for found, expected in zip(given.moments(points), again.moments(points), strict=True):
        # Condition numbers reach about 1e5, and a square root near 0, as above.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(given.moments(points)[0], mean, rtol=0, atol=1e-9)
    assert (given.moments(points)[1] <= deviation + 1e-9).all()
    assert given.moments(points)[1][0] < 0.8 * deviation[0]


def surrogate_kernel() -> Kernel:
    return KERNELS["loss"](4)


def test_a_degenerate_fit_does_not_stay() -> None:
    """Twenty points of the diagonal say nothing of single dimensions; later ones do."""
    diagonal = torch.linspace(0, 1, 20).double().unsqueeze(1).expand(20, 4)
    surrogate = surrogate_of(restart_every=1, warm_iterations=1)
    surrogate.fit(diagonal, loss(diagonal), cost(diagonal))
    stuck = {"covar_module.raw_lengthscale": [[50.0, 0.05, 0.05, 0.05]]}
    surrogate.fits["loss"].hyperparameters |= stuck
    points = unit(uniform(60, seed=1))
    kept = surrogate_of(restart_every=100, warm_iterations=1)
    kept.load_state(surrogate.state())
    for each in (surrogate, kept):
        each.fit(points, loss(points), cost(points))
    assert log_likelihood(surrogate, points) > log_likelihood(kept, points) + 0.5


def log_likelihood(surrogate: Surrogate, points: torch.Tensor) -> float:
    """Return the log likelihood of the losses per entry."""
    outputs = (loss(points) - loss(points).mean()) / loss(points).std(correction=0)
    process = GaussianProcess(points, outputs, surrogate_kernel())
    process.set_hyperparameters(surrogate.fits["loss"].hyperparameters)
    return process.log_likelihood()


def test_fits_are_as_rare_and_as_small_as_the_settings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    fit = GaussianProcess.fit
    monkeypatch.setattr(
        GaussianProcess, "fit", lambda self, its: (sizes.append(len(self.inputs)), fit(self, its))
    )
    surrogate = surrogate_of(fit_every=3, fit_entries=10, restart_every=2)
    for count in (8, 9, 11, 12, 13, 14, 15):
        points = unit(uniform(count, seed=count))
        surrogate.fit(points, loss(points), cost(points))
        state, surrogate = (
            surrogate.state(),
            surrogate_of(fit_every=3, fit_entries=10, restart_every=2),
        )
        surrogate.load_state(state)
        assert len(sizes) > 0
    # Of both outputs: at the first ask, the fourth, and at the seventh from the defaults too.
    assert sizes == [8, 8, 10, 10, 10, 10, 10, 10]


def test_constant_outputs_give_finite_bounds() -> None:
    alphas = uniform(8, seed=0)
    surrogate = surrogate_of()
    surrogate.fit(unit(alphas), torch.full((8,), 0.3, dtype=torch.double), cost(alphas))
    bounds = surrogate.optimistic_bounds(unit(uniform(5, seed=1)))
    assert bounds.isfinite().all()
    # Zeros everywhere, less sqrt(0.1) times a sigma of at most 1 (the loss has unit scale).
    assert (bounds[:, 0].abs() < 0.33).all()


def test_bounds_rise_and_fall_with_the_data() -> None:
    alphas = uniform(40, seed=0)
    surrogate = surrogate_of()
    surrogate.fit(unit(alphas), loss(alphas), cost(alphas))
    points = uniform(200, seed=1)
    for column, truth in enumerate((loss(points), cost(points))):
        bounds = surrogate.optimistic_bounds(unit(points))[:, column]
        assert torch.corrcoef(torch.stack([bounds, truth]))[0, 1] > 0.95


def failing(monkeypatch: pytest.MonkeyPatch, failures: int) -> None:
    """Let the next `failures` fits raise."""
    fit = GaussianProcess.fit
    left = [failures]

    def broken(self: GaussianProcess, iterations: int) -> None:
        left[0] -= 1
        if left[0] >= 0:
            raise RuntimeError("broken on purpose")
        fit(self, iterations)

    monkeypatch.setattr(GaussianProcess, "fit", broken)


def test_jitter_is_what_saves_a_singular_covariance(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    # A noise of -1e-6 and equal inputs make K indefinite: only a jitter above 1e-6 can factor it.
    alphas = uniform(1, seed=0).expand(30, 4)

    def noiseless(self: GaussianProcess, iterations: int) -> None:
        values = self.hyperparameters()
        values["likelihood.noise_covar.raw_noise"] = [-1e-6]
        self.set_hyperparameters(values)

    monkeypatch.setattr(GaussianProcess, "fit", noiseless)
    surrogate = surrogate_of()
    surrogate.fit(unit(alphas), loss(alphas), cost(alphas))
    assert len(caplog.messages) == 2
    assert all("plain fit failed (NotPSDError" in message for message in caplog.messages)
    assert surrogate.optimistic_bounds(unit(alphas)).isfinite().all()


def test_a_failed_fit_falls_back_to_jitter_then_to_the_last_good_and_else_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alphas, more = uniform(8, seed=0), uniform(9, seed=1)
    surrogate = surrogate_of()
    failing(monkeypatch, failures=1)
    surrogate.fit(unit(alphas), loss(alphas), cost(alphas))
    plain = "GP of the loss: plain fit failed (RuntimeError: broken on purpose)"
    assert caplog.messages == [plain]
    assert caplog.records[0].levelno == logging.WARNING
    assert surrogate.optimistic_bounds(unit(alphas)).isfinite().all()
    good = surrogate.fits["loss"].hyperparameters
    failing(monkeypatch, failures=2)
    surrogate.fit(unit(more), loss(more), cost(more))
    assert caplog.messages[1:] == [plain, plain.replace("plain fit", "fit with jitter")]
    assert surrogate.fits["loss"].hyperparameters == good
    assert len(surrogate.posteriors[0].inputs) == 9
    failing(monkeypatch, failures=2)
    with pytest.raises(SurrogateError, match="no GP of the loss for 8 entries"):
        surrogate_of().fit(unit(alphas), loss(alphas), cost(alphas))
