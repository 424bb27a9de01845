r"""Langevin by a stabilised explicit scheme."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._check import check_positive
from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Energy
from emprior.solvers.base import Info, Solver, State
from emprior.solvers.curvature import check_curvature, largest_curvature


@dataclass(frozen=True)
class Scheme:
    r"""The stages of a Runge-Kutta-Chebyshev scheme,

    .. math:: K_0 = x, \qquad K_1 = x - \mu_1 h \nabla U(x + \nu_1 q) + \kappa_1 q, \qquad
              K_j = \nu_j K_{j-1} + \kappa_j K_{j-2} - \mu_j h \nabla U(K_{j-1}).

    Arguments:
        first: The numbers :math:`\mu_1, \nu_1, \kappa_1`.
        rest: The numbers :math:`\mu_j, \nu_j, \kappa_j` for `j` from 2 to `s`.
        reach: The largest :math:`h \lambda` that is stable, for a curvature :math:`\lambda`.
    """

    first: tuple[float, float, float]
    rest: tuple[tuple[float, float, float], ...]
    reach: float

    @staticmethod
    def chebyshev(stages: int, eta: float) -> Scheme:
        r"""Returns the scheme of SK-ROCK.

        With :math:`\omega_0 = 1 + \eta / s^2`, :math:`T_j` Chebyshev's polynomials at :math:`\omega_0` and
        :math:`\omega_1 = T_s / T_s'`,

        .. math:: \mu_1 = \frac{\omega_1}{\omega_0}, \quad \nu_1 = \frac{s \omega_1}{2}, \quad
                  \kappa_1 = \frac{s \omega_1}{\omega_0}, \qquad
                  \mu_j = \frac{2 \omega_1 T_{j-1}}{T_j}, \quad \nu_j = \frac{2 \omega_0 T_{j-1}}{T_j}, \quad
                  \kappa_j = -\frac{T_{j-2}}{T_j}.

        It is stable to :math:`(s - \frac{1}{2})^2 (2 - \frac{4}{3} \eta) - \frac{3}{2}`.
        """
        centre, t, slope = 1 + eta / stages**2, [1.0, 1 + eta / stages**2], [0.0, 1.0]
        for _ in range(stages - 1):
            slope.append(2 * t[-1] + 2 * centre * slope[-1] - slope[-2])
            t.append(2 * centre * t[-1] - t[-2])
        scale = t[-1] / slope[-1]
        return Scheme(
            first=(scale / centre, stages * scale / 2, stages * scale / centre),
            rest=tuple(
                (2 * scale * b / c, 2 * centre * b / c, -a / c) for a, b, c in zip(t, t[1:], t[2:], strict=False)
            ),
            reach=(stages - 0.5) ** 2 * (2 - 4 / 3 * eta) - 1.5,
        )

    def advance(self, energy: Energy, x: Image, h: float | PerImage, n: Image) -> Image:
        r"""Returns :math:`K_s` for noise :math:`q = \sqrt{2 h}\, n`, at one gradient a stage."""
        h = column(h, x)
        q, (mu, nu, kappa) = (2 * h).sqrt() * n, self.first
        last, now = x, x - mu * h * energy.value_and_grad(x + nu * q)[1] + kappa * q
        for mu, nu, kappa in self.rest:
            last, now = now, nu * now + kappa * last - mu * h * energy.value_and_grad(now)[1]
        return now


@dataclass(frozen=True)
class SKROCKState(State):
    r"""The rows and their step."""

    step: PerImage


@dataclass(frozen=True)
class SKROCK(Solver):
    r"""The stochastic second-kind orthogonal Runge-Kutta-Chebyshev method for Langevin's equation

    .. math:: dx = -\nabla U(x)\, dt + \sqrt{2}\, dw,

    whose `s` stages, of one gradient each (see `Scheme`), are stable for steps `h` that grow as :math:`s^2`. So it
    forgets a direction of low curvature about `s` times faster than the unadjusted Langevin algorithm does for the
    same gradients. Its law is biased. Along a direction of curvature :math:`\lambda`, with :math:`z = -h \lambda`,
    it is linear, and its stationary variance is

    .. math:: x' = A(z)\, x + B(z) \sqrt{2 h}\, n, \qquad \mathrm{Var}[x] = \frac{2 h B(z)^2}{1 - A(z)^2}, \qquad
              A(z) = \frac{T_s(\omega_0 + \omega_1 z)}{T_s(\omega_0)}, \qquad
              B(z) = \frac{U_{s-1}(\omega_0 + \omega_1 z)}{U_{s-1}(\omega_0)} \left(1 + \frac{\omega_1 z}{2}\right),

    with :math:`T_s` and :math:`U_s` Chebyshev's polynomials of the first and second kind: the true
    :math:`1 / \lambda` for small steps, and less for large ones, down to 0 at the roots of `B`. Directions along
    which :math:`h \lambda` is well below 1 keep their variance, and the stiff ones, narrow already, lose some.

    References:
        | Accelerating proximal Markov chain Monte Carlo by using an explicit stabilised method
          (Pereyra, Vargas Mieles and Zygalakis, 2020)
        | https://arxiv.org/abs/1908.08845
        | Optimal explicit stabilized integrator of weak order one for stiff and ergodic stochastic differential
          equations (Abdulle, Almuslimani and Vilmart, 2018)
        | https://arxiv.org/abs/1708.08145

    Arguments:
        stages: The number `s` of stages, at least 2; with one it would be `ULA`.
        eta: The damping :math:`\eta`, which keeps :math:`|A|` below about :math:`1 - \eta` for stiff directions.
        step_size: The step `h`; by default the `fraction` of the largest stable one, the scheme's reach over the
            largest curvature :math:`\|A\|^2 / \sigma^2 + w L` with `L` the prior's. It must be given for a nonlinear
            operator.
        fraction: The share of the largest stable step that the default takes; smaller is slower and less biased.

    Raises:
        ValueError: An option is out of range, or no step is given for an energy whose curvature is unknown.
    """

    stages: int = 10
    eta: float = 0.05
    step_size: float | None = None
    fraction: float = 0.25
    samples = True

    def __post_init__(self) -> None:
        if check_positive("stages", self.stages, whole=True) < 2:
            raise ValueError("stages is 1, expected at least 2. With one stage take emprior.solvers.ULA.")
        if not 0 <= self.eta <= 1:
            raise ValueError(f"eta is {self.eta}, expected a damping from 0 to 1. Try eta=0.05.")
        if self.step_size is not None:
            check_positive("step_size", self.step_size)
        if not 0 < self.fraction <= 1:
            raise ValueError(f"fraction is {self.fraction}, expected a share of the largest stable step. Try 0.25.")

    def check(self, energy: Energy) -> None:
        if self.step_size is None:
            check_curvature(energy)

    def init(self, energy: Energy, x: Image, noise: Noise) -> SKROCKState:
        return SKROCKState(x, 0, torch.zeros(len(x), dtype=torch.bool, device=x.device), None, self._step(energy, x))

    def step(self, energy: Energy, state: SKROCKState, noise: Noise) -> tuple[State, Info]:
        scheme = Scheme.chebyshev(self.stages, self.eta)
        x = scheme.advance(energy, state.x, state.step, noise.normal(*state.x.shape[1:]))
        return SKROCKState(x, state.count + 1, state.done, None, state.step), Info(self.stages, step_size=state.step)

    def _step(self, energy: Energy, x: Image) -> PerImage:
        if self.step_size is not None:
            return torch.full((len(x),), self.step_size, dtype=x.dtype, device=x.device)
        stiffness = largest_curvature(energy, x)
        if not bool((stiffness > 0).all()):
            raise ValueError(
                f"the curvature of {type(energy).__name__} is unknown, so SK-ROCK has no safe step. "
                "Run emprior.solvers.SKROCK(step_size=...) with a step of your own."
            )
        return self.fraction * Scheme.chebyshev(self.stages, self.eta).reach / stiffness
