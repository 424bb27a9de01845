r"""Energies between the samples of an image."""

from __future__ import annotations

import copy

from torch import Tensor

from emprior._types import Image, PerImage
from emprior.energy import Energy


class Interaction(Energy):
    r"""A repulsion between the `S` samples of an image,

    .. math:: W(x_1, \dots, x_S) = -\sum_{i < j} \frac{1}{s^2} \|B (x_i - x_j)\|^2.

    The energy of an image is joint over its samples, and so is any Metropolis test. A row is given half of
    each of its pairs, so that the rows of an image sum to :math:`W`. It makes the posterior improper where
    :math:`2 S / s^2` exceeds the curvature of prior and data in the region; samplers then diverge and say so.

    References:
        | Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling
        | (Balcerak et al., 2025)
        | https://arxiv.org/abs/2504.10612

    Arguments:
        strength: The length `s`, in public units: smaller pushes harder.
        mask: The region `B`, broadcastable to an image `(C, H, W)`; everywhere by default.
        samples: The number of samples `S`; `solve` fills it in.

    Raises:
        ValueError: `strength` is not positive.
    """

    coupled = True

    def __init__(self, strength: float, mask: Tensor | None = None, samples: int = 2) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"strength should be a positive length in image units, got {strength}. Try 1.0.")
        self.strength, self.samples = strength, samples
        self.register_buffer("mask", mask)
        self.mask: Tensor | None

    @property
    def name(self) -> str:
        return "interaction"

    def among(self, samples: int) -> Interaction:
        r"""Returns the same interaction between another number of samples."""
        bound = copy.deepcopy(self)
        bound.samples = samples
        return bound

    def forward(self, x: Image) -> PerImage:
        r"""Returns each row's share `(S B,)` for rows `(S B, *shape)`, ordered sample by sample."""
        rows = x.unflatten(0, (self.samples, -1))
        rows = (rows if self.mask is None else rows * self.mask).flatten(2)
        squares = (rows[:, None] - rows[None]).square().sum(-1)
        return -squares.sum(0).flatten() / (2 * self.strength**2)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        rows = x.detach().unflatten(0, (self.samples, -1))
        weight = 1.0 if self.mask is None else self.mask.square()
        pull = weight * (rows.sum(0) - self.samples * rows)
        return self(x.detach()), (2 / self.strength**2 * pull).flatten(0, 1)
