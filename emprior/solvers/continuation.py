r"""Graduated non-convexity: the energy smoothed by noise, then sharpened."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._noise import Noise
from emprior._types import Image
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State, as_posterior, falling


@dataclass(frozen=True)
class Continuation(Solver):
    r"""Alternates the prior's clean estimate and the exact proximal step of the data, as noise falls.

    .. math:: u = \frac{1}{m} \sum_{i \le m} D(x + \sigma_k n_i, \sigma_k), \qquad
              x \leftarrow \arg\min_z f(z) + \frac{w}{2 \rho \sigma_k^2} \|z - u\|^2

    with :math:`D` the prior's denoiser, one gradient of the energy, so that the mean over `m` draws estimates the
    gradient of the energy smoothed by noise. The draws are white, each by itself, and sum to zero, which takes
    the term linear in the noise out of the error of that mean. Of the higher odd powers none remains for
    :math:`m = 2`, and some do for more draws, such as :math:`n_1^3 + n_2^3 + n_3^3 = 3 n_1 n_2 n_3`.
    :math:`\sigma_k` falls geometrically from `start` to `stop` over levels :math:`k = 0, \dots, K - 1`. Each
    smoothed problem is nearly convex and hands its solution to a sharper one.

    References:
        | Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)
        | https://arxiv.org/abs/2305.08995
        | PnP-Flow: Plug-and-Play Image Restoration with Flow Matching (Martin et al., 2025)
        | https://arxiv.org/abs/2410.02423

    Arguments:
        steps: The number of noise levels.
        start: The first noise level, in public units; at most the prior's `noise_limit`.
        stop: The last noise level, in public units.
        trust: The factor :math:`\rho`, the squared error of the clean estimate relative to the noise.
        draws: The number `m` of noise draws at each level.
    """

    steps: int = 28
    start: float = 3.0
    stop: float = 0.03
    trust: float = 2.0
    draws: int = 3

    def init(self, energy: Energy, x: Image, noise: Noise) -> State:
        as_posterior(energy, "Continuation")
        return State.at(x)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        posterior = as_posterior(energy, "Continuation")
        sigma = falling(self.start, self.stop, state.count, self.steps, posterior.prior.noise_limit)
        clean = [posterior.prior.denoise(state.x + sigma * n, sigma) for n in self._balanced(noise, state.x)]
        x = posterior.fidelity.prox(torch.stack(clean).mean(0), self.trust * sigma**2 / posterior.weight)
        return State(x, state.count + 1, state.done, None), Info(evaluations=self.draws)

    def _balanced(self, noise: Noise, x: Image) -> Image:
        r"""Draws white noise `(m, B, *shape)` that sums to zero over `m`, unless `m` is 1."""
        n = torch.stack([noise.normal(*x.shape[1:]) for _ in range(self.draws)])
        return n if self.draws == 1 else (n - n.mean(0)) * (self.draws / (self.draws - 1)) ** 0.5
