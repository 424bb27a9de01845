r"""A posterior of two modes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from emprior._noise import generator
from emprior._types import Image
from emprior.energy import Energy, Posterior
from emprior.fidelity import GaussianFidelity
from emprior.operators import as_operator
from emprior.priors import GaussianMixturePrior
from emprior.priors.mixture import MixturePosterior
from emprior.verify.row import Case, Row, Sampled

SIGMA = 0.2
CHAINS = 128
POINTS, SETS = 1000, 16

BARS = {"weight error": (0.0, 0.03), "KSD ratio": (0.9, 1.1)}


def modes(method: str | None, steps: int | None, images: int, seed: int) -> Iterator[Row]:
    r"""Samples the posterior of a mixture of two Gaussians, and compares it with the exact one; see :func:`figures`."""
    for case in cases(images, seed):
        result, sampled = case.solve(method, steps, seed)
        yield Row.of(result, case.suite, case.problem, case.figures(sampled), BARS)


def cases(images: int, seed: int) -> Iterator[Case]:
    r"""Yields the mixture of two Gaussians in 16 dimensions, given 14 noisy measurements.

    The modes are nine deviations apart, mostly where no measurement looks.
    """
    prior, operator = two_modes()
    x = prior.sample(images, seed=seed)
    clean = operator.A(x)
    y = clean + SIGMA * torch.randn(clean.shape, generator=generator(seed, "verify"), dtype=x.dtype)
    exact = prior.posterior(operator, y, SIGMA)
    posteriors = [Posterior(GaussianFidelity(operator, y[b : b + 1], SIGMA), prior) for b in range(images)]
    judge = partial(figures, exact, posteriors, x, seed)
    name = "two modes, d = 16, m = 14"
    yield Case("modes", name, operator, prior, x, y, SIGMA, "tempering", CHAINS, judge, draws=POINTS)


def figures(
    exact: MixturePosterior, posteriors: Sequence[Posterior], x: Image, seed: int, sampled: Sampled
) -> dict[str, float]:
    r"""Compares what a sampler gave with the posterior of a mixture.

    The figures are the largest error of the weight of a mode, the root mean square error of the mean beside that of
    the exact mean, and the kernelised Stein discrepancy of 1,000 draws, or of as many as there are, beside that of as
    many exact ones. Each is the mean of 16, where the draws are enough.
    """
    kept = sampled.draws.flatten(0, 1)
    points = min(POINTS, len(kept))
    free = exact.sample(SETS * points, seed=seed)
    share = mode_shares(kept, exact.means)
    chosen = kept[torch.randperm(len(kept), generator=generator(seed, "thinning"))[: SETS * points]]
    chosen = chosen[: len(chosen) // points * points]
    ratios = []
    for image, posterior in enumerate(posteriors):
        found, best = (
            torch.tensor([stein_discrepancy(posterior, part) for part in draws[:, image].split(points)]).mean()
            for draws in (chosen, free)
        )
        ratios.append(float(found / best))
    return {
        "weight error": float((share - exact.weights).abs().max()),
        "RMSE": float((sampled.mean - x).square().mean().sqrt()),
        "RMSE exact": float((exact.mean - x).square().mean().sqrt()),
        "KSD ratio": max(ratios, key=lambda ratio: abs(ratio - 1)),
    }


def two_modes():  # type: ignore[no-untyped-def]
    r"""Returns a prior over `(1, 4, 4)` with two modes, and an operator that hardly tells them apart."""
    random = generator("verify", "modes")
    basis = torch.linalg.qr(torch.randn(16, 16, generator=random, dtype=torch.float64))[0]
    apart = 0.9 * basis[:, 14] + 0.2 * basis[:, 15] + 0.05 * basis[:, 0]
    factors = torch.randn(2, 16, 3, generator=random, dtype=torch.float64) / 10
    means = torch.stack([-apart, apart]).reshape(2, 1, 4, 4)
    weights = torch.tensor([0.4, 0.6], dtype=torch.float64)
    prior = GaussianMixturePrior.low_rank(weights, means, factors, 0.2)
    return prior, as_operator(basis[:, :14].mT.contiguous(), shape=(1, 4, 4))


def mode_shares(draws: Tensor, means: Tensor) -> Tensor:
    r"""Returns the share of draws `(N, B, *shape)` that are nearest to each of the means `(B, K, *shape)`, `(B, K)`."""
    distance = (draws[:, :, None] - means).flatten(3).square().sum(-1)
    nearest = distance.argmin(-1)
    return torch.stack([(nearest == k).double().mean(0) for k in range(means.shape[1])], dim=1)


def stein_discrepancy(energy: Energy, x: Tensor) -> float:
    r"""Returns the kernelised Stein discrepancy of draws `(N, *shape)` from :math:`e^{-U}`,

    .. math:: D^2 = \frac{1}{N^2} \sum_{i, j} s_i^\top s_j k + s_i^\top \nabla_{x_j} k + s_j^\top \nabla_{x_i} k
              + \mathrm{tr}\, \nabla_{x_i} \nabla_{x_j} k, \qquad s = -\nabla U, \quad
              k = (1 + \|x_i - x_j\|^2)^{-1/2}.

    References:
        | Measuring Sample Quality with Kernels (Gorham and Mackey, 2017)
        | https://arxiv.org/abs/1703.01717
    """
    score = -energy.value_and_grad(x)[1].flatten(1)
    points = x.flatten(1)
    size = points.shape[1]
    apart = torch.cdist(points, points).square()
    base = 1 + apart
    along = score @ points.mT
    own = along.diagonal()
    # s_i . (x_i - x_j) and s_j . (x_j - x_i)
    first, second = own[:, None] - along, own - along.mT
    stein = (score @ score.mT) * base**-0.5 + (first + second) * base**-1.5
    stein = stein + size * base**-1.5 - 3 * apart * base**-2.5
    return float(stein.mean().clamp(min=0).sqrt())
