r"""Hamiltonian Monte Carlo."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._check import check_positive
from emprior._noise import Noise
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State
from emprior.solvers.metric import Metric, metropolis
from emprior.solvers.warmup import Warmup, follow, prepare, turn

GOLDEN = (5**0.5 - 1) / 2
"""The fractional parts of its multiples fill `[0, 1)` most evenly, however many there are."""


@dataclass(frozen=True)
class Phase:
    r"""A point of phase space: the rows `(S B, *shape)`, their momenta, and the energy and gradient there."""

    x: Image
    p: Image
    value: PerImage
    gradient: Image


def leapfrog(energy: Energy, metric: Metric, phase: Phase, h: float | PerImage, leaps: int) -> Phase:
    r"""Follows Hamilton's equations :math:`\dot{x} = P^{-1} p`, :math:`\dot{p} = -\nabla U(x)` for a time of `leaps h`.

    .. math:: p \leftarrow p - \tfrac{h}{2} \nabla U(x), \qquad x \leftarrow x + h P^{-1} p, \qquad
              p \leftarrow p - \tfrac{h}{2} \nabla U(x).

    The map preserves volume, is undone by itself once the sign of `p` is changed, and leaves the Hamiltonian as it
    was up to :math:`O(h^2)`. Each leap costs one gradient.

    Arguments:
        energy: The energy `U`.
        metric: The metric `P`.
        phase: Where to start.
        h: The step, a number or one for each row.
        leaps: The number of leaps.
    """
    h = column(h, phase.x)
    x, p, value, gradient = phase.x, phase.p, phase.value, phase.gradient
    for _ in range(leaps):
        p = p - h / 2 * gradient
        x = x + h * metric.solve(p)
        value, gradient = energy.value_and_grad(x)
        p = p - h / 2 * gradient
    return Phase(x, p, value, gradient)


def hamiltonian(metric: Metric, phase: Phase) -> PerImage:
    r"""Returns :math:`H(x, p) = U(x) + \frac{1}{2} p^\top P^{-1} p`, `(S B,)`."""
    return phase.value + dot(phase.p, metric.solve(phase.p)) / 2


@dataclass(frozen=True)
class HMCState(State):
    r"""The rows, their energy and gradient, and what is learnt."""

    value: PerImage
    gradient: Image
    warmup: Warmup


@dataclass(frozen=True)
class HMC(Solver):
    r"""Hamiltonian Monte Carlo in the metric of data and prior. An iteration draws momenta and follows the motion,

    .. math:: p \sim \mathcal{N}(0, P), \qquad (x', p') = \mathrm{leapfrog}_{h, L_k}(x, p), \qquad
              P = w Q^\top \mathrm{diag}(c)\, Q + A^\top A / \sigma^2,

    with `c` the prior's curvature in each band of frequency and colour (one constant where none is known, or no matrix
    can be held: see :class:`emprior.solvers.metric.SpectralMetric` and :func:`emprior.solvers.warmup.prepare`). It is
    accepted with probability :math:`\min(1, e^{H(x, p) - H(x', p')})`, so that its law is exactly
    :math:`e^{-U}`. A direction of curvature :math:`\omega^2` in the metric turns by :math:`\cos(\omega h L)`: many
    leaps cross a long narrow valley at one go, where a step of Langevin diffuses. A fixed time would return some
    direction to where it was; so the number of leaps of iteration `k`

    .. math:: L_k = L - r + \lfloor (2 r + 1)\, u_k \rfloor, \qquad r = \lfloor j (L - 1) \rfloor, \qquad
              u_k = k\, \tfrac{\sqrt{5} - 1}{2} \bmod 1

    varies about its mean `L`, evenly and alike for all rows. During burn-in the step of each image follows the
    target acceptance by dual averaging; then it is fixed.

    References:
        | Hybrid Monte Carlo (Duane et al., 1987)
        | https://doi.org/10.1016/0370-2693(87)91197-X
        | MCMC using Hamiltonian dynamics (Neal, 2011)
        | https://arxiv.org/abs/1206.1901
        | Randomized Hamiltonian Monte Carlo (Bou-Rabee and Sanz-Serna, 2017)
        | https://arxiv.org/abs/1511.09382

    Arguments:
        step_size: The first step `h`, relative to the metric, in which steps up to 2 are stable.
        leaps: The mean number `L` of leaps, each of one gradient.
        target: The acceptance that burn-in aims at; 0.651 is optimal in high dimension, and more is safer.
        adapt: The iterations over which the step is adapted; make it the burn-in.
        curvature: A constant in place of the prior's curvatures, times its weight; by default those that are known.
        jitter: The share `j` of the leaps that varies, from 0 to 1.

    Raises:
        ValueError: An option is out of range.
    """

    step_size: float = 0.1
    leaps: int = 4
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
        metric, h = state.warmup.metric(energy, self.curvature), state.warmup.step.now(learning)
        leaps, start = (
            self._leaps(state.count),
            Phase(state.x, metric.draw(noise, state.x), state.value, state.gradient),
        )
        end = leapfrog(energy, metric, start, h, leaps)
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
        return fresh, Info(leaps + (state.count == 0), probability, h)

    def _learn(self, state: HMCState, energy: Energy, start: Phase, end: Phase, probability: PerImage) -> Warmup:
        move = end.x - start.x, end.gradient - start.gradient
        warmup = follow(state.warmup, energy, move, probability, self.target)
        windows = (self.adapt // 8, self.adapt // 4, self.adapt // 2)
        return turn(warmup, energy, state.x, self.step_size) if state.count + 1 in windows else warmup

    def _leaps(self, k: int) -> int:
        r"""Returns the leaps :math:`L_k` of iteration `k`."""
        reach = int(self.jitter * (self.leaps - 1))
        return self.leaps - reach + int((2 * reach + 1) * (k * GOLDEN % 1))
