r"""Images of a mixture of Gaussians, whose posterior under a linear operator is such a mixture."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os import PathLike

import torch
from torch import Tensor

from emprior._noise import generator
from emprior._solve import solve
from emprior.energy import Prior
from emprior.hub import load_prior
from emprior.operators import cast
from emprior.priors import GaussianMixturePrior
from emprior.priors.mixture import MixturePosterior
from emprior.problem import list_problems, load_problem
from emprior.result import Result
from emprior.verify.path import Path
from emprior.verify.row import Draw, Row

PRIOR, FAMILY = "cifar10-mixture", "cifar10/"

DRAWS = 256
"""The draws of an image that scores and distances are of."""

STATES = 512
"""The most states of the chains that are kept."""

DIRECTIONS = 128
"""The directions that distances are the mean over."""

NEGLIGIBLE = 1e-12
"""The weight of a component below which it is left out."""

BARS = {"coverage 90": (0.89, 0.91), "CRPS ratio": (0.99, 1.01)}


def images(method: str, steps: int | None, images: int, seed: int, prior: Prior | None = None) -> Iterator[Row]:
    r"""Samples posteriors of images that a mixture fitted to CIFAR-10 holds for true, under every bundled problem.

    Coverage, scores and spread are judged by their expectations under the exact posterior given the measurements, in
    closed form, so that they do not depend on the luck of one true image. They are means over pixels and images:

    - `coverage 50` and `coverage 90`: the exact probability of the intervals of the result;
    - `CRPS ratio`: the continuous ranked probability score of 256 draws `x_i` of the chains over the one which as many
      independent draws of the exact posterior are expected to have, for `Y` and `Y'` of the exact posterior

      .. math:: \frac{\frac{1}{n} \sum_i \mathbb{E} |x_i - Y| - \frac{1}{2 n^2} \sum_{i, j} |x_i - x_j|}
                {\frac{1}{2} (1 + \frac{1}{n})\, \mathbb{E} |Y - Y'|};

    - `spread-skill`: the root mean square of the standard deviation over that of the error of the mean;
    - `SW2`: the sliced 2-Wasserstein distance of those draws and of as many exact ones, over the root mean square of
      the exact standard deviation; `SW2 exact`: that of two sets of exact ones.

    A `prior` of one's own, such as an energy learned from draws of the mixture, is sampled beside it. Where its chains
    have mixed, what its rows are off and those of the mixture are not is the error of learning. They have no bars.

    References:
        | Strictly Proper Scoring Rules, Prediction, and Estimation (Gneiting and Raftery, 2007)
        | https://doi.org/10.1198/016214506000001437

        | Why Should Ensemble Spread Match the RMSE of the Ensemble Mean? (Fortin et al., 2014)
        | https://doi.org/10.1175/JHM-D-14-0008.1

        | Sliced and Radon Wasserstein Barycenters of Measures (Bonneel et al., 2015)
        | https://doi.org/10.1007/s10851-014-0506-3
    """
    truth = load_prior(PRIOR)
    assert isinstance(truth, GaussianMixturePrior)
    laws: list[tuple[Prior, str | None]] = [(truth, None)] if prior is None else [(truth, None), (prior, prior.title)]
    x = truth.sample(images, seed=seed)
    for name in filter(lambda name: name.startswith(FAMILY), list_problems()):
        problem = load_problem(name)
        y = problem.measure(x, seed=seed)
        exact = truth.posterior(cast(problem.operator, y.double()), y.double(), problem.sigma)
        for law, title in laws:
            path = Path(STATES)
            result = solve(
                problem.operator, y, law, method=method, steps=steps, seed=seed, progress=False, callback=path
            )
            bars = {} if title else BARS
            yield Row.of(result, "images", name, figures(result, path, exact, seed), bars, title)


def prior_of_images(prior: str | PathLike[str] | Prior) -> Prior:
    r"""Returns a prior by name or folder, or as it is.

    Raises:
        ValueError: There is no such prior, or it is not of images like those of the mixture.
    """
    given, shape = prior if isinstance(prior, Prior) else load_prior(prior), load_prior(PRIOR).shape
    if not given.accepts(shape):
        raise ValueError(
            f"{given.title!r} is of images {given.shape}, but those of {PRIOR} are {shape}. Give another prior."
        )
    return given


def draws(images: int, seed: int, names: Sequence[str]) -> Iterator[Draw]:
    r"""Yields images of the mixture under bundled problems."""
    prior = load_prior(PRIOR)
    x = prior.sample(images, seed=seed)
    for name in names:
        problem = load_problem(name)
        y = problem.measure(x, seed=seed)
        yield Draw("images", name, problem.operator, prior, x, y, float(problem.sigma), "hmc", None)


def figures(result: Result, path: Path, exact: MixturePosterior, seed: int) -> dict[str, float]:
    r"""Returns the figures of a result, beside the exact posteriors of its images."""
    laws, run = Marginal.each(exact), result.diagnostics
    draws = [path.draws(result, image, DRAWS) for image in range(len(laws))]
    score = _mean([law.score(part) for law, part in zip(laws, draws, strict=True)])
    least = _mean([law.least_score(len(part)) for law, part in zip(laws, draws, strict=True)])
    means = result.mean.flatten(1).double()
    error = _mean([law.variance + (mean - law.mean).square() for law, mean in zip(laws, means, strict=True)])
    spread = math.nan if result.std is None else float(result.std.double().square().mean())
    return {
        "coverage 50": coverage(result, laws, 0.5),
        "coverage 90": coverage(result, laws, 0.9),
        "CRPS ratio": score / least,
        "spread-skill": (spread / error) ** 0.5,
        **distances(draws, exact, seed),
        "R-hat": math.nan if run.rhat is None else float(run.rhat.max()),
        "ESS": math.nan if run.ess is None else float(run.ess.min()),
    }


def coverage(result: Result, laws: list[Marginal], level: float) -> float:
    r"""Returns the mean probability of the intervals of a result under the laws of its images."""
    low, high = (bound.flatten(1).double() for bound in result.interval(level))
    return _mean([law.cdf(top) - law.cdf(bottom) for law, bottom, top in zip(laws, low, high, strict=True)])


def distances(draws: list[Tensor], exact: MixturePosterior, seed: int) -> dict[str, float]:
    r"""Returns the root mean square distance of draws of each image `(n, d)` from exact ones, and of exact ones."""
    first, second = exact.sample(2 * DRAWS, seed=seed).flatten(2).transpose(0, 1).split(DRAWS, 1)
    pairs = {"SW2": zip(draws, first, strict=True), "SW2 exact": zip(first, second, strict=True)}
    scale = float(exact.std.square().mean().sqrt())
    squares = {name: [sliced(a, b[: len(a)]) ** 2 for a, b in pair] for name, pair in pairs.items()}
    return {name: (sum(values) / len(values)) ** 0.5 / scale for name, values in squares.items()}


@dataclass(frozen=True, eq=False)
class Marginal:
    r"""The laws of the pixels of one image, each a mixture of normals.

    Arguments:
        weights: The weights, `(K,)`.
        means: The means, `(K, d)`.
        stds: The standard deviations, `(K, d)`.
    """

    weights: Tensor
    means: Tensor
    stds: Tensor

    @staticmethod
    def each(exact: MixturePosterior) -> list[Marginal]:
        r"""Returns the marginals of each image."""
        kept = exact.weights.amax(0) > NEGLIGIBLE
        stds = torch.stack([law.variance().sqrt() for law, keep in zip(exact.laws, kept, strict=True) if keep])
        rows = zip(exact.weights[:, kept], exact.means[:, kept].flatten(2), strict=True)
        return [Marginal(weights / weights.sum(), means, stds) for weights, means in rows]

    @property
    def mean(self) -> Tensor:
        r"""The means, `(d,)`."""
        return self.weights @ self.means

    @property
    def variance(self) -> Tensor:
        r"""The variances, `(d,)`."""
        return self.weights @ (self.stds.square() + (self.means - self.mean).square())

    def cdf(self, x: Tensor) -> Tensor:
        r"""Returns the probability that each pixel is at most `x` `(d,)`."""
        return self.weights @ torch.special.ndtr((x - self.means) / self.stds)

    def distance(self, x: Tensor) -> Tensor:
        r"""Returns :math:`\mathbb{E} |x - Y|` for each pixel of `x` `(*, d)`."""
        return sum(w * _folded(x - m, s) for w, m, s in zip(self.weights, self.means, self.stds, strict=True))

    def score(self, draws: Tensor) -> Tensor:
        r"""Returns the expected continuous ranked probability score of draws `(n, d)`, `(d,)`."""
        count = len(draws)
        rank = torch.arange(1, count + 1, dtype=draws.dtype, device=draws.device)
        apart = (2 * rank - count - 1) @ draws.sort(0).values / count**2
        return self.distance(draws).mean(0) - apart

    def least_score(self, count: int) -> Tensor:
        r"""Returns the score that `count` independent draws of the law itself are expected to have, `(d,)`."""
        parts = list(zip(self.weights, self.means, self.stds, strict=True))
        apart = sum(v * w * _folded(m - n, (s.square() + t.square()).sqrt()) for v, m, s in parts for w, n, t in parts)
        return (1 + 1 / count) / 2 * apart


def _folded(mean: Tensor, std: Tensor) -> Tensor:
    r"""Returns :math:`\mathbb{E} |Z|` of normal `Z`."""
    z = mean / std
    return std * (z * torch.erf(z / 2**0.5) + (2 / math.pi) ** 0.5 * (-z.square() / 2).exp())


def sliced(a: Tensor, b: Tensor) -> float:
    r"""Returns the sliced 2-Wasserstein distance of two sets of as many points `(n, d)`,

    .. math:: \left( \mathbb{E}_\theta \frac{1}{n} \sum_i
              \left( (\theta^\top a)_{(i)} - (\theta^\top b)_{(i)} \right)^2 \right)^{1/2},

    with the mean over fixed random directions of length one.
    """
    size = a.shape[1]
    directions = torch.randn(size, DIRECTIONS, generator=generator("sliced", size), dtype=torch.float64).to(a)
    directions = directions / directions.norm(dim=0)
    gap = (a @ directions).sort(0).values - (b @ directions).sort(0).values
    return float(gap.square().mean().sqrt())


def _mean(rows: list[Tensor]) -> float:
    return float(torch.stack(rows).mean())
