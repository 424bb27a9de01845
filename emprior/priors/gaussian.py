r"""Gaussian priors, with their exact posteriors under linear operators."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from emprior._bands import Spectrum
from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Prior
from emprior.priors._linear import (
    LOG_2PI,
    Covariance,
    as_matrix,
    as_variance,
    check_even,
    check_finite,
    check_images,
    stationary,
    tabulated,
)


class GaussianPrior(Prior):
    r"""The Gaussian :math:`\mathcal{N}(m, C)` over images,

    .. math:: E(x) = \frac{1}{2} (x - m)^\top C^{-1} (x - m),

    in nats and without the normalising constant, so that :math:`E(m) = 0`. Denoising is Wiener's
    filter, :math:`\mathbb{E}[\mathrm{clean} \mid x] = m + C (C + \sigma^2 I)^{-1} (x - m)`.

    References:
        | Pattern Recognition and Machine Learning, section 2.3 (Bishop, 2006)
        | https://www.microsoft.com/en-us/research/people/cmbishop/prml-book/

    Arguments:
        mean: The mean `m`, of the shape of one image, `(C, H, W)` or any `*shape` of `d` pixels.
        covariance: The covariance `C`: a matrix `(d, d)`, variances `(d,)` or of the shape of one
            image, or a `Covariance` of one component.

    Raises:
        ValueError: If shapes disagree, or the covariance is not symmetric and positive definite.

    Examples:
        >>> prior = GaussianPrior(torch.zeros(1, 2, 2), torch.full((1, 2, 2), 4.0))
        >>> prior(2 * torch.ones(3, 1, 2, 2))
        tensor([2., 2., 2.])
        >>> prior.denoise(torch.ones(1, 1, 2, 2), sigma=2.0).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """

    mean: Tensor

    def __init__(self, mean: Tensor, covariance: Tensor | Covariance) -> None:
        super().__init__(tuple(mean.shape))
        check_finite(mean, "the mean")
        if isinstance(covariance, Tensor):
            covariance = tabulated(covariance[None], self.shape)
        else:
            covariance = copy.deepcopy(covariance)
        dtype = torch.promote_types(mean.dtype, covariance.values.dtype)
        if covariance.values.shape[0] != 1 or covariance.size != mean.numel():
            raise ValueError(
                f"the covariance is over {covariance.size} pixels, but the mean has shape {self.shape}: pass one "
                f"covariance over {mean.numel()} pixels."
            )
        self.register_buffer("mean", mean.detach().to(dtype, copy=True))
        self.covariance = covariance.to(mean.device, dtype)
        self.curvature = covariance.curvature()
        self.time_unit = 20 / self.curvature
        self.typical = mean.numel() / 2, (mean.numel() / 2) ** 0.5

    @classmethod
    def stationary(cls, mean: Tensor, kernel: Tensor | None = None, *, spectrum: Tensor | None = None) -> GaussianPrior:
        r"""Returns a prior with the same covariance between any two pixels at the same periodic distance,

        .. math:: \mathrm{Cov}[x_{c,i}, x_{c,i+h}] = k_c(h),

        and none between channels. The discrete Fourier transform diagonalises it.

        Arguments:
            mean: The mean, `(C, H, W)` or any `(*lead, H, W)`.
            kernel: The covariance `k` with the pixel at the origin, index `(0, 0)`, broadcast to the
                shape of the mean.
            spectrum: Its eigenvalues instead, `torch.fft.fft2(kernel).real`.
        """
        if (kernel is None) == (spectrum is None):
            raise ValueError("a stationary covariance has a kernel or its spectrum: pass exactly one of them.")
        given = kernel if kernel is not None else spectrum
        assert given is not None
        name = "kernel" if kernel is not None else "spectrum"
        check_finite(given, f"the {name}")
        if mean.ndim < 2 or given.ndim > mean.ndim or given.shape[-2:] != mean.shape[-2:]:
            raise ValueError(
                f"the {name} has shape {tuple(given.shape)} and the mean {tuple(mean.shape)}: pass a mean (*lead, H, W)"
                f" and a {name} of that shape or (H, W)."
            )
        if kernel is not None:
            check_even(kernel, "the kernel")
            given = torch.fft.fft2(kernel.double()).real.to(kernel.dtype)
        return cls(mean, stationary(given.expand(mean.shape)))

    @cached_property
    def spectrum(self) -> Spectrum:  # type: ignore[override]
        return self.covariance.spectrum(self.mean.new_ones(1), self.shape)

    def forward(self, x: Image) -> PerImage:
        return 0.5 * self.covariance.mahalanobis(self._centred(x))[:, 0]

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        centred = self._centred(x.detach())
        gradient = self.covariance.filter(centred, torch.reciprocal)
        return 0.5 * self.covariance.mahalanobis(centred)[:, 0], gradient.reshape(x.shape)

    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        variance = as_variance(sigma, x)
        return self.mean + self.covariance.filter(self._centred(x), lambda c: c / (c + variance)).reshape(x.shape)

    def start(self, noise: Noise, shape: tuple[int, ...] | None = None) -> Image:
        r"""Draws rows from the prior itself, `(rows, *shape)`."""
        white = noise.normal(*self.shape).to(self.mean)
        return self.mean + self.covariance.filter(white.flatten(1)[:, None], torch.sqrt).reshape(white.shape)

    def sample(self, n: int, *, seed: int = 0) -> Image:
        return self.start(Noise([(seed, "sample", i) for i in range(n)], self.mean.device, self.mean.dtype))

    def covariance_matrix(self) -> Tensor:
        r"""Returns the covariance as a matrix, `(d, d)`."""
        return self.covariance.matrix()[0]

    @torch.no_grad()
    def posterior(self, operator: Any, y: Tensor, sigma: float) -> GaussianPosterior:
        r"""Returns the exact law of images given measurements :math:`y = A x + \sigma n`.

        The operator is written as a matrix, in float64 or in the best type that it takes, at a cost
        of `d` applications; the rest takes :math:`O(m^3 + d m^2)` operations for `m` measurements.

        Arguments:
            operator: The linear operator: a `deepinv.physics.LinearPhysics`, or a function of images
                `(B, *shape)`.
            y: The measurements of `B` images, `(B, ...)`.
            sigma: The standard deviation of the noise.

        Raises:
            ValueError: If the operator is not linear, or does not fit `y` and the prior.
        """
        data = measurement(operator, y, sigma, self.shape, self.mean.device)
        covariance = self.covariance.component(0, torch.float64)
        return GaussianPosterior(Conditioned(self.mean.double().flatten(), covariance, data), self.shape)

    def _centred(self, x: Image) -> Tensor:
        check_images(x, self.mean, self.shape)
        return (x - self.mean).flatten(1)[:, None]


@dataclass(frozen=True, eq=False)
class GaussianPosterior:
    r"""The Gaussian law of `B` images given their measurements; `GaussianPrior.posterior` makes it.

    The covariance does not depend on the measurements, so the images share it.

    Arguments:
        law: The conditional law, in float64.
        shape: The shape of one image.
    """

    law: Conditioned
    shape: tuple[int, ...]

    @cached_property
    def mean(self) -> Image:
        r"""The posterior means, `(B, *shape)`."""
        return self.law.mean.reshape(-1, *self.shape).to(self.law.data.dtype)

    @cached_property
    def covariance(self) -> Tensor:
        r"""The posterior covariance, `(d, d)`."""
        return self.law.matrix().to(self.law.data.dtype)

    @cached_property
    def std(self) -> Tensor:
        r"""The posterior standard deviation of each pixel, of the shape of one image."""
        return self.law.variance().sqrt().reshape(self.shape).to(self.law.data.dtype)

    @property
    def log_evidence(self) -> PerImage:
        r"""The log density `(B,)` of the measurements, without those that see no pixel."""
        return self.law.log_evidence.to(self.law.data.dtype)

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        r"""Draws `n` images for each measurement, `(n, B, *shape)`."""
        y = self.law.data.y
        noise = posterior_noise(n, len(y), seed, y.device)
        pixels, rest = noise.normal(self.law.mean.shape[1]), noise.normal(y.shape[1])
        out = self.law.draw(pixels, rest, y.repeat(n, 1))
        return out.reshape(n, -1, *self.shape).to(self.law.data.dtype)


@dataclass(frozen=True, eq=False)
class Measurement:
    r"""Measurements :math:`y = A x + \sigma n` with `A` as a matrix, all in float64.

    Rows of zeros are left out, and more than `d` rows are rotated to `d` sufficient ones.

    Arguments:
        matrix: The matrix `A`, `(m, d)`.
        y: The measurements `(B, m)`.
        sigma: The standard deviation of the noise.
        constant: The log density `(B,)` of the part of the measurements that no image explains.
        dtype: The type that the measurements had.
    """

    matrix: Tensor
    y: Tensor
    sigma: float
    constant: Tensor
    dtype: torch.dtype


def measurement(operator: Any, y: Any, sigma: float, shape: tuple[int, ...], device: torch.device) -> Measurement:
    r"""Checks that a linear operator fits the measurements, and writes it as a matrix."""
    sigma = float(sigma)
    if not 0 < sigma < math.inf:
        raise ValueError(f"sigma is {sigma}, but is the standard deviation of the noise: pass a positive number.")
    A, given = as_matrix(operator, y, shape, device)
    seen = A.abs().sum(1) > 0
    A, rows = A[seen], given.double()[:, seen]
    constant, excess = rows.new_zeros(len(rows)), len(A) - A.shape[1]
    if excess > 0:
        Q, A = torch.linalg.qr(A)
        left, rows = rows - rows @ Q @ Q.mT, rows @ Q
        constant = -0.5 * ((left / sigma).square().sum(1) + excess * (LOG_2PI + 2 * math.log(sigma)))
    return Measurement(A, rows, sigma, constant, given.dtype if given.is_floating_point() else torch.float64)


class Conditioned:
    r"""The law of :math:`x \sim \mathcal{N}(m, C)` given measurements, in Kalman's form

    .. math:: S = A C A^\top + \sigma^2 I, \quad
              \mathbb{E}[x \mid y] = m + C A^\top S^{-1} (y - A m), \quad
              \mathrm{Cov}[x \mid y] = C - C A^\top S^{-1} A C.

    Of `m` measurements it stores a Cholesky factor of `S` alone, `(m, m)`; all is float64.

    Arguments:
        mean: The mean `(d,)`.
        covariance: The covariance, of one component.
        data: The measurements of `B` images.
    """

    def __init__(self, mean: Tensor, covariance: Covariance, data: Measurement) -> None:
        self.prior_mean, self.covariance, self.data = mean, covariance, data
        A, residual = data.matrix, data.y - mean @ data.matrix.mT
        noise = data.sigma**2 * torch.eye(len(A), dtype=A.dtype, device=A.device)
        self.factor = torch.linalg.cholesky(self._cross() @ A.mT + noise)
        self.mean = mean + self.gain(residual)
        white = torch.linalg.solve_triangular(self.factor, residual.mT, upper=False)
        determinant = 2 * self.factor.diagonal().log().sum()
        self.log_evidence = data.constant - 0.5 * (white.square().sum(0) + determinant + len(A) * LOG_2PI)

    def gain(self, residual: Tensor) -> Tensor:
        r"""Returns :math:`C A^\top S^{-1} r` for rows `r` `(N, m)`."""
        rows = torch.cholesky_solve(residual.mT, self.factor).mT @ self.data.matrix
        return self.covariance.filter(rows[:, None], lambda c: c)[:, 0]

    def draw(self, pixels: Tensor, noise: Tensor, y: Tensor) -> Tensor:
        r"""Maps white noise `(N, d)` and `(N, m)` to draws given `y` `(N, m)`, by Matheron's rule."""
        x = self.prior_mean + self.covariance.filter(pixels[:, None], torch.sqrt)[:, 0]
        return x + self.gain(y - x @ self.data.matrix.mT - self.data.sigma * noise)

    def matrix(self) -> Tensor:
        r"""Returns the posterior covariance, `(d, d)`."""
        explained = self._explained()
        return self.covariance.matrix()[0] - explained.mT @ explained

    def variance(self) -> Tensor:
        r"""Returns the diagonal of the posterior covariance, `(d,)`."""
        return (self.covariance.diagonal()[0] - self._explained().square().sum(0)).clamp(min=0)

    def _cross(self) -> Tensor:
        return self.covariance.filter(self.data.matrix[:, None], lambda c: c)[:, 0]

    def _explained(self) -> Tensor:
        return torch.linalg.solve_triangular(self.factor, self._cross(), upper=False)


def posterior_noise(n: int, images: int, seed: int, device: torch.device) -> Noise:
    r"""Returns one stream for each of `n` samples of each image, sample by sample."""
    keys = [(seed, "posterior", image, i) for i in range(n) for image in range(images)]
    return Noise(keys, device, torch.float64)
