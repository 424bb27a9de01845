r"""Energies between the samples of an image."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from emprior._rows import dot
from emprior._types import Image, PerImage
from emprior.energy import Energy

PROBES = 12
"""The gradients, forth and back, by which the direction that gives way first is looked for."""

REACHES = (1.0, 2.0, 4.0)
"""The distances at which it is looked for, in ranges of images: learned energies hold less at some than at others."""

SMOOTH, TURNS = 3, 2
"""The cosines a side, for each channel, that smooth directions are made of, and the turns towards the weakest one."""


class Repulsion(Energy):
    r"""A repulsion between the `S` samples of an image within a region,

    .. math:: W(x_1, \dots, x_S) = -\frac{2}{S s^2} \sum_{i < j} \|B (x_i - x_j)\|^2
              = -\frac{2}{s^2} \sum_i \|B (x_i - \bar{x})\|^2, \qquad \bar{x} = \frac{1}{S} \sum_i x_i.

    Of two samples it is the published energy. Of more it is that of a pair in the mean over pairs, times `S - 1`:
    the curvature that it takes from every difference of samples, :math:`4 B^2 / s^2`, does not depend on `S`, while
    the published sum over pairs would take :math:`2 S B^2 / s^2`. So a strength means the same for any number of
    samples. Where prior and data have the precision :math:`\Lambda`, the samples share a mean of variance
    :math:`\Lambda^{-1} / S`, and about it

    .. math:: \mathbb{E} \|x_i - x_j\|^2 = 2\, \mathrm{tr} \left(\Lambda - \tfrac{4}{s^2} B^2\right)^{-1}.

    The energy of an image is joint over its samples, and so is any Metropolis test; a row is given its own term, so
    that the rows of an image sum to :math:`W`. The joint law is proper only where :math:`4 B^2 / s^2` stays below
    the curvature of prior and data; see :meth:`check_proper`.

    References:
        | Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling
        | (Balcerak et al., 2025)
        | https://arxiv.org/abs/2504.10612

    Arguments:
        strength: The length `s`, a norm over the pixels of the region in public units: smaller pushes harder.
        mask: The region `B`, real numbers that broadcast to an image `(C, H, W)`; everywhere by default.
        samples: The number of samples `S`; `solve` fills it in.

    Raises:
        TypeError: `mask` is not a tensor of real numbers.
        ValueError: `strength` is not positive, or `mask` has more than three dimensions.

    Examples:
        >>> pair = torch.tensor([[0.0, 0.0], [0.3, 0.4]])
        >>> Repulsion(strength=0.5)(pair).sum()
        tensor(-1.)
    """

    coupled = True

    def __init__(self, strength: float, mask: Tensor | None = None, samples: int = 2) -> None:
        super().__init__()
        if not strength > 0:
            raise ValueError(f"strength should be a positive length in image units, got {strength}. Try 2.0.")
        self.strength, self.samples = strength, samples
        self.register_buffer("mask", None if mask is None else _region(mask))
        self.mask: Tensor | None

    @property
    def name(self) -> str:
        return "interaction"

    @property
    def push(self) -> float:
        r"""The curvature :math:`4 / s^2` that is taken from differences of samples where the mask is 1."""
        return 4 / self.strength**2

    def describe(self) -> dict[str, float | list[int] | None]:
        r"""Returns its strength, and the shape and squared sum of its mask, for a record."""
        if self.mask is None:
            return {"strength": self.strength, "mask": None}
        return {"strength": self.strength, "mask": list(self.mask.shape), "area": float(self.mask.square().sum())}

    def among(self, samples: int) -> Repulsion:
        r"""Returns the same repulsion between another number of samples."""
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
                f"the repulsion's mask has shape {given}, but the images have shape {shape}. "
                f"Pass a mask of shape {shape}, or one that broadcasts to it."
            )

    def check_proper(self, energy: Energy, x: Image) -> None:
        r"""Raises a ValueError if prior and data are found too weak to hold samples that repel each other.

        A direction `v` of the region is looked for along which

        .. math:: \tfrac{1}{2} v^\top (\nabla U(x + v) - \nabla U(x - v)) < \tfrac{4}{s^2} \|B v\|^2

        at the distances where pixels of the region would move by once, twice and four times their range. For a
        quadratic `U` there is one exactly if the joint law is improper. For any other it says that samples part from
        there on, be it for ever or to a distance that no images have; a direction can be missed.

        Arguments:
            energy: The energy `U` of a sample given the measurements, without the repulsion.
            x: A row for each image, `(B, *shape)`.

        Raises:
            ValueError: There is such a direction; the message names a strength at which none is found.
        """
        least = self._least(energy, x)
        for image in torch.nonzero(least > self.strength).flatten().tolist():
            strength, needed = 0.0, float(least[image])
            while strength < needed < float("inf"):
                strength = float(f"{1.1 * needed:.2g}")
                needed = float(self._of(strength)._least(energy, x)[image])
            cure = f"strength={strength:g} or more" if needed < float("inf") else "a smaller region"
            raise ValueError(
                f"a repulsion of strength {self.strength:g} is stronger than what holds the samples of image {image}: "
                f"they would run apart. Pass {cure}."
            )

    def _of(self, strength: float) -> Repulsion:
        changed = copy.deepcopy(self)
        changed.strength = strength
        return changed

    def _least(self, energy: Energy, x: Image) -> PerImage:
        r"""Returns the least strengths that are held along the directions that are found, `(B,)`."""
        square, least = self._squared(x), x.new_zeros(len(x))
        area = float((square * torch.ones_like(x[:1])).sum())
        for reach in REACHES if area else ():
            for v in weakest(energy, x, square, self.push, reach * area**0.5):
                freed, held = dot(v, square * v), dot(v, _rise(energy, x, v))
                bound = torch.where(held > 0, 2 * (freed / held).sqrt(), float("inf"))
                least = torch.maximum(least, torch.where((freed > 0) & held.isfinite(), bound, 0.0))
        return least

    def forward(self, x: Image) -> PerImage:
        r"""Returns each row's own term `(S B,)` for rows `(S B, *shape)`, ordered sample by sample."""
        rows = self._centred(x)
        return -self.push / 2 * (self._squared(x) * rows.square()).flatten(1).sum(1)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        return self(x.detach()), -self.push * self._squared(x) * self._centred(x.detach())

    def _centred(self, x: Image) -> Image:
        self.check(x.shape[1:])
        rows = x.unflatten(0, (self.samples, -1))
        return (rows - rows.mean(0)).flatten(0, 1)

    def _squared(self, x: Image) -> Tensor:
        return x.new_ones(()) if self.mask is None else self.mask.square()


