r"""Sampling with a noise level that is not known."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.energy import Energy, Fidelity, Posterior
from emprior.solvers.base import Info, Solver, State, as_posterior
from emprior.solvers.replica import Known, Tempered, resumed


class Rescaled(Fidelity):
    r"""The data term :math:`\tau f(x)`, with a factor for each row: that of noise :math:`\sigma / \sqrt{\tau}`.

    Arguments:
        fidelity: The data term `f`.
        factor: The factors :math:`\tau`, `(S B,)`.
    """

    def __init__(self, fidelity: Fidelity, factor: PerImage) -> None:
        super().__init__()
        self.fidelity, self.factor = fidelity, factor
        self.images, self.measured, self.linear = fidelity.images, fidelity.measured, fidelity.linear

    def forward(self, x: Image) -> PerImage:
        return self.factor * self.fidelity(x)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        value, gradient = self.fidelity.value_and_grad(x)
        return self.factor * value, column(self.factor, x) * gradient

    def prox(self, x: Image, gamma: float | PerImage) -> Image:
        return self.fidelity.prox(x, gamma * self.factor)

    def residual(self, x: Image) -> PerImage:
        return self.factor.sqrt() * self.fidelity.residual(x)

    def count(self, x: Image) -> PerImage:
        return self.fidelity.count(x)

    def curve(self, v: Image) -> Image:
        return column(self.factor, v) * self.fidelity.curve(v)

    def whiten(self, noise: Tensor) -> Image:
        drawn = self.fidelity.whiten(noise)
        return column(self.factor.sqrt(), drawn) * drawn

    def solve(self, v: Image, gamma: float | PerImage) -> Image:
        return self.fidelity.solve(v, gamma * self.factor)


@dataclass(frozen=True)
class NoiseLevelState(State):
    r"""The rows, the state of the method that moves them, what is known of the prior there, and :math:`\tau`."""

    inner: State
    known: Known
    factor: PerImage


@dataclass(frozen=True)
class NoiseLevel(Solver):
    r"""Gibbs sampling of images and of the noise level, under Jeffreys' prior :math:`p(\sigma^2) \propto \sigma^{-2}`,

    .. math:: x \sim p(x \mid y, \sigma), \qquad
              \sigma^2 \mid x, y \sim \mathrm{InvGamma}\left(\frac{m}{2}, \frac{1}{2} \|y - A x\|^2\right),

    the first by one step of `solver`, the second exactly: :math:`\|y - A x\|^2 / \sigma^2 \sim \chi^2_m`. The noise
    level that the data term was made with is where the chain starts, and changes its law no more than that.

    References:
        | Bayesian Data Analysis, section 3.2 (Gelman et al., 2013)
        | http://www.stat.columbia.edu/~gelman/book/

    Each iteration tells :math:`1 / \sqrt{\tau}`, the noise level in units of that of the data term, as `"noise"`.

    Arguments:
        solver: A method with a Metropolis test, which moves the images.
    """

    solver: Solver
    samples = varies = True

    def check(self, energy: Energy) -> None:
        as_posterior(energy, "NoiseLevel")
        self.solver.check(energy)

    def init(self, energy: Energy, x: Image, noise: Noise) -> NoiseLevelState:
        posterior = as_posterior(energy, "NoiseLevel")
        known, factor = Known(x, *posterior.prior.value_and_grad(x)), torch.ones(len(x), dtype=x.dtype, device=x.device)
        inner = self.solver.init(_law(posterior, factor, known), x, noise)
        return NoiseLevelState(x, 0, inner.done, inner.value, inner, known, factor)

    def step(self, energy: Energy, state: NoiseLevelState, noise: Noise) -> tuple[State, Info]:
        posterior = as_posterior(energy, "NoiseLevel")
        law = _law(posterior, state.factor, state.known)
        inner, info = self.solver.step(law, replace(state.inner, x=state.x), noise)
        assert isinstance(law.prior, Tempered)
        known = law.prior.moved(state.known, inner.x)
        factor = _draw(posterior.fidelity, inner.x, noise)
        inner = resumed(self.solver, _law(posterior, factor, known), inner, inner.x, noise)
        fresh = NoiseLevelState(inner.x, state.count + 1, inner.done, inner.value, inner, known, factor)
        with torch.no_grad():
            told = {"noise": factor.rsqrt(), "fidelity": factor * posterior.fidelity(inner.x)}
        return fresh, replace(info, numbers={**info.numbers, **told})


def _law(posterior: Posterior, factor: PerImage, known: Known) -> Posterior:
    prior = Tempered(posterior.prior, torch.ones_like(factor), known)
    return Posterior(Rescaled(posterior.fidelity, factor), prior, posterior.weight, posterior.interaction)


def _draw(fidelity: Fidelity, x: Image, noise: Noise) -> PerImage:
    r"""Draws :math:`\tau \sim \mathrm{Gamma}(m / 2, f(x))`, half of a sum of `m` squares over :math:`f(x)`."""
    with torch.no_grad():
        count, misfit = fidelity.count(x), fidelity(x)
    squares = noise.normal(torch.Size(fidelity.measured).numel()).square()
    kept = torch.arange(squares.shape[1], device=x.device) < count[:, None]
    return (squares * kept).sum(1) / 2 / misfit.clamp(min=torch.finfo(x.dtype).tiny)
