"""What a learned prior generates: where its path begins, and the lengths of its steps."""

from __future__ import annotations

import pytest
import torch

from emprior._bands import Bands, Spectrum
from emprior._calibration import Calibration
from emprior._restoration import Restoration
from emprior.interpolant import Denoising, EnergyMatching, LogDensity
from emprior.priors import NetworkPrior

SHAPE = (1, 8, 8)
BANDS = Bands.of(torch.zeros(1, *SHAPE).double())
VARIANCE = 3 / (1 + 30 * BANDS.frequency**2)


class Bowl(torch.nn.Module):
    r"""The potential `w |z|^2 / 2`."""

    def __init__(self, weight):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor(weight, dtype=torch.float64))

    def forward(self, z):
        return self.weight * z.square().flatten(1).sum(1) / 2


def bowl(path, weight=1.0, epsilon=0.01):
    return NetworkPrior(Bowl(weight), SHAPE, path, epsilon)


def restoration(sigma, variance=VARIANCE):
    return Restoration(sigma, tuple(Spectrum.of(BANDS, 1 / variance) for _ in sigma))


@pytest.mark.parametrize("path", [Denoising(), LogDensity(limit=1.0), EnergyMatching()], ids=lambda p: type(p).__name__)
def test_a_path_begins_at_noise_through_which_images_show(path):
    r"""At `s = 1` there is `k` of the images, in each band of the variance that its restoration tells, `4 v` there."""
    prior = bowl(path)
    prior.restoration = restoration((0.1, 1.0))
    z = 2 * prior.sample(4000, steps=0) - 1
    k = path.coefficients(torch.ones(1, dtype=torch.float64))[2]
    counts = torch.bincount(BANDS.band)
    found = BANDS.sums(BANDS.split(z).square()).sum(0) / (len(z) * counts)
    exact = 1 + 4 * k.square() * VARIANCE
    assert ((found / exact - 1).abs() < 5 * (2 / (len(z) * counts)).sqrt()).all()


def test_without_a_restoration_it_begins_at_white_noise():
    prior = bowl(Denoising())
    white = prior.sample(3, seed=1, steps=0)
    prior.restoration = restoration((0.1, 1.0))
    assert not torch.equal(white, prior.sample(3, seed=1, steps=0))
    prior.restoration = None
    assert torch.equal(white, prior.sample(3, seed=1, steps=0))


@pytest.mark.parametrize("weight", [0.7, 1.4])
def test_the_lengths_of_its_steps_are_put_right(weight):
    r"""Of images that hold nothing but gray, only the thermal noise is left, however wrong the energy's length is."""
    prior = bowl(Denoising(), weight)
    noise = 2 * prior.sample(5, seed=1, steps=0) - 1
    blind = 2 * prior.sample(5, seed=1, steps=20) - 1
    nothing = torch.where(BANDS.frequency == 0, 1e4, torch.full_like(VARIANCE, 1e-8))
    errors = restoration((0.01, 0.5), nothing)
    prior.calibration = Calibration(errors, tuple(Spectrum.of(BANDS, torch.ones_like(nothing)) for _ in errors.sigma))
    left = prior.interpolant.thermal(prior.epsilon) * noise
    assert (blind - left).abs().max() > 0.5 * left.abs().max()
    torch.testing.assert_close(2 * prior.sample(5, seed=1, steps=20) - 1, left)
