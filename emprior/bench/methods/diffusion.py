r"""Diffusion samplers that no package here has, written from their papers.

They run in public units on :math:`x_\sigma = x + \sigma n`, into which the papers' variance-preserving paths of images
in `[-1, 1]` turn by division by the signal's scale and by two.
"""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import Image
from emprior.bench.methods.base import Answer, Method, Models, Settings, Task, paced
from emprior.fidelity import GaussianFidelity
from emprior.operators import cast, without_noise
from emprior.solvers.metric import LARGEST

if TYPE_CHECKING:
    from deepinv.physics import Physics

BETAS, TIMES = (1e-4, 0.02), 1000
"""The first and the last variance of a diffusion of so many steps, on which the papers' networks were trained."""

WIDEST, POWER = 50.0, 7.0
"""The largest noise of DAPS and PnP-DM, and the power in which their levels are evenly spaced."""

UNSEEN = 1e-6
"""The singular value, in the largest, at which a direction is not measured."""

END = 0.005
"""The noise at which a reverse diffusion ends with a clean estimate."""


@torch.no_grad()
def ddnm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Null-space diffusion, which puts what was measured in place of what the denoiser thinks of it,

    .. math:: \hat{x} = D - A^\dagger_k (A D - y), \qquad
              x_{k + 1} = \hat{x} + V \mathrm{diag}(\gamma_k)^{1/2} V^\top
              \left(\eta\, n + \sqrt{1 - \eta^2}\, \frac{x_k - D}{\sigma_k}\right),

    with :math:`A^\dagger_k = V \mathrm{diag}(\lambda_k / d^2) V^\top A^\top` the pseudo-inverse, of which a direction
    of singular value :math:`d` has the share :math:`\lambda_k = \min(1, d\, \sigma_{k + 1} / \sigma)`, and
    :math:`\gamma_k = \sigma_{k + 1}^2 - \lambda_k^2 \sigma^2 / d^2`, so that the noise of the measurements is part of
    that of the diffusion; :math:`\gamma_k = \sigma_{k + 1}^2` in directions that are not measured.
    """
    noise, physics, y = task.noise(samples, seed, "ddnm"), task.physics(), task.rows(samples)
    levels = [*trained_levels(int(settings["steps"])), 0.0]
    eta, x = settings["eta"], levels[0] * noise.normal(*task.shape) + 0.5
    basis, values = directions(task.operator, task.shape, x.dtype, x.device)
    seen = values > UNSEEN * values.max()

    def turned(rows: Image, factors: Tensor) -> Image:
        return ((rows.flatten(1) @ basis) * factors @ basis.mT).reshape(rows.shape)

    for level, after in pairwise(levels):
        clean = models.denoiser(x, level)
        share = torch.where(seen, (values * after / task.sigma).clamp(max=1) / values.square(), 0.0)
        spread = (after**2 - (share * values * task.sigma) ** 2).clamp(min=0).sqrt()
        fresh = eta * noise.normal(*task.shape) + (1 - eta**2) ** 0.5 * (x - clean) / level
        x = clean - turned(physics.A_adjoint(physics.A(clean) - y), share) + turned(fresh, spread)
    return Answer.drawn(x, samples)


@lru_cache(maxsize=1)
def directions(
    operator: Physics, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    r"""Returns the right singular vectors of an operator, in columns `(d, d)`, and its singular values, `(d,)`.

    Raises:
        ValueError: The operator is not linear, is another for each image, or maps images that are too large.
    """
    pixels = math.prod(shape)
    if pixels > LARGEST:
        raise ValueError(f"DDNM holds a matrix of all {pixels} pixels, and {LARGEST} are the most. Leave out ddnm.")
    x = torch.zeros(1, *shape, dtype=dtype, device=device)
    quiet = without_noise(cast(operator, x))
    square = GaussianFidelity(quiet, quiet.A(x), 1.0).hessian(x)
    if square is None:
        raise ValueError(
            "the operator is not linear, or another for each image, and has no singular values. Leave out ddnm."
        )
    values, vectors = torch.linalg.eigh(square)
    return vectors.to(dtype), values.clamp(min=0).sqrt().to(dtype)


@torch.no_grad()
def daps(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Decoupled annealing: a clean guess, a draw of the image given guess and measurements, and noise anew,

    .. math:: \hat{x} = \mathrm{ODE}(x_k, \sigma_k), \qquad
              x \sim p(x) \propto e^{-\frac{1}{2 \sigma^2} \|y - A x\|^2 - \frac{1}{2 r_k^2} \|x - \hat{x}\|^2}, \qquad
              x_{k + 1} = x + \sigma_{k + 1} n,

    with :math:`r_k = \sigma_k`, which is wider than what is unknown of the image, so that draws spread too far. The
    paper draws by a hundred steps of Langevin; the law is normal under a linear
    operator, and the draw is exact here. The guess is that of the probability flow, in a few Euler steps.
    """
    noise, fidelity = task.noise(samples, seed, "daps"), task.fidelity(samples)
    levels = polynomial(WIDEST, settings["stop"], int(settings["steps"]))
    x = levels[0] * noise.normal(*task.shape) + 0.5
    for level, after in zip(levels, [*levels[1:], 0.0], strict=True):
        guess = probability_flow(models, x, level, int(settings["inner"]))
        x = drawn(fidelity, guess, level**2, noise)
        x = x + after * noise.normal(*task.shape)
    return Answer.drawn(x, samples)


