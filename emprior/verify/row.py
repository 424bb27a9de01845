r"""A problem with a known posterior, what a sampler gave on it, and the line of the table."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from emprior._solve import solve
from emprior._types import Image
from emprior.energy import Prior
from emprior.result import Result
from emprior.verify.path import Path


@dataclass(frozen=True, eq=False)
class Sampled:
    r"""What a sampler gave.

    Arguments:
        mean: The means of the images, `(B, *shape)`.
        std: The standard deviations of their pixels, `(B, *shape)`.
        draws: `K` states of `S` chains, `(K, S, B, *shape)`.
        worth: As how many independent draws these count, `(B,)`.
    """

    mean: Image
    std: Image
    draws: Tensor
    worth: Tensor

    @staticmethod
    def independent(draws: Tensor) -> Sampled:
        r"""Returns draws `(S, B, *shape)` that are worth their number."""
        worth = torch.full(draws.shape[1:2], float(len(draws)))
        return Sampled(draws.mean(0), draws.std(0), draws[None], worth)

    def thinned(self, most: int) -> Tensor:
        r"""Returns at most `most` nearly independent draws of each image, `(L, B, *shape)`.

        Every chain gives the same number of states, evenly apart, and all of them at most half as many as the median
        image has effective draws.
        """
        length, chains = self.draws.shape[:2]
        count = max(1, min(most, int(self.worth.median()) // 2) // chains)
        return self.draws[((torch.arange(count) + 0.5) * length / count).long()].flatten(0, 1)


@dataclass(frozen=True, eq=False)
class Draw:
    r"""Truths drawn from a prior, and their measurements.

    Arguments:
        suite: The suite.
        problem: Its name.
        operator: The operator, a deepinv physics; `sigma` goes before the noise model that it may have.
        prior: The prior that the truths were drawn from.
        x: The truths, `(B, *shape)`.
        y: Their measurements, `(B, *measured)`.
        sigma: The standard deviation of the noise.
        method: The method of emprior that is for it.
        chains: How many chains of it; by default its own.
    """

    suite: str
    problem: str
    operator: Any
    prior: Prior
    x: Image
    y: Tensor
    sigma: float
    method: str
    chains: int | None

    def solve(
        self, method: str | None, steps: int | None, seed: int, chains: int | None = None, most: int = sys.maxsize
    ) -> tuple[Result, Sampled]:
        r"""Runs a method of emprior, by default the one that is for it, and keeps at most so many states of chains."""
        path = Path(most)
        result = solve(
            self.operator, self.y, self.prior, method=method or self.method, steps=steps, sigma=self.sigma, seed=seed,
            samples=chains or self.chains, progress=False, callback=path,
        )  # fmt: skip
        run = result.diagnostics
        assert run.draws is not None
        assert run.ess is not None
        std = torch.full_like(result.mean, float("nan")) if result.std is None else result.std
        return result, Sampled(result.mean, std, torch.stack(path.after(path.last - int(run.draws.max()))), run.ess)


@dataclass(frozen=True, eq=False)
class Case(Draw):
    r"""A problem whose posterior is known.

    Arguments:
        figures: Compares what a sampler gave with the exact posterior.
        draws: How many independent draws the figures ask for.
    """

    figures: Callable[[Sampled], dict[str, float]]
    draws: int


@dataclass(frozen=True)
class Row:
    r"""What a method gave on one problem, beside what it should.

    Arguments:
        suite: The suite.
        problem: The problem.
        method: The method.
        figures: The figures, by name.
        bars: The least and the largest value that a figure should have.
        status: How the run ended.
        verdict: What the run says of itself, of its worst image.
        evaluations: The gradients of the prior, or the calls of the denoiser, for each chain.
        seconds: The wall time.
        prior: The prior that was sampled, if it is not the one that the truths were drawn from.
    """

    suite: str
    problem: str
    method: str
    figures: dict[str, float]
    bars: dict[str, tuple[float, float]]
    status: str
    verdict: str
    evaluations: int
    seconds: float
    prior: str | None = None

    @staticmethod
    def of(
        result: Result,
        suite: str,
        problem: str,
        figures: dict[str, float],
        bars: dict[str, tuple[float, float]],
        prior: str | None = None,
    ) -> Row:
        r"""Returns the row of a result."""
        run = result.diagnostics
        worst = next((line for line in run.verdict if line.startswith("not ")), run.verdict[0])
        method = str(result.config["method"])
        ended = result.status.name.lower()
        return Row(suite, problem, method, figures, bars, ended, worst, run.gradient_evaluations, run.seconds, prior)

    @property
    def failures(self) -> tuple[str, ...]:
        r"""The figures that are out of their bars."""
        return tuple(
            name for name, (low, high) in self.bars.items() if not low <= self.figures.get(name, float("nan")) <= high
        )
