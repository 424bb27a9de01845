r"""Bands of frequency and colour, and the curvature of an energy in each."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from emprior._noise import generator
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
        frequency: The mean frequency of each band, in half-cycles a pixel: 1 is Nyquist's limit of an axis, `(count,)`.
        colour: The number of the colour of each band, `(count,)`.
    """

    axes: tuple[Tensor, ...]
    colours: Tensor | None
    band: Tensor
    count: int
    frequency: Tensor
    colour: Tensor

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
    rings, named = 1 + ring.max(), channels if channels == 3 else 1
    ring = ring + rings * torch.arange(named).reshape(-1, *(1,) * len(sides))
    used, band = torch.unique(ring.expand(channels, *sides).flatten(), return_inverse=True)
    each = frequency.expand(channels, *sides).flatten() / max(sides)
    mean = torch.zeros(len(used), dtype=torch.float64).index_add_(0, band, each) / torch.bincount(band)
    opponents = torch.nn.functional.normalize(torch.tensor(OPPONENTS, dtype=torch.float64), dim=1)
    return Bands(
        axes=tuple(_cosines(n).to(device, dtype) for n in sides),
        colours=opponents.to(device, dtype) if channels == 3 else None,
        band=band.to(device),
        count=len(used),
        frequency=mean,
        colour=used // rings,
    )


def _cosines(n: int) -> Tensor:
    ticks = torch.arange(n, dtype=torch.float64)
    waves = (2 / n) ** 0.5 * torch.cos(math.pi * ticks[:, None] * (ticks + 0.5) / n)
    waves[0] = n**-0.5
    return waves


@dataclass(frozen=True)
class Spectrum:
    r"""The mean curvature of an energy in each band,

    .. math:: c_b = \frac{1}{n_b}\, \mathbb{E}_x \operatorname{tr} \left( Q_b\, \nabla^2 E(x)\, Q_b^\top \right),

    with :math:`Q_b` the :math:`n_b` rows of the basis that are in band `b`, over typical images `x`. That of natural
    images grows by about the square of the frequency.

    Arguments:
        frequency: The mean frequency of each band, in half-cycles a pixel, rising from the 0 of the mean.
        curvature: The numbers :math:`c_b` in nats per squared unit of a pixel, a row for each colour.
    """

    frequency: tuple[float, ...]
    curvature: tuple[tuple[float, ...], ...]

    @staticmethod
    def measure(curve: Callable[[Image], Image], like: Image) -> Spectrum:
        r"""Measures a spectrum by Hutchinson's estimate: random signs :math:`s` for the coefficients of one band, and
        the mean of :math:`\langle Q_b^\top s,\, H Q_b^\top s \rangle / n_b`.

        Arguments:
            curve: The map :math:`H v` over rows, each by the Hessian at its own image.
            like: Rows of the shape and the type of its argument, `(B, *shape)`; `B` is the number of probes.
        """
        bands, random = Bands.of(like), generator("spectrum")
        signs = torch.randint(2, like.shape, generator=random).to(like) * 2 - 1
        found = torch.zeros(bands.count, dtype=torch.float64)
        for band in range(bands.count):
            inside = (bands.band == band).reshape(like.shape[1:])
            v = bands.join(torch.where(inside, signs, 0))
            found[band] = float((v * curve(v)).sum()) / (len(like) * int(inside.sum()))
        return Spectrum.of(bands, found)

    @staticmethod
    def of(bands: Bands, values: Tensor) -> Spectrum:
        r"""Returns the spectrum that has these values in the bands of a basis, `(bands,)`."""
        rows = [bands.colour == colour for colour in range(int(bands.colour.max()) + 1)]
        return Spectrum(tuple(bands.frequency[rows[0]].tolist()), tuple(tuple(values[row].tolist()) for row in rows))

    @staticmethod
    def read(tree: Mapping[str, Any]) -> Spectrum:
        r"""Returns the spectrum of a card, whose keys are the arguments."""
        return Spectrum(tuple(tree["frequency"]), tuple(tuple(row) for row in tree["curvature"]))

    def on(self, bands: Bands) -> Tensor:
        r"""Returns the curvature of each band of a basis, `(bands,)` in double precision.

        Between the frequencies where it was measured it follows a power law; what is not positive, and so no scale of
        length, is taken for a millionth of the largest.
        """
        values = np.array(self.curvature)
        logs = np.log(np.maximum(values, 1e-6 * values.max()))
        known, asked = (np.log(np.maximum(f, 1e-3)) for f in (np.array(self.frequency), bands.frequency.numpy()))
        found = np.stack([np.interp(asked, known, row) for row in logs])
        return torch.from_numpy(np.exp(found[bands.colour.numpy(), np.arange(bands.count)]))