def weakest(energy: Energy, x: Image, region: Tensor, push: float, reach: float) -> Iterator[Image]:
    r"""Yields directions of length `reach` along which an energy rises little, `(B, *shape)` each.

    The first is flat over the region. The second is the Ritz vector of the least Ritz value of :math:`H - k B^2` in
    the Krylov space of the first, where `H v` is the secant curvature of :func:`_rise` at the distance `reach`; of a
    quadratic energy it is the weakest there is, as far as `PROBES` vectors tell. The third is the Ritz vector of
    smooth ones, which learned energies hold least, and which a short Krylov space of a stiff energy does not reach.
    The others, for energies that are far from quadratic, turn from the first towards the weakest of smooth ones: each
    is the Ritz vector in the plane of the one before and the smooth part of its gradient.

    References:
        | The Symmetric Eigenvalue Problem, chapters 11 and 12 (Parlett, 1998)
        | https://doi.org/10.1137/1.9781611971163

    Arguments:
        energy: The energy of one sample.
        x: A row for each image, `(B, *shape)`.
        region: The squared mask :math:`B^2`, which broadcasts to a row.
        push: The curvature `k`.
        reach: The distance, in public units.
    """

    def curve(v: Tensor) -> Tensor:
        return (_rise(energy, x, reach * v.reshape(x.shape)) / reach - push * region * v.reshape(x.shape)).flatten(1)

    flat = _unit((region * torch.ones_like(x)).flatten(1))
    yield reach * flat.reshape(x.shape)
    yield reach * _krylov(curve, flat).reshape(x.shape)
    smooth = _smooth(region, x)
    rises = torch.stack([curve(wave.expand_as(flat)) for wave in smooth], 1)
    yield reach * _ritz(smooth.expand(len(x), -1, -1), rises).reshape(x.shape)
    v = flat
    for _ in range(TURNS):
        rise = curve(v)
        turn = _unit(rise @ smooth.mT @ smooth - dot(rise, v)[:, None] * v)
        v = _ritz(torch.stack([v, turn], 1), torch.stack([rise, curve(turn)], 1))
        yield reach * v.reshape(x.shape)


