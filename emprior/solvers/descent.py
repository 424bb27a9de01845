r"""Monotone descent."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy, Sum
from emprior.solvers.base import Info, Solver, State


@dataclass(frozen=True)
class DescentState(State):
    r"""The point, the direction being searched, and the curvature pairs of limited-memory BFGS."""

    value: PerImage
    gradient: Image
    stuck: Tensor
    scale: PerImage
    direction: Image
    slope: PerImage
    step: PerImage
    moves: Tensor
    changes: Tensor
    inverse: Tensor


@dataclass(frozen=True)
class Descent(Solver):
    r"""Limited-memory BFGS with backtracking, for each row by itself.

    A trial point :math:`x + \tau d` along :math:`d = -H \nabla U(x)` is taken only if

    .. math:: U(x + \tau d) \le U(x) + 10^{-4}\, \tau \langle d, \nabla U(x) \rangle
              \quad \text{with} \quad \langle d, \nabla U(x) \rangle < 0,

    so the energy never rises; otherwise :math:`\tau` shrinks. A row has converged when
    :math:`\|\nabla U(x)\| \le \eta \sum_k \|\nabla E_k(x_0)\|`, relative to the forces that the terms of
    the energy exert at the start. One iteration is one gradient.

    References:
        | Numerical Optimization, algorithm 7.4 (Nocedal and Wright, 2006)
        | https://doi.org/10.1007/978-0-387-40065-5

    Arguments:
        tolerance: The relative gradient :math:`\eta`.
        memory: The number of curvature pairs.
        reach: The longest step, root mean square over pixels, in public units.
    """

    tolerance: float = 1e-5
    memory: int = 20
    reach: float = 0.05
    tests = True

    def init(self, energy: Energy, x: Image, noise: Noise) -> DescentState:
        parts = energy.parts().values() if isinstance(energy, Sum) else [energy]
        values, gradients = zip(*(part.value_and_grad(x) for part in parts), strict=True)
        gradient = torch.stack(gradients).sum(0)
        scale = torch.stack([dot(g, g).sqrt() for g in gradients]).sum(0)
        pairs = torch.zeros(self.memory, *x.shape, dtype=x.dtype, device=x.device)
        norm = dot(gradient, gradient).sqrt()
        return DescentState(
            x=x,
            count=0,
            done=norm <= self.tolerance * scale,
            value=torch.stack(values).sum(0),
            gradient=gradient,
            stuck=torch.zeros_like(norm, dtype=torch.bool),
            scale=scale,
            direction=-gradient,
            slope=-dot(gradient, gradient),
            step=0.2 * self._longest(-gradient).clamp(max=5.0),
            moves=pairs,
            changes=pairs.clone(),
            inverse=pairs.flatten(2)[..., 0].clone(),
        )

    def step(self, energy: Energy, state: DescentState, noise: Noise) -> tuple[State, Info]:
        trial = state.x + column(state.step, state.x) * state.direction
        value, gradient = energy.value_and_grad(trial)
        enough = value <= state.value + 1e-4 * state.step * state.slope
        lower = enough & (value < state.value) & value.isfinite()
        taken = lower & ~state.done & ~state.stuck
        stuck = state.stuck | (~state.done & ~taken & (state.step < 1e-8))

        move, change = trial - state.x, gradient - state.gradient
        product = dot(move, change)
        useful = taken & (product > 1e-10 * dot(change, change).sqrt() * dot(move, move).sqrt())
        moves = _push(state.moves, move, useful)
        changes = _push(state.changes, change, useful)
        inverse = _push(state.inverse, 1 / product, useful)

        keep = column(taken, trial)
        x, gradient = torch.where(keep, trial, state.x), torch.where(keep, gradient, state.gradient)
        value = torch.where(taken, value, state.value)
        direction = torch.where(keep, -_two_loop(gradient, moves, changes, inverse), state.direction)
        slope = dot(direction, gradient)
        uphill = taken & (slope >= 0)
        direction = torch.where(column(uphill, x), -gradient, direction)
        slope = torch.where(uphill, -dot(gradient, gradient), slope)
        newton = torch.where(inverse[-1] > 0, torch.ones_like(state.step), state.step)
        size = torch.where(taken, torch.minimum(newton, self._longest(direction)), 0.4 * state.step)
        done = state.done | (taken & (dot(gradient, gradient).sqrt() <= self.tolerance * state.scale))
        fresh = DescentState(
            x=x,
            count=state.count + 1,
            done=done,
            value=value,
            gradient=gradient,
            stuck=stuck,
            scale=state.scale,
            direction=direction,
            slope=slope,
            step=size,
            moves=moves,
            changes=changes,
            inverse=inverse,
        )
        return fresh, Info(evaluations=1 + (state.count == 0), step_size=state.step, stalled=stuck)

    def _longest(self, direction: Image) -> PerImage:
        return self.reach / direction.flatten(1).square().mean(1).sqrt().clamp(min=1e-30)


def _push(stack: Tensor, item: Tensor, where: Tensor) -> Tensor:
    r"""Drops the oldest entry and appends `item`, in the rows that `where` names."""
    shifted = torch.cat([stack[1:], item[None]])
    return torch.where(where.reshape(1, -1, *(1,) * (stack.ndim - 2)), shifted, stack)


def _two_loop(gradient: Image, moves: Tensor, changes: Tensor, inverse: Tensor) -> Image:
    r"""Returns :math:`H \nabla U`; pairs whose inverse product is 0 are empty."""
    q, weights = gradient, []
    for move, change, rho in reversed(list(zip(moves, changes, inverse, strict=True))):
        alpha = rho * dot(move, q)
        q = q - column(alpha, q) * change
        weights.append(alpha)
    curvature = inverse[-1] * dot(changes[-1], changes[-1])
    q = column(torch.where(curvature > 0, 1 / curvature, torch.ones_like(curvature)), q) * q
    for move, change, rho, alpha in zip(moves, changes, inverse, reversed(weights), strict=True):
        q = q + column(alpha - rho * dot(change, q), q) * move
    return q
