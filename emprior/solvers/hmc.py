r"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._check import check_positive
from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State
from emprior.solvers.integrator import THREE_STAGE, Integrator, Phase, hamiltonian
from emprior.solvers.metric import metropolis
from emprior.solvers.warmup import Warmup, follow, prepare, turn

GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples fill `[0, 1)` most evenly, however many there are."""

TURN = 1.8
r"""The longest step in a metric that knows the directions, about a quarter of a turn of them all, :math:`\pi / 2`: a
longer one takes `x` to its mirror image, which is as far from the mean."""

WOBBLE = 0.2
"""The share of a step that varies, so that no direction is turned by just a half at every step."""


@dataclass(frozen=True)
class HMCState(State):
    r"""The rows, their energy and gradient, and what is learnt."""

    value: PerImage
    gradient: Image
    warmup: Warmup


@dataclass(frozen=True)
class HMC(Solver):
    r"""Hamiltonian Monte Carlo in the metric of data and prior. An iteration draws momenta and follows the motion,

    .. math:: p \sim \mathcal{N}(0, P), \qquad (x', p') = \Phi_h^{n_k}(x, p), \qquad
              P = w Q^\top \mathrm{diag}(c)\, Q + A^\top A / \sigma^2,

    by steps :math:`\Phi_h` of an integrator, with `c` the prior's curvature in each band of frequency and colour (one
    constant where none is known, or no matrix can be held: see :class:`emprior.solvers.metric.SpectralMetric` and
    :func:`emprior.solvers.warmup.prepare`). It is accepted with probability
    :math:`\min(1, e^{H(x, p) - H(x', p')})`, so that its law is exactly :math:`e^{-U}`. A direction of curvature
    :math:`\omega^2` in the metric turns by :math:`\cos(\omega h n)`: a long path crosses a long narrow valley at one
    go, where a step of Langevin diffuses. A fixed time would return some direction to where it was; so the leaps of
    iteration `k`, each of one gradient, and with them the steps of `r` gradients, of which there is one at least,

    .. math:: L_k = L - j' + \lfloor (2 j' + 1)\, u_k \rfloor, \qquad j' = \lfloor j (L - 1) \rfloor, \qquad
              u_k = k\, \tfrac{\sqrt{5} - 1}{2} \bmod 1, \qquad n_k = \max(1, \mathrm{round}(L_k / r)),

    vary alike for all rows, and so does the step, by a fifth. During burn-in the step of each image follows the
    target acceptance by dual averaging; then it is fixed. In a metric of the prior's own curvatures it is at most 1.8,
    about a quarter of a turn, after which draws are independent.

    References:
        | Hybrid Monte Carlo (Duane et al., 1987)
        | https://doi.org/10.1016/0370-2693(87)91197-X
        | MCMC using Hamiltonian dynamics (Neal, 2011)
        | https://arxiv.org/abs/1206.1901
        | Randomized Hamiltonian Monte Carlo (Bou-Rabee and Sanz-Serna, 2017)
        | https://arxiv.org/abs/1511.09382

    Arguments:
        step_size: The first step `h`, relative to the metric, in which steps up to 4.66 (leapfrog: 2) are stable.
        leaps: The mean number `L` of leaps, each of one gradient; see `cost`.
        integrator: What follows the motion.
        target: The acceptance that burn-in aims at.
        adapt: The iterations over which the step is adapted; make it the burn-in.
        curvature: A constant in place of the prior's curvatures, times its weight; by default those that are known.
        jitter: The share `j` of the leaps that varies, from 0 to 1.

    Raises:
        ValueError: An option is out of range.
    """

    step_size: float = 0.3
    leaps: int = 3
    integrator: Integrator = THREE_STAGE
    target: float = 0.8
    adapt: int = 0
    curvature: float | None = None
    jitter: float = 1.0
    samples = True

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_positive("leaps", self.leaps, whole=True)
        if not 0 <= self.jitter <= 1:
            raise ValueError(f"jitter is {self.jitter}, expected a share of the leaps from 0 to 1. Try jitter=1.0.")
        if not 0 < self.target < 1:
            raise ValueError(f"target is {self.target}, expected an acceptance between 0 and 1. Try target=0.8.")

    def init(self, energy: Energy, x: Image, noise: Noise) -> HMCState:
        value, gradient = energy.value_and_grad(x)
        done = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        warmup = prepare(energy, x, self.step_size, self.adapt * self.leaps, self.curvature)
        return HMCState(x, 0, done, value, gradient, warmup)

    def step(self, energy: Energy, state: HMCState, noise: Noise) -> tuple[State, Info]:
        learning = state.count < self.adapt
        metric, h = state.warmup.metric(energy, self.curvature), self._step_size(state, learning)
        steps = self._steps(state.count)
        start = Phase(state.x, metric.draw(noise, state.x), state.value, state.gradient)
        end = self.integrator.follow(energy, metric, start, h, steps)
        ratio = hamiltonian(metric, start) - hamiltonian(metric, end)
        probability, accepted = metropolis(ratio, energy, noise)
        take = column(accepted, state.x)
        fresh = HMCState(
            x=torch.where(take, end.x, state.x),
            count=state.count + 1,
            done=state.done,
            value=torch.where(accepted, end.value, state.value),
            gradient=torch.where(take, end.gradient, state.gradient),
            warmup=self._learn(state, energy, start, end, probability) if learning else state.warmup,
        )
        return fresh, Info(steps * self.integrator.stages + (state.count == 0), probability, h)

    def _learn(self, state: HMCState, energy: Energy, start: Phase, end: Phase, probability: PerImage) -> Warmup:
        move = end.x - start.x, end.gradient - start.gradient
        warmup = follow(state.warmup, energy, move, probability, self.target)
        windows = (self.adapt // 8, self.adapt // 4, self.adapt // 2)
        return turn(warmup, energy, state.x, self.step_size) if state.count + 1 in windows else warmup

    @property
    def cost(self) -> float:
        r"""The mean number of gradients of an iteration, at least those of a step."""
        reach = int(self.jitter * (self.leaps - 1))
        each = [self._whole(leaps) for leaps in range(self.leaps - reach, self.leaps + reach + 1)]
        return self.integrator.stages * sum(each) / len(each)

    def _step_size(self, state: HMCState, learning: bool) -> PerImage:
        h = state.warmup.step.now(learning)
        h = h if state.warmup.known is None else h.clamp(max=TURN)
        return h * (1 - WOBBLE * (state.count * 2**0.5 % 1))

    def _steps(self, k: int) -> int:
        r"""Returns the steps :math:`n_k` of iteration `k`."""
        reach = int(self.jitter * (self.leaps - 1))
        leaps = self.leaps - reach + int((2 * reach + 1) * (k * GOLDEN % 1))
        return self._whole(leaps)

    def _whole(self, leaps: int) -> int:
        return max(1, round(leaps / self.integrator.stages))
