r"""Metropolis-adjusted Langevin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._noise import Noise
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy, Fidelity, Posterior
from emprior.solvers.base import Info, Solver, State
from emprior.solvers.curvature import prior_curvature


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
            natural=self._invert(energy, gradient),
            log_step=log_step,
            average=log_step,
        )

    def step(self, energy: Energy, state: MALAState, noise: Noise) -> tuple[State, Info]:
        adapting = state.count < self.adapt
        log_step = state.log_step if adapting else state.average
        h = column(log_step.exp(), state.x)

        w = self._colored(energy, state.x, noise)
        drawn = self._invert(energy, w)
        x = state.x - h * state.natural + (2 * h).sqrt() * drawn
        value, gradient = energy.value_and_grad(x)
        natural = self._invert(energy, gradient)

        forward = dot(w, drawn) / 2
        back = h * (state.gradient + gradient) - (2 * h).sqrt() * w
        inverse = h * (state.natural + natural) - (2 * h).sqrt() * drawn
        backward = dot(back, inverse) / (4 * h.flatten())
        ratio = state.value - value + forward - backward
        if energy.coupled:
            ratio = self._joint(ratio, energy)
        probability = torch.where(ratio.isfinite(), ratio.clamp(max=0).exp(), torch.zeros_like(ratio))
        accepted = self._uniform(noise, energy) < probability

        if adapting:
            rate = (state.count + 1) ** -0.6
            log_step = log_step + rate * (self._pooled(probability, energy) - self.target)
            average = log_step.lerp(state.average, 1 - 1 / max(1, state.count + 1 - self.adapt // 2))
            average = log_step if state.count < self.adapt // 2 else average
        else:
            average = state.average
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

    def _colored(self, energy: Energy, x: Image, noise: Noise) -> Image:
        r"""Draws :math:`w \sim \mathcal{N}(0, P)`."""
        c = self._constant(energy)
        w = c**0.5 * noise.normal(*x.shape[1:])
        fidelity = _fidelity(energy)
        if fidelity is None or not fidelity.linear:
            return w
        return w + fidelity.whiten(noise.normal(*fidelity.measured))

    def _invert(self, energy: Energy, v: Image) -> Image:
        r"""Returns :math:`P^{-1} v`."""
        c = self._constant(energy)
        fidelity = _fidelity(energy)
        return v / c if fidelity is None else fidelity.solve(v, 1 / c) / c

    def _constant(self, energy: Energy) -> float:
        return prior_curvature(energy) if self.curvature is None else self.curvature

    def _pooled(self, probability: PerImage, energy: Energy) -> PerImage:
        r"""Averages over the samples of an image."""
        fidelity = _fidelity(energy)
        if fidelity is None:
            return probability
        pooled = probability.reshape(-1, fidelity.images)
        return pooled.mean(0).expand_as(pooled).reshape(-1)

    def _joint(self, ratio: PerImage, energy: Energy) -> PerImage:
        images = _images(energy)
        joint = ratio.reshape(-1, images)
        return joint.sum(0).expand_as(joint).reshape(-1)

    def _uniform(self, noise: Noise, energy: Energy) -> PerImage:
        u = noise.uniform()
        if not energy.coupled:
            return u
        images = _images(energy)
        return u.reshape(-1, images)[0].repeat(len(u) // images)


def _fidelity(energy: Energy) -> Fidelity | None:
    return energy.fidelity if isinstance(energy, Posterior) else None


def _images(energy: Energy) -> int:
    fidelity = _fidelity(energy)
    assert fidelity is not None
    return fidelity.images
