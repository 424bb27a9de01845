r"""The length of what an energy takes off a noisy image, put right where the noise is known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emprior._bands import Bands, Spectrum
from emprior._noise import generator
from emprior._restoration import Restoration, between
from emprior._rows import column, dot
from emprior._types import Image, PerImage

EMPTY = 0.05
"""The share of the noise's variance that clean estimates err by in a band where images hold next to nothing."""

GAINS = (0.01, 2.0)
"""The least and the largest gain of a band."""


@dataclass(frozen=True)
class Calibration:
    r"""The clean estimate of an energy, which is blind, told the noise.

    An energy `V` that is trained on a field :math:`c(\sigma)\, \nabla \log p_\sigma`, with the level left to the image,
    comes as near to it as a function of the density can, :math:`V = \varphi(-\log p)`. Its gradient has the right
    direction, and is the longer the less likely an image is beside others under the same noise: by
    :math:`2 \Delta / d` for :math:`c = \sigma^2` and :math:`\Delta / d` for :math:`c = \sigma`, where :math:`\Delta` is
    the difference in nats. So the residual of an estimate, :math:`r = x - D(x, \sigma)`, is stretched to what it is
    where images hold nothing and :math:`r` is `x` itself, and each band is scaled by its least-squares gain:

    .. math:: D' = x - \alpha \sum_b \kappa_b\, Q_b^\top Q_b r, \qquad
              \alpha = \frac{\sum_b w_b \langle Q_b r, Q_b x \rangle}{\sum_b w_b \| Q_b r \|^2}, \qquad
              w_b = \left( \frac{\min_{b'} v_{b'}}{v_b} \right)^2,

    with :math:`v_b(\sigma)` the errors of `D` in the bands of :class:`emprior._bands.Bands`, and
    :math:`\kappa_b(\sigma) = \mathbb{E} \langle Q_b \alpha r, Q_b \sigma n \rangle / \mathbb{E} \| Q_b \alpha r \|^2`.
    Where the least error of a band is above 0.05 of the noise's variance no band is empty, and :math:`\alpha` goes to 1
    at 0.1. Under less noise than was measured an estimate is left as it is.

    Arguments:
        errors: How well `D` restores images.
        gains: The numbers :math:`\kappa_b` at each of its levels.
    """

    errors: Restoration
    gains: tuple[Spectrum, ...]

    @staticmethod
    def measure(
        errors: Restoration, restore: Callable[[Image, float], Image], images: Image, seed: int = 0
    ) -> Calibration:
        r"""Measures the gains of an estimate on clean images.

        Arguments:
            errors: How well it restores images.
            restore: The estimate `D`.
            images: Clean images, `(B, *shape)`.
            seed: The seed of the noise.
        """
        bands, gains = Bands.of(images), []
        for level in errors.sigma:
            noise = level * torch.randn(images.shape, generator=generator(seed, "calibration", level)).to(images)
            x = images + noise
            r = bands.split(x - restore(x, level))
            r = column(_length(errors, bands, bands.split(x), r, level), r) * r
            found = bands.sums(r * bands.split(noise)).sum(0) / bands.sums(r.square()).sum(0)
            gains.append(Spectrum.of(bands, found.double().clamp(*GAINS)))
        return Calibration(errors, tuple(gains))

    @staticmethod
    def read(errors: Restoration, tree: Mapping[str, Any]) -> Calibration:
        r"""Returns what a card holds: the `frequency` of bands, and the `gain` of each at the levels of `errors`."""
        gains = ({"frequency": tree["frequency"], "curvature": level} for level in tree["gain"])
        return Calibration(errors, tuple(map(Spectrum.read, gains)))

    def apply(self, x: Image, clean: Image, sigma: PerImage) -> Image:
        r"""Returns :math:`D'`.

        Arguments:
            x: Noisy images, `(B, *shape)`.
            clean: Their estimates `D`.
            sigma: Their noise, in public units, `(B,)`.
        """
        levels = sigma.unique()
        if len(levels) == 1:
            return self._at(x, clean, float(levels[0]))
        out = torch.empty_like(clean)
        for level in levels:
            rows = sigma == level
            out[rows] = self._at(x[rows], clean[rows], float(level))
        return out

    def _at(self, x: Image, clean: Image, sigma: float) -> Image:
        if sigma < (1 - 1e-6) * self.errors.sigma[0]:
            return clean
        bands = Bands.of(x)
        r = bands.split(x - clean)
        length = _length(self.errors, bands, bands.split(x), r, sigma)
        gain = bands.spread(between(self.errors.sigma, self.gains, bands, sigma).to(r)[None], r[:1])
        return x - bands.join(column(length, r) * gain * r)


def _length(errors: Restoration, bands: Bands, x: Tensor, r: Tensor, sigma: float) -> Tensor:
    left = 1 / (1 + sigma**2 * errors.on(bands, sigma))
    least = float(left.min())
    told = min(max(2 - least / EMPTY, 0.0), 1.0)
    if not told:
        return torch.ones_like(dot(r, r))
    weight = bands.spread((least / left).square().to(r)[None], r[:1])
    return 1 + told * (dot(weight * r, x) / dot(weight * r, r) - 1)
