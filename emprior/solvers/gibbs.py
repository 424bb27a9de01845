r"""Split Gibbs sampling, made exact by Metropolis' test."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from emprior._check import check_positive
from emprior._noise import Noise
from emprior._rows import column, dot
from emprior._types import Image, PerImage
from emprior.energy import Energy, Fidelity, Posterior
from emprior.solvers.adaptation import StepSize, begin, learn
from emprior.solvers.base import Info, Solver, State, as_posterior
from emprior.solvers.curvature import prior_curvature
from emprior.solvers.metric import metropolis, pooled

REACH = 100.0
r"""The largest :math:`\eta`, in units of the inverse curvature. Where the data fix all directions any step is accepted
about as often, and one without end would draw from noise that rounding drowns."""


@dataclass(frozen=True)
class Place:
    r"""Rows with all of the energy but the data term, :math:`g = w E + W`.

    Arguments:
        x: The rows `(S B, *shape)`.
        value: The energies :math:`g(x)`, `(S B,)`.
        gradient: The gradients :math:`\nabla g(x)`, `(S B, *shape)`.
    """

    x: Image
    value: PerImage
    gradient: Image

    @staticmethod
    def at(posterior: Posterior, x: Image) -> Place:
        r"""Evaluates :math:`g` at rows `x`, at the cost of one gradient of the prior."""
        terms = [term for name, term in posterior.parts().items() if name != "fidelity"]
        values, gradients = zip(*(term.value_and_grad(x) for term in terms), strict=True)
        return Place(x, torch.stack(values).sum(0), torch.stack(gradients).sum(0))


def propose(fidelity: Fidelity, place: Place, eta: PerImage, noise: Noise) -> Image:
    r"""Draws :math:`x' \sim \mathcal{N}(S (x - \eta \nabla g(x) + \eta A^\top y / \sigma^2),\, \eta S (I + S))`.

    With :math:`S = (I + \eta H)^{-1}` and :math:`H = A^\top A / \sigma^2` it is the proximal step

    .. math:: x' = \mathrm{prox}_{\eta f}\left(x - \eta \nabla g(x) + \sqrt{2 \eta}\, n_1
              + \eta A^\top n_2 / \sigma\right)

    from white noise :math:`n_1` and :math:`n_2`, whose images under `S` have the covariances :math:`2 \eta S^2` and
    :math:`\eta^2 S H S = \eta S - \eta S^2`.

    References:
        | Sampling Gaussian Distributions in Krylov Spaces with Conjugate Gradients
          (perturbation-optimisation: Orieux et al., 2012)
        | https://arxiv.org/abs/1105.5887
    """
    x, h = place.x, column(eta, place.x)
    n = (2 * h).sqrt() * noise.normal(*x.shape[1:]) + h * fidelity.whiten(noise.normal(*fidelity.measured))
    return fidelity.prox(x - h * place.gradient + n, eta)


def log_ratio(fidelity: Fidelity, here: Place, there: Place, eta: PerImage) -> PerImage:
    r"""Returns :math:`\log \frac{e^{-U(x')}\, q(x \mid x')}{e^{-U(x)}\, q(x' \mid x)}` for :func:`propose`, `(S B,)`.

    The covariance of `q` is the same both ways, and its precision is
    :math:`\frac{1}{2 \eta} S^{-1} M S^{-1}` with :math:`M = (I + \frac{\eta}{2} H)^{-1}`. Its residuals are

    .. math:: r = S^{-1} x' - x + \eta \nabla g(x) - \eta A^\top y / \sigma^2
                = x' - x + \eta (\nabla f(x') + \nabla g(x)), \qquad
              r' = x - x' + \eta (\nabla f(x) + \nabla g(x')),

    forth and back, so that :math:`r + r' = \eta (\nabla U(x) + \nabla U(x'))` and
    :math:`r' - r = 2 M^{-1} (x - x') + \eta (\nabla g(x') - \nabla g(x))`. With
    :math:`\log q(x \mid x') - \log q(x' \mid x) = -\frac{1}{4 \eta} (r' - r)^\top M (r' + r)` the ratio is

    .. math:: U(x) - U(x') - \tfrac{1}{2} (x - x')^\top (\nabla U(x) + \nabla U(x'))
              - \tfrac{\eta}{4} (\nabla g(x') - \nabla g(x))^\top M (\nabla U(x) + \nabla U(x')).

    The rule of the trapezium is exact for the quadratic `f`, which leaves

    .. math:: g(x) - g(x') - \tfrac{1}{2} (x - x')^\top (\nabla g(x) + \nabla g(x'))
              - (\nabla g(x') - \nabla g(x))^\top d,

    where :math:`d = \bar{x} - \mathrm{prox}_{\eta f / 2}\left(\bar{x} - \frac{\eta}{4} (\nabla g(x) + \nabla g(x'))
    \right)` at the midpoint :math:`\bar{x} = \frac{1}{2} (x + x')`: no difference of large misfits is taken.
    """
    total, change = here.gradient + there.gradient, there.gradient - here.gradient
    middle, h = (here.x + there.x) / 2, column(eta, here.x)
    d = middle - fidelity.prox(middle - h / 4 * total, eta / 2)
    return here.value - there.value + dot(there.x - here.x, total) / 2 - dot(change, d)


@dataclass(frozen=True)
class SplitGibbsState(State):
    r"""The rows, their energy, that energy without the data term and its gradient, and the step that is learnt."""

    value: PerImage
    rest: PerImage
    gradient: Image
    step: StepSize


@dataclass(frozen=True)
class SplitGibbs(Solver):
    r"""Split Gibbs sampling with the prior linearised where the rows stand. The posterior
    :math:`e^{-f - g}`, with `f` the data term and :math:`g = w E` the prior, is augmented by

    .. math:: z \mid x \sim \mathcal{N}(x, \eta I), \qquad
              p(x \mid z) \propto \exp\left(-f(x) - g(x) - \frac{1}{2 \eta} \|x - z\|^2\right),

    whose marginal of `x` is exactly the posterior, however large :math:`\eta` is; a split that gives `f` to `x` and
    `g` to `z` is biased by :math:`\eta`. An iteration draws `z`, and `x'` from the conditional law with
    :math:`g(x) + \nabla g(x)^\top (x' - x)` in place of :math:`g(x')`: an exact Gaussian draw, however stiff the data.
    What is left of `g` is for Metropolis' test, and the test is that of `x'` given `x` alone: integrating `z` out of
    the proposal accepts more than a test given `z`. The proposal is

    .. math:: x' \sim \mathcal{N}(S (x - \eta \nabla g(x) + \eta A^\top y / \sigma^2),\, \eta S (I + S)), \qquad
              S = (I + \eta A^\top A / \sigma^2)^{-1},

    and its ratio, in which the data term cancels, is derived at :func:`log_ratio`. Without a prior each
    proposal is accepted, and without data it is the Metropolis-adjusted Langevin algorithm of step :math:`\eta`.
    So only what the data leave open limits the step. An iteration costs one gradient of the prior and two proximal
    steps. During burn-in :math:`\eta` of each image follows the target acceptance, up to `REACH`; then it is fixed.
    Under an interaction the samples of an image are accepted jointly.

    References:
        | Structured Logconcave Sampling with a Restricted Gaussian Oracle (Lee, Shen and Tian, 2021)
        | https://arxiv.org/abs/2010.03106
        | Split-and-augmented Gibbs sampler (a fixed coupling, biased: Vono, Dobigeon and Chainais, 2019)
        | https://arxiv.org/abs/1804.05809
        | Auxiliary gradient-based sampling algorithms (the marginal test: Titsias and Papaspiliopoulos, 2018)
        | https://arxiv.org/abs/1610.09641

    Arguments:
        step_size: The first :math:`\eta`, in units of the inverse of `curvature`.
        target: The acceptance that burn-in aims at; 0.574 is optimal in high dimension.
        adapt: The iterations over which the step is adapted; make it the burn-in.
        curvature: The unit of curvature; by default the prior's own, times its weight.

    Raises:
        ValueError: `step_size` or `curvature` is not positive, or `target` is out of range.
    """

    step_size: float = 1.0
    target: float = 0.574
    adapt: int = 0
    curvature: float | None = None
    samples = True

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        if self.curvature is not None:
            check_positive("curvature", self.curvature)
        if not 0 < self.target < 1:
            raise ValueError(f"target is {self.target}, expected an acceptance between 0 and 1. Try target=0.574.")

    def check(self, energy: Energy) -> None:
        if not as_posterior(energy, "SplitGibbs").fidelity.linear:
            raise ValueError(
                "SplitGibbs draws from the Gaussian law of a linear operator's measurements, but this operator is not "
                "linear. Use method='mala', which takes any operator."
            )

    def init(self, energy: Energy, x: Image, noise: Noise) -> SplitGibbsState:
        self.check(energy)
        posterior = as_posterior(energy, "SplitGibbs")
        place, done = Place.at(posterior, x), torch.zeros(len(x), dtype=torch.bool, device=x.device)
        step = begin(self.step_size, place.value)
        return SplitGibbsState(x, 0, done, _energy(posterior, place), place.value, place.gradient, step)

    def step(self, energy: Energy, state: SplitGibbsState, noise: Noise) -> tuple[State, Info]:
        posterior, learning = as_posterior(energy, "SplitGibbs"), state.count < self.adapt
        curvature = prior_curvature(energy) if self.curvature is None else self.curvature
        eta = state.step.now(learning).clamp(max=REACH) / curvature
        here = Place(state.x, state.rest, state.gradient)
        there = Place.at(posterior, propose(posterior.fidelity, here, eta, noise))
        ratio = log_ratio(posterior.fidelity, here, there, eta)
        probability, accepted = metropolis(ratio, energy, noise)
        take = column(accepted, state.x)
        fresh = SplitGibbsState(
            x=torch.where(take, there.x, here.x),
            count=state.count + 1,
            done=state.done,
            value=torch.where(accepted, _energy(posterior, there), state.value),
            rest=torch.where(accepted, there.value, here.value),
            gradient=torch.where(take, there.gradient, here.gradient),
            step=learn(state.step, pooled(probability, energy), self.target) if learning else state.step,
        )
        return fresh, Info(1 + (state.count == 0), probability, eta)


def _energy(posterior: Posterior, place: Place) -> PerImage:
    with torch.no_grad():
        return posterior.fidelity(place.x) + place.value
