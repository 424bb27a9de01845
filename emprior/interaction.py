r"""Energies between the samples of an image."""

from __future__ import annotations

import copy
from collections.abc import Sequence

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
        mask: The region `B`, real numbers that broadcast to an image `(C, H, W)`; everywhere by default.
        samples: The number of samples `S`; `solve` fills it in.

    Raises:
        TypeError: `mask` is not a tensor of real numbers.
        ValueError: `strength` is not positive, or `mask` has more than three dimensions.
    """

    coupled = True

    def __init__(self, strength: float, mask: Tensor | None = None, samples: int = 2) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"strength should be a positive length in image units, got {strength}. Try 1.0.")
        self.strength, self.samples = strength, samples
        self.register_buffer("mask", None if mask is None else _region(mask))
        self.mask: Tensor | None

    @property
    def name(self) -> str:
        return "interaction"

    def among(self, samples: int) -> Interaction:
        r"""Returns the same interaction between another number of samples."""
        bound = copy.deepcopy(self)
        bound.samples = samples
        return bound

    def check(self, shape: Sequence[int]) -> None:
        r"""Raises a ValueError unless the mask broadcasts to images of `shape`, `(C, H, W)`."""
        shape = tuple(shape)
        if self.mask is None:
            return
        given = tuple(self.mask.shape)
        pairs = zip(reversed(given), reversed(shape), strict=False)
        if len(given) > len(shape) or any(size not in (1, full) for size, full in pairs):
            raise ValueError(
                f"the interaction's mask has shape {given}, but the images have shape {shape}. "
                f"Pass a mask of shape {shape}, or one that broadcasts to it."
            )

    def forward(self, x: Image) -> PerImage:
        r"""Returns each row's share `(S B,)` for rows `(S B, *shape)`, ordered sample by sample."""
        rows = self._grouped(x)
        rows = (rows if self.mask is None else rows * self.mask).flatten(2)
        squares = (rows[:, None] - rows[None]).square().sum(-1)
        return -squares.sum(0).flatten() / (2 * self.strength**2)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        rows = self._grouped(x.detach())
        weight = 1.0 if self.mask is None else self.mask.square()
        pull = weight * (rows.sum(0) - self.samples * rows)
        return self(x.detach()), (2 / self.strength**2 * pull).flatten(0, 1)

    def _grouped(self, x: Image) -> Tensor:
        self.check(x.shape[1:])
        return x.unflatten(0, (self.samples, -1))


def _region(mask: object) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_complex():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"the interaction's mask is {kind}, expected a tensor of real numbers (C, H, W). "
            "Convert it: torch.as_tensor(mask).float()."
        )
    if mask.ndim > 3:
        raise ValueError(
            f"the interaction's mask has shape {tuple(mask.shape)}, expected one region for all images, (C, H, W) or "
            f"what broadcasts to it. Drop its leading dimensions: mask[{', '.join('0' * (mask.ndim - 3))}]."
        )
    return mask.detach().clone() if mask.is_floating_point() else mask.float()
