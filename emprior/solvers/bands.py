r"""Bands of frequency and colour."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from emprior._types import Image

OCTAVE = 3
"""The bands of an octave."""

OPPONENTS = ((1.0, 1.0, 1.0), (1.0, 0.0, -1.0), (1.0, -2.0, 1.0))
"""Luminance and two opponent colours, where the colours of natural images are all but uncorrelated."""


@dataclass(frozen=True, eq=False)
class Bands:
    r"""An orthonormal basis of images in which their statistics are nearly independent, and its division into bands.

    Each axis of an image is taken to cosines,

    .. math:: Q_{k i} = \sqrt{\tfrac{2 - \delta_{k 0}}{n}}\, \cos \frac{\pi k (i + 1/2)}{n},

    and three channels to luminance and two opponent colours. A band holds the coefficients of one channel whose
    spatial frequency is within a third of an octave; the mean is a band of its own. The first of three axes or more
    counts channels; channels that are not three share their bands.

    References:
        | Color and spatial structure in natural scenes (Burton and Moorhead, 1987)
        | https://doi.org/10.1364/AO.26.000157
        | Statistics of cone responses to natural images: implications for visual coding (Ruderman et al., 1998)
        | https://doi.org/10.1364/JOSAA.15.002036

    Arguments:
        axes: The cosines of each axis, `(n, n)`.
        colours: What the channels are mixed by, `(3, 3)`, if they are three.
        band: The number of the band of each coefficient, `(d,)`.
        count: The number of bands.
    """

    axes: tuple[Tensor, ...]
    colours: Tensor | None
    band: Tensor
    count: int

    @staticmethod
    def of(x: Image) -> Bands:
        r"""Returns the basis for images like `x`, `(B, *shape)`."""
        return _make(tuple(x.shape[1:]), x.dtype, x.device)

    def split(self, x: Image) -> Image:
        r"""Returns the coefficients :math:`Q x` of rows `(B, *shape)`."""
        return self._turn(x, [axis.mT for axis in self.axes], self.colours)

    def join(self, coefficients: Image) -> Image:
        r"""Returns the rows :math:`Q^\top c`."""
        return self._turn(coefficients, list(self.axes), None if self.colours is None else self.colours.mT)

    def sums(self, coefficients: Image) -> Tensor:
        r"""Returns the sums over each band, `(B, count)`."""
        rows = coefficients.flatten(1)
        return rows.new_zeros(len(rows), self.count).index_add_(1, self.band, rows)

    def spread(self, values: Tensor, like: Image) -> Image:
        r"""Returns rows like `like` that hold the value of its band `(B, count)` for each coefficient."""
        return values[:, self.band].reshape(len(values), *like.shape[1:])

    def _turn(self, x: Image, axes: list[Tensor], colours: Tensor | None) -> Image:
        for place, axis in enumerate(axes, start=-len(axes)):
            x = x @ axis if place == -1 else torch.movedim(torch.movedim(x, place, -1) @ axis, -1, place)
        return x if colours is None else torch.einsum("ij,bj...->bi...", colours, x)


@lru_cache(maxsize=16)
def _make(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Bands:
    channels, sides = (shape[0], shape[1:]) if len(shape) > 2 else (1, shape)
    ticks = torch.meshgrid(*(torch.arange(n, dtype=torch.float64) / n for n in sides), indexing="ij")
    frequency = max(sides) * torch.stack([tick.square() for tick in ticks]).sum(0).sqrt()
    ring = torch.where(frequency < 0.5, 0, 1 + (OCTAVE * frequency.clamp(min=1).log2()).floor()).long()
    named = channels if channels == 3 else 1
    ring = ring + (1 + ring.max()) * torch.arange(named).reshape(-1, *(1,) * len(sides))
    used, band = torch.unique(ring.expand(channels, *sides).flatten(), return_inverse=True)
    opponents = torch.nn.functional.normalize(torch.tensor(OPPONENTS, dtype=torch.float64), dim=1)
    return Bands(
        axes=tuple(_cosines(n).to(device, dtype) for n in sides),
        colours=opponents.to(device, dtype) if channels == 3 else None,
        band=band.to(device),
        count=len(used),
    )


def _cosines(n: int) -> Tensor:
    ticks = torch.arange(n, dtype=torch.float64)
    waves = (2 / n) ** 0.5 * torch.cos(math.pi * ticks[:, None] * (ticks + 0.5) / n)
    waves[0] = n**-0.5
    return waves
