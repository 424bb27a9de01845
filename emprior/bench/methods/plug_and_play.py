r"""Optimisation with the matched denoiser in place of a proximal step or of a score."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._types import Image
from emprior.bench.methods.base import Answer, Method, Models, Settings, Task, isolated, paced, paced_once
from emprior.bench.methods.diffusion import trained_levels

if TYPE_CHECKING:
    from deepinv.physics import Physics

MOMENTA = (0.9, 0.99)
"""The decay of the averages of Adam in RED-diff."""


def dpir(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""`deepinv.optim.DPIR`, eight half-quadratic steps under falling noise."""
    import deepinv as dinv

    solver = dinv.optim.DPIR(sigma=task.sigma, denoiser=models.denoiser, device=task.y.device)
    with torch.no_grad():
        return Answer(solver(task.y, task.physics()).to(task.y))


@torch.no_grad()
def proximal_gradient(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Proximal gradient descent with a denoiser of constant noise,

    .. math:: x \leftarrow D\left(x - \gamma A^\top (A x - y), s\right), \qquad \gamma = 1 / \|A\|^2,

    with the noise level `s` the setting `"noise"`.
    """
    physics, x = task.physics(), _start(task)
    step = _step(physics, x)
    for _ in range(int(settings["steps"])):
        x = models.denoiser(x - step * physics.A_adjoint(physics.A(x) - task.y), settings["noise"])
    return Answer(x)


@torch.no_grad()
def flow(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""PnP-Flow: a gradient step, and the mean of the denoiser's estimates along the flow to what it gives,

    .. math:: z = x - \gamma (1 - t)^\alpha A^\top (A x - y), \qquad
              x \leftarrow \frac{1}{K} \sum_k D\left(z + \tfrac{1 - t}{2 t} n_k, \tfrac{1 - t}{2 t}\right),

    with :math:`\gamma = 1 / \|A\|^2` and :math:`t = \frac{1}{N + 1}, \dots, \frac{N}{N + 1}`: at `t = 0` the paper's
    estimate is the mean of all images.
    """
    count, draws = int(settings["steps"]), int(settings["draws"])
    physics, x, noise = task.physics(), _start(task), task.noise(1, seed, "pnp-flow")
    step = _step(physics, x)
    for index in range(1, count + 1):
        t = index / (count + 1)
        level = (1 - t) / (2 * t)
        z = x - step * (1 - t) ** settings["alpha"] * physics.A_adjoint(physics.A(x) - task.y)
        x = sum(models.denoiser(z + level * noise.normal(*task.shape), level) for _ in range(draws)) / draws
    return Answer(x)


@torch.no_grad()
def red_diff(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""RED-diff: the data term and the denoiser's residual under falling noise, descended on by Adam,

    .. math:: g = \frac{1}{m} A^\top (A x - y) + \frac{\lambda}{d} (x - D(x + s n, s)),

    where `m` and `d` are the numbers of measurements and of pixels: the paper's gradient of
    :math:`\lambda \frac{\sigma_t}{\alpha_t} (\hat\epsilon - \epsilon)^\top x`, for images in `[-1, 1]`.
    """
    physics, x, noise = task.physics(), _start(task), task.noise(1, seed, "red-diff")
    first, second = torch.zeros_like(x), torch.zeros_like(x)
    for count, level in enumerate(trained_levels(int(settings["steps"])), 1):
        n = noise.normal(*task.shape)
        gradient = red_gradient(physics, models, x, task.y, n, level, settings["lambda"])
        first = first.lerp(gradient, 1 - MOMENTA[0])
        second = second.lerp(gradient.square(), 1 - MOMENTA[1])
        unbiased = second.div(1 - MOMENTA[1] ** count).sqrt() + 1e-8
        x = x - settings["rate"] / 2 * first.div(1 - MOMENTA[0] ** count) / unbiased
    return Answer(x)


def red_gradient(
    physics: Physics, models: Models, x: Image, y: Tensor, n: Tensor, level: float, weight: float
) -> Image:
    r"""Returns the gradient that RED-diff descends along, given the noise `n` and its level."""
    data = physics.A_adjoint(physics.A(x) - y) / y[0].numel()
    return data + weight / x[0].numel() * (x - models.denoiser(x + level * n, level))


def _start(task: Task) -> Image:
    r"""Returns gray images fitted to the data."""
    gray = torch.full((len(task.y), *task.shape), 0.5, dtype=task.y.dtype, device=task.y.device)
    return task.fidelity().prox(gray, 1.0)


def _step(physics: Physics, x: Image) -> float:
    r"""Returns :math:`1 / \|A\|^2`, which deepinv finds from a random start."""
    with isolated(0, "norm", x.device):
        return 1 / float(physics.compute_sqnorm(x[:1], verbose=False))


def _draws_within(settings: Settings, samples: int, budget: int) -> Settings:
    return paced(settings, int(settings["draws"]), budget)


METHODS = {
    "pnp-dpir": Method(
        "plug-and-play", dpir, "deepinv",
        "Zhang et al., Plug-and-Play Image Restoration with Deep Denoiser Prior, 2021, "
        "https://arxiv.org/abs/2008.13751",
    ),
    "pnp-pgd": Method(
        "plug-and-play", proximal_gradient, "paper",
        "Kamilov et al., A Plug-and-Play Priors Approach for Solving Nonlinear Imaging Inverse Problems, 2017, "
        "https://doi.org/10.1109/LSP.2017.2763583",
        settings={"steps": 100, "noise": 0.05}, ranges={"noise": (0.01, 0.3)}, within=paced_once,
    ),
    "pnp-flow": Method(
        "plug-and-play", flow, "paper",
        "Martin et al., PnP-Flow: Plug-and-Play Image Restoration with Flow Matching, 2024, "
        "https://arxiv.org/abs/2410.02423",
        settings={"steps": 100, "draws": 5, "alpha": 0.5}, ranges={"alpha": (0.1, 2.0)}, within=_draws_within,
    ),
    "red-diff": Method(
        "point", red_diff, "paper",
        "Mardani et al., A Variational Perspective on Solving Inverse Problems with Diffusion Models, 2023, "
        "https://arxiv.org/abs/2305.04391",
        settings={"steps": 1000, "lambda": 0.25, "rate": 0.1}, ranges={"lambda": (0.02, 3.0)}, within=paced_once,
    ),
}  # fmt: skip
