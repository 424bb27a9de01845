r"""Laws of increments against integrals and moments, and the prior made of them against automatic derivatives."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch

from emprior._bands import Bands
from emprior._noise import Noise
from emprior.energy import Energy
from emprior.priors.gaussian import GaussianPrior
from emprior.priors.increments import BernoulliLaplace, Gaussian, Increments, Laplace, StudentT
from emprior.priors.levy import LevyPrior

LAWS = [Gaussian(0.7), Laplace(0.6), StudentT(2, 0.8), StudentT(5, 0.8), BernoulliLaplace(0.6, 0.3, 0.05)]
N = 400_000

laws = pytest.mark.parametrize("law", LAWS, ids=str)


def axis() -> torch.Tensor:
    r"""A grid that is dense about zero and reaches far out."""
    return torch.sinh(torch.linspace(-16, 16, 400_001, dtype=torch.float64)) / 100


def expectation(law: Increments, values: torch.Tensor) -> float:
    u = axis()
    return float(torch.trapezoid((-law.energy(u)).exp() * values, u))


def draws(law: Increments, n: int = N) -> torch.Tensor:
    return law.draw(Noise([("draws", str(law))], dtype=torch.float64), n)[0]


@laws
def test_density_integrates_to_one(law):
    assert expectation(law, torch.ones_like(axis())) == pytest.approx(1, abs=1e-8)


@laws
def test_draws_follow_the_density(law):
    r"""The means of bounded functions, in their standard errors."""
    u, x = axis(), draws(law)
    for f in (lambda u: torch.exp(-u.square()), lambda u: torch.tanh(u.abs()), lambda u: (u.abs() < 0.1).double()):
        mean = expectation(law, f(u))
        error = math.sqrt((expectation(law, f(u).square()) - mean**2) / N)
        assert abs(float(f(x).mean()) - mean) < 4 * error + 1e-5


@laws
def test_variance_and_fisher_information(law):
    u = axis()
    fisher = expectation(law, law.slope(u).square())
    assert law.curvature == pytest.approx(fisher, rel=0.25 if law.share < 1 else 1e-6)
    if not isinstance(law, StudentT) or law.degrees > 2:
        assert law.variance == pytest.approx(expectation(law, u.square()), rel=1e-6)


@laws
def test_slope_is_the_derivative(law):
    u = torch.tensor([-80.0, -2.0, -0.11, -0.01, 0.02, 0.09, 0.4, 3.0, 80.0], dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(law.energy(u).sum(), u)
    torch.testing.assert_close(law.slope(u.detach()), expected)


def test_bernoulli_laplace_is_a_convolution():
    r"""Against the integral of its Laplace part and a Gaussian."""
    law, v = BernoulliLaplace(0.6, 0.3, 0.2), torch.linspace(-12, 12, 600_001, dtype=torch.float64)
    for u in torch.tensor([0.0, 0.15, -0.7, 2.0], dtype=torch.float64):
        both = torch.exp(-v.abs() / 0.6) / 1.2 * torch.exp(-Gaussian(0.2).energy(u - v))
        density = 0.7 * torch.exp(-Gaussian(0.2).energy(u)) + 0.3 * torch.trapezoid(both, v)
        torch.testing.assert_close(law.energy(u), -density.log())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("width", [1e-4, 0.01, 1.0, 30.0, 100.0])
def test_bernoulli_laplace_of_any_width(width, dtype):
    r"""Against its three terms, each by its logarithm."""
    law, p, s = BernoulliLaplace(1.0, 0.3, width), 0.3, width
    u = torch.tensor([-300.0, -31.0, -3.0, -0.02, -1e-5, 0.0, 1e-4, 0.3, 7.0, 99.0, 1000.0], dtype=dtype)
    z, terms = u.double(), [math.log(1 - p) + Gaussian(width).energy(u.double()).neg()]
    for side in (z, -z):
        terms.append(math.log(p / 2) + s**2 / 2 - side + torch.special.log_ndtr(side / s - s))
    spike, rising, falling = torch.stack(terms).softmax(0)
    energy, slope = law.energy_and_slope(u)
    tolerance = {"rtol": 1e-4 if dtype is torch.float32 else 1e-8, "atol": 1e-5}
    torch.testing.assert_close(energy.double(), -torch.stack(terms).logsumexp(0), **tolerance)
    torch.testing.assert_close(slope.double(), spike * z / s**2 + rising - falling, **tolerance)
    assert energy.dtype == slope.dtype == dtype


def test_bernoulli_laplace_is_smooth_at_zero():
    law = BernoulliLaplace(1.0, 0.1, 0.01)
    u = torch.tensor([0.0, 1e-9], dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(law.energy(u).sum(), u, create_graph=True)
    (bend,) = torch.autograd.grad(slope.sum(), u)
    assert abs(float(slope[0].detach())) < 1e-9
    assert float(bend[0]) == pytest.approx(float(bend[1]), rel=1e-3)
    assert 9e3 < float(bend[0]) < 1e4


def test_energy_far_out_is_finite_in_single_precision():
    law = BernoulliLaplace(1.0, 0.1, 0.001)
    u = torch.tensor([-50.0, 50.0])
    torch.testing.assert_close(law.energy(u), torch.full((2,), 50 - math.log(0.05)))
    torch.testing.assert_close(law.slope(u), torch.tensor([-1.0, 1.0]))


@pytest.mark.parametrize("law", [Laplace(0.6), StudentT(2, 0.8), StudentT(5, 0.8)], ids=str)
def test_mixing_variance_given_its_slab(law):
    r"""Of pairs `(w, u)` drawn together, `w` drawn anew given `u` makes pairs of the same law."""
    noise = Noise([("pairs", str(law))], dtype=torch.float64)
    w = law.mix(noise, N)
    u = w.sqrt() * noise.normal(N)
    fresh = law.remix(u, noise)
    for f in (lambda w: torch.exp(-w), lambda w: torch.exp(-w) * torch.exp(-u.square()), lambda w: w / (w + u.abs())):
        apart = f(fresh) - f(w)
        assert abs(float(apart.mean())) < 4 * float(apart.std()) / math.sqrt(N)
    assert float((fresh != w).double().mean()) == 1


def test_mixing_variance_of_no_slab():
    r"""At `u = 0` that of Laplace is :math:`b^2 \chi^2_1`."""
    w = Laplace(0.6).remix(torch.zeros(1, N, dtype=torch.float64), Noise([("zero",)], dtype=torch.float64)) / 0.36
    assert abs(float(w.mean()) - 1) < 4 * math.sqrt(2 / N)
    assert abs(float(w.square().mean()) - 3) < 4 * math.sqrt(96 / N)


def test_fisher_information_of_a_narrow_spike():
    law = BernoulliLaplace(0.6, 0.1, 0.001)
    assert law.curvature == pytest.approx(expectation(law, law.slope(axis()).square()), rel=0.03)


def test_an_atom_is_drawn_but_has_no_energy():
    law = BernoulliLaplace(0.6, 0.3, width=0.0)
    assert abs(float((draws(law) == 0).double().mean()) - 0.7) < 4 * math.sqrt(0.21 / N)
    with pytest.raises(ValueError, match=r"width is 0\.0, expected"):
        law.energy(torch.zeros(1))
    with pytest.raises(ValueError, match=r"has an atom at zero, and so no energy\. Give it a width"):
        LevyPrior(law)


@laws
def test_gradients(law):
    prior = LevyPrior(law, length=5)
    x = prior.sample(3, seed=1)
    value, gradient = prior.value_and_grad(x)
    expected, slope = Energy.value_and_grad(prior, x)
    torch.testing.assert_close(value, expected)
    torch.testing.assert_close(gradient, slope)
    assert torch.autograd.gradcheck(prior, x.requires_grad_(), atol=1e-4)


def brownian(scale: float, length: int) -> GaussianPrior:
    ticks = torch.arange(1.0, length + 1, dtype=torch.float64)
    covariance = scale**2 * torch.minimum(ticks[:, None], ticks)
    return GaussianPrior(torch.zeros(1, 1, length, dtype=torch.float64), covariance)


def test_gaussian_increments_are_a_gaussian_prior():
    prior, field = LevyPrior(Gaussian(0.7), length=9), brownian(0.7, 9)
    x = field.sample(4, seed=2)
    constant = 9 * (math.log(0.7) + math.log(2 * math.pi) / 2)
    torch.testing.assert_close(prior(x), field(x) + constant)
    levels = torch.tensor([0.1, 0.5, 2.0, 30.0], dtype=torch.float64)
    torch.testing.assert_close(prior.denoise(x, levels), field.denoise(x, levels))
    torch.testing.assert_close(prior.denoise(x, 0.5), field.denoise(x, 0.5))


def test_the_filter_is_the_best_linear_one():
    r"""For any law with a variance its mean squared error is that of the Gaussian of the same covariance."""
    prior, sigma = LevyPrior(Laplace(0.6), length=4), 0.8
    C = brownian(0.72**0.5, 4).covariance_matrix()
    expected = torch.linalg.inv(torch.linalg.inv(C) + torch.eye(4).double() / sigma**2).trace() / 4
    x = prior.sample(20_000, seed=3)
    noisy = x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    errors = (prior.denoise(noisy, sigma) - x).square().flatten(1).mean(1)
    assert abs(float(errors.mean() - expected)) < 4 * float(errors.std()) / 20_000**0.5


@laws
def test_typical_energies(law):
    prior = LevyPrior(law, length=16)
    energies = prior(draws(law, 16 * 20_000).reshape(-1, 1, 1, 16).cumsum(-1))
    mean, spread = prior.typical
    assert abs(float(energies.mean()) - mean) < 4 * spread * (1 / 20_000 + 16 / 65_536) ** 0.5
    assert float(energies.std()) == pytest.approx(spread, rel=0.05)


def test_samples_do_not_depend_on_their_neighbours():
    prior = LevyPrior(LAWS[-1], length=6)
    torch.testing.assert_close(prior.sample(3, seed=4)[:1], prior.sample(1, seed=4))
    start = prior.start(Noise([(0, "a"), (0, "b")], dtype=torch.float32))
    assert start.shape == (2, 1, 1, 6)
    assert start.dtype == torch.float32
    assert prior.denoise(start, 0.1).dtype == torch.float32


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gaussian(0.0), "scale is 0.0, expected a positive number"),
        (lambda: StudentT(1.5), "degrees is 1.5, expected a positive whole number"),
        (lambda: BernoulliLaplace(share=1.0), "share is 1.0, expected a probability between 0 and 1"),
        (lambda: replace(LAWS[-1], width=-1.0), "width is -1.0, expected a standard deviation"),
        (lambda: LevyPrior(Gaussian(), length=0), "length is 0, expected a positive whole number"),
        (lambda: LevyPrior(Gaussian(), 8)(torch.zeros(2, 8)), r"x has shape \(2, 8\), expected signals \(B, 1, 1, 8\)"),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_law_with_a_width_is_softened_by_a_larger_one():
    r"""At an inverse temperature it has its jumps, and the width over the root; other laws are scaled."""
    law, u = BernoulliLaplace(0.6, 0.3, 0.01), torch.linspace(-2, 2, 31, dtype=torch.float64).reshape(1, 1, 1, -1)
    beta = torch.tensor([1.0, 0.25, 1e-4], dtype=torch.float64)
    soft = LevyPrior(law, 31).soften(beta)
    x = u.cumsum(-1).expand(3, -1, -1, -1)
    for row, width in enumerate([0.01, 0.02, 1.0]):
        own = LevyPrior(BernoulliLaplace(0.6, 0.3, width), 31)
        for found, expected in zip(soft.value_and_grad(x), own.value_and_grad(x), strict=True):
            torch.testing.assert_close(found[row], expected[row])
    torch.testing.assert_close(soft(x), soft.value_and_grad(x)[0])
    assert LevyPrior(Laplace(0.6), 31).soften(beta) is None
    with pytest.raises(TypeError, match="a softened prior has an energy, but no denoiser"):
        soft.denoise(x, 0.1)


@laws
def test_the_spectrum_is_that_of_differences(law):
    r"""The mean curvature of each band of cosines, over the law itself."""
    prior = LevyPrior(law, 16)
    bands = Bands.of(torch.zeros(1, 1, 1, 16, dtype=torch.float64))
    D = torch.diff(torch.eye(16, dtype=torch.float64), dim=0, prepend=torch.zeros(1, 16, dtype=torch.float64))
    waves = bands.axes[-1] @ D.mT @ D @ bands.axes[-1].mT
    exact = torch.zeros(bands.count, dtype=torch.float64).index_add_(0, bands.band, law.curvature * waves.diag())
    found = prior.spectrum.on(bands)
    torch.testing.assert_close(found, exact / torch.bincount(bands.band), rtol=0.02, atol=0)
