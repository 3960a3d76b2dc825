"""GP bounds against numpy, and each fall-back of the fit with its line in the log."""

import logging

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pareco.search.surrogate import (
    AdditiveMaternKernel,
    GaussianProcess,
    Surrogate,
    SurrogateError,
)
from tests.search.problems import ALPHA_MIN, cost, loss, uniform

Array = NDArray[np.float64]


def matern(distance: Array) -> Array:
    scaled = np.sqrt(5.0) * distance
    return (1 + scaled + scaled**2 / 3) * np.exp(-scaled)


def softplus(value: object) -> Array:
    return np.log1p(np.exp(np.asarray(value, dtype=float)))


def bound(process: GaussianProcess, y: Array, x: Array, z: Array, beta: float) -> Array:
    """Return mu - sqrt(beta) sigma at z by hand: standardize, Cholesky, solve."""
    hyper = process.hyperparameters()
    additive = isinstance(process.kernel, AdditiveMaternKernel)
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
    surrogate = Surrogate(ALPHA_MIN, dimensions=4, beta=0.1)
    surrogate.fit(alphas, *map(torch.from_numpy, outputs))
    x, z = (((a - ALPHA_MIN) / (1 - ALPHA_MIN)).numpy() for a in (alphas, points))
    processes = zip(surrogate.processes, outputs, strict=True)
    expected = [bound(process, y, x, z, beta=0.1) for process, y in processes]
    # Condition numbers reach about 1e5 (noise >= 1e-4): 1e5 * 2e-16, and a square root near 0.
    np.testing.assert_allclose(
        surrogate.optimistic_bounds(points).numpy(), np.stack(expected, 1), rtol=0, atol=1e-7
    )
    # In the units of the losses: mean and deviation from bounds at beta 0 and 1, scaled back.
    mean, deviation = (each.numpy() for each in surrogate.predicted_losses(points))
    y = outputs[0]
    centre, below = (bound(surrogate.processes[0], y, x, z, beta) for beta in (0.0, 1.0))
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


def test_constant_outputs_give_finite_bounds() -> None:
    alphas = uniform(8, seed=0)
    surrogate = Surrogate(ALPHA_MIN, 4, beta=0.1)
    surrogate.fit(alphas, torch.full((8,), 0.3, dtype=torch.double), cost(alphas))
    bounds = surrogate.optimistic_bounds(uniform(5, seed=1))
    assert bounds.isfinite().all()
    # Zeros everywhere, less sqrt(0.1) times a sigma of at most 1 (the loss has unit scale).
    assert (bounds[:, 0].abs() < 0.33).all()


def test_bounds_rise_and_fall_with_the_data() -> None:
    alphas = uniform(40, seed=0)
    surrogate = Surrogate(ALPHA_MIN, 4, beta=0.1)
    surrogate.fit(alphas, loss(alphas), cost(alphas))
    points = uniform(200, seed=1)
    for column, truth in enumerate((loss(points), cost(points))):
        bounds = surrogate.optimistic_bounds(points)[:, column].detach()
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
    surrogate = Surrogate(ALPHA_MIN, 4, beta=0.1)
    surrogate.fit(alphas, loss(alphas), cost(alphas))
    assert len(caplog.messages) == 2
    assert all("plain fit failed (NotPSDError" in message for message in caplog.messages)
    assert surrogate.optimistic_bounds(alphas).isfinite().all()


def test_a_failed_fit_falls_back_to_jitter_then_to_the_last_good_and_else_it_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    alphas, more = uniform(8, seed=0), uniform(9, seed=1)
    surrogate = Surrogate(ALPHA_MIN, 4, beta=0.1)
    failing(monkeypatch, failures=1)
    surrogate.fit(alphas, loss(alphas), cost(alphas))
    plain = "GP of the loss: plain fit failed (RuntimeError: broken on purpose)"
    assert caplog.messages == [plain]
    assert caplog.records[0].levelno == logging.WARNING
    assert surrogate.optimistic_bounds(alphas).isfinite().all()
    good = surrogate.last_good["loss"]
    failing(monkeypatch, failures=2)
    surrogate.fit(more, loss(more), cost(more))
    assert caplog.messages[1:] == [plain, plain.replace("plain fit", "fit with jitter")]
    assert surrogate.processes[0].hyperparameters() == good
    assert len(surrogate.processes[0].inputs) == 9
    failing(monkeypatch, failures=2)
    with pytest.raises(SurrogateError, match="no GP of the loss for 8 entries"):
        Surrogate(ALPHA_MIN, 4, beta=0.1).fit(alphas, loss(alphas), cost(alphas))
