r"""Diffusions of deepinv, whose score is that of the prior plus a guidance by the measurements.

All follow the variance-preserving path and the solver that `deepinv.sampling.DPS` comes with,

.. math:: \nabla \log p_s(x \mid y) \approx \frac{D(x, s) - x}{s^2} + w\, g(x, s),

in units where the path is :math:`x = \mathrm{clean} + s\, n`, and differ in `g`. Below, `J` is the Jacobian of `D`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emprior._types import Image
from emprior.operators import observed
from emprior.peers.isolation import noise_of

if TYPE_CHECKING:
    from deepinv.models import Denoiser
    from deepinv.physics import Physics


def dps(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, *, steps: int = 999, weight: float = 1.0) -> Image:
    r"""Runs `deepinv.sampling.DPS`, diffusion posterior sampling: :math:`g = -\nabla \|y - A D(x, s)\|`.

    References:
        | Diffusion Posterior Sampling for General Noisy Inverse Problems
        | (Chung et al., 2022)
        | https://arxiv.org/abs/2209.14687

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`; the denoiser is differentiated.
        steps: The steps of the diffusion.
        weight: The weight `w`; :func:`likelihood_weight` is that of the likelihood.
    """
    import deepinv as dinv

    random = torch.Generator(y.device).manual_seed(seed)
    sampler = dinv.sampling.DPS(denoiser, weight=weight, num_steps=steps + 1, rng=random, device=y.device)
    return sampler(y, physics, x_init=_shape(physics, y))


def likelihood_weight(physics: Physics, y: Tensor) -> float:
    r"""Returns :math:`\sqrt{m} / \sigma`, the weight of :func:`dps` that a Gaussian likelihood asks for.

    The gradient of :math:`\|y - A D\|` times :math:`\sqrt{m} / \sigma` is that of
    :math:`\|y - A D\|^2 / 2 \sigma^2` where the residual is that of the noise, :math:`\sigma \sqrt{m}`.

    Arguments:
        physics: The operator with its noise. The number `m` is that of the measurements which depend on the image.
        y: The measurements, `(N, *measured)`; their values do not matter.

    Raises:
        ValueError: The noise model does not name one level.
    """
    count = float(observed(physics, physics.A_adjoint(y[:1])).sum())
    return math.sqrt(count) / noise_of(physics)


def pigdm(
    denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, *, steps: int = 999, weight: float = 1.0
) -> Image:
    r"""Runs the diffusion of `deepinv.sampling.PiGDMDataFidelity`, guided through the pseudo-inverse,

    .. math:: g = J^\top A^\top (r^2 A A^\top + \sigma^2 I)^{-1} (y - A D), \qquad r^2 = s^2 / (1 + s^2).

    References:
        | Pseudoinverse-Guided Diffusion Models for Inverse Problems
        | (Song et al., 2023)
        | https://openreview.net/forum?id=9_gsMA8MRKQ

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`; the denoiser is differentiated.
        steps: The steps of the diffusion.
        weight: The weight `w`.
    """
    import deepinv as dinv

    return _diffusion(dinv.sampling.PiGDMDataFidelity(weight=weight), denoiser, physics, y, seed, steps)


def moment_matching(
    denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, *, steps: int = 999, weight: float = 1.0, inner: int = 3
) -> Image:
    r"""Runs the diffusion of `deepinv.sampling.MomentMatchingDataFidelity`, guided by

    .. math:: g = J^\top A^\top (s^2 A J A^\top + \sigma^2 I)^{-1} (y - A D),

    which is the likelihood's own where the prior is Gaussian.

    References:
        | Learning Diffusion Priors from Observations by Expectation Maximization
        | (Rozet et al., 2024)
        | https://arxiv.org/abs/2405.13712

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`; the denoiser is differentiated.
        steps: The steps of the diffusion.
        weight: The weight `w`.
        inner: The most conjugate gradient steps for the inverse, each of which takes a derivative of the denoiser.
    """
    import deepinv as dinv

    data = dinv.sampling.MomentMatchingDataFidelity(weight=weight, cg_max_iter=inner)
    return _diffusion(data, denoiser, physics, y, seed, steps)


def ald(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, *, steps: int = 999, weight: float = 1.0) -> Image:
    r"""Runs the diffusion of `deepinv.sampling.ALDDataFidelity`: :math:`g = A^\top (y - A x) / (\sigma^2 + s^2)`.

    References:
        | Robust Compressed Sensing MRI with Deep Generative Priors
        | (Jalal et al., 2021)
        | https://arxiv.org/abs/2108.01368

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`.
        steps: The steps of the diffusion.
        weight: The weight `w`.
    """
    from deepinv.sampling.noisy_datafidelity import ALDDataFidelity

    return _diffusion(ALDDataFidelity(weight=weight), denoiser, physics, y, seed, steps)


def _diffusion(data: Any, denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, steps: int) -> Image:
    from deepinv.sampling import DDPMSolver, PosteriorDiffusion, VariancePreservingDiffusion

    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64, device=y.device)
    solver = DDPMSolver(times, rng=torch.Generator(y.device).manual_seed(seed))
    path = VariancePreservingDiffusion(alpha=1.0, device=y.device)
    sampler = PosteriorDiffusion(data, denoiser, path, solver, device=y.device)
    return sampler(y, physics, x_init=_shape(physics, y))


def _shape(physics: Physics, y: Tensor) -> tuple[int, ...]:
    return (len(y), *physics.A_adjoint(y[:1]).shape[1:])
