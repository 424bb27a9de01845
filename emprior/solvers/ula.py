r"""Unadjusted Langevin."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State
from emprior.solvers.curvature import check_curvature, largest_curvature


@dataclass(frozen=True)
class ULAState(State):
    r"""The rows and their step."""

    step: PerImage


@dataclass(frozen=True)
class ULA(Solver):
    r"""The unadjusted Langevin algorithm,

    .. math:: x \leftarrow x - h \nabla U(x) + \sqrt{2 h}\, n.

    Its law is biased: along a direction of curvature :math:`1 / s^2` its variance is
    :math:`s^2 / (1 - h / 2 s^2)`. It is stable for :math:`h` below twice the least :math:`s^2`.

    References:
        | Exponential Convergence of Langevin Distributions and Their Discrete Approximations
        | (Roberts and Tweedie, 1996)
        | https://doi.org/10.2307/3318418

    Arguments:
        step_size: The step `h`; by default a fifth of the inverse of the largest curvature,
            :math:`\|A\|^2 / \sigma^2 + w L` with `L` the prior's; it must be given for a nonlinear operator.
    """

    step_size: float | None = None
    samples = True

    def check(self, energy: Energy) -> None:
        if self.step_size is None:
            check_curvature(energy)

    def init(self, energy: Energy, x: Image, noise: Noise) -> ULAState:
        if self.step_size is None:
            step = 0.2 / largest_curvature(energy, x)
        else:
            step = torch.full((len(x),), self.step_size, dtype=x.dtype, device=x.device)
        return ULAState(x, 0, torch.zeros(len(x), dtype=torch.bool, device=x.device), None, step)

    def step(self, energy: Energy, state: ULAState, noise: Noise) -> tuple[State, Info]:
        x = state.x
        value, gradient = energy.value_and_grad(x)
        h = column(state.step, x)
        x = x - h * gradient + (2 * h).sqrt() * noise.normal(*x.shape[1:])
        x = torch.where(column(value, x).isfinite(), x, torch.nan)
        return ULAState(x, state.count + 1, state.done, None, state.step), Info(step_size=state.step)
