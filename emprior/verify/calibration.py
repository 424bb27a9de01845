r"""Whether truths look like draws: ranks over many pairs of truth and measurement."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from emprior._noise import derive_seed
from emprior._types import Image
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.verify import fields, mixture, signals
from emprior.verify import images as photographs
from emprior.verify.row import Draw, Row

PAIRS = 100
"""The pairs of truth and measurement for each image that a suite is asked for."""

DRAWS, CHAINS = 64, 4
"""The most draws that a truth is ranked among, and the chains that they come from."""

STATES = 128
"""The most states of chains that are kept to choose them from."""

LAWS, PROBLEMS = ("Laplace", "Student-t"), ("cifar10/inpainting", "cifar10/deblurring")
"""The laws of signals and the problems of images that :func:`calibration_at_length` is of."""

TESTS = ("energy", "mean", "pixels")
ALPHA = 0.01
"""The probability that a right sampler is out of some bar of some row."""


def calibration(method: str | None, steps: int | None, images: int, seed: int) -> Iterator[Row]:
    r"""Ranks truths among draws of the posteriors of their measurements, on Gaussian fields and on two modes.

    Each problem has a hundred pairs for each of `images`. Without a `method` the fields are sampled by Hamiltonian
    chains of a given length, since chains that stop themselves would wait for the slowest of all pairs. See
    :func:`figures` and :func:`bars`.
    """
    small = (replace(case, method="hmc") for case in fields.cases(PAIRS * images, seed, sides=(8,)))
    yield from _ranked("calibration", [*small, *mixture.cases(PAIRS * images, seed)], method, steps, seed)


def calibration_at_length(method: str | None, steps: int | None, images: int, seed: int) -> Iterator[Row]:
    r"""Ranks truths among draws, on signals with heavy tails and on images of the mixture fitted to photographs.

    See :func:`calibration`.
    """
    pairs = PAIRS * images
    cases = [*signals.draws(pairs, seed, LAWS), *photographs.draws(pairs, seed, PROBLEMS)]
    yield from _ranked("calibration-long", cases, method, steps, seed)


def _ranked(suite: str, cases: Sequence[Draw], method: str | None, steps: int | None, seed: int) -> Iterator[Row]:
    alpha = ALPHA / len(cases) / (len(TESTS) + 1)
    for case in cases:
        result, sampled = case.solve(method, steps, seed, chains=CHAINS, most=STATES)
        draws = sampled.thinned(DRAWS)
        yield Row.of(result, suite, case.problem, figures(case, draws, seed), bars(case, len(draws), alpha))


def figures(case: Draw, draws: Tensor, seed: int) -> dict[str, float]:
    r"""Returns how far the ranks of the truths among draws `(L, B, *shape)` are from their law.

    If truth and draws follow one posterior, the number of draws below the truth is uniform on :math:`0, \dots, L`,
    whatever is compared. The figures are the p-values (see :func:`p_value`) of the ranks of the posterior energy, of
    the mean of the image and of its pixels, the last the least one times their number; and for TARP the largest
    distance of expected coverage and level (see :func:`distance`), where the distances to a reference are compared.
    References are draws of the prior, fitted to the measurements: a sampler that ignores these would pass by
    references that do so too.

    References:
        | Validating Bayesian Inference Algorithms with Simulation-Based Calibration (Talts et al., 2018)
        | https://arxiv.org/abs/1804.06788
        | Sampling-Based Accuracy Testing of Posterior Estimators for General Inference (Lemos et al., 2023)
        | https://arxiv.org/abs/2302.03026
    """
    fidelity = GaussianFidelity(case.operator, case.y, case.sigma)
    energy = Posterior(fidelity, case.prior)
    with torch.no_grad():
        energies = energy(draws.flatten(0, 1)).unflatten(0, draws.shape[:2])
        below = energies < energy(case.x)
        near = _reference(case, fidelity, seed)
        nearer = (draws - near).flatten(2).square().sum(2) < (case.x - near).flatten(1).square().sum(1)
    lower = (draws < case.x).flatten(2)
    mean = draws.flatten(2).mean(2) < case.x.flatten(1).mean(1)
    most = len(draws)
    return {
        "energy p": p_value(below.sum(0)[:, None], most),
        "mean p": p_value(mean.sum(0)[:, None], most),
        "pixels p": p_value(lower.sum(0), most),
        "TARP": distance(nearer.sum(0), most),
        "draws": float(most),
    }


def bars(case: Draw, draws: int, alpha: float) -> dict[str, tuple[float, float]]:
    r"""Returns bars that a right sampler passes with a probability of `1 - alpha` each."""
    return {f"{name} p": (alpha, 1.0) for name in TESTS} | {"TARP": (0.0, largest_distance(len(case.x), draws, alpha))}


def p_value(ranks: Tensor, draws: int) -> float:
    r"""Returns the probability that uniform ranks are as far from uniform as the worst of several columns.

    With :math:`F_j` the number of `N` ranks below `j`, binomial with :math:`p = j / (L + 1)`, the statistic is

    .. math:: \gamma = \min_{1 \le j \le L} 2 \min\left(P(\mathrm{Bin} \le F_j),\, P(\mathrm{Bin} \ge F_j)\right),

    small where the counts leave a band of simultaneous coverage; its law is exact. Of several columns of ranks,
    however they depend on each other, it is the least p-value times their number (Bonferroni).

    References:
        | Graphical test for discrete uniformity and its applications in goodness-of-fit evaluation and multiple
          sample comparison (Säilynoja et al., 2022)
        | https://arxiv.org/abs/2103.10522

    Arguments:
        ranks: Whole numbers from 0 to `draws`, `(N, P)`.
        draws: The number of draws that each truth was ranked among, `L`.

    Example:
        >>> p_value(torch.tensor([[0], [0], [0]]), 1)
        0.25
    """
    truths, columns = ranks.shape
    counts = _counts(ranks, draws)
    tails = _tails(truths, draws)
    steps = torch.arange(draws)[:, None]
    worst = float(tails[steps, counts].min()) * (1 + 1e-9)
    possible = torch.arange(truths + 1).expand(draws, -1)
    inside = tails > worst
    low = torch.where(inside, possible, truths + 1).amin(1)
    high = torch.where(inside, possible, -1).amax(1)
    return min(1.0, columns * (1 - within(low, high, truths)))


def distance(ranks: Tensor, draws: int) -> float:
    r"""Returns the largest distance of expected coverage from the level, :math:`\max_j |F_j / N - j / (L + 1)|`.

    Arguments:
        ranks: How many of the `L` draws are nearer to a reference than the truth, `(N,)`.
        draws: The number of draws, `L`.
    """
    counts = _counts(ranks[:, None], draws)[:, 0]
    return float((counts.double() / len(ranks) - _levels(draws)).abs().max())


def largest_distance(truths: int, draws: int, alpha: float) -> float:
    r"""Returns the distance that uniform ranks exceed with a probability of `alpha`, from its exact law."""
    levels, low, high = _levels(draws) * truths, 0.0, 1.0
    for _ in range(20):
        bar = (low + high) / 2
        band = (levels - bar * truths).ceil().clamp(min=0), (levels + bar * truths).floor().clamp(max=truths)
        if 1 - within(band[0].long(), band[1].long(), truths) > alpha:
            low = bar
        else:
            high = bar
    return high


def within(low: Tensor, high: Tensor, truths: int) -> float:
    r"""Returns the probability that for all `j` the number of `N` uniform ranks below `j` is in a band.

    The counts are those of a Poisson process of `N` events, given that it has `N`. With :math:`\pi` the law of one of
    its `L + 1` steps,

    .. math:: P(\forall j : l_j \le F_j \le h_j) = \frac{q_{L + 1}(N)}{\mathrm{Poisson}(N; N)}, \qquad
              q_{j + 1} = (q_j\, 1_{[l_j, h_j]}) * \pi, \quad q_1 = \pi.

    Arguments:
        low: The least counts, `(L,)`, of ranks below 1 to `L`.
        high: The largest counts, `(L,)`.
        truths: The number of ranks, `N`.
    """
    counts = torch.arange(truths + 1)
    step = _poisson(counts - counts[:, None], truths / (len(low) + 1))
    law = step[0]
    for least, most in zip(low.tolist(), high.tolist(), strict=True):
        law = torch.where((least <= counts) & (counts <= most), law, 0.0) @ step
    return float((law[truths] / _poisson(counts[truths], truths)).clamp(0, 1))


def _poisson(counts: Tensor, rate: float) -> Tensor:
    k = counts.double().clamp(min=0)
    return torch.where(counts >= 0, (k * math.log(rate) - rate - torch.lgamma(k + 1)).exp(), 0.0)


def _tails(truths: int, draws: int) -> Tensor:
    r"""Returns twice the smaller tail of each number of ranks below each `j`, `(L, N + 1)`."""
    k, n, p = torch.arange(truths + 1).double(), torch.tensor(float(truths)), _levels(draws)[:, None]
    choices = torch.lgamma(n.double() + 1) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    law = (choices + k * p.log() + (n - k) * torch.log1p(-p)).exp()
    return 2 * torch.minimum(law.cumsum(1), law.flip(1).cumsum(1).flip(1))


def _levels(draws: int) -> Tensor:
    return torch.arange(1, draws + 1, dtype=torch.float64) / (draws + 1)


def _counts(ranks: Tensor, draws: int) -> Tensor:
    r"""Returns how many ranks `(N, P)` are below 1 to `L`, `(L, P)`."""
    return (ranks < torch.arange(1, draws + 1)[:, None, None]).sum(1)


def _reference(case: Draw, fidelity: GaussianFidelity, seed: int) -> Image:
    return fidelity.prox(case.prior.sample(len(case.x), seed=derive_seed(seed, "reference")), 1.0)
