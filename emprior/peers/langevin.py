r"""Langevin samplers of deepinv, whose prior is the score of a denoiser at a noise that never falls.

Their step is set by the curvature :math:`L = \|A\|^2 / \sigma^2 + 1 / s^2`, which bounds that of the posterior.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from emprior._types import Image
from emprior.peers.isolation import isolated, noise_of

if TYPE_CHECKING:
    from deepinv.models import Denoiser
    from deepinv.physics import Physics

STAGES, DAMPING = 10, 0.05
"""The stages of an iteration of SK-ROCK and their damping, deepinv's own."""


def ula(
    denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, *, steps: int, smoothing: float, share: float = 0.5
) -> Image:
    r"""Returns the last states of chains of `deepinv.sampling.ULA`, unadjusted Langevin,

    .. math:: x' = x - h A^\top \frac{A x - y}{\sigma^2} + h \frac{D(x, s) - x}{s^2} + \sqrt{2 h}\, n.

    References:
        | Bayesian Imaging Using Plug & Play Priors: When Langevin Meets Tweedie
        | (Laumont et al., 2022)
        | https://arxiv.org/abs/2103.04715

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`.
        steps: The iterations.
        smoothing: The noise `s` of the denoiser, in public units.
        share: The step `h` as a share of the largest that is stable, :math:`2 / L`.

    Raises:
        ValueError: The noise model does not name one level.
    """
    import deepinv as dinv

    score, data = dinv.optim.ScorePrior(denoiser), dinv.optim.L2(sigma=noise_of(physics))
    with isolated(seed, y.device):
        sampler = dinv.sampling.ULA(
            score, data, step_size=share * 2 / _curvature(physics, y, smoothing), sigma=smoothing, max_iter=steps,
            thinning=1, save_chain=1, clip=None,
        )  # fmt: skip
        return _last(sampler, physics, y)


def skrock(
    denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, *, steps: int, smoothing: float, share: float = 0.25
) -> Image:
    r"""Returns the last states of chains of `deepinv.sampling.SKRock`, whose `m = 10` stages make Langevin stable.

    With the damping :math:`\eta = 0.05` its largest stable step is
    :math:`((m - 1/2)^2 (2 - 4 \eta / 3) - 3/2) / L`.

    References:
        | Accelerating Proximal Markov Chain Monte Carlo by Using an Explicit Stabilized Method
        | (Pereyra, Vargas Mieles and Zygalakis, 2020)
        | https://arxiv.org/abs/1908.08845

    Arguments:
        denoiser, physics, y, seed: See :mod:`emprior.peers`.
        steps: The iterations, each of which asks the denoiser `m` times.
        smoothing: The noise `s` of the denoiser, in public units.
        share: The step as a share of the largest that is stable.

    Raises:
        ValueError: The noise model does not name one level.
    """
    import deepinv as dinv

    score, data = dinv.optim.ScorePrior(denoiser), dinv.optim.L2(sigma=noise_of(physics))
    with isolated(seed, y.device):
        largest = ((STAGES - 0.5) ** 2 * (2 - 4 * DAMPING / 3) - 1.5) / _curvature(physics, y, smoothing)
        sampler = dinv.sampling.SKRock(
            score, data, step_size=share * largest, inner_iter=STAGES, eta=DAMPING, sigma=smoothing, max_iter=steps,
            thinning=1, save_chain=1, clip=None,
        )  # fmt: skip
        return _last(sampler, physics, y)


def _curvature(physics: Physics, y: Tensor, smoothing: float) -> float:
    norm = physics.compute_sqnorm(physics.A_adjoint(y[:1]), verbose=False)
    return float(norm) / noise_of(physics) ** 2 + 1 / smoothing**2


def _last(sampler: Any, physics: Physics, y: Tensor) -> Image:
    sampler.sample(y, physics)
    return sampler.get_chain()[-1]["x"]
