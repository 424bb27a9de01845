"""The annealed start under Gaussian priors, where its law is known at every level."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import SHAPE, make_operator
from laws import assert_drawn_from, assert_moments, model, split_law

import emprior
from emprior._bands import Bands
from emprior._noise import Noise
from emprior._rows import dot
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.operators import cast, without_noise
from emprior.priors import GaussianPrior
from emprior.priors.increments import BernoulliLaplace
from emprior.priors.levy import LevyPrior
from emprior.solvers import METHODS, Annealing, Stage, conditional, run, validated
from emprior.solvers.conditional import Tilt, draw
from emprior.solvers.metric import BandMetric, spectral

CHAINS, WEIGHT = 800, 2.0
SIGMAS = [0.05 ** (k / 11) for k in range(12)]
SOLVER = Annealing(12, start=1.0, stop=0.05, trust=0.7)


def end(posterior, solver=SOLVER, chains=CHAINS):
    noise = Noise([(0, i) for i in range(chains)], dtype=torch.float64)
    x = torch.zeros(chains, *SHAPE, dtype=torch.float64)
    return run([Stage(solver, solver.steps)], posterior, x, noise, 1).x


def gibbs_law(posterior, exact):
    """The law after `x ~ N(S (M u + b), S)` with `u = m + G (x + sigma n / w^1/2 - m)`, from `x = 0`."""
    H, b, C, m = exact
    rows = exact.eye.reshape(-1, *SHAPE)
    curvature, law, mean = spectral(posterior, rows).apply(rows).flatten(1), torch.zeros_like(C), torch.zeros_like(m)
    for sigma in SIGMAS:
        M = curvature + WEIGHT / sigma**2 * exact.eye
        S, G = torch.linalg.inv(M + H), C @ torch.linalg.inv(C + sigma**2 * exact.eye)
        move = S @ M @ G
        law = move @ (law + sigma**2 / WEIGHT * exact.eye) @ move.mT + S
        mean = S @ (M @ (m + G @ (mean - m)) + b)
    return mean, law


def test_the_law_of_an_annealed_start(case, field, monkeypatch):
    """With the curvature of the spectrum alone, so that the law is Gaussian."""
    monkeypatch.setattr(conditional, "ERROR", 1e-6)
    monkeypatch.setattr(Tilt, "seen", lambda self, *_: self)
    operator, y, _ = case
    fidelity = GaussianFidelity(operator, y[:1])
    posterior = Posterior(fidelity, field, WEIGHT)
    assert_drawn_from(end(posterior).flatten(1), *gibbs_law(posterior, model(fidelity, field)))


def test_without_a_spectrum_it_is_drawn_at_the_last_level_alone(case, field):
    operator, y, _ = case
    blind, fidelity = copy.deepcopy(field), GaussianFidelity(operator, y[:1])
    blind.spectrum = None
    law = split_law(model(fidelity, field), SIGMAS, SOLVER.trust, WEIGHT, noisy=True, drawn=True)
    assert_moments(end(Posterior(fidelity, blind, WEIGHT)).flatten(1), *law)


@pytest.fixture
def banded():
    """A Gaussian whose curvature is a number for each band, from 20 of the mean to 2,000."""
    bands = Bands.of(torch.zeros(1, *SHAPE, dtype=torch.float64))
    curvature = 20 * (1 + 99 * bands.frequency / bands.frequency.max())
    eye = torch.eye(64, dtype=torch.float64).reshape(64, *SHAPE)
    basis = bands.split(eye).flatten(1)
    covariance = basis @ (1 / curvature)[bands.band].diag() @ basis.mT
    prior = GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), covariance)
    assert torch.allclose(prior.spectrum.on(bands), curvature)
    return prior


@pytest.mark.parametrize(("steps", "weight"), [(1, 1.0), (6, 1.0), (30, 1.0), (30, 3.0)])
@pytest.mark.parametrize("name", ["inpainting", "compressed_sensing"])
def test_starts_follow_the_posterior_of_a_gaussian_at_every_level(banded, name, steps, weight):
    """From draws of it, so that no number of levels moves them away."""
    operator = make_operator(name)
    y = operator(banded.sample(1, seed=1))
    weighted = GaussianPrior(banded.mean, banded.covariance_matrix() / weight)
    exact = weighted.posterior(operator, y, 0.05)
    fidelity, x = GaussianFidelity(operator, y), exact.sample(CHAINS, seed=3)[:, 0]
    solver = Annealing(steps, start=1.0, stop=0.05)
    noise = Noise([(0, i) for i in range(CHAINS)], dtype=torch.float64)
    rows = run([Stage(solver, steps)], Posterior(fidelity, banded, weight), x, noise, 1).x
    H, _, C, _ = model(fidelity, weighted)
    assert_drawn_from(rows.flatten(1), exact.mean.flatten(), torch.linalg.inv(torch.linalg.inv(C) + H))


@pytest.mark.parametrize("sigma", [0.002, 0.05, 0.5])
def test_a_draw_is_within_its_error(banded, monkeypatch, sigma):
    operator = make_operator("compressed_sensing")
    y = operator.A(banded.sample(1, seed=1))
    posterior = Posterior(GaussianFidelity(without_noise(operator), y, sigma), banded)
    clean, curvature = banded.sample(8, seed=2), spectral(posterior, y.new_zeros(1, *SHAPE))

    def drawn():
        return draw(posterior.fidelity, curvature, clean, 0.01, Noise([(0, i) for i in range(8)], dtype=y.dtype))

    rough = drawn()
    monkeypatch.setattr(conditional, "ERROR", 1e-9)
    gap = rough - drawn()
    assert (dot(gap, curvature.apply(gap) + gap / 0.01).sqrt() <= 0.05 * 64**0.5).all()
    assert (posterior.fidelity.curve(gap) * gap).flatten(1).sum(1).sqrt().max() <= 0.05 * 64**0.5
    assert gap.abs().max() > 0


def test_components_are_started_in_by_their_weight():
    """Of a mixture of Gaussians; the smoother one fits no better than it should."""
    prior = emprior.load_prior("cifar10-mixture")
    problem = emprior.load_problem("cifar10/inpainting")
    x = prior.sample(4, seed=0)
    y = problem.measure(x, seed=0)
    weights = prior.posterior(cast(problem.operator, y.double()), y.double(), problem.sigma).weights
    posterior = Posterior(GaussianFidelity(problem.operator, y, problem.sigma), prior)
    noise = Noise([(chain, image) for chain in range(4) for image in range(4)], dtype=x.dtype)
    rows = run([Stage(Annealing(), 100)], posterior, torch.zeros(16, *x.shape[1:]), noise, 4).x
    chosen = prior.responsibilities(rows).argmax(1).reshape(4, 4)
    share = torch.stack([weights[image, chosen[:, image]] for image in range(4)]).mean()
    assert share > 0.97


def followed(prior, spectrum, sigmas):
    """What 64 rows learn at those levels of a Gaussian, from draws of it where its curvature is 40."""
    tilt, x = Tilt.of(prior.sample(64, seed=1)), prior.sample(64, seed=1)
    noise = Noise([(0, i) for i in range(64)], dtype=torch.float64)
    for sigma in sigmas:
        n = noise.normal(*SHAPE)
        clean = prior.denoise(x + sigma * n, sigma)
        tilt = tilt.seen(spectrum, x, n, clean, sigma**2)
        x = clean + BandMetric(spectrum.bands, (40 + 1 / sigma**2) ** -0.5 + 0 * spectrum.curvature).apply(
            noise.normal(*SHAPE)
        )
    return tilt


def test_rows_learn_their_curvature():
    prior = GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), torch.full((64,), 1 / 40, dtype=torch.float64))
    bands = Bands.of(torch.zeros(1, *SHAPE, dtype=torch.float64))
    half = BandMetric(bands, torch.full((1, bands.count), 20.0, dtype=torch.float64))
    tilt = followed(prior, half, [0.3 * 0.9**k for k in range(20)])
    known, shown = tilt.variance.mean(0), tilt.mean.mean(0)
    assert ((shown - math.log(2)).abs() < 4 * (known / 64).sqrt() + 0.05).all()
    assert ((shown / math.log(2) - 1).abs() < 0.1)[torch.bincount(bands.band) > 10].all()
    assert (tilt.mean.std(0) < known.sqrt()).all()


@pytest.mark.parametrize("sigma", [1e-4, 1e3])
def test_noise_far_from_the_scale_of_a_prior_tells_nothing_of_it(banded, sigma):
    spectrum = spectral(banded, torch.zeros(1, *SHAPE, dtype=torch.float64))
    tilt = followed(banded, spectrum, [sigma] * 4)
    assert tilt.mean.abs().max() < 0.05
    assert (tilt.variance > 1).all()


def test_an_estimate_that_is_not_finite_tells_nothing(banded):
    x = banded.sample(2, seed=1)
    told = spectral(banded, x)
    broken = x.clone()
    broken[0, 0, 0, 0] = math.nan
    tilt = Tilt.of(x).seen(told, x, torch.ones_like(x), broken, 0.01)
    assert (tilt.mean[0] == 0).all()
    assert (tilt.mean[1] != 0).any()
    assert (tilt.variance > 0).all()


def test_a_learned_prior_has_fewer_levels():
    prior = emprior.load_prior("mnist")
    for method, recipe in METHODS.items():
        if recipe.samples:
            assert validated(method, prior.settings).levels == 50
            assert validated(method, {}).levels == 100


def test_starts_of_signals_hold_to_their_data():
    """A curvature that is the mean of narrow modes and wide ones would make the data seem weak."""
    prior = LevyPrior(BernoulliLaplace(0.1, 0.1, width=5e-4), 32)
    x = prior.sample(2, seed=0)
    fidelity = GaussianFidelity(emprior.as_operator(torch.eye(32).double(), shape=prior.shape), x.flatten(1), 0.05)
    noise = Noise([(s, b) for s in range(16) for b in range(2)], dtype=torch.float64)

    def residual():
        rows = torch.zeros(32, *prior.shape, dtype=torch.float64)
        return fidelity.residual(run([Stage(Annealing(), 100)], Posterior(fidelity, prior), rows, noise, 2).x).mean()

    assert residual() < 0.9
    prior.precision = lambda x, sigma: prior.spectrum.on(Bands.of(x))
    assert residual() > 1
