r"""A few numbers that stand for an image."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor

from emprior._types import Image

STORED = 64
"""The most draws that principal components are found from."""


@dataclass(frozen=True, eq=False)
class Projections:
    r"""A few numbers that tell whether chains of images mix: a mean, some pixels and the directions that vary most.

    The principal components are the leading right singular vectors of at most 64 centred draws of an image, the
    largest entry positive. They are where a chain has farthest to go, so that it is there that it mixes last, as far
    as it has been there at all. Pixels are the first of a Kronecker sequence, which spreads any number of them evenly.

    References:
        | The Unreasonable Effectiveness of Quasirandom Sequences (Roberts, 2018)
        | https://extremelearning.com.au/unreasonable-effectiveness-of-quasirandom-sequences/

    Arguments:
        centre: The mean of the draws, `(B, *shape)`.
        components: Directions of length one, `(B, C, *shape)`.
        pixels: Positions in a flattened image.

    Example:
        >>> draws = torch.randn(40, 1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> list(Projections.fit(draws, components=1, pixels=2).project(draws))
        ['mean', 'pc1', 'pixel 36', 'pixel 10']
    """

    centre: Image
    components: Tensor
    pixels: tuple[int, ...]

    @staticmethod
    def fit(draws: Tensor, components: int = 3, pixels: int = 8) -> Projections:
        r"""Finds the directions of each image on its own, from draws of the burn-in.

        Arguments:
            draws: Draws, `(N, B, *shape)`; 64 of them, evenly spaced, are used if there are more. Values that are not
                finite count as zero.
            components: The most directions; draws span `N - 1` of them.
            pixels: The most pixels.

        Raises:
            ValueError: There are no draws or no pixels.
        """
        if draws.ndim < 3 or draws.numel() == 0:
            raise ValueError(f"draws have shape {tuple(draws.shape)}, expected at least one draw (N, B, *shape).")
        chosen = torch.linspace(0, len(draws) - 1, min(len(draws), STORED), dtype=torch.float64).round().long()
        stored = draws.detach()[chosen.to(draws.device)].nan_to_num(0, 0, 0)
        centre = stored.mean(0)
        rows = (stored - centre).flatten(2).movedim(0, 1)
        found = torch.linalg.svd(rows, full_matrices=False).Vh[:, : min(components, len(stored) - 1)]
        largest = found.gather(-1, found.abs().argmax(-1, keepdim=True))
        shape = draws.shape[2:]
        return Projections(centre, (found * largest.sign()).unflatten(-1, shape), _spread(shape, pixels))

    def project(self, x: Tensor) -> dict[str, Tensor]:
        r"""Returns the mean, the components and the pixels of samples `(S, B, *shape)`, `(S, B)` each.

        Raises:
            ValueError: The samples are not of the shape of the draws.
        """
        if x.shape[1:] != self.centre.shape:
            raise ValueError(
                f"x has shape {tuple(x.shape)}, expected samples (S, *{tuple(self.centre.shape)}) of the images that "
                "the projections were fitted to."
            )
        flat = x.detach().flatten(2)
        along = torch.einsum("sbd,bcd->csb", flat - self.centre.flatten(1), self.components.flatten(2))
        named = {"mean": flat.mean(2)} | {f"pc{index + 1}": row for index, row in enumerate(along)}
        return named | {f"pixel {pixel}": flat[:, :, pixel] for pixel in self.pixels}


def _spread(shape: torch.Size, number: int) -> tuple[int, ...]:
    r"""Returns up to `number` different positions in a flattened array, in the order of a Kronecker sequence."""
    golden = 2.0
    for _ in range(60):
        golden = (1 + golden) ** (1 / (len(shape) + 1))
    steps = [golden ** -(axis + 1) for axis in reversed(range(len(shape)))]
    chosen: dict[int, None] = {}
    points = count()
    while len(chosen) < min(number, shape.numel()):
        index = next(points)
        place = [int(size * ((0.5 + index * step) % 1)) for size, step in zip(shape, steps, strict=True)]
        chosen[int(np.ravel_multi_index(place, shape))] = None
    return tuple(chosen)
