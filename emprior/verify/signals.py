r"""Signals with independent increments, whose posteriors an exact Gibbs sampler knows."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._solve import solve
from emprior._types import Image
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors.increments import BernoulliLaplace, Gaussian, Increments, Laplace, StudentT
from emprior.priors.levy import LevyPrior
from emprior.result import Result
from emprior.verify.gibbs import posterior_draws
from emprior.verify.path import Path
from emprior.verify.row import Draw, Row

if TYPE_CHECKING:
    from deepinv.physics import LinearPhysics

LENGTH = 64
UNIT = 1 / 32
"""A unit of the published increments, so that most signals are within a few times the range of images."""

LAWS: dict[str, Increments] = {
    "Gaussian": Gaussian(0.5 * UNIT),
    "Laplace": Laplace(UNIT),
    "Student-t": StudentT(2, UNIT),
    "Bernoulli-Laplace": BernoulliLaplace(UNIT, share=0.1, width=0.005 * UNIT),
}
PROBLEMS = ("denoising", "deconvolution")
DECIBELS = 25.0
"""How far the noise is below the median power of what is measured."""

LEVEL = 0.9
LONG, FAR = {"steps": 2000, "leaps": 9}, {"steps": 1000, "leaps": 128}
"""The lengths of Hamiltonian chains, for laws without a width and with one, of which a jump is hundreds of leaps."""

OFTEN: dict[str, float] = {"steps": 8000, "leaps": 8, "rungs": 48}
"""Those of replicas for such a law."""

WIDE = 0.6
"""The width of the last of them, in jumps."""

SAMPLES = 4
"""The chains of each signal."""

BURN_IN, DRAWS, CHAINS = 100, 400, 8
"""The schedule of the exact sampler."""

BARS = {"MMSE gap dB": (0.0, 0.1), "coverage 90": (0.87, 0.93)}


def signals(method: str | None, steps: int | None, images: int, seed: int) -> Iterator[Row]:
    r"""Samples posteriors of signals with independent increments, and compares them with an exact Gibbs sampler.

    Without a `method`, that is `"posterior"` for laws without a width, and `"tempering"` for one with a width.

    With `m` and :math:`\Sigma` the exact mean and covariance, the expected squared errors of the mean of the chains
    :math:`\hat{m}` and of the best estimate have the ratio

    .. math:: \mathrm{gap} = 10 \log_{10} \left(1 + \frac{\sum_b \|\hat{m}_b - m_b\|^2}{\sum_b \mathrm{tr}\, \Sigma_b}
              \right)

    in decibels, over signals `b`. `coverage 90` is the share of exact draws in the region of highest density that
    90 % of the draws of the chains are in, and `interval 90` in the intervals of single samples.

    Bernoulli-Laplace signals are drawn with their atom, and the gap is to the best estimate of that law. Chains need
    an energy, and sample the law with a width, a two-hundredth of a jump; `floor dB` is the gap of its exact mean.
    A density has regions that hold an atom whole or not at all, so the coverage counts exact draws of that law too.

    References:
        | A Statistical Benchmark for Diffusion-Posterior-Sampling Algorithms (Zach et al., 2026)
        | https://openreview.net/forum?id=zDI2G8t0of
        | A Statistical Framework to Investigate the Optimality of Signal-Reconstruction Methods (Bohra et al., 2022)
        | https://arxiv.org/abs/2203.09920
    """
    for name, law in LAWS.items():
        prior = LevyPrior(law, LENGTH)
        wide = law.width > 0
        own = method or ("tempering" if wide else "posterior")
        prior.settings = dict.fromkeys(("posterior", "hmc"), FAR if wide else LONG)
        last = (law.width / WIDE / UNIT) ** 2
        prior.settings["tempering"] = {**OFTEN, "last": last} if wide else LONG
        for problem in PROBLEMS:
            operator, sigma, y = measured(law, problem, images, seed)
            path = Path()
            result = solve(
                operator, y, prior, method=own, samples=SAMPLES, steps=steps, sigma=sigma, seed=seed, progress=False,
                callback=path,
            )  # fmt: skip
            assert result.diagnostics.draws is not None
            kept = torch.stack(path.after(path.last - int(result.diagnostics.draws.max()))).flatten(0, 1)
            truth = exact(law, operator, y, sigma, seed)
            posterior = [Posterior(GaussianFidelity(operator, y[b : b + 1], sigma), prior) for b in range(images)]
            yield Row.of(result, "signals", f"{problem}, {name}", compare(result, kept, truth, posterior), BARS)


def draws(images: int, seed: int, names: Sequence[str]) -> Iterator[Draw]:
    r"""Yields signals of laws that have no width, and their measurements."""
    for name in names:
        prior = LevyPrior(LAWS[name], LENGTH)
        prior.settings["hmc"] = LONG
        x = walks(LAWS[name], images, seed)
        for problem in PROBLEMS:
            operator, sigma, y = measured(LAWS[name], problem, images, seed)
            yield Draw("signals", f"{problem}, {name}", operator, prior, x, y, sigma, "hmc", None)


def make_operator(name: str) -> LinearPhysics:
    r"""Returns an operator of deepinv on signals `(1, 1, 64)`: none, or a circular blur of deviation 2."""
    import deepinv as dinv

    if name == "denoising":
        return dinv.physics.Denoising()
    ticks = torch.arange(-6.0, 7.0, dtype=torch.float64)
    kernel = torch.exp(-ticks.square() / 8)
    return dinv.physics.BlurFFT((1, 1, LENGTH), filter=(kernel / kernel.sum())[None, None, None])


def as_matrix(operator: LinearPhysics) -> Tensor:
    r"""Returns the operator as a matrix, `(64, 64)`."""
    eye = torch.eye(LENGTH, dtype=torch.float64)
    return operator.A(eye[:, None, None]).flatten(1).mT.contiguous()


def measured(law: Increments, problem: str, images: int, seed: int) -> tuple[LinearPhysics, float, Tensor]:
    r"""Returns an operator, the standard deviation of its noise, and measurements of signals, `(B, 1, 1, 64)`.

    The noise is 25 dB below the median power of the measurements of 1,000 other signals.
    """
    import deepinv as dinv

    operator, atom = make_operator(problem), pure(law)
    powers = operator.A(walks(atom, 1000, "power")).square().flatten(1).mean(1)
    sigma = float(powers.median() / 10 ** (DECIBELS / 10)) ** 0.5
    operator.noise_model = dinv.physics.GaussianNoise(sigma)
    clean = operator.A(walks(atom, images, seed))
    noise = Noise([(seed, "verify", problem, b) for b in range(images)], dtype=clean.dtype)
    return operator, sigma, clean + sigma * noise.normal(*clean.shape[1:])


def walks(law: Increments, n: int, key: int | str) -> Image:
    r"""Draws signals, `(n, 1, 1, 64)`."""
    noise = Noise([(key, "signal", b) for b in range(n)], dtype=torch.float64)
    return law.draw(noise, LENGTH).cumsum(-1)[:, None, None]


def pure(law: Increments) -> Increments:
    r"""Returns the law without a width."""
    return replace(law, width=0.0) if isinstance(law, BernoulliLaplace) else law


@dataclass(frozen=True, eq=False)
class Truth:
    r"""What the exact sampler says of `B` posteriors.

    Arguments:
        mean: The best estimates, `(B, 64)`.
        error: Their expected squared errors, `(B,)`.
        draws: Draws of the law that chains sample, `(N, B, 64)`.
        smooth: The means of that law, `(B, 64)`.
    """

    mean: Tensor
    error: Tensor
    draws: Tensor
    smooth: Tensor


def exact(law: Increments, operator: LinearPhysics, y: Tensor, sigma: float, seed: int) -> Truth:
    r"""Samples the posteriors of a law, and of its atom if it stands for one."""
    schedule = {"draws": DRAWS, "burn_in": BURN_IN, "chains": CHAINS, "seed": seed}
    matrix, rows = as_matrix(operator), y.flatten(1)
    draws, means = (part.flatten(0, 1) for part in posterior_draws(law, matrix, rows, sigma, **schedule))
    best, centres = draws, means
    if law != pure(law):
        best, centres = (part.flatten(0, 1) for part in posterior_draws(pure(law), matrix, rows, sigma, **schedule))
    return Truth(centres.mean(0), best.var(0).sum(-1), draws, means.mean(0))


def compare(result: Result, kept: Tensor, truth: Truth, posterior: list[Posterior]) -> dict[str, float]:
    r"""Returns the figures of chains, `(N, B, 1, 1, 64)` after the burn-in, beside the truth."""
    low, high = (bound.flatten(1) for bound in result.interval(LEVEL))
    inside = (truth.draws >= low) & (truth.draws <= high)
    shares = []
    for b, energy in enumerate(posterior):
        inner = energy(kept[:, b]).quantile(LEVEL)
        shares.append((energy(truth.draws[:, b, None, None]) <= inner).double().mean())
    run = result.diagnostics
    return {
        "MMSE gap dB": gap(result.mean.flatten(1), truth),
        "floor dB": gap(truth.smooth, truth),
        "coverage 90": float(torch.stack(shares).mean()),
        "interval 90": float(inside.double().mean()),
        "R-hat": float("nan") if run.rhat is None else float(run.rhat.max()),
        "ESS": float("nan") if run.ess is None else float(run.ess.min()),
    }


def gap(mean: Tensor, truth: Truth) -> float:
    r"""Returns how much larger than the least the expected squared error of estimates `(B, 64)` is, in decibels."""
    return 10 * math.log10(1 + float((mean - truth.mean).square().sum() / truth.error.sum()))
