"""Clean estimates that are told the noise: their lengths, and the gain of each band."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import emprior
from emprior._bands import Bands
from emprior._calibration import Calibration
from emprior._restoration import Restoration
from emprior._rows import column
from emprior.hub import Card, find_prior
from emprior.metrics import psnr
from emprior.train.evaluate import RESTORED, calibration, restoration

SHAPE = (1, 16, 16)
SIGMA = (0.1, 0.3, 1.0)


class Steep:
    """Gaussian images, independent in cosines, whose finest bands hold next to nothing, and their exact denoiser."""

    def __init__(self, fall):
        self.bands = Bands.of(torch.zeros(1, *SHAPE).double())
        self.variance = (4 / (1 + (fall * self.bands.frequency[self.bands.band]) ** 4)).reshape(SHAPE)

    def draw(self, count, seed):
        n = torch.randn(count, *SHAPE, generator=torch.Generator().manual_seed(seed)).double()
        return self.bands.join(self.variance.sqrt() * n)

    def denoise(self, x, sigma):
        return self.bands.join(self.variance / (self.variance + sigma**2) * self.bands.split(x))


def noisy(x, sigma, seed=5):
    return x + sigma * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)).to(x)


def error(clean, x):
    return float((clean - x).square().mean())


def measure(restore, x):
    return Calibration.measure(Restoration.measure(restore, x, SIGMA), restore, x)


def level(x, sigma):
    return torch.full((len(x),), sigma, dtype=x.dtype)


def test_it_finds_the_length_of_each_residual():
    law = Steep(20.0)
    x, factors = law.draw(2000, 1), torch.linspace(0.8, 1.25, 2000).double()

    def blind(z, sigma):
        return z - column(factors, z) * (z - law.denoise(z, sigma))

    found = measure(blind, x)
    for sigma in SIGMA:
        z = noisy(x, sigma)
        plain, exact = blind(z, sigma), law.denoise(z, sigma)
        told = found.apply(z, plain, level(z, sigma))
        lengths = (told - z).flatten(1).norm(dim=1) / (exact - z).flatten(1).norm(dim=1)
        assert (lengths - 1).abs().mean() < 0.02
        assert error(told, exact) < 0.05 * error(plain, exact)


def test_it_finds_the_gain_of_each_band():
    law = Steep(20.0)
    x, scales = law.draw(4000, 1), torch.linspace(0.7, 1.0, law.bands.count).double()
    per_band = law.bands.spread(scales[None], x[:1])

    def wrong(z, sigma):
        return z - law.bands.join(per_band * law.bands.split(z - law.denoise(z, sigma)))

    found = measure(wrong, x)
    for sigma in SIGMA:
        z = noisy(x, sigma)
        plain, exact = wrong(z, sigma), law.denoise(z, sigma)
        told = found.apply(z, plain, level(z, sigma))
        assert error(plain, exact) > 0.01 * error(exact, x)
        assert error(told, exact) < 0.1 * error(plain, exact)


def test_an_exact_estimate_stays():
    law = Steep(20.0)
    x = law.draw(4000, 1)
    found = measure(law.denoise, x)
    for sigma in (0.1, 0.2, 1.0):
        z = noisy(x, sigma)
        exact = law.denoise(z, sigma)
        told = found.apply(z, exact, level(z, sigma))
        assert error(told, x) < 1.002 * error(exact, x)


def test_where_no_band_is_empty_no_length_is_told():
    law = Steep(0.0)
    x = law.draw(1000, 1)
    factors = torch.linspace(0.8, 1.25, 1000).double()
    found = measure(law.denoise, x)
    z = noisy(x, 0.1)
    plain = z - column(factors, z) * (z - law.denoise(z, 0.1))
    told = found.apply(z, plain, level(z, 0.1))
    bands = law.bands.split(z - told) / law.bands.split(z - plain)
    assert torch.allclose(bands, bands[:1].expand_as(bands))


def test_under_less_noise_than_was_measured_an_estimate_is_left_as_it_is():
    law = Steep(20.0)
    x = law.draw(64, 1)
    found = measure(law.denoise, x)
    clean = law.denoise(x, 0.09)
    assert torch.equal(found.apply(x, clean, level(x, 0.09)), clean)


def test_rows_of_different_noise_are_told_their_own():
    prior = emprior.load_prior("mnist")
    x = torch.rand(4, *prior.shape, generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.1, 0.4, 0.1, 0.2])
    together = prior.denoise(x, sigma)
    for i in range(4):
        assert torch.allclose(together[i : i + 1], prior.denoise(x[i : i + 1], float(sigma[i])), atol=2e-6)


def test_it_can_be_differentiated():
    prior = emprior.load_prior("mnist")
    x = torch.rand(2, *prior.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    v = torch.randn(x.shape, generator=torch.Generator().manual_seed(1))
    (slope,) = torch.autograd.grad((prior.denoise(x, 0.3) * v).sum(), x)
    with torch.no_grad():
        step = 1e-2 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        change = ((prior.denoise(x + step, 0.3) - prior.denoise(x - step, 0.3)) * v).sum() / 2
    assert torch.allclose((slope * step).sum(), change, rtol=0.02, atol=1e-3)


def crops(count=64):
    """Pieces of a photograph that no prior has seen, halved, `(count, 3, 32, 32)`."""
    from skimage.data import astronaut

    image = torch.from_numpy(astronaut()).permute(2, 0, 1)[None].float() / 255
    small = torch.nn.functional.avg_pool2d(image, 2)
    return small.unfold(2, 32, 32).unfold(3, 32, 32)[0].permute(1, 2, 0, 3, 4).reshape(-1, 3, 32, 32)[:count]


@pytest.mark.parametrize("sigma", [0.025, 0.1, 0.3])
def test_it_restores_photographs_better(sigma):
    prior, x = emprior.load_prior("cifar10"), crops()
    z = noisy(x, sigma)
    assert (psnr(prior.denoise(z, sigma), x) - psnr(prior.restore(z, sigma), x)).mean() > 0.1


@pytest.mark.parametrize("name", ["cifar10", "mnist"])
def test_a_card_holds_it(name):
    prior, card = emprior.load_prior(name), Card.read(find_prior(name))
    told = card.metrics["calibration"]
    assert len(told["gain"]) == len(RESTORED)
    assert prior.calibration == Calibration.read(prior.restoration, told)
    rest = {key: value for key, value in card.metrics.items() if key != "calibration"}
    assert card.identity != replace(card, metrics=rest).identity


def test_it_is_of_the_estimate_without_it():
    prior = emprior.load_prior("mnist")
    x = torch.rand(8, *prior.shape, generator=torch.Generator().manual_seed(0))
    told = restoration(prior, x)
    gains = calibration(prior, x, told)
    assert prior.calibration is not None
    assert not torch.equal(prior.denoise(x, 0.3), prior.restore(x, 0.3))
    prior.calibration = None
    assert torch.equal(prior.denoise(x, 0.3), prior.restore(x, 0.3))
    assert calibration(prior, x, restoration(prior, x)) == gains
