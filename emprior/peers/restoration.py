r"""Diffusions of deepinv that put the measurements into each clean estimate: DiffPIR and DDRM."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from emprior._types import Image
from emprior.peers.isolation import isolated, noise_of

if TYPE_CHECKING:
    from deepinv.models import Denoiser
    from deepinv.physics import Physics


def diffpir(
    denoiser: Denoiser,
    physics: Physics,
    y: Tensor,
    seed: int,
    *,
    steps: int = 100,
    zeta: float = 0.1,
    coupling: float = 7.0,
) -> Image:
    r"""Runs `deepinv.sampling.DiffPIR`, a diffusion through proximal steps,

    .. math:: \hat{x} = \arg\min_z \tfrac{1}{2} \|y - A z\|^2 + \lambda \frac{\sigma^2}{4 s^2} \|z - D\|^2, \qquad
              x' = \hat{x} + s' \left(\sqrt{1 - \zeta}\, \frac{x - \hat{x}}{s} + \sqrt{\zeta}\, n\right),

    on falling `s`, in units where the path is :math:`x = \mathrm{clean} + s\, n`. The data term must not know the
    noise, which is in its factor.

    References:
        | Denoising Diffusion Models for Plug-and-Play Image Restoration
        | (Zhu et al., 2023)
        | https://arxiv.org/abs/2305.08995

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`.
        steps: The noise levels.
        zeta: The share :math:`\zeta` of new noise, from 0 to 1.
        coupling: The factor :math:`\lambda`.

    Raises:
        ValueError: The noise model does not name one level.
    """
    import deepinv as dinv

    sampler = dinv.sampling.DiffPIR(
        denoiser, dinv.optim.L2(), sigma=noise_of(physics), max_iter=steps, zeta=zeta, lambda_=coupling, device=y.device
    )
    with isolated(seed, y.device):
        return sampler(y, physics, x_init=physics.A_adjoint(y))


def ddrm(
    denoiser: Denoiser,
    physics: Physics,
    y: Tensor,
    seed: int,
    *,
    steps: int = 100,
    eta: float = 0.85,
    eta_b: float = 1.0,
) -> Image:
    r"""Runs `deepinv.sampling.DDRM`, denoising diffusion in the singular vectors of the operator.

    At a singular value `d` the component of the image is measured as :math:`\bar{y}`, with noise :math:`\sigma / d`.
    Where that is at most the noise `s` of the diffusion, the next state is drawn around
    :math:`(1 - \eta_b) \bar{D} + \eta_b \bar{y}`; elsewhere around :math:`\bar{D}` and :math:`\sqrt{1 - \eta^2}` of the
    noise in :math:`\bar{y}`, or in the last state where `d` is 0. deepinv halves the variance of what is added.

    References:
        | Denoising Diffusion Restoration Models
        | (Kawar et al., 2022)
        | https://arxiv.org/abs/2201.11793

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`.
        steps: The noise levels, evenly apart from 1 to 0.
        eta: The share :math:`\eta` of the noise that is new, from 0 to 1.
        eta_b: The share :math:`\eta_b` of what is measured, from 0 to 1.

    Raises:
        TypeError: The singular values of the operator are unknown.
    """
    import deepinv as dinv

    if not isinstance(physics, dinv.physics.DecomposablePhysics):
        kind = type(physics).__name__
        raise TypeError(f"DDRM needs the singular values of the operator, a DecomposablePhysics, and got a {kind}.")
    sampler = dinv.sampling.DDRM(denoiser, sigmas=np.linspace(1, 0, steps), eta=eta, etab=eta_b)
    with isolated(seed, y.device):
        return sampler(y.clone(), physics)  # it works in place
