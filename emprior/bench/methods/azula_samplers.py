r"""azula's samplers with the matched denoiser.

azula's images lie in `[-1, 1]`, so that measurements :math:`y = A x + \sigma n` of images in `[0, 1]` become
:math:`2 y - A 1`, linear in :math:`2 x - 1`, with noise :math:`2 \sigma`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emprior._types import Image
from emprior.bench.methods.base import Answer, Method, Models, Settings, Task, isolated, paced

if TYPE_CHECKING:
    from deepinv.physics import Physics


@dataclass(frozen=True, eq=False)
class Data:
    r"""Measurements in azula's units. Images and measurements are vectors, for its solvers take dot products of these.

    Arguments:
        y: The measurements, `(N, m)`.
        var: The variance of their noise.
        physics: The operator.
        shape: The shape of one image.
        measured: The shape of the measurements of one image.
    """

    y: Tensor
    var: float
    physics: Physics
    shape: tuple[int, ...]
    measured: tuple[int, ...]

    @staticmethod
    def of(task: Task, samples: int) -> Data:
        r"""Returns the measurements of `S` samples of each image."""
        physics, y = task.physics(), task.rows(samples)
        ones = torch.ones((1, *task.shape), dtype=y.dtype, device=y.device)
        return Data((2 * y - physics.A(ones)).flatten(1), 4 * task.sigma**2, physics, task.shape, tuple(y.shape[1:]))

    def map(self, x: Tensor) -> Tensor:
        r"""Returns :math:`A x`, `(N, m)`, of images `(N, d)`."""
        return self.physics.A(x.unflatten(1, self.shape)).flatten(1)

    def invert(self, y: Tensor) -> Tensor:
        r"""Returns :math:`A^\dagger y`, `(N, d)`."""
        return self.physics.A_dagger(y.unflatten(1, self.measured)).flatten(1)

    def run(self, sampler: Any) -> Image:
        r"""Returns what a sampler makes of noise, one image in `[0, 1]` for each row of the measurements."""
        x = sampler(sampler.init((len(self.y), math.prod(self.shape)), device=self.y.device))
        return (x.unflatten(1, self.shape) + 1) / 2

    def row(self, index: int) -> Data:
        r"""Returns one row."""
        return replace(self, y=self.y[index : index + 1])


def dps(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`azula.guidance.dps.DPSSampler`, row by row: it divides the guidance by the residual of the whole batch."""
    from azula.guidance.dps import DPSSampler

    data, denoiser = Data.of(task, samples), _denoiser(models, task)
    with _ready(seed, "azula-dps", data):
        rows = []
        for index in range(len(data.y)):
            part = data.row(index)
            sampler = DPSSampler(denoiser, part.y, part.map, zeta=settings["zeta"], **_schedule(settings))
            rows.append(part.run(sampler))
    return Answer.drawn(torch.cat(rows), samples)


def pgdm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`azula.guidance.pgdm.PGDMSampler`, for measurements without noise."""
    from azula.guidance.pgdm import PGDMSampler

    data = Data.of(task, samples)
    with _ready(seed, "azula-pgdm", data):
        sampler = PGDMSampler(_denoiser(models, task), data.y, data.map, data.invert, **_schedule(settings), eta=1.0)
        return Answer.drawn(data.run(sampler), samples)


def tmpd(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`azula.guidance.tmpd.TMPDenoiser`, whose covariance is the sum of each row of the one of the data."""
    from azula.guidance.tmpd import TMPDenoiser

    data = Data.of(task, samples)
    return _guided(
        TMPDenoiser(_denoiser(models, task), data.y, data.map, data.var), data, task, samples, seed, settings
    )


