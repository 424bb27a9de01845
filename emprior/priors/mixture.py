r"""Mixtures of Gaussians, with their exact posteriors under linear operators."""

from __future__ import annotations

import copy
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
    Covariance,
    as_variance,
    check_finite,
    check_images,
    low_rank,
    tabulated,
)
from emprior.priors.gaussian import Conditioned, measurement, posterior_noise


class GaussianMixturePrior(Prior):
    r"""The mixture of `K` Gaussians over images,

    .. math:: E(x) = -\log \sum_{k=1}^K w_k \mathcal{N}(x; m_k, C_k),

    in nats and with every constant, so that :math:`\exp(-E)` integrates to one. Denoising weighs the
    Wiener filter of each component by its posterior probability under :math:`C_k + \sigma^2 I`.

    References:
        | From learning models of natural image patches to whole image restoration (Zoran and Weiss, 2011)
        | https://doi.org/10.1109/ICCV.2011.6126278

    Arguments:
        weights: The weights `w`, `(K,)`, positive and adding up to one.
        means: The means, `(K, C, H, W)` or `(K, *shape)` of `d` pixels.
        covariances: The covariances: matrices `(K, d, d)`, variances `(K, d)` or `(K, *shape)`, or a
            `Covariance` of `K` components.

    Raises:
        ValueError: If shapes disagree, weights do not add up to one, or a covariance is not symmetric
            and positive definite.

    Examples:
        >>> means = torch.tensor([[-1.0], [1.0]])
        >>> prior = GaussianMixturePrior(torch.tensor([0.5, 0.5]), means, torch.full((2, 1), 0.04))
        >>> prior.denoise(torch.tensor([[0.0], [1.2]]), sigma=0.2)
        tensor([[0.0000],
                [1.1000]])
    """

    weights: Tensor
    means: Tensor

    def __init__(self, weights: Tensor, means: Tensor, covariances: Tensor | Covariance) -> None:
        super().__init__(tuple(means.shape[1:]))
        check_finite(means, "means")
        _check_weights(weights, means)
        if isinstance(covariances, Tensor):
            covariances = tabulated(covariances, self.shape)
        else:
            covariances = copy.deepcopy(covariances)
        if len(covariances.values) != len(means) or covariances.size != means[0].numel():
            raise ValueError(
                f"there are {len(covariances.values)} covariances over {covariances.size} pixels, but {len(means)} "
                f"means over {means[0].numel()} pixels: pass one of each for every component."
            )
        dtype = torch.promote_types(means.dtype, covariances.values.dtype)
        self.register_buffer("weights", weights.detach().to(means.device, dtype) / weights.detach().sum())
        self.register_buffer("means", means.detach().to(dtype, copy=True))
        self.covariances = covariances.to(means.device, dtype)
        self.curvature = covariances.curvature()
        self.time_unit = 20 / self.curvature

    @classmethod
    def low_rank(cls, weights: Tensor, means: Tensor, factors: Tensor, noise: float | Tensor) -> GaussianMixturePrior:
        r"""Returns a mixture of probabilistic principal components, :math:`C_k = U_k U_k^\top + \nu_k^2 I`.

        Nothing of size `d × d` is formed, so that it suits large images.

        Arguments:
            weights: The weights, `(K,)`.
            means: The means, `(K, *shape)`.
            factors: The factors `U`, `(K, d, r)`.
            noise: The standard deviation :math:`\nu > 0`, a number or `(K,)`.
        """
        if factors.ndim != 3 or factors.shape[:2] != means.flatten(1).shape:
            raise ValueError(
                f"factors have shape {tuple(factors.shape)}, but there are {len(means)} means over "
                f"{means[0].numel()} pixels: pass factors of shape {(*means.flatten(1).shape, 'r')}."
            )
        return cls(weights, means, low_rank(factors, noise))

    @cached_property
    def spectrum(self) -> Spectrum:  # type: ignore[override]
        return self.covariances.spectrum(self.weights, self.shape)

    def forward(self, x: Image) -> PerImage:
        return -(self.weights.log() + self.covariances.log_density(self._centred(x))).logsumexp(1)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        centred = self._centred(x.detach())
        joint = self.weights.log() + self.covariances.log_density(centred)
        gradients = self.covariances.filter(centred, torch.reciprocal)
        return -joint.logsumexp(1), _average(joint.softmax(1), gradients).reshape(x.shape)

    def responsibilities(self, x: Image, sigma: float | PerImage = 0.0) -> Tensor:
        r"""Returns the probability `(B, K)` of each component given `x` = clean + `sigma` times white noise."""
        return self._joint(self._centred(x), as_variance(sigma, x)).softmax(1)

    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        variance, centred = as_variance(sigma, x), self._centred(x)
        filtered = self.means.flatten(1) + self.covariances.filter(centred, lambda c: c / (c + variance))
        return _average(self._joint(centred, variance).softmax(1), filtered).reshape(x.shape)

    def start(self, noise: Noise, shape: tuple[int, ...] | None = None) -> Image:
        r"""Draws rows from the prior itself, `(rows, *shape)`."""
        uniform, white = noise.uniform().to(self.means), noise.normal(*self.shape).to(self.means)
        chosen = _choose(self.weights.expand(len(noise), -1), uniform)
        out = self.means[chosen]
        for k in chosen.unique().tolist():
            rows = white[chosen == k].flatten(1)[:, None]
            drawn = self.covariances.component(k, self.means.dtype).filter(rows, torch.sqrt)
            out[chosen == k] += drawn.reshape(-1, *self.shape)
        return out

    def sample(self, n: int, *, seed: int = 0) -> Image:
        return self.start(Noise([(seed, "sample", i) for i in range(n)], self.means.device, self.means.dtype))

    def covariance_matrices(self) -> Tensor:
        r"""Returns the covariances of the components as matrices, `(K, d, d)`."""
        return self.covariances.matrix()

    @torch.no_grad()
    def posterior(self, operator: Any, y: Tensor, sigma: float) -> MixturePosterior:
        r"""Returns the exact law of images given measurements :math:`y = A x + \sigma n`, again a mixture.

        The operator is written as a matrix `(m, d)` in float64, and each component keeps a matrix
        `(m, m)`: for `m = d = 3072` that is 75 MB each. Only `covariances` takes `(K, d, d)` numbers.

        Arguments:
            operator: The linear operator: a `deepinv.physics.LinearPhysics`, or a function of images
                `(B, *shape)`.
            y: The measurements of `B` images, `(B, ...)`.
            sigma: The standard deviation of the noise.

        Raises:
            ValueError: If the operator is not linear, or does not fit `y` and the prior.
        """
        data = measurement(operator, y, sigma, self.shape, self.means.device)
        means = self.means.double().flatten(1)
        laws = [Conditioned(mean, self.covariances.component(k, torch.float64), data) for k, mean in enumerate(means)]
        return MixturePosterior(self.weights.double(), tuple(laws), self.shape)

    def _joint(self, centred: Tensor, variance: Tensor) -> Tensor:
        return self.weights.log() + self.covariances.log_density(centred, variance)

    def _centred(self, x: Image) -> Tensor:
        check_images(x, self.means, self.shape)
        return (x[:, None] - self.means).flatten(2)


