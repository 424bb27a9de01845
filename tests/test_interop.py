from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from emprior.interop import as_deepinv_prior, as_denoiser, proximal
from emprior.interpolant import Denoising
from emprior.nets import make_potential
from emprior.priors import GaussianMixturePrior, GaussianPrior, NetworkPrior
from emprior.solvers import Descent

deepinv = pytest.importorskip("deepinv")

SHAPE = (1, 4, 4)


def gaussian(spread=30.0, dtype=torch.float64):
    r"""A dense Gaussian prior whose covariance has the condition number `spread`."""
    random = torch.Generator().manual_seed(0)
    basis, _ = torch.linalg.qr(torch.randn(16, 16, generator=random, dtype=torch.float64))
    values = torch.logspace(0, -torch.tensor(spread).log10().item(), 16, dtype=torch.float64) * 0.1
    mean = torch.rand(SHAPE, generator=random, dtype=torch.float64)
    return GaussianPrior(mean.to(dtype), (basis * values @ basis.mT).to(dtype))


def measured(prior, images=2, sigma=0.2):
    random = torch.Generator().manual_seed(1)
    mask = (torch.rand(SHAPE, generator=random) < 0.6).double()
    physics = deepinv.physics.Inpainting(img_size=SHAPE, mask=mask).to(torch.float64)
    x = prior.sample(images, seed=2)
    y = physics.A(x) + sigma * mask * torch.randn(x.shape, generator=random, dtype=torch.float64)
    return physics, y, sigma


def images(count, dtype=torch.float64):
    return torch.rand(count, *SHAPE, generator=torch.Generator().manual_seed(3), dtype=dtype)


def exact_prox(prior, x, gamma):
    system = gamma * torch.linalg.inv(prior.covariance_matrix()) + torch.eye(16, dtype=x.dtype)
    right = (x - prior.mean).flatten(1)
    return prior.mean + torch.linalg.solve(system, right.mT).mT.reshape(x.shape)


@pytest.mark.parametrize("gamma", [1e-4, 1e-2, 1.0])
def test_prox_of_a_stiff_gaussian_is_its_closed_form(gamma):
    prior, x = gaussian(spread=1e3), images(3)
    found = as_deepinv_prior(prior).prox(x, None, gamma=gamma)
    torch.testing.assert_close(found, exact_prox(prior, x, gamma), rtol=0, atol=1e-6)


def test_prox_in_single_precision():
    prior, x = gaussian(dtype=torch.float32), images(3, torch.float32)
    found = as_deepinv_prior(prior).prox(x, gamma=0.01)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact_prox(gaussian(), x.double(), 0.01).float(), rtol=0, atol=5e-4)


def test_prox_takes_a_step_for_each_row_and_rows_are_independent():
    prior, x = gaussian(), images(3)
    steps = torch.tensor([0.0, 0.01, 1.0], dtype=torch.float64)
    for shaped in (steps, steps.reshape(3, 1, 1, 1)):
        together = as_deepinv_prior(prior).prox(x, gamma=shaped)
        alone = [as_deepinv_prior(prior).prox(x[i : i + 1], gamma=steps[i]) for i in range(3)]
        torch.testing.assert_close(together, torch.cat(alone), rtol=0, atol=1e-9)
    assert torch.equal(together[0], x[0])


def test_prox_of_a_mixture_never_raises_the_objective():
    means = torch.stack([torch.full(SHAPE, 0.2), torch.full(SHAPE, 0.8)]).double()
    prior = GaussianMixturePrior(torch.tensor([0.5, 0.5]).double(), means, torch.full((2, *SHAPE), 1e-3).double())
    x = images(4)
    z = proximal(prior, x, 0.1)
    assert bool((0.1 * prior(z) + (z - x).square().flatten(1).sum(1) / 2 <= 0.1 * prior(x)).all())


def test_prox_leaves_its_input_and_the_global_generator_alone():
    prior, x = gaussian(), images(2)
    before, state = x.clone(), torch.get_rng_state()
    as_deepinv_prior(prior).prox(x, gamma=0.1)
    assert torch.equal(x, before)
    assert not x.requires_grad
    assert torch.equal(torch.get_rng_state(), state)


def test_energy_and_gradient():
    prior, x = gaussian(), images(3)
    wrapped = as_deepinv_prior(prior)
    assert wrapped.explicit_prior
    torch.testing.assert_close(wrapped(x, 0.05), prior(x))
    torch.testing.assert_close(wrapped.grad(x, 0.05), prior.value_and_grad(x)[1])
    leaf = x.clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda x: wrapped.grad(x, None), leaf[:1].detach().requires_grad_())
    with torch.no_grad():
        assert not wrapped.grad(leaf, None).requires_grad


def test_a_prox_cannot_be_unfolded():
    wrapped, x = as_deepinv_prior(gaussian()), images(1)
    with pytest.raises(RuntimeError, match="g_first=True"):
        wrapped.prox(x.requires_grad_(), gamma=0.1)
    with pytest.raises(RuntimeError, match="cannot be differentiated"):
        wrapped.prox(x.detach(), gamma=torch.tensor(0.1, requires_grad=True))
    with torch.no_grad():
        assert not wrapped.prox(x, gamma=0.1).requires_grad


