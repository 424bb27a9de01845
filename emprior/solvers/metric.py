r"""Metrics of the phase space, and Metropolis' test of rows that may share one energy."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._bands import Bands
from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Energy, Fidelity, Posterior, Prior
from emprior.solvers.base import as_posterior
from emprior.solvers.curvature import prior_curvature

LARGEST = 4096
"""The most pixels for which a metric is held as a matrix: it takes 64 MB in single precision."""

BLOCK = 16
"""The rows that are multiplied by a matrix at a time, always as many, so that none depends on how many there are."""


class Metric(ABC):
    r"""A metric `P` in which a posterior is about as stiff in every direction; it does not depend on the image."""

    @abstractmethod
    def draw(self, noise: Noise, x: Image) -> Image:
        r"""Draws :math:`w \sim \mathcal{N}(0, P)` for rows of the shape of `x`."""

    @abstractmethod
    def solve(self, v: Image) -> Image:
        r"""Returns :math:`P^{-1} v`."""


@dataclass(frozen=True, eq=False)
class DataMetric(Metric):
    r"""The Hessian of the data term and a constant in place of the prior's,

    .. math:: P = c I + \frac{1}{\sigma^2} A^\top A.

    Without a data term, or with one that is not linear, it is :math:`c I`. A draw is
    :math:`w = \sqrt{c}\, n_1 + A^\top n_2 / \sigma`, and :math:`P^{-1} w` then follows
    :math:`\mathcal{N}(0, P^{-1})`, with no root of a matrix.

    References:
        | Sampling Gaussian Distributions in Krylov Spaces with Conjugate Gradients
          (perturbation-optimisation: Orieux et al., 2012)
        | https://arxiv.org/abs/1105.5887

    Arguments:
        constant: The number `c`, a curvature in nats per squared unit of a pixel.
        fidelity: The data term, if it is linear.
    """

    constant: float
    fidelity: Fidelity | None = None

    @staticmethod
    def of(energy: Energy, curvature: float | None = None) -> DataMetric:
        r"""Returns the metric of an energy.

        Arguments:
            energy: The energy; only a `Posterior` tells its data term.
            curvature: The constant `c`; by default the prior's own, times its weight.
        """
        fidelity = energy.fidelity if isinstance(energy, Posterior) and energy.fidelity.linear else None
        return DataMetric(prior_curvature(energy) if curvature is None else curvature, fidelity)

    def draw(self, noise: Noise, x: Image) -> Image:
        w = self.constant**0.5 * noise.normal(*x.shape[1:])
        return w if self.fidelity is None else w + self.fidelity.whiten(noise.normal(*self.fidelity.measured))

    def solve(self, v: Image) -> Image:
        v = v if self.fidelity is None else self.fidelity.solve(v, 1 / self.constant)
        return v / self.constant


@dataclass(frozen=True, eq=False)
class BandMetric(Metric):
    r"""A curvature for each band of frequency and colour,

    .. math:: P = Q^\top \mathrm{diag}(c_{b(i)})\, Q,

    with `Q` the basis of `Bands`.

    Arguments:
        bands: The basis.
        curvature: The numbers :math:`c_b` in nats per squared unit of a pixel: of each row, `(S B, bands)`, or one row
            for all.
    """

    bands: Bands
    curvature: Tensor

    def draw(self, noise: Noise, x: Image) -> Image:
        return self._scale(noise.normal(*x.shape[1:]), self.curvature.sqrt())

    def solve(self, v: Image) -> Image:
        return self._scale(v, 1 / self.curvature)

    def apply(self, v: Image) -> Image:
        r"""Returns :math:`P v`."""
        return self._scale(v, self.curvature)

    def _scale(self, v: Image, values: Tensor) -> Image:
        return self.bands.join(self.bands.spread(values, v) * self.bands.split(v))


@dataclass(frozen=True, eq=False)
class SpectralMetric(Metric):
    r"""The Hessian of the data term and the prior's curvature in each band,

    .. math:: P = Q^\top \mathrm{diag}(c_{b(i)})\, Q + \frac{1}{\sigma^2} A^\top A.

    The prior's curvature differs by three orders of magnitude between the mean of an image and its finest details;
    a metric that knows it makes a posterior about as stiff where the data see nothing as where they see all. One
    matrix serves all rows, or all replicas of one temperature, and its inverse is made once.

    Arguments:
        prior: The metric of the prior, of one row, or of each row.
        fidelity: The data term.
        inverse: The matrices :math:`P^{-1}`, `(R, d, d)`.
        which: The matrix of each row, `(S B,)`; none where there is one.
    """

    prior: BandMetric
    fidelity: Fidelity
    inverse: Tensor
    which: Tensor | None = None

    @staticmethod
    def of(energy: Energy, x: Image, largest: int) -> SpectralMetric | None:
        r"""Returns the metric of a posterior.

        Arguments:
            energy: The energy.
            x: Rows of its shape, `(S B, *shape)`.
            largest: The largest `d` for which a matrix is made; never more than `LARGEST`.

        Returns:
            The metric, or None if the prior knows no spectrum, images differ in their operator or its Hessian is
            unknown, or there are more pixels. Replicas whose matrices would together be larger than that of `LARGEST`
            pixels share that of the stiffest.
        """
        if not isinstance(energy, Posterior) or x[0].numel() > min(largest, LARGEST):
            return None
        prior = spectral(energy, x)
        hessian = None if prior is None else energy.fidelity.hessian(x)
        if prior is None or hessian is None:
            return None
        rows, which = prior.curvature.unique(dim=0, return_inverse=True)
        if len(rows) * len(hessian) ** 2 > LARGEST**2:
            rows = rows.amax(0, keepdim=True)
        eye = torch.eye(len(hessian), dtype=hessian.dtype, device=x.device).reshape(-1, *x.shape[1:])
        inverses = []
        for row in rows.double():
            matrix = hessian + BandMetric(Bands.of(eye), row[None]).apply(eye).flatten(1)
            inverse = torch.cholesky_inverse(torch.linalg.cholesky((matrix + matrix.mT) / 2))
            inverses.append(((inverse + inverse.mT) / 2).to(x))
        if len(rows) > 1:
            return SpectralMetric(prior, energy.fidelity, torch.stack(inverses), which)
        return SpectralMetric(BandMetric(prior.bands, rows), energy.fidelity, torch.stack(inverses))

    def draw(self, noise: Noise, x: Image) -> Image:
        return self.prior.draw(noise, x) + self.fidelity.whiten(noise.normal(*self.fidelity.measured))

    def solve(self, v: Image) -> Image:
        rows = v.flatten(1)
        if self.which is None:
            return _multiplied(rows, self.inverse[0]).reshape(v.shape)
        solved = torch.empty_like(rows)
        for number, inverse in enumerate(self.inverse):
            chosen = (self.which == number).nonzero()[:, 0]
            solved[chosen] = _multiplied(rows[chosen], inverse)
        return solved.reshape(v.shape)


def _multiplied(rows: Tensor, matrix: Tensor) -> Tensor:
    padded = torch.cat([rows, rows.new_zeros(-len(rows) % BLOCK, rows.shape[1])])
    return torch.cat([part @ matrix for part in padded.split(BLOCK)])[: len(rows)]


def spectral(energy: Energy, x: Image) -> BandMetric | None:
    r"""Returns the metric of the prior alone, :math:`w Q^\top \mathrm{diag}(c)\, Q`; none if unknown.

    It is of one row, or of each row where these are replicas.
    """
    prior, weight = (energy.prior, float(energy.weight)) if isinstance(energy, Posterior) else (energy, 1.0)
    if not isinstance(prior, Prior) or prior.spectrum is None:
        return None
    bands = Bands.of(x)
    curvature = weight * prior.spectrum.on(bands).to(x)[None]
    return BandMetric(bands, curvature if prior.beta is None else prior.beta[:, None] * curvature)


def metropolis(ratio: PerImage, energy: Energy, noise: Noise) -> tuple[PerImage, PerImage]:
    r"""Decides on proposals by Metropolis' test.

    Rows decide each for itself. Where the energy couples the samples of an image they are one point of their joint
    law: their ratios add up, and they share one number :math:`u \sim U(0, 1)` and so one decision. What is not
    finite is rejected.

    Arguments:
        ratio: The logarithms of the ratios of acceptance, `(S B,)`.
        energy: The energy that is sampled.
        noise: The random streams of the rows.

    Returns:
        The probability of acceptance and the decision, `(S B,)` each.

    Raises:
        TypeError: A coupled energy is not a `Posterior`, and so does not tell which rows are of one image.
    """
    u = noise.uniform()
    if energy.coupled:
        images = as_posterior(energy, "A joint test of samples").fidelity.images
        ratio, u = _shared(ratio.reshape(-1, images).sum(0), ratio), _shared(u.reshape(-1, images)[0], u)
    probability = torch.where(ratio.isfinite(), ratio.clamp(max=0).exp(), torch.zeros_like(ratio))
    return probability, u < probability


def pooled(values: PerImage, energy: Energy) -> PerImage:
    r"""Averages `(S B,)` over the samples of each image; rows of an energy without a data term stand alone."""
    if not isinstance(energy, Posterior):
        return values
    return _shared(values.reshape(-1, energy.fidelity.images).mean(0), values)


def _shared(values: PerImage, rows: PerImage) -> PerImage:
    return values.repeat(len(rows) // len(values))
