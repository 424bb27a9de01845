r"""deepinv's diffusion samplers with the matched denoiser.

They run as their makers give them. DPS comes twice: of weight 1, as it is, and of the weight that a Gaussian
likelihood asks for.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from functools import partial

from emprior import peers
from emprior._noise import derive_seed
from emprior._types import Image
from emprior.bench.methods.base import Answer, Method, Models, Settings, Task, paced


def dps(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DPS`, guided by the gradient of :math:`w \|y - A D\|`."""
    run = partial(peers.dps, steps=int(settings["steps"]), weight=settings["weight"])
    return _drawn(run, task, models, samples, seed, "deepinv-dps")


def dps_likelihood(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DPS` of `w` times the weight of the likelihood, :math:`\sqrt{m} / \sigma`."""
    weight = settings["weight"] * peers.likelihood_weight(task.physics(), task.y)
    return dps(task, models, samples, seed, {**settings, "weight": weight})


def diffpir(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DiffPIR`."""
    steps, zeta, coupling = int(settings["steps"]), settings["zeta"], settings["lambda"]
    run = partial(peers.diffpir, steps=steps, zeta=zeta, coupling=coupling)
    return _drawn(run, task, models, samples, seed, "bench", "deepinv-diffpir")


def ddrm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DDRM`.

    Raises:
        TypeError: The singular values of the operator are unknown.
    """
    run = partial(peers.ddrm, steps=int(settings["steps"]), eta=settings["eta"], eta_b=settings["eta_b"])
    return _drawn(run, task, models, samples, seed, "bench", "deepinv-ddrm")


def pigdm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The diffusion of `deepinv.sampling.PiGDMDataFidelity`."""
    run = partial(peers.pigdm, steps=int(settings["steps"]), weight=settings["weight"])
    return _drawn(run, task, models, samples, seed, "PiGDMDataFidelity")


def moment_matching(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The diffusion of `deepinv.sampling.MomentMatchingDataFidelity`."""
    run = partial(peers.moment_matching, steps=int(settings["steps"]), weight=settings["weight"])
    return _drawn(run, task, models, samples, seed, "MomentMatchingDataFidelity")


def ald(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The diffusion of `deepinv.sampling.ALDDataFidelity`."""
    run = partial(peers.ald, steps=int(settings["steps"]), weight=settings["weight"])
    return _drawn(run, task, models, samples, seed, "ALDDataFidelity")


def _drawn(run: Callable[..., Image], task: Task, models: Models, samples: int, seed: int, *key: Hashable) -> Answer:
    r"""Returns the draws of a sampler whose seed is that of the run and a key."""
    y = task.rows(samples)
    x = run(models.denoiser, task.physics(), y, derive_seed(seed, *key))
    return Answer.drawn(x.to(y), samples)


STEPS = {"steps": 1000, "weight": 1.0}

METHODS = {
    "deepinv-dps": Method(
        "posterior", dps, "deepinv",
        "Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, 2022, "
        "https://arxiv.org/abs/2209.14687",
        settings=STEPS, ranges={"weight": (0.3, 1000.0)}, within=paced,
    ),
    "deepinv-dps-likelihood": Method(
        "posterior", dps_likelihood, "deepinv",
        "Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, 2022, "
        "https://arxiv.org/abs/2209.14687, weighted as the likelihood of the noise",
        settings=STEPS, ranges={"weight": (0.1, 3.0)}, within=paced,
    ),
    "deepinv-diffpir": Method(
        "posterior", diffpir, "deepinv",
        "Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023, "
        "https://arxiv.org/abs/2305.08995",
        settings={"steps": 100, "lambda": 7.0, "zeta": 0.1},
        ranges={"lambda": (0.5, 50.0), "zeta": (0.05, 1.0)}, within=paced,
    ),
    "deepinv-ddrm": Method(
        "posterior", ddrm, "deepinv",
        "Kawar et al., Denoising Diffusion Restoration Models, 2022, https://arxiv.org/abs/2201.11793",
        settings={"steps": 100, "eta": 0.85, "eta_b": 1.0},
        ranges={"eta": (0.3, 1.0), "eta_b": (0.3, 1.0)}, within=paced,
    ),
    "deepinv-pigdm": Method(
        "posterior", pigdm, "deepinv",
        "Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, 2023, "
        "https://openreview.net/forum?id=9_gsMA8MRKQ",
        settings=STEPS, ranges={"weight": (0.2, 5.0)}, within=paced,
    ),
    "deepinv-moments": Method(
        "posterior", moment_matching, "deepinv",
        "Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, 2024, "
        "https://arxiv.org/abs/2405.13712",
        settings=STEPS, ranges={"weight": (0.2, 5.0)}, within=paced,
    ),
    "deepinv-ald": Method(
        "posterior", ald, "deepinv",
        "Jalal et al., Robust Compressed Sensing MRI with Deep Generative Priors, 2021, "
        "https://arxiv.org/abs/2108.01368",
        settings=STEPS, ranges={"weight": (0.2, 5.0)}, within=paced,
    ),
}  # fmt: skip
