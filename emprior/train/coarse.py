r"""The coarse part of a gradient near the data, which noise hides from a regression."""

from __future__ import annotations

import torch
from torch import Tensor

from emprior._bands import Bands, Spectrum
from emprior._rows import column

HIDDEN = 0.03
"""The share of the variance of a target below which what there is to know of it is hidden by its noise."""

EMPHASIS = 30.0
"""How much more an error counts where targets have no noise."""


class Coarse:
    r"""Coefficients of images of which a target at noise fraction `s` knows almost nothing.

    In a band where the energy curves by `c` (in nats, of `[-1, 1]`) the noise :math:`x_0` of an image :math:`x_s` near
    the data has a conditional mean whose variance is :math:`s^2 c` at the most, which is the Fisher information, beside
    a variance of 1 of the target :math:`x_0` itself. Where :math:`\max(s, \tau)^2 c < 0.03` regression learns from
    noise alone, and leaves a force along the image that is many times the true one. The thermal noise :math:`\tau` is
    in the density whose curvature `c` is, which bounds that of data under less noise no more.

    Arguments:
        spectrum: The curvature by frequency and colour, of public images.
        below: The noise fraction above which nothing is coarse.
        thermal: The noise :math:`\tau`, in `[-1, 1]`.
        like: Images of the shape, type and device of those to come, `(B, C, H, W)`.
    """

    def __init__(self, spectrum: Spectrum, below: float, thermal: float, like: Tensor) -> None:
        self.bands, self.below, self.thermal = Bands.of(like), below, thermal
        curvature = spectrum.on(self.bands).to(like) / 4
        self.curvature = self.bands.spread(curvature[None], like[:1])

    def inside(self, s: Tensor) -> Tensor:
        r"""Returns which coefficients are coarse at noise fractions `(B,)`, `(B, C, H, W)`."""
        s = column(s, self.curvature)
        return (s < self.below) & (s.clamp(min=self.thermal).square() * self.curvature < HIDDEN)

    def part(self, x: Tensor, s: Tensor) -> Tensor:
        r"""Returns the coarse part of images at noise fractions."""
        with torch.autocast(x.device.type, enabled=False):
            x = x.to(self.curvature.dtype)
            return self.bands.join(torch.where(self.inside(s), self.bands.split(x), 0))

    def squares(self, error: Tensor, s: Tensor) -> Tensor:
        r"""Returns the mean of an error's squares, `(B,)`, coarse ones 30 times."""
        with torch.autocast(error.device.type, enabled=False):
            weight = torch.where(self.inside(s), EMPHASIS, 1.0)
            return (weight * self.bands.split(error.to(self.curvature.dtype)).square()).flatten(1).mean(1)
