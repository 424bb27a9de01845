r"""deepinv's diffusion samplers with the matched denoiser.

They run as their makers give them. DPS comes twice: of weight 1, as it is, and of the weight that a Gaussian
likelihood asks for. Every seed goes to a generator of its own or to the global one, which is put back as it was:
deepinv's `seed=0` means none.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from emprior._noise import generator
from emprior._types import Image
from emprior.bench.methods.base import Answer, Method, Models, Settings, Task, isolated, paced
from emprior.operators import observed

CG = 3
"""The derivatives of the denoiser that moment matching takes beside its own, in steps of conjugate gradients."""


def dps(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DPS`, guided by the gradient of :math:`w \|y - A D\|`."""
    return _dps(task, models, samples, seed, int(settings["steps"]), settings["weight"])


def dps_likelihood(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DPS` of weight :math:`w \sqrt{m} / \sigma`.

    The gradient of :math:`\|y - A D\|` times :math:`\sqrt{m} / \sigma` is that of the likelihood where the residual is
    that of the noise, :math:`\sigma \sqrt{m}`.
    """
    physics = task.physics()
    count = float(observed(physics, physics.A_adjoint(task.y[:1])).sum())
    weight = settings["weight"] * math.sqrt(count) / task.sigma
    return _dps(task, models, samples, seed, int(settings["steps"]), weight)


def diffpir(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DiffPIR`, whose data term must not know the noise that it is told by itself."""
    import deepinv as dinv

    physics, y = task.physics(), task.rows(samples)
    sampler = dinv.sampling.DiffPIR(
        models.denoiser, dinv.optim.L2(), sigma=task.sigma, max_iter=int(settings["steps"]), zeta=settings["zeta"],
        lambda_=settings["lambda"], device=y.device,
    )  # fmt: skip
    with isolated(seed, "deepinv-diffpir", y.device):
        return Answer.drawn(sampler(y, physics, x_init=physics.A_adjoint(y)).to(y), samples)


def ddrm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.sampling.DDRM`, which halves the variance of the noise that it adds.

    Raises:
        TypeError: The singular values of the operator are unknown.
    """
    import deepinv as dinv

    physics, y = task.physics(), task.rows(samples)
    if not isinstance(physics, dinv.physics.DecomposablePhysics):
        kind = type(physics).__name__
        raise TypeError(f"DDRM needs the singular values of the operator, a DecomposablePhysics, and got a {kind}.")
    levels = np.linspace(1, 0, int(settings["steps"]))
    sampler = dinv.sampling.DDRM(models.denoiser, sigmas=levels, eta=settings["eta"], etab=settings["eta_b"])
    with isolated(seed, "deepinv-ddrm", y.device):
        return Answer.drawn(sampler(y, physics).to(y), samples)


def pigdm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The diffusion of `deepinv.sampling.PiGDMDataFidelity`."""
    import deepinv as dinv

    return _diffusion(dinv.sampling.PiGDMDataFidelity(weight=settings["weight"]), task, models, samples, seed, settings)


def moment_matching(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The diffusion of `deepinv.sampling.MomentMatchingDataFidelity`."""
    import deepinv as dinv

    data = dinv.sampling.MomentMatchingDataFidelity(weight=settings["weight"], cg_max_iter=CG)
    return _diffusion(data, task, models, samples, seed, settings)


def ald(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""The diffusion of `deepinv.sampling.ALDDataFidelity`."""
    from deepinv.sampling.noisy_datafidelity import ALDDataFidelity

    return _diffusion(ALDDataFidelity(weight=settings["weight"]), task, models, samples, seed, settings)


def _dps(task: Task, models: Models, samples: int, seed: int, steps: int, weight: float) -> Answer:
    import deepinv as dinv

    physics, y = task.physics(), task.rows(samples)
    random = generator(seed, "deepinv-dps", device=y.device)
    sampler = dinv.sampling.DPS(models.denoiser, weight=weight, num_steps=steps + 1, rng=random, device=y.device)
    return Answer.drawn(sampler(y, physics, x_init=_shape(task, y)).to(y), samples)


def _diffusion(data: Any, task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Runs the schedule and the solver that DPS comes with, under another guidance."""
    from deepinv.sampling import DDPMSolver, PosteriorDiffusion, VariancePreservingDiffusion

    physics, y = task.physics(), task.rows(samples)
    times = torch.linspace(1, 0, int(settings["steps"]) + 1, dtype=torch.float64, device=y.device)
    solver = DDPMSolver(times, rng=generator(seed, type(data).__name__, device=y.device))
    path = VariancePreservingDiffusion(alpha=1.0, device=y.device)
    sampler = PosteriorDiffusion(data, models.denoiser, path, solver, device=y.device)
    return Answer.drawn(sampler(y, physics, x_init=_shape(task, y)).to(y), samples)


def _shape(task: Task, y: Image) -> tuple[int, ...]:
    return (len(y), *task.shape)


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