def test_an_interrupt_stops_the_outer_method(monkeypatch):
    def interrupted(self, energy, state, noise):
        raise KeyboardInterrupt

    monkeypatch.setattr(Descent, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        as_deepinv_prior(gaussian()).prox(images(1), gamma=0.1)


@pytest.mark.parametrize("g_first", [False, True])
def test_pgd_reaches_the_map(g_first):
    prior = gaussian()
    physics, y, sigma = measured(prior)
    stepsize = 1.9 / prior.curvature if g_first else sigma**2
    method = deepinv.optim.PGD(
        data_fidelity=deepinv.optim.L2(sigma=sigma),
        prior=as_deepinv_prior(prior),
        stepsize=stepsize,
        max_iter=400 if g_first else 40,
        g_first=g_first,
    )
    found = method(y, physics)
    torch.testing.assert_close(found, prior.posterior(physics, y, sigma).mean, rtol=0, atol=1e-6)


def test_optim_builder_reaches_the_map():
    prior = gaussian()
    physics, y, sigma = measured(prior)
    method = deepinv.optim.optim_builder(
        "PGD",
        data_fidelity=deepinv.optim.L2(sigma=sigma),
        prior=as_deepinv_prior(prior),
        params_algo={"stepsize": sigma**2, "lambda": 1.0},
        max_iter=40,
    )
    torch.testing.assert_close(method(y, physics), prior.posterior(physics, y, sigma).mean, rtol=0, atol=1e-6)


def test_ula_has_the_mean_of_the_posterior():
    prior = GaussianPrior(gaussian().mean, torch.linspace(0.01, 0.1, 16).double().reshape(SHAPE))
    physics, y, sigma = measured(prior, images=1)
    chains = 64
    step = 0.5 / (prior.curvature + 1 / sigma**2)
    sampler = deepinv.sampling.ULA(
        prior=as_deepinv_prior(prior),
        data_fidelity=deepinv.optim.L2(sigma=sigma),
        step_size=step,
        max_iter=1500,
        thinning=5,
        burnin_ratio=0.3,
        clip=None,
    )
    with torch.random.fork_rng():
        means, _ = sampler.sample(y.expand(chains, *SHAPE), physics, seed=0)
    error = means.std(0) / chains**0.5
    assert error.max() < 0.01
    assert bool(((means.mean(0) - prior.posterior(physics, y, sigma).mean[0]).abs() < 4.5 * error).all())


def test_denoiser_is_the_priors():
    prior, x = gaussian(), images(3)
    denoiser = as_denoiser(prior)
    assert isinstance(denoiser, deepinv.models.Denoiser)
    torch.testing.assert_close(denoiser(x, 0.1), prior.denoise(x, 0.1))
    levels = torch.tensor([0.0, 0.1, 0.5], dtype=torch.float64)
    found = denoiser(x, levels.reshape(3, 1, 1, 1))
    assert torch.equal(found[0], x[0])
    torch.testing.assert_close(found[1:], prior.denoise(x[1:], levels[1:]))
    torch.testing.assert_close(denoiser(x, torch.tensor([0.1])), prior.denoise(x, 0.1))


def test_pnp_reaches_the_fixed_point_of_its_denoiser():
    prior = gaussian()
    physics, y, sigma = measured(prior)
    level = 0.3
    method = deepinv.optim.PGD(
        data_fidelity=deepinv.optim.L2(sigma=sigma),
        prior=deepinv.optim.PnP(as_denoiser(prior)),
        stepsize=sigma**2,
        sigma_denoiser=level,
        max_iter=40,
    )
    # Wiener's filter at level s is the proximal step of s^2 E, so PnP weighs the prior by (s / sigma)^2
    weighed = GaussianPrior(prior.mean, prior.covariance_matrix() * (sigma / level) ** 2)
    torch.testing.assert_close(method(y, physics), weighed.posterior(physics, y, sigma).mean, rtol=0, atol=1e-6)


def test_dpir_runs_with_the_denoiser():
    prior = gaussian(dtype=torch.float32)
    physics, y, sigma = measured(gaussian())
    physics, y = physics.to(torch.float32), y.float()
    found = deepinv.optim.DPIR(sigma=sigma, denoiser=as_denoiser(prior))(y, physics)
    exact = gaussian().posterior(physics.to(torch.float64), y.double(), sigma).mean
    assert (found - exact).square().mean() < (y - exact).square().mean() / 4


def test_wrappers_move_with_their_prior():
    for wrap in (as_deepinv_prior, as_denoiser):
        prior = gaussian(dtype=torch.float32)
        assert wrap(prior).to(torch.float64).prior.mean.dtype == torch.float64
        assert prior.mean.dtype == torch.float64


def test_messages():
    prior, x = gaussian(), images(3)
    with pytest.raises(TypeError, match=r"prior is a str, expected an emprior.energy.Prior. Load one"):
        as_deepinv_prior("cifar10")
    with pytest.raises(TypeError, match="prior is a Linear"):
        as_denoiser(torch.nn.Linear(1, 1))
    with pytest.raises(ValueError, match=r"gamma is \[-1.0\], but it must be finite and not negative"):
        as_deepinv_prior(prior).prox(x, gamma=-1.0)
    with pytest.raises(ValueError, match="sigma holds 2 numbers, but x holds 3 images"):
        as_denoiser(prior)(x, torch.tensor([0.1, 0.2]))


def test_import_without_deepinv():
    code = "import emprior.interop, sys; sys.exit('deepinv' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_noise_is_left_as_it_is_by_a_prior_that_knows_little_noise():
    potential = make_potential("inner_product", channels=1, widths=[4, 6], blocks=1)
    prior = NetworkPrior(potential, (1, 8, 8), Denoising(), epsilon=0.01)
    x = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    clean = as_denoiser(prior)(x, torch.tensor([0.0, 0.3]))
    assert torch.equal(clean[0], x[0])
    torch.testing.assert_close(clean[1:], prior.denoise(x[1:], 0.3))