@torch.no_grad()
def pnp_dm(task: Task, models: Models, samples: int, seed: int, settings: Settings) -> Answer:
    r"""Split Gibbs sampling with a diffusion for the prior's part, under a coupling that falls,

    .. math:: z \sim p(z) \propto e^{-\frac{1}{2 \sigma^2} \|y - A z\|^2 - \frac{1}{2 \rho_k^2} \|z - x\|^2}, \qquad
              x \sim p(x) \propto p_\mathrm{prior}(x)\, e^{-\frac{1}{2 \rho_k^2} \|x - z\|^2},

    the first exactly, and the second by the reverse diffusion from `z` at noise :math:`\rho_k`. The law for constant
    :math:`\rho` is the posterior under measurements of noise :math:`\sigma^2 I + \rho^2 A A^\top`.
    """
    noise, fidelity = task.noise(samples, seed, "pnp-dm"), task.fidelity(samples)
    couplings = geometric(settings["start"], settings["stop"], int(settings["steps"]))
    x = torch.full((samples * len(task.y), *task.shape), 0.5, dtype=task.y.dtype, device=task.y.device)
    for coupling in couplings:
        z = drawn(fidelity, x, coupling**2, noise)
        x = reverse_diffusion(models, z, coupling, int(settings["inner"]), noise)
    return Answer.drawn(x, samples)


def drawn(fidelity, u: Image, variance: float, noise: Noise) -> Image:  # type: ignore[no-untyped-def]
    r"""Draws from the product of the likelihood and :math:`\mathcal{N}(u, v I)`, by a perturbed proximal step."""
    shape = u.shape[1:]
    u = u + variance**0.5 * noise.normal(*shape) + variance * fidelity.whiten(noise.normal(*fidelity.measured))
    return fidelity.prox(u, variance)


def probability_flow(models: Models, x: Image, level: float, steps: int) -> Image:
    r"""Returns where :math:`dx = (x - D(x, \sigma)) / \sigma\, d\sigma` leads from a level, in Euler steps."""
    levels = [*polynomial(level, min(END, level), steps), 0.0]
    for level, after in pairwise(levels):
        clean = models.denoiser(x, level)
        x = clean + after / level * (x - clean)
    return x


def reverse_diffusion(models: Models, x: Image, level: float, steps: int, noise: Noise) -> Image:
    r"""Draws a clean image given one under noise, by ancestral steps through falling levels,

    .. math:: x' = D + \frac{\tau^2}{\sigma^2} (x - D) + \tau \sqrt{1 - \tau^2 / \sigma^2}\, n.
    """
    levels = [*polynomial(level, min(END, level), steps), 0.0]
    for level, after in pairwise(levels):
        clean, ratio = models.denoiser(x, level), (after / level) ** 2
        x = clean + ratio * (x - clean) + after * (1 - ratio) ** 0.5 * noise.normal(*x.shape[1:])
    return x


def trained_levels(count: int) -> list[float]:
    r"""Returns noise levels of the papers' diffusions, from the highest, at `count` times evenly apart."""
    kept = (1 - torch.linspace(*BETAS, TIMES, dtype=torch.float64)).cumprod(0)
    levels: Tensor = ((1 - kept) / kept).sqrt() / 2
    return levels[torch.linspace(TIMES - 1, 0, count).round().long()].tolist()


def polynomial(start: float, stop: float, count: int) -> list[float]:
    r"""Returns levels from `start` to `stop`, evenly apart in their seventh root."""
    shares = torch.linspace(0, 1, count, dtype=torch.float64) if count > 1 else torch.zeros(1, dtype=torch.float64)
    roots = start ** (1 / POWER) + shares * (stop ** (1 / POWER) - start ** (1 / POWER))
    return roots.pow(POWER).tolist()


def geometric(start: float, stop: float, count: int) -> list[float]:
    r"""Returns levels from `start` to `stop`, evenly apart in their logarithm."""
    return [start * (stop / start) ** (index / max(1, count - 1)) for index in range(count)]


def _inner_within(settings: Settings, samples: int, budget: int) -> Settings:
    r"""Shares a budget between the levels and the steps within each, at least one."""
    each = max(2, budget // samples)
    inner = min(settings["inner"], max(1, round((each / 4) ** 0.5)))
    return {**settings, "inner": inner, "steps": min(settings["steps"], max(2, each // inner))}


METHODS = {
    "ddnm": Method(
        "posterior", ddnm, "paper",
        "Wang et al., Zero-Shot Image Restoration Using Denoising Diffusion Null-Space Model, 2022, "
        "https://arxiv.org/abs/2212.00490",
        settings={"steps": 100, "eta": 0.85}, ranges={"eta": (0.2, 1.0)}, within=paced,
    ),
    "daps": Method(
        "posterior", daps, "paper",
        "Zhang et al., Improving Diffusion Inverse Problem Solving with Decoupled Noise Annealing, 2024, "
        "https://arxiv.org/abs/2407.01521",
        settings={"steps": 200, "inner": 5, "stop": 0.01}, ranges={"stop": (0.002, 0.05)}, within=_inner_within,
    ),
    "pnp-dm": Method(
        "posterior", pnp_dm, "paper",
        "Wu et al., Principled Probabilistic Imaging using Diffusion Models as Plug-and-Play Priors, 2024, "
        "https://arxiv.org/abs/2405.18782",
        settings={"steps": 50, "inner": 10, "start": 5.0, "stop": 0.02}, ranges={"stop": (0.005, 0.1)},
        within=_inner_within,
    ),
}  # fmt: skip
