r"""The noise level as an unknown, against its exact posterior by the evidence of a Gaussian field."""

from __future__ import annotations

import deepinv as dinv
import pytest
import torch
from conftest import SHAPE, make_operator

import emprior
from emprior._pilot import pilot_noise
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.operators import without_noise
from emprior.solvers.noise_level import Rescaled
from emprior.verify.fields import gaussian_field

SIDE, SIGMA = 24, 0.1


@pytest.fixture(scope="module")
def noisy():
    r"""A field, measurements of two images, and mean and deviation of sigma given each."""
    field = gaussian_field(SIDE)
    x = field.sample(2, seed=1)
    y = x + SIGMA * torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=x.dtype)
    grid = torch.linspace(0.05, 0.15, 201, dtype=torch.float64)
    evidence = [field.posterior(dinv.physics.Denoising(), y, float(level)).log_evidence for level in grid]
    log = torch.stack(evidence) - grid.log()[:, None]
    weight = (log - log.max(0).values).exp()
    weight = weight / weight.sum(0)
    mean = (weight * grid[:, None]).sum(0)
    return field, y, mean, (weight * (grid[:, None] - mean).square()).sum(0).sqrt()


@pytest.mark.parametrize("method", ["hmc", "gibbs"])
def test_the_noise_level_has_its_posterior(noisy, method):
    field, y, mean, std = noisy
    result = emprior.solve(dinv.physics.Denoising(), y, field, method=method, sigma="estimate", samples=8, steps=500)
    run = result.diagnostics
    error = std / run.ess.clamp(min=16).sqrt()
    assert ((run.sigma - mean).abs() < 4 * error).all()
    assert ((run.sigma_std / std - 1).abs() < 4 / (2 * run.ess.clamp(min=16)).sqrt()).all()
    assert (error < 0.3 * std).all()


def test_the_residual_is_in_the_noise_that_was_found(noisy):
    field, y = noisy[:2]
    result = emprior.solve(dinv.physics.Denoising(), y, field, method="mala", samples=2, steps=40, sigma="estimate")
    expected = (y - result.mean).flatten(1).square().mean(1).sqrt() / result.diagnostics.sigma
    torch.testing.assert_close(result.diagnostics.residual, expected, rtol=1e-5, atol=0)


def test_an_estimate_of_map_is_that_of_a_chain(noisy):
    field, y, mean, std = noisy
    result = emprior.solve(dinv.physics.Denoising(), y, field, sigma="estimate")
    assert ((result.diagnostics.sigma - mean).abs() < 1.5 * std).all()
    known = emprior.solve(without_noise(dinv.physics.Denoising()), y, field, sigma=result.diagnostics.sigma)
    torch.testing.assert_close(result.estimate, known.estimate)


def test_a_pilot_is_of_the_right_size(noisy):
    field, y, mean, _ = noisy
    found = pilot_noise(without_noise(dinv.physics.Denoising()), y, field, tuple(y.shape[1:]), 1.0)
    assert ((found / mean) < 2).all()
    assert ((found / mean) > 0.5).all()


def test_the_noise_model_of_the_operator_is_not_asked_and_not_changed(noisy):
    field, y, _, _ = noisy
    physics = dinv.physics.Denoising(dinv.physics.GaussianNoise(0.7))
    one, two = (
        emprior.solve(operator, y[:1], field, method="mala", sigma="estimate", steps=20)
        for operator in (physics, dinv.physics.Denoising())
    )
    assert torch.equal(one.mean, two.mean)
    assert float(physics.noise_model.sigma) == pytest.approx(0.7)


def test_an_image_of_a_batch_is_that_image_alone(noisy):
    field, y, _, _ = noisy
    one, two = (
        emprior.solve(dinv.physics.Denoising(), rows, field, method="mala", sigma="estimate", steps=30)
        for rows in (y[:1], y)
    )
    torch.testing.assert_close(two.mean[:1], one.mean, rtol=0, atol=1e-9)
    torch.testing.assert_close(two.diagnostics.sigma[:1], one.diagnostics.sigma, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", ["denoising", "inpainting", "blur", "compressed_sensing"])
def test_a_rescaled_data_term_is_that_of_another_noise(name, field):
    operator, factor = make_operator(name), 4.0
    sigma = float(operator.noise_model.sigma)
    operator.noise_model = dinv.physics.ZeroNoise()
    x = field.sample(2, seed=3)
    y = operator.A(field.sample(2, seed=4))
    scaled = Rescaled(GaussianFidelity(operator, y, sigma), torch.full((2,), factor, dtype=torch.float64))
    plain = GaussianFidelity(operator, y, sigma / factor**0.5)
    n = torch.randn(2, *plain.measured, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for of in (
        lambda data: data(x),
        lambda data: data.value_and_grad(x)[1],
        lambda data: data.prox(x, 0.03),
        lambda data: data.curve(x),
        lambda data: data.solve(x, 0.03),
        lambda data: data.whiten(n),
        lambda data: data.residual(x),
        lambda data: data.count(x).double(),
    ):
        torch.testing.assert_close(of(scaled), of(plain), rtol=1e-7, atol=1e-9)
    assert Posterior(scaled, field).fidelity.images == 2


@pytest.mark.parametrize("name", ["denoising", "compressed_sensing"])
def test_a_noise_level_for_each_image(name, field):
    r"""Data terms whose images have their own noise are those of the images alone, of any shape of measurements."""
    operator = make_operator(name)
    operator.noise_model = dinv.physics.ZeroNoise()
    x, levels = field.sample(3, seed=3), torch.tensor([0.05, 0.1, 0.4], dtype=torch.float64)
    y = operator.A(field.sample(3, seed=4))
    n = torch.randn(y.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = GaussianFidelity(operator, y, levels)
    assert x.shape[1:] == SHAPE
    for b in range(3):
        alone = GaussianFidelity(operator, y[b : b + 1], float(levels[b]))
        torch.testing.assert_close(together.whiten(n)[b], alone.whiten(n[b : b + 1])[0])
        torch.testing.assert_close(together.prox(x, 0.1)[b], alone.prox(x[b : b + 1], 0.1)[0])
        torch.testing.assert_close(together.curve(x)[b], alone.curve(x[b : b + 1])[0])


def test_bad_input(field):
    y = torch.zeros(1, *SHAPE, dtype=torch.float64)
    with pytest.raises(ValueError, match=r"sigma is 'guess', expected a positive number.* or 'estimate'"):
        emprior.solve(dinv.physics.Denoising(), y, field, sigma="guess")
    with pytest.raises(
        ValueError, match=r"method 'flow' cannot estimate sigma. Use one of: map, .*posterior.*sigma=0.02"
    ):
        emprior.solve(dinv.physics.Denoising(), y, field, sigma="estimate", method="flow")
