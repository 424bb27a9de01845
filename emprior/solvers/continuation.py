r"""Graduated non-convexity: the energy smoothed by noise, then sharpened."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._noise import Noise
from emprior._types import Image
from emprior.energy import Energy, Posterior
from emprior.solvers.base import Info, Solver, State


@dataclass(frozen=True)
class Continuation(Solver):
    r"""Alternates the prior's clean estimate and the exact proximal step of the data, as noise falls.

    .. math:: u = \frac{1}{m} \sum_{i \le m} D(x + \zeta_k \sigma_k n_i, \sigma_k), \qquad
              x \leftarrow \arg\min_z f(z) + \frac{w}{2 \rho \sigma_k^2} \|z - u\|^2

    with :math:`D` the prior's denoiser, one gradient of the energy, so that the mean over `m` draws estimates the
    gradient of the energy smoothed by noise. :math:`\sigma_k` falls geometrically from `start` to `stop` over levels
    :math:`k = 0, \dots, K - 1`. Noise is put back in the share :math:`\zeta_k = (1 - k / (K - 1))^q`: in full by
    default, so that the image keeps the freedom to change its mind. Each smoothed problem is nearly convex and
    hands its solution to a sharper one.

    References:
        | Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)
        | https://arxiv.org/abs/2305.08995
        | PnP-Flow: Plug-and-Play Image Restoration with Flow Matching (Martin et al., 2025)
        | https://arxiv.org/abs/2410.02423

    Arguments:
        steps: The number of noise levels.
        start: The first noise level, in public units.
        stop: The last noise level, in public units.
        trust: The factor :math:`\rho`, the squared error of the clean estimate relative to the noise.
        fade: The exponent `q`.
        draws: The number `m` of noise draws at each level.
    """

    steps: int = 28
    start: float = 3.0
    stop: float = 0.03
    trust: float = 2.0
    fade: float = 0.0
    draws: int = 3

    def init(self, energy: Energy, x: Image, noise: Noise) -> State:
        if not isinstance(energy, Posterior):
            raise TypeError(f"Continuation needs a Posterior (a fidelity and a prior), got {type(energy).__name__}.")
        return State(x, 0, torch.zeros(len(x), dtype=torch.bool, device=x.device), None)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        assert isinstance(energy, Posterior)
        share = state.count / max(1, self.steps - 1)
        sigma = self.start ** (1 - share) * self.stop**share
        spread, shape = sigma * (1 - share) ** self.fade, state.x.shape[1:]
        clean = [energy.prior.denoise(state.x + spread * noise.normal(*shape), sigma) for _ in range(self.draws)]
        x = energy.fidelity.prox(torch.stack(clean).mean(0), self.trust * sigma**2 / energy.weight)
        return State(x, state.count + 1, state.done, None), Info(evaluations=self.draws)
