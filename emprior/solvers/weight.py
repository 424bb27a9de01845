r"""Sampling with a weight of the prior that is not known."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Energy, Fidelity, Posterior
from emprior.solvers.base import Info, Solver, State, as_posterior
from emprior.solvers.metric import pooled
from emprior.solvers.replica import Known, Tempered, resumed

LIMIT = 100.0
"""The largest factor by which a weight may come to differ from the one that it starts at."""

DECAY = 0.6
"""How fast the moves of a weight fall, an exponent between a half and one, as that of the steps of `MALA`."""

LEAP = 0.25
"""The most that the logarithm of a weight moves in the first iteration, so that the steps of the chains keep up."""


class Unmeasured(Fidelity):
    r"""The data term of no data, :math:`f = 0`: what is left of a posterior is its prior.

    Arguments:
        images: The number of images, `B`.
        shape: The shape of one image.
    """

    def __init__(self, images: int, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.images, self.shape, self.measured, self.linear = images, tuple(shape), (0,), True

    def forward(self, x: Image) -> PerImage:
        return x.new_zeros(len(x))

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        return x.new_zeros(len(x)), torch.zeros_like(x)

    def prox(self, x: Image, gamma: float | PerImage) -> Image:
        return x

    def residual(self, x: Image) -> PerImage:
        return x.new_zeros(len(x))

    def count(self, x: Image) -> PerImage:
        return x.new_ones(len(x))

    def curve(self, v: Image) -> Image:
        return torch.zeros_like(v)

    def whiten(self, noise: Tensor) -> Image:
        return noise.new_zeros(len(noise), *self.shape)

    def solve(self, v: Image, gamma: float | PerImage) -> Image:
        return v


@dataclass(frozen=True)
class Chain:
    r"""The state of a method, and what is known of the prior at its rows."""

    state: State
    known: Known


@dataclass(frozen=True)
class WeightState(State):
    r"""Two chains and the weight.

    Arguments:
        bound: The chain of the posterior.
        free: The chain of the prior.
        log: The logarithm of the weight of each row, in units of the weight of the posterior, `(S B,)`.
        record: Of each iteration that counts, that logarithm and the energies :math:`E` of both chains, `(N, 3, S B)`.
        spread: The standard deviation of the weight of each row, once it is known, `(S B,)`.
    """

    bound: Chain
    free: Chain
    log: PerImage
    record: Tensor
    spread: PerImage


@dataclass(frozen=True)
class Weight(Solver):
    r"""Sampling under the weight of the prior that makes the measurements most likely. With
    :math:`p(x \mid w) = e^{-w E(x)} / Z(w)` the evidence has the gradient

    .. math:: \frac{d}{dw} \log p(y \mid w) = \mathbb{E}_{p(x \mid w)}[E(x)] - \mathbb{E}_{p(x \mid y, w)}[E(x)],

    a difference of the energies that images have before and after they have been measured, which is zero at the
    maximum. Two chains estimate it, :math:`z` of the prior and :math:`x` of the posterior, each moved by one step of
    `solver`, and for each image the weight climbs by

    .. math:: \log w \leftarrow \log w
              + n^{-\kappa}\, \mathrm{clip}\left(\tfrac{2}{d}\, w\, (E(z) - E(x)),\, -\ell,\, \ell\right)

    in iteration `n`, with energies averaged over samples and `d` pixels; for a Gaussian prior `d / 2` is the most
    that the curvature in :math:`\log w` can be. It stays within a factor of `LIMIT` of where it starts. After
    `adapt` iterations the weight is that of the mean logarithm over their second half, and
    stays: from then on the law is exactly the posterior of that weight. Its standard deviation is that of the
    likelihood by its curvature, in these iterations and but for what follows the weight,

    .. math:: -\frac{d^2}{dw^2} \log p(y \mid w)
              = \mathrm{Var}_{p(x \mid w)}[E(x)] - \mathrm{Var}_{p(x \mid y, w)}[E(x)],

    and infinite where the chains see none; the Monte-Carlo error of the mean is not in it. Each iteration tells both
    as `"weight"` and `"weight_std"`, in units of the weight of the posterior that is given.

    References:
        | Maximum likelihood estimation of regularisation parameters in high-dimensional inverse problems: an empirical
          Bayesian approach. Part I: Methodology and Experiments (Vidal et al., 2020)
        | https://arxiv.org/abs/1911.11709
        | Part II: Theoretical Analysis (De Bortoli et al., 2020)
        | https://arxiv.org/abs/2008.05793

    Arguments:
        solver: A method with a Metropolis test, which moves both chains.
        adapt: The iterations over which the weight is learnt, at least 8; make it the burn-in.

    Raises:
        ValueError: `adapt` is too small.
    """

    solver: Solver
    adapt: int
    samples = varies = True

    def __post_init__(self) -> None:
        if self.adapt < 8:
            raise ValueError(
                f"a weight is learnt over a burn-in of at least 8 iterations, got {self.adapt}. "
                "Pass steps=32 or more, or leave out steps."
            )

    def check(self, energy: Energy) -> None:
        if as_posterior(energy, "Weight").interaction is not None:
            raise ValueError(
                "under a repulsion the samples are no draws of the posterior whose weight is asked for. "
                "Leave out interaction, or pass weight=1.0."
            )
        self.solver.check(energy)

    def init(self, energy: Energy, x: Image, noise: Noise) -> WeightState:
        posterior = as_posterior(energy, "Weight")
        known, zeros = Known(x, *posterior.prior.value_and_grad(x)), torch.zeros(len(x), dtype=x.dtype, device=x.device)
        bound, free = (self.solver.init(law, x, noise) for law in _laws(posterior, zeros, known, known))
        record = zeros.new_zeros(0, 3, len(x))
        chains = Chain(bound, known), Chain(free, known)
        return WeightState(x, 0, bound.done, bound.value, *chains, zeros, record, torch.full_like(zeros, torch.inf))

    def step(self, energy: Energy, state: WeightState, noise: Noise) -> tuple[State, Info]:
        posterior, count = as_posterior(energy, "Weight"), state.count + 1
        tied, loose = _laws(posterior, state.log, state.bound.known, state.free.known)
        bound, info = self._moved(tied, replace(state.bound, state=replace(state.bound.state, x=state.x)), noise)
        free, log, record, spread, evaluations = state.free, state.log, state.record, state.spread, info.evaluations
        if count <= self.adapt:
            free, other = self._moved(loose, free, noise)
            evaluations += other.evaluations - (state.count == 0)
            log = _climbed(posterior, log, bound.known, free.known, count)
            if count > self.adapt // 2:
                row = torch.stack([log, bound.known.value, free.known.value])
                record = torch.cat([record, row[None]])
            if count == self.adapt:
                log, spread = _settled(posterior, record)
            tied, loose = _laws(posterior, log, bound.known, free.known)
            bound, free = (self._resumed(law, chain, noise) for law, chain in ((tied, bound), (loose, free)))
        inner = bound.state
        fresh = WeightState(inner.x, count, inner.done, inner.value, bound, free, log, record, spread)
        told = {"weight": log.exp(), "weight_std": spread}
        return fresh, replace(info, evaluations=evaluations, numbers={**info.numbers, **told})

    def _moved(self, law: Posterior, chain: Chain, noise: Noise) -> tuple[Chain, Info]:
        state, info = self.solver.step(law, chain.state, noise)
        assert isinstance(law.prior, Tempered)
        return Chain(state, law.prior.moved(chain.known, state.x)), info

    def _resumed(self, law: Posterior, chain: Chain, noise: Noise) -> Chain:
        return Chain(resumed(self.solver, law, chain.state, chain.state.x, noise), chain.known)


def _laws(posterior: Posterior, log: PerImage, bound: Known, free: Known) -> tuple[Posterior, Posterior]:
    r"""Returns the posterior and the prior of weights :math:`w e^{\log}`."""
    factor, nothing = log.exp(), Unmeasured(posterior.fidelity.images, tuple(bound.x.shape[1:]))
    tied = Posterior(posterior.fidelity, Tempered(posterior.prior, factor, bound), posterior.weight)
    return tied, Posterior(nothing, Tempered(posterior.prior, factor, free), posterior.weight)


def _climbed(posterior: Posterior, log: PerImage, bound: Known, free: Known, count: int) -> PerImage:
    slope = 2 / bound.x[0].numel() * posterior.weight * log.exp() * pooled(free.value - bound.value, posterior)
    move = count**-DECAY * slope.nan_to_num().clamp(-LEAP, LEAP)
    return (log + move).clamp(-math.log(LIMIT), math.log(LIMIT))


def _settled(posterior: Posterior, record: Tensor) -> tuple[PerImage, PerImage]:
    r"""Returns the logarithm of the weight of each row and the standard deviation of that weight."""
    images = posterior.fidelity.images
    log, *energies = record.double().unflatten(2, (-1, images)).unbind(1)
    bound, free = (_variance(energy, log) for energy in energies)
    spread = (free - bound).clamp(min=0).rsqrt() / posterior.weight
    return log.mean(0).flatten().to(record), spread.repeat(log.shape[1]).to(record)


def _variance(energy: Tensor, log: Tensor) -> PerImage:
    r"""Returns the variance of energies `(N, S, B)` but for what follows the logarithm of the weight, `(B,)`."""
    energy, log = (x.flatten(0, 1) - x.flatten(0, 1).mean(0) for x in (energy, log))
    slope = (energy * log).sum(0) / log.square().sum(0).clamp(min=torch.finfo(log.dtype).tiny)
    return (energy - slope * log).square().sum(0) / (len(log) - 2)