def _krylov(curve: Callable[[Tensor], Tensor], first: Tensor) -> Tensor:
    r"""Returns the Ritz vector of the least Ritz value in the Krylov space of `first` `(B, d)`."""
    basis, rises = [first], []
    for _ in range(min(PROBES, first.shape[1])):
        rises.append(curve(basis[-1]))
        rest = rises[-1]
        for _ in range(2):
            for one in basis:
                rest = rest - dot(rest, one)[:, None] * one
        basis.append(_unit(rest))
    return _ritz(torch.stack(basis[:-1], 1), torch.stack(rises, 1))


def _ritz(basis: Tensor, rises: Tensor) -> Tensor:
    r"""Returns the Ritz vector of the least Ritz value, `(B, d)`, in an orthonormal basis `(B, K, d)` with its `H v`.

    Where one is not finite, it is the first of the basis.
    """
    ritz = basis @ rises.mT
    good = ritz.isfinite().all(2).all(1)[:, None, None]
    _, vectors = torch.linalg.eigh(torch.where(good, (ritz + ritz.mT) / 2, 0.0))
    return torch.where(good[:, 0], (vectors[:, :, :1] * basis.nan_to_num()).sum(1), basis[:, 0])


def _smooth(region: Tensor, x: Image) -> Tensor:
    r"""Returns an orthonormal basis of the lowest cosines of each channel, in the region, `(K, d)`."""
    channels, *sides = x.shape[1:]
    waves = torch.ones(1, 1, dtype=x.dtype, device=x.device)
    for side in sides:
        ticks = (torch.arange(side, dtype=x.dtype, device=x.device) + 0.5) / side
        cosines = torch.stack([torch.cos(math.pi * k * ticks) for k in range(min(SMOOTH, side))])
        waves = (waves[:, None, :, None] * cosines[None, :, None, :]).flatten(2).flatten(0, 1)
    every = torch.block_diag(*[waves] * channels).reshape(-1, *x.shape[1:])
    _, values, basis = torch.linalg.svd((region * every).flatten(1), full_matrices=False)
    return basis[values > 1e-6 * values[0]]


def _unit(v: Tensor) -> Tensor:
    return v / v.norm(dim=1, keepdim=True).clamp(min=torch.finfo(v.dtype).tiny)


def _rise(energy: Energy, x: Image, v: Image) -> Image:
    r"""Returns :math:`\frac{1}{2} (\nabla U(x + v) - \nabla U(x - v))`, which is :math:`H v` of a quadratic `U`."""
    return (energy.value_and_grad(x + v)[1] - energy.value_and_grad(x - v)[1]) / 2


def _region(mask: object) -> Tensor:
    if not isinstance(mask, Tensor) or mask.is_complex():
        kind = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"the repulsion's mask is {kind}, expected a tensor of real numbers (C, H, W). "
            "Convert it: torch.as_tensor(mask).float()."
        )
    if mask.ndim > 3:
        raise ValueError(
            f"the repulsion's mask has shape {tuple(mask.shape)}, expected one region for all images, (C, H, W) or "
            f"what broadcasts to it. Drop its leading dimensions: mask[{', '.join('0' * (mask.ndim - 3))}]."
        )
    return mask.detach().clone() if mask.is_floating_point() else mask.float()
