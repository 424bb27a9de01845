r"""An exact Gibbs sampler of signals with independent increments, the truth that other samplers are held against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior.priors.increments import Increments


@dataclass(frozen=True, eq=False)
class Latents:
    r"""Where the sampler stands.

    Arguments:
        variance: The mixing variances `w` of increments, `(rows, n)`.
        jump: Whether each increment has a jump, :math:`\gamma`, `(rows, n)`.
        mean: The mean of the increments given these and the measurements, `(rows, n)`.
        u: A draw of them, `(rows, n)`.
    """

    variance: Tensor
    jump: Tensor
    mean: Tensor
    u: Tensor


class LevyPosterior:
    r"""The law of the increments of a signal given measurements :math:`y = A x + \sigma n`, sampled by blocks.

    With :math:`H = A L / \sigma`, `L` the cumulative sum, :math:`G = H^\top H` and
    :math:`V = \mathrm{diag}(\gamma w + s^2)`, an iteration draws

    - each :math:`\gamma_k` given the others and `w`, with the increments integrated out;
    - the increments :math:`u = V^{1/2} z`, :math:`z \sim \mathcal{N}(M^{-1} V^{1/2} H^\top y / \sigma, M^{-1})`,
      :math:`M = I + V^{1/2} G V^{1/2}`, which holds where some variances are zero;
    - the jump within each increment where the law has a width, and `w` given it, or freely where there is none.

    All is float64, and each row has measurements of its own.

    References:
        | A Statistical Framework to Investigate the Optimality of Signal-Reconstruction Methods (Bohra et al., 2022)
        | https://arxiv.org/abs/2203.09920
        | A Statistical Benchmark for Diffusion-Posterior-Sampling Algorithms (Zach et al., 2026)
        | https://openreview.net/forum?id=zDI2G8t0of

    Arguments:
        law: The law of the increments, of width zero for one with an atom.
        matrix: The operator `A`, `(m, n)`.
        sigma: The standard deviation of the noise.
    """

    def __init__(self, law: Increments, matrix: Tensor, sigma: float) -> None:
        self.law, self.sigma = law, sigma
        self.matrix = matrix.double().flip(1).cumsum(1).flip(1) / sigma
        self.gram = self.matrix.mT @ self.matrix

    def begin(self, y: Tensor, noise: Noise) -> Latents:
        r"""Returns a state of latents drawn from the prior, given measurements `(rows, m)`."""
        n = self.matrix.shape[1]
        variance, jump = self.law.mix(noise, n), noise.uniform(n) < self.law.share
        return self._draw(variance, jump, y, noise)

    def step(self, state: Latents, y: Tensor, noise: Noise) -> Latents:
        r"""Returns the next state, given measurements `(rows, m)`."""
        law, n = self.law, self.matrix.shape[1]
        jump, slab, variance = state.jump, state.u, state.variance
        if law.width > 0:
            gain = variance / (variance + law.width**2)
            slab = gain * slab + gain.sqrt() * law.width * noise.normal(n)
        variance = torch.where(jump, law.remix(slab, noise), law.mix(noise, n))
        if law.share < 1:
            jump = self._switch(variance, jump, y, noise.uniform(n))
        return self._draw(variance, jump, y, noise)

    def _draw(self, variance: Tensor, jump: Tensor, y: Tensor, noise: Noise) -> Latents:
        root, factor = self._factor(variance, jump)
        pull = root * (y / self.sigma @ self.matrix)
        mean = root * torch.cholesky_solve(pull[..., None], factor)[..., 0]
        white = noise.normal(root.shape[1])[..., None]
        u = mean + root * torch.linalg.solve_triangular(factor.mT, white, upper=True)[..., 0]
        return Latents(variance, jump, mean, u)

    def _factor(self, variance: Tensor, jump: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`V^{1/2}`, `(rows, n)`, and the Cholesky factor of `M`, `(rows, n, n)`."""
        root = (jump * variance + self.law.width**2).sqrt()
        eye = torch.eye(root.shape[1], dtype=root.dtype)
        return root, torch.linalg.cholesky(eye + root[:, :, None] * self.gram * root[:, None])

    def _switch(self, variance: Tensor, jump: Tensor, y: Tensor, uniform: Tensor) -> Tensor:
        r"""Draws each :math:`\gamma_k` in turn from its law given the others, by

        .. math:: \log \frac{P(\gamma_k = 1)}{P(\gamma_k = 0)} = \log \frac{p}{1 - p}
                  - \frac{1}{2} \log(1 + w_k \tau_k) + \frac{w_k \beta_k^2}{2 (1 + w_k \tau_k)},

        with :math:`\tau = \mathrm{diag}(K)`, :math:`K = H^\top S^{-1} H`, :math:`\beta = H^\top S^{-1} y / \sigma` and
        :math:`S = I + H V H^\top`, `V` without the jump `k`; each change of `V` is one of rank one in `K`.
        """
        K, beta = self._explained(variance, jump, y)
        odds, jump = math.log(self.law.share / (1 - self.law.share)), jump.clone()
        for k in range(len(self.gram)):
            w, column = variance[:, k], K[:, :, k]
            without = 1 - jump[:, k] * w * column[:, k]
            tau, pull = column[:, k] / without, beta[:, k] / without
            grown = 1 + w * tau
            drawn = uniform[:, k].logit() < odds - grown.log() / 2 + w * pull.square() / (2 * grown)
            rows = (drawn != jump[:, k]).nonzero()[:, 0]
            change = torch.where(drawn, w, -w)[rows]
            along = column[rows]
            gain = (change / (1 + change * along[:, k]))[:, None] * along
            beta[rows] -= gain * beta[rows, k, None]
            K[rows] -= gain[:, :, None] * along[:, None]
            jump[:, k] = drawn
        return jump

    def _explained(self, variance: Tensor, jump: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns `K`, `(rows, n, n)`, and :math:`\beta`, `(rows, n)`."""
        root, factor = self._factor(variance, jump)
        half = torch.linalg.solve_triangular(factor, root[:, :, None] * self.gram, upper=False)
        pull = y / self.sigma @ self.matrix
        white = torch.linalg.solve_triangular(factor, (root * pull)[..., None], upper=False)
        return self.gram - half.mT @ half, pull - (half.mT @ white)[..., 0]


def posterior_draws(
    law: Increments, matrix: Tensor, y: Tensor, sigma: float, *, draws: int, burn_in: int, chains: int, seed: int
) -> tuple[Tensor, Tensor]:
    r"""Draws signals given the measurements of `B` of them, and the means of the conditional laws they were drawn from.

    The means have the same expectation as the draws, and less noise.

    Arguments:
        law: The law of the increments.
        matrix: The operator, `(m, n)`.
        y: The measurements, `(B, m)`.
        sigma: The standard deviation of the noise.
        draws: The draws of each chain that are kept.
        burn_in: Those before, which are not.
        chains: The chains of each signal.
        seed: The seed of all randomness.

    Returns:
        The draws and the means, `(draws, chains, B, n)` each.
    """
    posterior, rows = LevyPosterior(law, matrix, sigma), y.double().repeat(chains, 1)
    keys = [(seed, "gibbs", b, c) for c in range(chains) for b in range(len(y))]
    noise = Noise(keys, dtype=torch.float64)
    state, kept = posterior.begin(rows, noise), []
    for index in range(burn_in + draws):
        state = posterior.step(state, rows, noise)
        if index >= burn_in:
            kept.append(torch.stack([state.u, state.mean]).cumsum(-1))
    x, means = torch.stack(kept, 1).unflatten(2, (chains, len(y)))
    return x, means
