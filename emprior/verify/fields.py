r"""Gaussian fields, whose posterior under a linear operator is a Gaussian."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor

from emprior._noise import generator
from emprior.operators import as_operator
from emprior.priors import GaussianPrior
from emprior.priors.gaussian import GaussianPosterior
from emprior.verify.row import Case, Row, Sampled

SIDES = (8, 32)
PROBLEMS = {"denoising": 0.1, "inpainting": 0.05, "blur": 0.05, "compressed sensing": 0.05}
"""The problems, with their noise."""

BARS = {"mean error": (0.0, 0.05), "std ratio": (0.97, 1.03)}


def gaussian(method: str | None, steps: int | None, images: int, seed: int) -> Iterator[Row]:
    r"""Samples posteriors of stationary Gaussian fields, and compares them with the exact ones; see :func:`figures`."""
    for case in cases(images, seed):
        result, sampled = case.solve(method, steps, seed)
        run = result.diagnostics
        assert run.ess is not None
        found = case.figures(sampled) | {
            "R-hat": float("nan") if run.rhat is None else float(run.rhat.max()),
            "ESS": float(run.ess.min()),
        }
        yield Row.of(result, case.suite, case.problem, found, BARS)


def cases(images: int, seed: int, sides: Sequence[int] | None = None) -> Iterator[Case]:
    r"""Yields fields of each of `sides`, by default `SIDES`, under each operator."""
    for side in SIDES if sides is None else sides:
        field = gaussian_field(side)
        x = field.sample(images, seed=seed)
        for name, sigma in PROBLEMS.items():
            operator = make_operator(name, side)
            clean = operator.A(x)
            noise = torch.randn(clean.shape, generator=generator(seed, "verify", name), dtype=x.dtype)
            y = clean + sigma * noise * (operator.A(torch.ones_like(x)) != 0)
            judge = partial(figures, field.posterior(operator, y, sigma), seed)
            yield Case(
                "gaussian", f"{name} {side}x{side}", operator, field, x, y, sigma, "posterior", None, judge, draws=128
            )


def figures(exact: GaussianPosterior, seed: int, sampled: Sampled) -> dict[str, float]:
    r"""Compares what a sampler gave with a Gaussian posterior.

    The figures are the root mean square error of the mean in posterior standard deviations, beside that of as many
    independent draws as these are worth; the mean ratio of standard deviations; and the 2-Wasserstein distance of the
    Gaussians with the moments of draws and posterior,

    .. math:: W_2^2 = \|m_1 - m_2\|^2 + \mathrm{tr}\left(C_1 + C_2
              - 2 (C_1^{1/2} C_2 C_1^{1/2})^{1/2}\right),

    in units of :math:`\sqrt{\mathrm{tr}\, C}`, again beside that of as many independent draws. Both distances take the
    draws of the first image alone.
    """
    mean, scale = exact.mean[0].flatten(), exact.covariance.trace().sqrt()
    free = exact.sample(max(2, int(sampled.worth[0])), seed=seed)[:, 0].flatten(1)
    draws = sampled.draws[:, :, 0].flatten(2).flatten(0, 1)
    return {
        "mean error": float(((sampled.mean - exact.mean) / exact.std).square().mean().sqrt()),
        "mean exact": float((1 / sampled.worth).mean().sqrt()),
        "std ratio": float((sampled.std / exact.std).mean()),
        "W2": float(wasserstein(draws, mean, exact.covariance) / scale),
        "W2 exact": float(wasserstein(free, mean, exact.covariance) / scale),
    }


def gaussian_field(side: int) -> GaussianPrior:
    r"""Returns a field of `side` x `side` pixels with covariance :math:`0.05\, e^{-h / 2}` at periodic distance `h`."""
    ticks = torch.arange(float(side), dtype=torch.float64)
    lag = torch.minimum(ticks, side - ticks)
    kernel = 0.05 * torch.exp(-(lag[:, None].square() + lag.square()).sqrt() / 2)
    return GaussianPrior.stationary(torch.full((1, side, side), 0.5, dtype=torch.float64), kernel[None])


def make_operator(name: str, side: int):  # type: ignore[no-untyped-def]
    r"""Returns an operator of deepinv on `side` x `side` pixels."""
    import deepinv as dinv

    shape, random = (1, side, side), generator("verify", name, side)
    if name == "denoising":
        return dinv.physics.Denoising()
    if name == "inpainting":
        mask = (torch.rand(shape, generator=random) < 0.5).double()
        return dinv.physics.Inpainting(shape, mask=mask)
    if name == "blur":
        row = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64)
        return dinv.physics.BlurFFT(shape, filter=(row[:, None] * row)[None, None] / 16)
    count = side**2
    matrix = torch.randn(count // 2, count, generator=random, dtype=torch.float64) / count**0.5
    return as_operator(matrix, shape=shape)


def wasserstein(draws: Tensor, mean: Tensor, covariance: Tensor) -> Tensor:
    r"""Returns the 2-Wasserstein distance of a Gaussian and of the one with the moments of draws `(N, d)`."""
    root = _root(covariance)
    cross = _root(root @ torch.cov(draws.mT) @ root)
    trace = torch.cov(draws.mT).trace() + covariance.trace() - 2 * cross.trace()
    return ((draws.mean(0) - mean).square().sum() + trace).clamp(min=0).sqrt()


def _root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors * values.clamp(min=0).sqrt() @ vectors.mT
