"""Shared truths: a Gaussian field on 8 x 8 pixels and four linear problems with known posteriors."""

from __future__ import annotations

import pytest
import torch

from emprior.priors import GaussianPrior

SHAPE = (1, 8, 8)


@pytest.fixture(scope="session")
def field() -> GaussianPrior:
    side = torch.arange(8.0, dtype=torch.float64)
    lag = torch.minimum(side, 8 - side)
    kernel = 0.05 * torch.exp(-(lag[:, None] ** 2 + lag[None] ** 2).sqrt() / 2)
    return GaussianPrior.stationary(torch.full(SHAPE, 0.5, dtype=torch.float64), kernel[None])


def make_operator(name: str):
    import deepinv as dinv

    noise = dinv.physics.GaussianNoise(0.1 if name == "denoising" else 0.05)
    random = torch.Generator().manual_seed(0)
    if name == "denoising":
        return dinv.physics.Denoising(noise)
    if name == "inpainting":
        mask = (torch.rand(SHAPE, generator=random) < 0.5).double()
        return dinv.physics.Inpainting(SHAPE, mask=mask, noise_model=noise)
    if name == "blur":
        kernel = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
        kernel = (kernel[:, None] * kernel)[None, None] / 16
        return dinv.physics.BlurFFT(SHAPE, filter=kernel, noise_model=noise)
    matrix = torch.randn(32, 64, generator=random, dtype=torch.float64) / 8
    from emprior import as_operator

    operator = as_operator(matrix, shape=SHAPE)
    operator.set_noise_model(noise)
    return operator


@pytest.fixture(params=["denoising", "inpainting", "blur", "compressed_sensing"])
def case(request, field):
    """An operator, measurements of two images, and their exact posterior."""
    operator = make_operator(request.param)
    x = field.sample(2, seed=1)
    sigma = float(operator.noise_model.sigma)
    clean = operator.A(x)
    noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    y = clean + sigma * noise * (operator.A(torch.ones_like(x)) != 0)
    return operator, y, field.posterior(operator, y, sigma)
