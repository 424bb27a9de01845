r"""What the replay chains of a contrast are told of the images that they started from."""

from __future__ import annotations

import torch
from torch import Tensor

from emprior._rows import column
from emprior.train.config import Contrast
from emprior.train.draws import Draws

SIDES = (0.25, 0.5)
"""The least and the largest side of a hole, as a share of the image's."""


def view_noise(settings: Contrast) -> Tensor:
    r"""Returns the noise of each chain's view, in `[-1, 1]`, `(chains,)`.

    A share `views` of the chains has one, of levels spread evenly in the logarithm over `noise`; for the rest it is
    infinite.
    """
    index = torch.arange(settings.chains, dtype=torch.float64)
    low, high = settings.noise
    sigma = 2 * low * (high / low) ** (0.6180339887498949 * index % 1)
    return torch.where(0.7548776662466927 * index % 1 < settings.views, sigma, torch.inf).float()


def view_holes(settings: Contrast) -> Tensor:
    r"""Returns which chains have a hole in their view, if they have one, `(chains,)`; their share is `holes`."""
    index = torch.arange(settings.chains, dtype=torch.float64)
    return 0.5698402909980532 * index % 1 < settings.holes


def punch(view: Tensor, chosen: Tensor, random: Draws) -> Tensor:
    r"""Returns views `(B, C, H, W)` of which the chosen, `(B,)`, have a box of NaN, its sides within `SIDES`."""
    low, high = SIDES
    inside = column(chosen, view)
    for axis in (-2, -1):
        side = low + (high - low) * random.uniform(len(view))
        start = (1 - side) * random.uniform(len(view))
        ticks = (torch.arange(view.shape[axis], device=view.device) + 0.5) / view.shape[axis]
        ticks = ticks.unsqueeze(-1) if axis == -2 else ticks
        inside = inside & (ticks > column(start, view)) & (ticks < column(start + side, view))
    return view.masked_fill(inside, torch.nan)
