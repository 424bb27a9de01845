r"""deepinv's samplers with the exact denoiser, in the same table.

They run as their makers give them, but for what their documentation leaves to the user: the step and the denoiser's
noise of Langevin samplers, and for DPS both its own weight and the one that a Gaussian likelihood asks for. Each draw
is a run of its own, so that the statistics of deepinv's chains, which count the initial state, are not asked for.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emprior._noise import derive_seed, generator
from emprior._types import Image
from emprior.energy import Prior
from emprior.interop import as_denoiser
from emprior.operators import cast, observed, without_noise
from emprior.verify.row import Case, Row, Sampled

if TYPE_CHECKING:
    from deepinv.models import Denoiser
    from deepinv.physics import Physics

SMOOTHING = 0.02
"""The noise of the denoiser whose score Langevin samplers take for the prior's."""

LANGEVIN, SKROCK, DIFFUSION = 2000, 200, 1000
"""The iterations of ULA, of SK-ROCK and of a diffusion."""

Peer = Callable[["Denoiser", "Physics", Tensor, int], Image]
"""Maps a denoiser, an operator with its noise, measurements `(N, *measured)` and a seed to a draw for each."""


def peers(names: Iterable[str], cases: Iterable[Case], seed: int) -> Iterator[Row]:
    r"""Yields a row without bars for each case and peer; one that fails says why.

    Arguments:
        names: Names of `PEERS`.
        cases: The problems.
        seed: The seed of the draws.
    """
    for case in cases:
        for name in names:
            yield _row(name, case, seed)


def sample(
    name: str, operator: Physics, y: Tensor, sigma: float, prior: Prior, samples: int, seed: int
) -> tuple[Tensor, int]:
    r"""Returns draws of a peer, `(S, B, *shape)`, and its calls of the exact denoiser for each draw.

    All is in single precision, in which deepinv's diffusions ask their denoiser whatever they are given.

    Arguments:
        name: A name of `PEERS`.
        operator: A linear operator without a noise model.
        y: The measurements, `(B, *measured)`.
        sigma: The standard deviation of the noise.
        prior: The prior, whose `denoise` is the denoiser.
        samples: The number of draws `S`.
        seed: The seed; the global generator, which deepinv draws from, is put back as it was.

    Raises:
        Exception: Whatever deepinv raises where it cannot treat the operator.
    """
    import deepinv as dinv

    rows = y.float().repeat(samples, *(1,) * (y.ndim - 1))
    denoiser, calls = as_denoiser(copy.deepcopy(prior).to(rows)), []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    physics = without_noise(cast(operator, rows))
    physics.noise_model = dinv.physics.GaussianNoise(sigma)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "peer", name))
        x = PEERS[name](denoiser, physics, rows, seed)
    return x.detach().unflatten(0, (samples, len(y))).to(y), len(calls)


def _row(name: str, case: Case, seed: int) -> Row:
    start = time.perf_counter()
    figures: dict[str, float] = {}
    calls, status = 0, "sampled"
    try:
        draws, calls = sample(name, case.operator, case.y, case.sigma, case.prior, case.draws, seed)
        lost = 1 - float(draws.flatten(2).isfinite().all(2).double().mean())
        verdict = f"{lost:.0%} of the draws are not finite" if lost else "no figure of its own"
        status = "failed" if lost else status
        figures = {} if lost else case.figures(Sampled.independent(draws))
    except Exception as error:
        status, verdict = "failed", f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
    return Row(case.suite, case.problem, name, figures, {}, status, verdict, calls, time.perf_counter() - start)


def _lipschitz(physics: Physics, y: Tensor) -> float:
    r"""Returns :math:`\|A\|^2 / \sigma^2 + 1 / s^2`, a bound of the curvature where the prior is smoothed by `s`."""
    return (
        float(physics.compute_sqnorm(physics.A_adjoint(y[:1]), verbose=False)) / _sigma(physics) ** 2 + 1 / SMOOTHING**2
    )


def _sigma(physics: Physics) -> float:
    return float(physics.noise_model.sigma)


def _chain(sampler: Any, physics: Physics, y: Tensor) -> Image:
    sampler.sample(y, physics)
    return sampler.get_chain()[-1]["x"]


