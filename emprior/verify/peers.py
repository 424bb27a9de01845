r"""deepinv's samplers with the exact denoiser, in the same table.

They run as their makers give them, but for what their documentation leaves to the user: the step and the denoiser's
noise of Langevin samplers, and for DPS both its own weight and the one that a Gaussian likelihood asks for. Each draw
is a run of its own, so that the statistics of deepinv's chains, which count the initial state, are not asked for.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from torch import Tensor

from emprior import peers as of_deepinv
from emprior._noise import derive_seed
from emprior._types import Image
from emprior.energy import Prior
from emprior.interop import as_denoiser
from emprior.operators import cast, without_noise
from emprior.verify.row import Case, Row, Sampled

if TYPE_CHECKING:
    from deepinv.models import Denoiser
    from deepinv.physics import Physics

SMOOTHING = 0.02
"""The noise of the denoiser whose score Langevin samplers take for the prior's."""

LANGEVIN, SKROCK, DIFFUSION = 2000, 200, 999
"""The iterations of ULA, of SK-ROCK and of a guided diffusion."""

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
        seed: The seed; the global generator is left as it was.

    Raises:
        Exception: Whatever deepinv raises where it cannot treat the operator.
    """
    import deepinv as dinv

    rows = y.float().repeat(samples, *(1,) * (y.ndim - 1))
    denoiser, calls = as_denoiser(copy.deepcopy(prior).to(rows)), []
    denoiser.register_forward_hook(lambda *_: calls.append(1))
    physics = without_noise(cast(operator, rows))
    physics.noise_model = dinv.physics.GaussianNoise(sigma)
    x = PEERS[name](denoiser, physics, rows, derive_seed(seed, "peer", name))
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


def ula(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The last states of chains of ULA, of half the largest stable step."""
    return of_deepinv.ula(denoiser, physics, y, seed, steps=LANGEVIN, smoothing=SMOOTHING)


def skrock(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The last states of chains of SK-ROCK, of a quarter of the largest stable step."""
    return of_deepinv.skrock(denoiser, physics, y, seed, steps=SKROCK, smoothing=SMOOTHING)


def dps(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""DPS as it comes, of weight 1."""
    return of_deepinv.dps(denoiser, physics, y, seed, steps=DIFFUSION)


def dps_weighted(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""DPS of the weight of the likelihood."""
    weight = of_deepinv.likelihood_weight(physics, y)
    return of_deepinv.dps(denoiser, physics, y, seed, steps=DIFFUSION, weight=weight)


def pigdm(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The diffusion that is guided through the pseudo-inverse."""
    return of_deepinv.pigdm(denoiser, physics, y, seed, steps=DIFFUSION)


def moment_matching(denoiser: Denoiser, physics: Physics, y: Tensor, seed: int) -> Image:
    r"""The diffusion that is guided by the moments of the clean image."""
    return of_deepinv.moment_matching(denoiser, physics, y, seed, steps=DIFFUSION)


PEERS: dict[str, Peer] = {
    "deepinv-ula": ula,
    "deepinv-skrock": skrock,
    "deepinv-dps": dps,
    "deepinv-dps-weighted": dps_weighted,
    "deepinv-diffpir": of_deepinv.diffpir,
    "deepinv-ddrm": of_deepinv.ddrm,
    "deepinv-pigdm": pigdm,
    "deepinv-moments": moment_matching,
}
