r"""Where chains start: clean estimates and data under falling noise."""

from __future__ import annotations

from dataclasses import dataclass

from emprior._noise import Noise
from emprior._types import Image
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State, as_posterior, falling


@dataclass(frozen=True)
class Annealing(Solver):
    r"""Alternates the prior's clean estimate and the data as noise falls, and ends with a draw.

    .. math:: u = D(x + \sigma_k n, \sigma_k), \qquad
              x = P^{-1}(u / r_k + A^\top y / \sigma^2), \qquad
              P = \frac{1}{r_k} I + \frac{1}{\sigma^2} A^\top A,

    with :math:`D` the prior's denoiser and :math:`r_k = \rho \sigma_k^2 / w` the variance that the clean estimate is
    trusted to. :math:`\sigma_k` falls geometrically from `start` to `stop`. At the last level `x` is drawn from
    :math:`\mathcal{N}(x, P^{-1})`; before, a draw would be noisier where the data see nothing, and the denoiser would
    be told too little. The noise makes each row another image of the posterior, at one gradient a level: near enough
    to start a chain from, but with no law of its own. An operator that is not linear is left without the last draw,
    and an interaction to the chain.

    References:
        | Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al., 2024)
        | https://arxiv.org/abs/2407.01521
        | Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)
        | https://arxiv.org/abs/2305.08995

    Arguments:
        steps: The number of noise levels.
        start: The first noise level, in public units; at most the prior's `noise_limit`.
        stop: The last noise level, in public units.
        trust: The factor :math:`\rho`.
    """

    steps: int = 100
    start: float = 3.0
    stop: float = 0.0125
    trust: float = 0.5
    samples = True

    def init(self, energy: Energy, x: Image, noise: Noise) -> State:
        as_posterior(energy, "Annealing")
        return State.at(x)

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        posterior, shape = as_posterior(energy, "Annealing"), state.x.shape[1:]
        fidelity, prior = posterior.fidelity, posterior.prior
        sigma = falling(self.start, self.stop, state.count, self.steps, prior.noise_limit)
        u = prior.denoise(state.x + sigma * noise.normal(*shape), sigma)
        r = self.trust * sigma**2 / posterior.weight
        if fidelity.linear and state.count + 1 == self.steps:
            u = u + r**0.5 * noise.normal(*shape) + r * fidelity.whiten(noise.normal(*fidelity.measured))
        return State(fidelity.prox(u, r), state.count + 1, state.done, None), Info()
