r"""Metropolis-adjusted Langevin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._noise import Noise
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State
from emprior.solvers.metric import DataMetric, metropolis, pooled


@dataclass(frozen=True)
class MALAState(State):
    r"""The rows, their energy and gradient, the gradient in the metric, and the logarithm of the step."""

    value: PerImage
    gradient: Image
    natural: Image
    log_step: PerImage
    average: PerImage


@dataclass(frozen=True)
class MALA(Solver):
    r"""The Metropolis-adjusted Langevin algorithm in the metric of the data,

    .. math:: x' = x - h P^{-1} \nabla U(x) + \sqrt{2 h}\, P^{-1/2} n, \qquad
              P = c I + A^\top A / \sigma^2,

    accepted with probability :math:`\min(1, e^{U(x) - U(x')}\, q(x \mid x') / q(x' \mid x))`, so that its law
    is exactly :math:`e^{-U}`. :math:`P^{-1/2} n` is drawn by perturbation: noise
    :math:`w = \sqrt{c}\, n_1 + A^\top n_2 / \sigma` of covariance `P`, solved by `P`. During burn-in
    the step `h` of each image follows the target acceptance; then it is fixed.

    References:
        | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
        | (Roberts and Tweedie, 1996)
        | https://doi.org/10.2307/3318418
        | Sampling Gaussian Distributions in Krylov Spaces with Conjugate Gradients
          (perturbation-optimisation: Orieux et al., 2012)
        | https://arxiv.org/abs/1105.5887

    Arguments:
        step_size: The first step `h`, relative to the metric.
        target: The acceptance that burn-in aims at; 0.574 is optimal in high dimension.
        adapt: The iterations over which the step is adapted; make it the burn-in.
        curvature: The constant `c`; by default the prior's own, times its weight.
    """

    step_size: float = 0.1
    target: float = 0.574
    adapt: int = 0
    curvature: float | None = None
    samples = True

    def init(self, energy: Energy, x: Image, noise: Noise) -> MALAState:
        value, gradient = energy.value_and_grad(x)
        log_step = torch.full_like(value, self.step_size).log()
        return MALAState(
            x=x,
            count=0,
            done=torch.zeros(len(x), dtype=torch.bool, device=x.device),
            value=value,
            gradient=gradient,
            natural=DataMetric.of(energy, self.curvature).solve(gradient),
            log_step=log_step,
            average=log_step,
        )

    def step(self, energy: Energy, state: MALAState, noise: Noise) -> tuple[State, Info]:
        adapting = state.count < self.adapt
        log_step = state.log_step if adapting else state.average
        h, metric = column(log_step.exp(), state.x), DataMetric.of(energy, self.curvature)

        w = metric.draw(noise, state.x)
        drawn = metric.solve(w)
        x = state.x - h * state.natural + (2 * h).sqrt() * drawn
        value, gradient = energy.value_and_grad(x)
        natural = metric.solve(gradient)

        forward = dot(w, drawn) / 2
        back = h * (state.gradient + gradient) - (2 * h).sqrt() * w
        inverse = h * (state.natural + natural) - (2 * h).sqrt() * drawn
        backward = dot(back, inverse) / (4 * h.flatten())
        probability, accepted = metropolis(state.value - value + forward - backward, energy, noise)

        average = state.average
        if adapting:
            log_step = log_step + (state.count + 1) ** -0.6 * (pooled(probability, energy) - self.target)
            average = log_step.lerp(average, 1 - 1 / max(1, state.count + 1 - self.adapt // 2))
            average = log_step if state.count < self.adapt // 2 else average
        take = column(accepted, x)
        fresh = MALAState(
            x=torch.where(take, x, state.x),
            count=state.count + 1,
            done=state.done,
            value=torch.where(accepted, value, state.value),
            gradient=torch.where(take, gradient, state.gradient),
            natural=torch.where(take, natural, state.natural),
            log_step=log_step,
            average=average,
        )
        return fresh, Info(1 + (state.count == 0), probability, h.flatten())
