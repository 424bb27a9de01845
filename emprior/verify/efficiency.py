r"""What a gradient buys: effective draws of a sampler beside those of the unadjusted Langevin algorithm."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from emprior._noise import Noise, generator
from emprior._types import Image
from emprior.diagnostics import figures as of_trace
from emprior.energy import Posterior
from emprior.fidelity import GaussianFidelity
from emprior.priors.gaussian import GaussianPosterior
from emprior.solvers import METHODS, ULA, Stage, run
from emprior.solvers.curvature import largest_curvature
from emprior.verify.fields import gaussian_field, make_operator
from emprior.verify.row import Row

SIDE, SIGMA, CHAINS, WIDEST = 8, 0.02, 4, 8
"""The side of the fields, the noise, the chains of each sampler, and the directions that are followed."""

PROBLEMS = ("blur", "compressed sensing", "inpainting")
ASKED = PROBLEMS[:2]

STEPS, PLAIN = 4000, 20_000
"""The iterations of the method, burn-in included, unless told; and those of unadjusted Langevin."""

BARS = {"ratio": (10.0, math.inf)}
"""Asked of blur and compressed sensing."""


def efficiency(method: str, steps: int | None, images: int, seed: int) -> Iterator[Row]:
    r"""Compares what a thousand gradients give, by a method and by unadjusted Langevin.

    Both begin at exact draws of the posterior of a Gaussian field. The figures are the least effective sample size
    of the `WIDEST` principal directions of the posterior for a thousand gradients after the burn-in, of the worst
    image, and that of their squared distance from the mean, on which variances rest. Langevin takes 0.95 of its
    largest stable step, :math:`h = 1.9 / L` with `L` the largest curvature, and is forgiven its bias.

    Arguments:
        method: The method.
        steps: Its iterations.
        images: The images of each problem.
        seed: The seed of truths, measurements and chains.
    """
    field = gaussian_field(SIDE)
    for name in PROBLEMS:
        operator = make_operator(name, SIDE)
        clean = operator.A(field.sample(images, seed=seed))
        noise = torch.randn(clean.shape, generator=generator(seed, "efficiency", name), dtype=clean.dtype)
        y = clean + SIGMA * noise * (operator.A(clean.new_ones(1, 1, SIDE, SIDE)) != 0)
        energy, exact = Posterior(GaussianFidelity(operator, y, SIGMA), field), field.posterior(operator, y, SIGMA)
        x = exact.sample(CHAINS, seed=seed).flatten(0, 1)
        plain = Stage(ULA(1.9 / float(largest_curvature(energy, x[:1]) / 1.05)), PLAIN)
        own = METHODS[method].stages(replace(METHODS[method].settings, steps=steps or STEPS))[-1]
        start = time.perf_counter()
        (own_draws, gradients), (langevin, _) = (
            effective_draws(stage, energy, exact, x, seed) for stage in (own, plain)
        )
        figures = {"ESS": own_draws[0], "ESS of ULA": langevin[0], "ratio": own_draws[0] / langevin[0]}
        figures |= {"squares": own_draws[1], "of ULA": langevin[1], "their ratio": own_draws[1] / langevin[1]}
        seconds = time.perf_counter() - start
        yield Row(
            "efficiency", f"{name} {SIDE}x{SIDE}, {SIGMA:g}", method, figures, BARS if name in ASKED else {},
            "sampled", "effective draws for 1,000 gradients", gradients, seconds,
        )  # fmt: skip


def effective_draws(
    stage: Stage, energy: Posterior, exact: GaussianPosterior, x: Image, seed: int
) -> tuple[tuple[float, float], int]:
    r"""Returns how many independent draws 1,000 gradients after the burn-in are worth, and the gradients of each chain.

    The draws are counted for the directions and for their squared distances from the mean.

    Arguments:
        stage: What to run.
        energy: The energy of the posterior.
        exact: Its law, whose `WIDEST` directions are followed.
        x: Draws of it, `CHAINS` rows for each image, `(B, C, H, W)`.
        seed: The seed of the chains.
    """
    widest = torch.linalg.eigh(exact.covariance)[1][:, -WIDEST:]
    path: list[Tensor] = []

    def follow(index: int, rows: Image) -> None:
        if index > stage.burn_in:
            path.append((rows - exact.mean).flatten(2) @ widest)

    images = len(exact.mean)
    noise = Noise([(seed, "efficiency", row) for row in range(len(x))], dtype=x.dtype)
    done = run([stage], energy, x, noise, images, callback=follow)
    along = torch.stack(path).movedim(-1, 0)
    paid = CHAINS * done.evaluations * (stage.steps - stage.burn_in) / stage.steps
    mean, square = (
        1000 * min(float(of_trace(trace).ess.min()) for trace in traces) / paid for traces in (along, along.square())
    )
    return (mean, square), done.evaluations
