r"""What a chain learns in its burn-in: its step, and where it can, its metric."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emprior._bands import Bands
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy, Posterior
from emprior.solvers.adaptation import StepSize, begin, learn
from emprior.solvers.curvature import prior_curvature
from emprior.solvers.metric import BandMetric, DataMetric, Metric, SpectralMetric, pooled, spectral

WINDOW = 16
"""The fewest iterations that a metric is learnt from."""

WORTH = 40
"""The pixels that a matrix may have for each gradient of the burn-in of an image, in all its samples."""

FLOOR, CEILING = 1e-3, 10.0
"""The least and the largest curvature of a band, in curvatures of the prior, not counting the data's."""


@dataclass(frozen=True, eq=False)
class Secants:
    r"""What the motion of a chain has shown of the curvature of each band,

    .. math:: c_b = \frac{\sum \langle \Delta x, \Delta g \rangle_b}{\sum \langle \Delta x, \Delta x \rangle_b},
              \qquad \Delta g = \nabla U(x + \Delta x) - \nabla U(x),

    over the paths of all chains of an image, each weighing the same: the Hessian as it is felt on the scale on which
    the chain moves. Momenta are drawn independently for all coefficients, so that what couples them averages out.

    Arguments:
        bend: The upper sums, `(S B, bands)`.
        reach: The lower sums.
        count: The paths seen.
        isotropic: The curvature of the data term, the same in every direction, `(S B, 1)`.
    """

    bend: Tensor
    reach: Tensor
    count: int
    isotropic: Tensor


@dataclass(frozen=True, eq=False)
class Warmup:
    r"""What has been learnt so far.

    Arguments:
        step: The step of each row.
        known: The metric, where more is known or has been learnt than the Hessian of the data.
        secants: What the metric of the next window will be made of; none where this one is kept.
    """

    step: StepSize
    known: Metric | None
    secants: Secants | None

    def metric(self, energy: Energy, curvature: float | None) -> Metric:
        r"""Returns the metric to move in: that of the data, with the constant `curvature`, unless more is known."""
        return DataMetric.of(energy, curvature) if self.known is None else self.known


def prepare(energy: Energy, x: Image, step_size: float, gradients: int, curvature: float | None = None) -> Warmup:
    r"""Returns the start.

    Where the data term is as stiff in every direction, or absent, the prior alone makes directions differ: there the
    metric is a curvature for each band, at first that of the prior's spectrum, and each image learns its own. With
    other data it is the :class:`SpectralMetric`, if a burn-in of so many gradients is worth its matrix.

    Arguments:
        energy: The energy.
        x: The rows, `(S B, *shape)`.
        step_size: The first step, relative to the metric.
        gradients: The gradients of the burn-in of a row.
        curvature: A constant in place of the prior's spectrum, if given.
    """
    step = begin(step_size, x.flatten(1)[:, 0])
    isotropic = None if energy.coupled else _isotropic(energy, x)
    if isotropic is None:
        largest = WORTH * gradients * _samples(energy, x)
        return Warmup(step, SpectralMetric.of(energy, x, largest) if curvature is None else None, None)
    empty, prior = x.new_zeros(len(x), Bands.of(x).count), spectral(energy, x) if curvature is None else None
    known = None if prior is None else BandMetric(prior.bands, isotropic + prior.curvature)
    return Warmup(step, known, Secants(empty, empty, 0, isotropic))


def follow(warmup: Warmup, energy: Energy, move: tuple[Image, Image], acceptance: PerImage, target: float) -> Warmup:
    r"""Takes in one iteration.

    Arguments:
        warmup: What has been learnt.
        energy: The energy.
        move: How far a path went, and how the gradient changed, `(S B, *shape)` each, whether accepted or not.
        acceptance: The probability of acceptance, `(S B,)`.
        target: The acceptance to aim at.
    """
    warmup = replace(warmup, step=learn(warmup.step, pooled(acceptance, energy), target))
    if warmup.secants is None:
        return warmup
    bands, (far, change) = Bands.of(move[0]), move
    finite = far.flatten(1).isfinite().all(1) & change.flatten(1).isfinite().all(1)
    a, g = (bands.split(torch.where(column(finite, v), v, 0)) for v in (far, change))
    a, g = (v / column(dot(a, a).clamp(min=1e-30), a).sqrt() for v in (a, g))
    seen = warmup.secants
    bend, reach = seen.bend + bands.sums(a * g), seen.reach + bands.sums(a * a)
    return replace(warmup, secants=replace(seen, bend=bend, reach=reach, count=seen.count + 1))


def turn(warmup: Warmup, energy: Energy, x: Image, step_size: float) -> Warmup:
    r"""Ends a window: takes the metric that the paths have shown, and starts to learn the step anew."""
    seen = warmup.secants
    if seen is None or seen.count < WINDOW:
        return warmup
    bend, reach = _pooled(seen.bend, energy), _pooled(seen.reach, energy)
    own = prior_curvature(energy) * _beta(energy)
    curvature = torch.clamp(bend / reach, seen.isotropic + FLOOR * own, seen.isotropic + CEILING * own)
    empty, step = torch.zeros_like(seen.bend), begin(step_size, x.flatten(1)[:, 0])
    return Warmup(step, BandMetric(Bands.of(x), curvature), Secants(empty, empty, 0, seen.isotropic))


def _isotropic(energy: Energy, x: Image) -> Tensor | None:
    r"""Returns `h` where the data term has the Hessian :math:`h I` for every image, `(S B, 1)`, else none.

    Images with operators of their own may so be given another metric beside others than alone; their law is the same.
    """
    if not isinstance(energy, Posterior):
        return x.new_zeros(len(x), 1)
    if not energy.fidelity.linear:
        return None
    v = torch.linspace(1, 2, x[0].numel(), dtype=x.dtype, device=x.device).reshape(1, *x.shape[1:]).expand_as(x)
    curved = energy.fidelity.curve(v)
    h = dot(v, curved) / dot(v, v)
    off = (curved - column(h, v) * v).flatten(1).abs().amax(1)
    return h[:, None] if bool((off <= 1e-4 * h.clamp(min=1e-30)).all()) else None


def _samples(energy: Energy, x: Image) -> int:
    r"""Returns the number `S` of rows of an image."""
    return len(x) // energy.fidelity.images if isinstance(energy, Posterior) else 1


def _beta(energy: Energy) -> Tensor | float:
    r"""Returns what the prior's curvatures of each row are to be multiplied by, `(S B, 1)`, or 1."""
    prior = energy.prior if isinstance(energy, Posterior) else None
    return 1.0 if prior is None or prior.beta is None else prior.beta[:, None]


def _pooled(values: Tensor, energy: Energy) -> Tensor:
    r"""Sums `(S B, bands)` over the samples of each image."""
    if not isinstance(energy, Posterior):
        return values
    summed = values.unflatten(0, (-1, energy.fidelity.images)).sum(0)
    return summed.repeat(len(values) // len(summed), 1)
