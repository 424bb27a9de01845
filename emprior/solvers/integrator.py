r"""Integrators of Hamilton's equations."""

from __future__ import annotations

from dataclasses import dataclass

from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.solvers.metric import Metric


@dataclass(frozen=True)
class Phase:
    r"""A point of phase space: the rows `(S B, *shape)`, their momenta, and the energy and gradient there."""

    x: Image
    p: Image
    value: PerImage
    gradient: Image


def hamiltonian(metric: Metric, phase: Phase) -> PerImage:
    r"""Returns :math:`H(x, p) = U(x) + \frac{1}{2} p^\top P^{-1} p`, `(S B,)`."""
    return phase.value + dot(phase.p, metric.solve(phase.p)) / 2


@dataclass(frozen=True)
class Integrator:
    r"""A palindrome of kicks and drifts that follows :math:`\dot{x} = P^{-1} p`, :math:`\dot{p} = -\nabla U(x)`,

    .. math:: p \leftarrow p - b_1 h \nabla U(x), \quad x \leftarrow x + a_1 h P^{-1} p, \quad
              p \leftarrow p - b_2 h \nabla U(x), \quad \dots, \quad p \leftarrow p - b_{r + 1} h \nabla U(x).

    The map preserves volume and is undone by itself once the sign of `p` is changed, so that a Metropolis test on `H`
    makes it exact. A step takes `r` gradients, since the last of one is the first of the next.

    Arguments:
        kicks: The shares :math:`b_1, \dots, b_{r + 1}` of a step, of sum 1 and the same backwards.
        drifts: The shares :math:`a_1, \dots, a_r`, of sum 1 and the same backwards.

    Raises:
        ValueError: The shares are not a palindrome of sum 1, or do not alternate.
    """

    kicks: tuple[float, ...]
    drifts: tuple[float, ...]

    def __post_init__(self) -> None:
        palindrome = all(a == b for row in (self.kicks, self.drifts) for a, b in zip(row, row[::-1], strict=True))
        whole = all(abs(sum(row) - 1) < 1e-12 for row in (self.kicks, self.drifts))
        if not palindrome or not whole or len(self.kicks) != len(self.drifts) + 1:
            raise ValueError(
                f"kicks are {self.kicks} and drifts {self.drifts}, expected shares of sum 1 that read the same "
                "backwards, one kick more than drifts. Try kicks=(0.5, 0.5), drifts=(1.0,)."
            )

    @property
    def stages(self) -> int:
        r"""The gradients `r` of a step."""
        return len(self.drifts)

    def follow(self, energy: Energy, metric: Metric, phase: Phase, h: float | PerImage, steps: int) -> Phase:
        r"""Follows the motion for a time of `steps h`.

        Arguments:
            energy: The energy `U`.
            metric: The metric `P`.
            phase: Where to start.
            h: The step, a number or one for each row.
            steps: The number of steps.
        """
        h = column(h, phase.x)
        x, p, value, gradient = phase.x, phase.p, phase.value, phase.gradient
        for _ in range(steps):
            for kick, drift in zip(self.kicks, self.drifts, strict=False):
                p = p - kick * h * gradient
                x = x + drift * h * metric.solve(p)
                value, gradient = energy.value_and_grad(x)
            p = p - self.kicks[-1] * h * gradient
        return Phase(x, p, value, gradient)


LEAPFROG = Integrator((0.5, 0.5), (1.0,))
r"""Stable for :math:`\omega h < 2`; in a direction of curvature :math:`\omega^2` the mean error of `H` is
at most :math:`(\omega h)^4 / 32` for small steps."""

DRIFT, KICK = 0.29619504261126, 0.11888010966548

THREE_STAGE = Integrator((KICK, 0.5 - KICK, 0.5 - KICK, KICK), (DRIFT, 1 - 2 * DRIFT, DRIFT))
r"""The shares for which the largest mean error of `H` over :math:`\omega h \le 3`, a gradient for each unit of time, is
least: :math:`7 \cdot 10^{-5}`, where that of the leapfrog is :math:`4 \cdot 10^{-2}`. Stable for
:math:`\omega h < 4.66`.

Errors of `d` directions add up, and paths are accepted while the sum is below about 1/4. So the leapfrog must step by
:math:`d^{-1/4}`, far less than is stable where images have thousands of pixels; this one need not.

References:
    | Numerical Integrators for the Hybrid Monte Carlo Method (Blanes, Casas and Sanz-Serna, 2014)
    | https://arxiv.org/abs/1405.3153
"""
