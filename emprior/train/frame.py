r"""Coordinates in which the chains of a contrast move."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emprior._bands import Bands, Spectrum
from emprior._rows import column

Gradient = Callable[[Tensor], Tensor]

SOFTEST = 0.01
"""The share of the largest curvature that no band is thought softer than."""


class Frame:
    r"""Coordinates in which an energy curves about equally in all directions,

    .. math:: z = D^{1/2} Q x, \qquad D = \frac{\epsilon}{4} (c + 0.01 \max c) + \pi,

    with `Q` the cosines and opponent colours of :class:`emprior._bands.Bands`, `c` the curvature that a spectrum gives
    to each band, in nats per squared unit of public images, and :math:`\pi` what else pulls an image back. Chains that
    need :math:`\sqrt{\max D / \min D}` steps to cross a density need a few of them in `z`. The hundredth of the largest
    curvature is for single images, of which some curve by that much in the softest bands.

    Arguments:
        spectrum: The curvature of the prior by frequency and colour.
        epsilon: The temperature :math:`\epsilon` of `V`.
        pull: The further curvature of each row, :math:`\pi`, `(B,)`.
        like: Images in `[-1, 1]` of the shape and type of those to come, `(B, C, H, W)`.
    """

    def __init__(self, spectrum: Spectrum, epsilon: float, pull: Tensor, like: Tensor) -> None:
        self.bands = Bands.of(like)
        curvature = spectrum.on(self.bands).to(like)
        curvature = epsilon / 4 * (curvature + SOFTEST * curvature.max())
        self.roots = self.bands.spread(curvature.expand(len(like), -1), like).add(column(pull, like)).sqrt()

    def split(self, x: Tensor) -> Tensor:
        r"""Returns the coordinates of images."""
        with torch.autocast(x.device.type, enabled=False):
            return self.roots * self.bands.split(x)

    def join(self, z: Tensor) -> Tensor:
        r"""Returns the images at coordinates."""
        with torch.autocast(z.device.type, enabled=False):
            return self.bands.join(z / self.roots)

    def gradient(self, gradient: Gradient) -> Gradient:
        r"""Returns the gradient with respect to `z` of what has that gradient with respect to `x`."""

        def turned(z: Tensor) -> Tensor:
            slope = gradient(self.join(z))
            with torch.autocast(z.device.type, enabled=False):
                return self.bands.split(slope.to(z.dtype)) / self.roots

        return turned
