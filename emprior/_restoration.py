r"""What noisy images still tell of clean ones, as a denoiser shows it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emprior._bands import Bands, Spectrum
from emprior._noise import generator
from emprior._types import Image

LEAST = 0.02
"""The least curvature of the law of an image, as a share of that of the noise: a clean estimate may err more than the
noise itself, and in bands of few coefficients its error is a rough figure."""


@dataclass(frozen=True)
class Restoration:
    r"""The mean curvature of the law of an image given its noisy version, beside that of the noise,

    .. math:: C_b(\sigma) = \frac{1}{v_b(\sigma)} - \frac{1}{\sigma^2}, \qquad
              v_b(\sigma) = \frac{1}{n_b}\, \mathbb{E}_{x, n} \| Q_b (D(x + \sigma n, \sigma) - x) \|^2,

    with :math:`v_b` the error of clean estimates in band `b`. From about the inverse variance of images under much
    noise it grows to the mean curvature of their energy under little; for a Gaussian whose bands are independent, and
    of one variance each, these are the same.

    Arguments:
        sigma: The noise levels, rising, in public units.
        curvature: The numbers :math:`C_b` at each level.
    """

    sigma: tuple[float, ...]
    curvature: tuple[Spectrum, ...]

    @staticmethod
    def measure(
        denoise: Callable[[Image, float], Image], images: Image, sigma: Sequence[float], seed: int = 0
    ) -> Restoration:
        r"""Measures a denoiser on clean images.

        Arguments:
            denoise: The denoiser `D`.
            images: Clean images `x`, `(B, *shape)`.
            sigma: The noise levels, rising.
            seed: The seed of the noise.
        """
        bands = Bands.of(images)
        counts, found = len(images) * torch.bincount(bands.band), []
        for level in sigma:
            n = torch.randn(images.shape, generator=generator(seed, "restoration", level)).to(images)
            error = bands.split(denoise(images + level * n, level) - images).square()
            share = bands.sums(error).sum(0).double() / counts / level**2
            found.append(Spectrum.of(bands, (1 / share - 1).clamp(min=LEAST) / level**2))
        return Restoration(tuple(sigma), tuple(found))

    @staticmethod
    def read(tree: Mapping[str, Any]) -> Restoration:
        r"""Returns what a card holds: `sigma`, `frequency`, and the `curvature` of each level."""
        levels = ({"frequency": tree["frequency"], "curvature": level} for level in tree["curvature"])
        return Restoration(tuple(tree["sigma"]), tuple(map(Spectrum.read, levels)))

    def on(self, bands: Bands, sigma: float) -> Tensor:
        r"""Returns the curvature of each band of a basis under noise `sigma`, `(bands,)` in double precision.

        Between levels it follows a power law, beyond them it stays.
        """
        return between(self.sigma, self.curvature, bands, sigma)


def between(levels: Sequence[float], values: Sequence[Spectrum], bands: Bands, sigma: float) -> Tensor:
    r"""Returns what was measured in each band at rising noise `levels`, at `sigma`, `(bands,)` in double precision."""
    place = float(np.interp(np.log(sigma), np.log(levels), np.arange(len(levels))))
    low, share = int(place), place % 1
    high = min(low + 1, len(levels) - 1)
    return values[low].on(bands) ** (1 - share) * values[high].on(bands) ** share
