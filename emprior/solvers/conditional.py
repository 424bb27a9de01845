r"""The law of an image given its noisy version and the data, with covariances that a chain learns on its way."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._bands import Bands
from emprior._conjugate import conjugate_gradients
from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image
from emprior.energy import Fidelity
from emprior.solvers.metric import BandMetric

DRIFT = 0.01
"""The variance of the change of a log-curvature from one noise level to the next."""

LIMIT = 3.0
"""The largest logarithm of a curvature relative to what the prior tells."""

ERROR = 0.05
"""The error that a draw aims at, in standard deviations of the clean estimate."""

ITERATIONS = 100
"""The most iterations of conjugate gradients for a draw. Under much noise, with stiff data of a badly conditioned
operator, they end before the error is as small as that; under less noise, where a start ends, a few are enough."""


@dataclass(frozen=True, eq=False)
class Tilt:
    r"""By what the curvature of each band differs from the precision that the prior tells, :math:`c_b e^{\theta_b}`.

    The covariance of an image given its noisy version is the derivative of its clean estimate (Tweedie), and by
    Stein's identity the noise itself is a probe for it: with `z = x + s n` and :math:`n_b` coefficients in a band,

    .. math:: \mathrm{Cov}[x \mid z] = s^2 \frac{\partial D}{\partial z}, \qquad
              \frac{1}{s}\, \mathbb{E}_n \langle n, D(x + s n) - x \rangle_b
              = \operatorname{tr} \left( \frac{\partial D}{\partial z} \right)_b
              = \frac{n_b}{1 + s^2 c_b e^{\theta_b}}.

    A Kalman filter follows :math:`\theta_b` from level to level, at no gradient but that of the estimate itself. It
    starts from :math:`\mathcal{N}(0, 1)`: what is told, a mean over images, is that of one image up to about a factor
    of e.

    References:
        | Estimation of the Mean of a Multivariate Normal Distribution (Stein, 1981)
        | https://doi.org/10.1214/aos/1176345632
        | Tweedie's Formula and Selection Bias (Efron, 2011)
        | https://doi.org/10.1198/jasa.2011.tm11181

    Arguments:
        mean: What is known of :math:`\theta_b`, `(S B, bands)`.
        variance: How well, `(S B, bands)`.
    """

    mean: Tensor
    variance: Tensor

    @staticmethod
    def of(x: Image) -> Tilt:
        r"""Returns what is known at first of rows like `x`, `(S B, *shape)`."""
        empty = x.new_zeros(len(x), Bands.of(x).count)
        return Tilt(empty, torch.ones_like(empty))

    def on(self, told: BandMetric) -> BandMetric:
        r"""Returns the curvature :math:`c_b e^{\theta_b}` of each row and band."""
        return BandMetric(told.bands, told.curvature * self.mean.exp())

    def seen(self, told: BandMetric, x: Image, n: Image, clean: Image, variance: float) -> Tilt:
        r"""Takes in one clean estimate; one that is not finite tells nothing.

        Arguments:
            told: The curvature :math:`c_b`.
            x: The rows.
            n: The white noise that was added to them.
            clean: The estimate :math:`D(x + s n)`.
            variance: The variance of that noise, :math:`s^2`.
        """
        bands, noise = told.bands, told.bands.split(n)
        share = 1 / (1 + variance * self.on(told).curvature)
        power = bands.sums(noise.square())
        surprise = bands.sums(noise * bands.split(clean - x)) / variance**0.5 - share * power
        known, slope = self.variance + DRIFT, -share * (1 - share) * power
        gain = known * slope / (known * slope.square() + share * power)
        mean = (self.mean + gain * surprise).clamp(-LIMIT, LIMIT)
        finite = mean.isfinite()
        return Tilt(torch.where(finite, mean, self.mean), torch.where(finite, known * (1 - gain * slope), known))


def draw(fidelity: Fidelity, prior: BandMetric, clean: Image, variance: float, noise: Noise) -> Image:
    r"""Draws an image given its clean estimate `u` under noise of variance :math:`s^2`, and the data,

    .. math:: x \sim \mathcal{N}\left(P^{-1} \left(M u + \tfrac{1}{\sigma^2} A^\top y\right), P^{-1}\right), \qquad
              M = C + \tfrac{1}{s^2} I, \quad P = M + \tfrac{1}{\sigma^2} A^\top A.

    It begins at :math:`x_0 = \mathrm{prox}(u + s^2 A^\top n_2 / \sigma,\, s^2)`, which is right where the data are
    far stronger than the prior, and conjugate gradients find the rest, :math:`P (x - x_0) = C (u - x_0) + M^{1/2} n_1`.
    In units of :math:`M^{1/2}` no eigenvalue of that system is below 1, so that a residual bounds the error, and also
    what the error does to the data in units of their noise.

    References:
        | Sampling Gaussian Distributions in Krylov Spaces with Conjugate Gradients
          (perturbation-optimisation: Orieux et al., 2012)
        | https://arxiv.org/abs/1105.5887

    Arguments:
        fidelity: The data term, linear.
        prior: The metric `C` of the prior.
        clean: The estimates `u`, `(S B, *shape)`.
        variance: The number :math:`s^2`.
        noise: The random streams of the rows.
    """
    whole = prior.curvature + 1 / variance
    inverse = BandMetric(prior.bands, whole.rsqrt())
    white = noise.normal(*clean.shape[1:])
    x = fidelity.prox(clean + variance * fidelity.whiten(noise.normal(*fidelity.measured)), variance)
    rest = inverse.apply(prior.apply(clean - x)) + white
    goal = column(rest.new_full((len(rest),), ERROR * rest[0].numel() ** 0.5), rest)
    found = conjugate_gradients(lambda v: v + inverse.apply(fidelity.curve(inverse.apply(v))), rest, goal, ITERATIONS)
    return x + inverse.apply(found)