def ula(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The last states of chains of `deepinv.sampling.ULA`, of half the largest stable step."""
    import deepinv as dinv

    score, data = dinv.optim.ScorePrior(denoiser), dinv.optim.L2(sigma=_sigma(physics))
    sampler = dinv.sampling.ULA(
        score, data, step_size=1 / _lipschitz(physics, y), sigma=SMOOTHING, max_iter=LANGEVIN, thinning=1,
        save_chain=1, clip=None,
    )  # fmt: skip
    return _chain(sampler, physics, y)


def skrock(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The last states of chains of `deepinv.sampling.SKRock`, of a quarter of the largest stable step.

    With `s = 10` inner iterations and damping :math:`\eta = 0.05` that is
    :math:`((s - 1/2)^2 (2 - 4 \eta / 3) - 3/2) / L`.
    """
    import deepinv as dinv

    score, data = dinv.optim.ScorePrior(denoiser), dinv.optim.L2(sigma=_sigma(physics))
    largest = (9.5**2 * (2 - 4 * 0.05 / 3) - 1.5) / _lipschitz(physics, y)
    sampler = dinv.sampling.SKRock(
        score, data, step_size=largest / 4, sigma=SMOOTHING, max_iter=SKROCK, thinning=1, save_chain=1, clip=None
    )
    return _chain(sampler, physics, y)


def dps(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""`deepinv.sampling.DPS` as it comes, of weight 1."""
    return _dps(denoiser, physics, y, seed, 1.0)


def dps_weighted(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""`deepinv.sampling.DPS` of weight :math:`\sqrt{m} / \sigma`.

    Its guidance is the gradient of :math:`\|y - A D\|`, and that of the likelihood is that of
    :math:`\|y - A D\|^2 / 2 \sigma^2`. They agree where the residual is that of the noise, :math:`\sigma \sqrt{m}`.
    """
    count = float(observed(physics, physics.A_adjoint(y[:1])).sum())
    return _dps(denoiser, physics, y, seed, math.sqrt(count) / _sigma(physics))


def diffpir(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""`deepinv.sampling.DiffPIR`, whose data term must not know the noise that it is told by itself."""
    import deepinv as dinv

    return dinv.sampling.DiffPIR(denoiser, dinv.optim.L2(), sigma=_sigma(physics))(y, physics)


def ddrm(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""`deepinv.sampling.DDRM`, which halves the variance of the noise that it adds.

    Raises:
        TypeError: The singular values of the operator are unknown.
    """
    import deepinv as dinv

    if not isinstance(physics, dinv.physics.DecomposablePhysics):
        kind = type(physics).__name__
        raise TypeError(f"DDRM needs the singular values of the operator, a DecomposablePhysics, and got a {kind}.")
    return dinv.sampling.DDRM(denoiser)(y, physics)


def pigdm(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The diffusion of `deepinv.sampling.PiGDMDataFidelity`."""
    import deepinv as dinv

    return _diffusion(dinv.sampling.PiGDMDataFidelity(), denoiser, physics, y, seed)


def moment_matching(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The diffusion of `deepinv.sampling.MomentMatchingDataFidelity`."""
    import deepinv as dinv

    return _diffusion(dinv.sampling.MomentMatchingDataFidelity(), denoiser, physics, y, seed)


def _dps(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int, weight: float) -> Image:
    import deepinv as dinv

    sampler = dinv.sampling.DPS(denoiser, weight=weight, num_steps=DIFFUSION, rng=generator(seed, "dps", weight))
    return sampler(y, physics, x_init=physics.A_adjoint(y).shape)


def _diffusion(data: Any, denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""Runs the schedule and the solver that DPS comes with, under another guidance."""
    from deepinv.sampling import DDPMSolver, PosteriorDiffusion, VariancePreservingDiffusion

    times = torch.linspace(1, 0, DIFFUSION, dtype=torch.float64)
    solver = DDPMSolver(times, rng=generator(seed, type(data).__name__))
    sampler = PosteriorDiffusion(data, denoiser, VariancePreservingDiffusion(alpha=1.0), solver)
    return sampler(y, physics, x_init=physics.A_adjoint(y).shape)


PEERS: dict[str, Peer] = {
    "deepinv-ula": ula,
    "deepinv-skrock": skrock,
    "deepinv-dps": dps,
    "deepinv-dps-weighted": dps_weighted,
    "deepinv-diffpir": diffpir,
    "deepinv-ddrm": ddrm,
    "deepinv-pigdm": pigdm,
    "deepinv-moments": moment_matching,
}