def mmps(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`azula.guidance.mmps.MMPSDenoiser`, whose covariance is solved by a few iterations."""
    from azula.guidance.mmps import MMPSDenoiser
    from azula.linalg.covariance import IsotropicCovariance

    data = Data.of(task, samples)
    noise, inner = IsotropicCovariance(data.var), int(settings["iterations"])
    guided = MMPSDenoiser(_denoiser(models, task), data.y, data.map, noise, iterations=inner)
    return _guided(guided, data, task, samples, seed, settings)


def diffpir(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`azula.guidance.diffpir.DiffPIRDenoiser`, with conjugate gradients for its proximal step."""
    from azula.guidance.diffpir import DiffPIRDenoiser

    data = Data.of(task, samples)
    guided = DiffPIRDenoiser(
        _denoiser(models, task), data.y, data.map, data.var, settings["lambda"], "cg", int(settings["iterations"])
    )
    return _guided(guided, data, task, samples, seed, settings)


def repaint(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`azula.guidance.repaint.RePaintSampler`, for pixels that are missing and others without noise.

    Raises:
        TypeError: The operator is not inpainting.
    """
    from azula.guidance.repaint import RePaintSampler
    from deepinv.physics import Inpainting

    data = Data.of(task, samples)
    if not isinstance(data.physics, Inpainting):
        raise TypeError(f"RePaint fills in missing pixels, an Inpainting operator, and got {_kind(data.physics)}.")
    mask = data.physics.mask.bool().expand(len(data.y), *task.shape).flatten(1)
    with _ready(seed, "azula-repaint", data):
        sampler = RePaintSampler(
            _denoiser(models, task), data.y, mask, int(settings["iterations"]),
            **_schedule(settings), eta=1.0,
        )  # fmt: skip
        return Answer.drawn(data.run(sampler), samples)


def _guided(guided: Any, data: Data, task: Task, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Runs ancestral sampling with a denoiser that knows the measurements."""
    from azula.sample import DDPMSampler

    with _ready(seed, type(guided).__name__, data):
        sampler = DDPMSampler(guided, **_schedule(settings))
        return Answer.drawn(data.run(sampler), samples)


def _schedule(settings: Settings) -> dict[str, Any]:
    return {"steps": int(settings["steps"]), "silent": True}


def _ready(seed: int, name: str, data: Data) -> Any:
    return isolated(seed, name, data.y.device)


def _kind(physics: Physics) -> str:
    return type(physics).__name__


def _denoiser(models: Models, task: Task) -> Any:
    from azula.noise import VPSchedule

    return _denoiser_class()(models.denoiser, task.shape, VPSchedule())


@functools.cache
def _denoiser_class() -> type:
    from azula.denoise import Denoiser, DiracPosterior

    class Wrapped(Denoiser):
        r"""A denoiser in public units, for vectors :math:`x_t = \alpha_t (2 x - 1) + \sigma_t n`."""

        def __init__(self, denoiser: Callable[..., Tensor], shape: tuple[int, ...], schedule: Any) -> None:
            super().__init__()
            self.denoiser, self.shape, self.schedule = denoiser, shape, schedule

        def forward(self, x_t: Tensor, t: Tensor, **kwargs: Any) -> Any:
            alpha, sigma = self.schedule(t)
            noisy = ((x_t / alpha + 1) / 2).unflatten(1, self.shape)
            clean = self.denoiser(noisy, sigma / (2 * alpha))
            return DiracPosterior(mean=2 * clean.flatten(1) - 1)

    return Wrapped


METHODS = {
    "azula-dps": Method(
        "posterior", dps, "azula",
        "Chung et al., Diffusion Posterior Sampling for General Noisy Inverse Problems, 2022, "
        "https://arxiv.org/abs/2209.14687",
        settings={"steps": 64, "zeta": 1.0}, ranges={"zeta": (0.05, 5.0)}, within=paced,
    ),
    "azula-pgdm": Method(
        "posterior", pgdm, "azula",
        "Song et al., Pseudoinverse-Guided Diffusion Models for Inverse Problems, 2023, "
        "https://openreview.net/forum?id=9_gsMA8MRKQ",
        settings={"steps": 64}, ranges={"steps": (16, 256)}, within=paced,
    ),
    "azula-tmpd": Method(
        "posterior", tmpd, "azula",
        "Boys et al., Tweedie Moment Projected Diffusions for Inverse Problems, 2023, "
        "https://arxiv.org/abs/2310.06721",
        settings={"steps": 64}, ranges={"steps": (16, 256)}, within=paced,
    ),
    "azula-mmps": Method(
        "posterior", mmps, "azula",
        "Rozet et al., Learning Diffusion Priors from Observations by Expectation Maximization, 2024, "
        "https://arxiv.org/abs/2405.13712",
        settings={"steps": 64, "iterations": 1}, ranges={"iterations": (1, 5), "steps": (16, 256)}, within=paced,
    ),
    "azula-diffpir": Method(
        "posterior", diffpir, "azula",
        "Zhu et al., Denoising Diffusion Models for Plug-and-Play Image Restoration, 2023, "
        "https://arxiv.org/abs/2305.08995",
        settings={"steps": 64, "lambda": 10.0, "iterations": 5}, ranges={"lambda": (1.0, 100.0)}, within=paced,
    ),
    "azula-repaint": Method(
        "posterior", repaint, "azula",
        "Lugmayr et al., RePaint: Inpainting using Denoising Diffusion Probabilistic Models, 2022, "
        "https://arxiv.org/abs/2201.09865",
        settings={"steps": 64, "iterations": 3}, ranges={"iterations": (1, 10), "steps": (16, 128)},
        within=lambda settings, samples, budget: paced(settings, samples * int(settings["iterations"]), budget),
    ),
}  # fmt: skip
