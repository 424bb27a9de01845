r"""Where chains start: clean estimates and data under falling noise."""

from __future__ import annotations

from dataclasses import dataclass

from emprior._bands import Bands
from emprior._noise import Noise
from emprior._types import Image
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State, as_posterior, falling
from emprior.solvers.conditional import Tilt, draw
from emprior.solvers.metric import BandMetric


@dataclass(frozen=True)
class AnnealingState(State):
    r"""The rows, and the curvature that each has shown, if any was told."""

    tilt: Tilt | None


@dataclass(frozen=True)
class Annealing(Solver):
    r"""Alternates noise and the law of the image given its noisy version and the data, as noise falls.

    .. math:: z = x + \tfrac{\sigma_k}{\sqrt{w}}\, n, \qquad
              x \sim \mathcal{N}\left(P^{-1} \left(M D(z, \sigma_k) + \tfrac{1}{\sigma^2} A^\top y\right),
              P^{-1}\right), \qquad
              M = w \left(C + \tfrac{1}{\sigma_k^2} I\right), \quad P = M + \tfrac{1}{\sigma^2} A^\top A,

    with :math:`D` the prior's denoiser, `w` its weight and :math:`C` the `precision` of its clean estimates under that
    noise in each band of frequency, times what each row shows of its own, see
    :class:`emprior.solvers.conditional.Tilt`. :math:`\sigma_k` falls geometrically from `start` to `stop`. Under a
    Gaussian prior whose curvature is C it is a Gibbs sampler, and `x` follows the posterior at every level; under
    another it is near enough to start a chain from, at one gradient a level.

    A prior that knows no precision has :math:`M = w / (\rho \sigma_k^2)\, I`, with the noise :math:`\sigma_k` whatever
    its weight, and `x` is drawn at the last level alone; before, a draw would be noisier where the data see nothing,
    and the denoiser would be told too little. So it is with an operator that is not linear, without the last draw. An
    interaction is left to the chain.

    References:
        | Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing (Zhang et al., 2024)
        | https://arxiv.org/abs/2407.01521
        | Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors (Wu et al., 2024)
        | https://arxiv.org/abs/2405.18782
        | Denoising Diffusion Models for Plug-and-Play Image Restoration (Zhu et al., 2023)
        | https://arxiv.org/abs/2305.08995

    Arguments:
        steps: The number of noise levels.
        start: The first noise level, in public units; at most the prior's `noise_limit`.
        stop: The last noise level, in public units.
        trust: The factor :math:`\rho`, for a prior that knows no precision.
    """

    steps: int = 100
    start: float = 3.0
    stop: float = 0.0125
    trust: float = 0.5
    samples = True

    def init(self, energy: Energy, x: Image, noise: Noise) -> AnnealingState:
        as_posterior(energy, "Annealing")
        at = State.at(x)
        return AnnealingState(at.x, at.count, at.done, at.value, None)

    def step(self, energy: Energy, state: AnnealingState, noise: Noise) -> tuple[AnnealingState, Info]:
        posterior, n = as_posterior(energy, "Annealing"), noise.normal(*state.x.shape[1:])
        fidelity, prior, weight = posterior.fidelity, posterior.prior, posterior.weight
        sigma = falling(self.start, self.stop, state.count, self.steps, prior.noise_limit)
        precision = prior.precision(state.x, sigma) if fidelity.linear else None
        tilt, variance = state.tilt, sigma**2 / weight
        if precision is None:
            clean, r = prior.restore(state.x + sigma * n, sigma), self.trust * variance
            if fidelity.linear and state.count + 1 == self.steps:
                last = noise.normal(*state.x.shape[1:])
                clean = clean + r**0.5 * last + r * fidelity.whiten(noise.normal(*fidelity.measured))
            x = fidelity.prox(clean, r)
        else:
            clean = prior.restore(state.x + variance**0.5 * n, sigma)
            told = BandMetric(Bands.of(state.x), weight * precision.to(state.x)[None])
            tilt = Tilt.of(state.x) if tilt is None else tilt.seen(told, state.x, n, clean, variance)
            x = draw(fidelity, tilt.on(told), clean, variance, noise)
        return AnnealingState(x, state.count + 1, state.done, None, tilt), Info()
