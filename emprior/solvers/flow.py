r"""Energy Matching's own sampler."""

from __future__ import annotations

from dataclasses import dataclass

from emprior._noise import Noise
from emprior._schedule import heat
from emprior._types import Image
from emprior.energy import Energy, Posterior, Prior
from emprior.solvers.base import Info, Solver, State


@dataclass(frozen=True)
class Flow(Solver):
    r"""Carries noise to data along the energy, then warms to temperature 1.

    .. math:: x \leftarrow \mathrm{prox}_{h f}\left(x - h w \nabla E(x) + \sqrt{2 h \theta(t)}\, n\right),
              \qquad \theta(t) = \mathrm{clip}\left(\frac{t - \tau_*}{1 - \tau_*}, 0, 1\right),

    from the prior's noise at :math:`t = 0`, with :math:`h = \Delta t` in the prior's unit of transport time. The
    data step is implicit, so small noise needs no small step. Once warm it is a semi-implicit
    unadjusted Langevin chain: its law is close to the posterior, and biased by the step.
    Without a data term it generates from the prior.

    On the way from noise the data pull by no more than :math:`\Delta t\, c / \sigma^2` a step, `c` the prior's time
    unit: too little to arrive at them where the noise is not far below the prior's own. `emprior.solve` therefore
    takes the warm chain alone, `fresh=False`, after an :class:`emprior.solvers.Annealing`.

    References:
        | Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling
        | (Balcerak et al., 2025)
        | https://arxiv.org/abs/2504.10612

    Arguments:
        step_size: The step :math:`\Delta t`, in transport time.
        tau_star: The time :math:`\tau_*` at which warming begins; it ends at 1.
        fresh: Whether the rows start from the prior's noise, rather than where they are, at `t = 1`.
    """

    step_size: float = 0.01
    tau_star: float = 0.9
    fresh: bool = True
    samples = True

    def init(self, energy: Energy, x: Image, noise: Noise) -> State:
        prior = energy.prior if isinstance(energy, Posterior) else energy
        if not isinstance(prior, Prior):
            raise TypeError(f"Flow needs a Prior, or a Posterior of one, got {type(energy).__name__}.")
        start = prior.start(noise, tuple(x.shape[1:])) if self.fresh else x
        return State.at(start.to(x))

    def step(self, energy: Energy, state: State, noise: Noise) -> tuple[State, Info]:
        posterior = energy if isinstance(energy, Posterior) else None
        prior = posterior.prior if posterior else energy
        assert isinstance(prior, Prior)
        time = state.count * self.step_size if self.fresh else 1.0
        warmth = heat(time, self.tau_star, self.step_size)
        h = self.step_size * prior.time_unit
        _, gradient = prior.value_and_grad(state.x)
        x = state.x - h * (posterior.weight if posterior else 1.0) * gradient
        if posterior and posterior.interaction is not None:
            x = x - h * posterior.interaction.value_and_grad(state.x)[1]
        if warmth > 0:
            x = x + (2 * h * warmth) ** 0.5 * noise.normal(*x.shape[1:])
        if posterior:
            x = posterior.fidelity.prox(x, h)
        return State(x, state.count + 1, state.done, None), Info()