@dataclass(frozen=True, eq=False)
class MixturePosterior:
    r"""The mixture law of `B` images given their measurements; `GaussianMixturePrior.posterior` makes it.

    .. math:: p(x \mid y) = \sum_k w_k(y) \, \mathcal{N}(x; m_k(y), C_k'), \qquad
              w_k(y) \propto w_k \, \mathcal{N}(y; A m_k, A C_k A^\top + \sigma^2 I).

    Arguments:
        prior_weights: The weights of the prior, `(K,)`.
        laws: The conditional law of each component, in float64.
        shape: The shape of one image.
    """

    prior_weights: Tensor
    laws: tuple[Conditioned, ...]
    shape: tuple[int, ...]

    @cached_property
    def weights(self) -> Tensor:
        r"""The posterior weights, `(B, K)`."""
        return self._joint.softmax(1).to(self._dtype)

    @cached_property
    def means(self) -> Tensor:
        r"""The posterior means of the components, `(B, K, *shape)`."""
        return self._means.unflatten(2, self.shape).to(self._dtype)

    @cached_property
    def covariances(self) -> Tensor:
        r"""The posterior covariances of the components, `(K, d, d)`, shared by the images."""
        return torch.stack([law.matrix() for law in self.laws]).to(self._dtype)

    @cached_property
    def mean(self) -> Image:
        r"""The posterior means, `(B, *shape)`."""
        return _average(self._joint.softmax(1), self._means).unflatten(1, self.shape).to(self._dtype)

    @cached_property
    def std(self) -> Image:
        r"""The posterior standard deviation of each pixel, `(B, *shape)`."""
        weights = self._joint.softmax(1)
        apart = self._means - _average(weights, self._means)[:, None]
        variances = torch.stack([law.variance() for law in self.laws]) + apart.square()
        return _average(weights, variances).sqrt().unflatten(1, self.shape).to(self._dtype)

    @property
    def log_evidence(self) -> PerImage:
        r"""The log density `(B,)` of the measurements, without those that see no pixel."""
        return self._joint.logsumexp(1).to(self._dtype)

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        r"""Draws `n` images for each measurement, `(n, B, *shape)`."""
        y = self.laws[0].data.y.repeat(n, 1)
        noise = posterior_noise(n, len(self._joint), seed, y.device)
        chosen = _choose(self._joint.softmax(1).repeat(n, 1), noise.uniform())
        pixels, rest = noise.normal(self._means.shape[2]), noise.normal(y.shape[1])
        out = torch.empty_like(pixels)
        for k in chosen.unique().tolist():
            rows = chosen == k
            out[rows] = self.laws[k].draw(pixels[rows], rest[rows], y[rows])
        return out.reshape(n, -1, *self.shape).to(self._dtype)

    @property
    def _dtype(self) -> torch.dtype:
        return self.laws[0].data.dtype

    @cached_property
    def _means(self) -> Tensor:
        return torch.stack([law.mean for law in self.laws], 1)

    @cached_property
    def _joint(self) -> Tensor:
        return self.prior_weights.log() + torch.stack([law.log_evidence for law in self.laws], 1)


def _average(weights: Tensor, rows: Tensor) -> Tensor:
    return torch.einsum("bk,bkd->bd", weights, rows)


def _choose(weights: Tensor, uniform: Tensor) -> Tensor:
    chosen = torch.searchsorted(weights.cumsum(1), uniform[:, None], right=True)[:, 0]
    return chosen.clamp(max=weights.shape[1] - 1)


def _check_weights(weights: Tensor, means: Tensor) -> None:
    check_finite(weights, "weights")
    if weights.shape != means.shape[:1] or len(weights) == 0:
        raise ValueError(
            f"weights have shape {tuple(weights.shape)} and means {tuple(means.shape)}: pass weights (K,) and means "
            "(K, *shape)."
        )
    if bool((weights <= 0).any()):
        raise ValueError(f"weights are {weights.tolist()}, but must be positive: leave out components of no weight.")
    if abs(float(weights.sum()) - 1) > 1e-4:
        raise ValueError(f"weights add up to {float(weights.sum()):.6g}, not to one: pass weights / weights.sum().")
