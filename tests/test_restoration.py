"""How well noisy images are restored, where it is known."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from conftest import SHAPE

import emprior
from emprior._bands import Bands
from emprior._restoration import LEAST, Restoration
from emprior.hub import Card, find_prior
from emprior.interpolant import Denoising
from emprior.priors import GaussianPrior, NetworkPrior
from emprior.priors.increments import Laplace
from emprior.priors.levy import LevyPrior
from emprior.train.evaluate import RESTORED, restoration

SIGMA = (0.05, 0.2, 1.0)


def assert_measured(found, bands, level, covariance, images):
    """Against the covariance `S` of errors, `(d, d)`; a mean square over a band varies by `2 tr(S^2) / tr(S)^2`."""
    for band, told in enumerate(found.on(bands, level) + level**-2):
        inside = bands.band == band
        S = covariance[inside][:, inside]
        deviation = (2 * S.square().sum() / images).sqrt() / S.trace()
        assert (told * S.trace() / inside.sum() - 1).abs() < 4 * deviation


@pytest.mark.parametrize("name", ["field", "signals"])
def test_it_tells_the_errors_of_clean_estimates(field, name):
    prior = field if name == "field" else LevyPrior(Laplace(1.0), 16)
    x = prior.sample(2000, seed=1)
    bands, found = Bands.of(x), Restoration.measure(prior.denoise, x, SIGMA)
    eye = torch.eye(x[0].numel(), dtype=x.dtype).reshape(-1, *prior.shape)
    basis = bands.split(eye).flatten(1)
    for level in SIGMA:
        derivative = (prior.denoise(eye, level) - prior.denoise(0 * eye[:1], level)).flatten(1)
        assert_measured(found, bands, level, level**2 * basis.mT @ derivative @ basis, len(x))


def test_a_gaussian_tells_its_curvature_at_every_noise():
    prior = GaussianPrior(torch.full(SHAPE, 0.5, dtype=torch.float64), torch.full((64,), 1 / 40, dtype=torch.float64))
    x = prior.sample(4000, seed=1)
    bands, found = Bands.of(x), Restoration.measure(prior.denoise, x, SIGMA)
    for level in SIGMA:
        assert torch.allclose(prior.precision(x, level), torch.full((bands.count,), 40.0, dtype=torch.float64))
        error = torch.eye(64, dtype=torch.float64) / (40 + level**-2)
        assert_measured(found, bands, level, error, len(x))


def test_between_levels_it_follows_a_power_law_and_beyond_it_stays(field):
    x = field.sample(64, seed=1)
    bands, found = Bands.of(x), Restoration.measure(field.denoise, x, SIGMA)
    first, second, last = (found.on(bands, level) for level in SIGMA)
    assert torch.allclose(found.on(bands, math.sqrt(0.05 * 0.2)), (first * second).sqrt())
    assert torch.allclose(found.on(bands, math.sqrt(0.2)), (second * last).sqrt())
    assert torch.equal(found.on(bands, 0.001), first)
    assert torch.equal(found.on(bands, 50.0), last)


def test_an_estimate_worse_than_the_noise_still_has_a_law(field):
    x = field.sample(64, seed=1)
    error = torch.randn(x.shape, generator=torch.Generator().manual_seed(0), dtype=x.dtype)
    bands, found = Bands.of(x), Restoration.measure(lambda z, sigma: z + sigma * error, x, SIGMA)
    for level in SIGMA:
        assert torch.allclose(found.on(bands, level), torch.full((bands.count,), LEAST / level**2, dtype=x.dtype))


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_card_tells_it(name):
    prior, card = emprior.load_prior(name), Card.read(find_prior(name))
    assert card.metrics["restoration"]["sigma"] == list(RESTORED)
    assert len(card.metrics["restoration"]["curvature"]) == len(RESTORED)
    x = torch.zeros(1, *prior.shape)
    bands = Bands.of(x)
    for level, rows in zip(RESTORED, card.metrics["restoration"]["curvature"], strict=True):
        told, bound = torch.tensor(rows).double().flatten(), prior.spectrum.on(bands)
        assert torch.allclose(prior.precision(x, level), torch.minimum(told, bound), rtol=0.03)
    little, much = prior.precision(x, 0.03), prior.precision(x, 1.2)
    assert (little > 1.5 * much).double().mean() > 0.9
    rest = {key: value for key, value in card.metrics.items() if key != "restoration"}
    assert card.identity != replace(card, metrics=rest).identity


class Bowl(torch.nn.Module):
    """A potential by which `z - grad V` is Wiener's filter of white images of variance `v` under noise 1."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, z):
        return z.square().flatten(1).sum(1) / (2 * (self.v + 1))


def test_a_prior_is_measured_up_to_its_limit_and_in_public_units():
    """White images of deviation 1/4, the noise of the limit 1/2: in the network's range 1/2 and 1."""
    prior = NetworkPrior(Bowl(0.25), (1, 8, 8), Denoising(), 1.0)
    assert prior.noise_limit == 0.5
    x = 0.5 + 0.25 * torch.randn(4000, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    told = restoration(prior, x)
    assert told["sigma"] == [level for level in RESTORED if level < 0.5] + [0.5]
    prior.restoration = Restoration.read(told)
    assert torch.allclose(prior.precision(x, 0.5), torch.full((10,), 16.0, dtype=torch.float64), rtol=0.15)


def test_signals_tell_the_diagonal_of_their_inverse_covariance():
    prior = LevyPrior(Laplace(2.0), 16)
    x = prior.sample(1)
    steps = torch.diff(torch.eye(16).double(), prepend=torch.zeros(16, 1).double())
    exact = steps.mT @ steps / prior.law.variance
    basis = Bands.of(x).split(torch.eye(16).double().reshape(16, 1, 1, 16)).flatten(1).mT
    told = prior.precision(x, 0.3)[Bands.of(x).band]
    means = (basis @ exact @ basis.mT).diagonal()
    counts = torch.bincount(Bands.of(x).band)
    grouped = torch.zeros(len(counts)).double().index_add_(0, Bands.of(x).band, means) / counts
    assert torch.allclose(told, grouped[Bands.of(x).band], rtol=0.02)


def test_a_prior_without_it_knows_no_precision():
    prior = emprior.load_prior("mnist")
    prior.restoration = None
    assert prior.precision(torch.zeros(1, *prior.shape), 0.1) is None
