r"""Priors inside deepinv's own optimisers and samplers.

`solve` takes deepinv's operators; this is the way back. deepinv is imported only when a function is called.
"""

from __future__ import annotations

import functools
import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage
from emprior.denoiser import NetworkDenoiser
from emprior.energy import Energy, Prior, Scaled, Sum
from emprior.hub import load_network_denoiser
from emprior.result import Status
from emprior.solvers import Descent, Info, Solver, Stage, State, run
from emprior.solvers.descent import DescentState

if TYPE_CHECKING:
    import deepinv

PROX_STEPS, PROX_MEMORY = 500, 20
"""The most iterations of a proximal step (most take far fewer), and the curvature pairs that it keeps."""


def as_deepinv_prior(prior: Prior) -> deepinv.optim.Prior:
    r"""Returns a prior as an explicit deepinv prior.

    Its `fn` is the energy :math:`E(x)` `(B,)`, its `grad` is :math:`\nabla E(x)`, and its proximal step

    .. math:: \mathrm{prox}_{\gamma E}(x) = \arg\min_z \gamma E(z) + \tfrac{1}{2} \|z - x\|^2

    is descended on from `x`, each row by itself, by limited-memory BFGS that never lets the objective
    rise: stiff energies need no small step, where deepinv's own fixed step diverges. If `E` is not
    convex it is a local minimum. The parameter that deepinv hands to its priors, such as the noise level of
    a denoiser, means nothing to an energy and is ignored; :math:`\lambda = 1` is Bayes' rule if the data
    term is `deepinv.optim.L2(sigma)` with the noise's `sigma`.

    `fn` and `grad` can be differentiated, the proximal step cannot.

    Arguments:
        prior: The prior; the module returned holds it, so that `.to(device)` moves both.

    Raises:
        TypeError: It is not an `emprior.energy.Prior`.

    Examples:
        >>> from emprior.priors import GaussianPrior
        >>> prior = as_deepinv_prior(GaussianPrior(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)))
        >>> prior.prox(torch.ones(1, 1, 2, 2), gamma=1.0).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    return _prior_class()(_check(prior))


def as_denoiser(prior: Prior) -> deepinv.models.Denoiser:
    r"""Returns a prior as a deepinv denoiser, for plug-and-play methods such as DPIR.

    `denoiser(x, sigma)` is the estimate :math:`\mathbb{E}[\mathrm{clean} \mid x]` of images `x` in `[0, 1]` under
    white noise of standard deviation `sigma`, a number or one per image `(B,)`; where `sigma` is 0 it is `x`.

    Arguments:
        prior: The prior; the module returned holds it, so that `.to(device)` moves both.

    Raises:
        TypeError: It is not an `emprior.energy.Prior`.

    Examples:
        >>> from emprior.priors import GaussianPrior
        >>> denoiser = as_denoiser(GaussianPrior(torch.zeros(1, 2, 2), torch.ones(1, 2, 2)))
        >>> denoiser(torch.ones(1, 1, 2, 2), 1.0).flatten()
        tensor([0.5000, 0.5000, 0.5000, 0.5000])
    """
    return _denoiser_class()(_check(prior))


def load_denoiser(name: str | os.PathLike[str]) -> deepinv.models.Denoiser:
    r"""Loads a denoiser that knows its noise level, by name or folder, as a deepinv denoiser.

    It is the matched baseline of a prior: the same trunk, data and schedule, trained to the posterior mean
    :math:`\mathbb{E}[\mathrm{clean} \mid x]`. `denoiser(x, sigma)` takes images in `[0, 1]`.

    Raises:
        ValueError: The denoiser is unknown, its card is wrong, or its weights are not those of the card.
    """
    return _denoiser_class()(load_network_denoiser(name))


class Anchor(Energy):
    r"""The energy :math:`\frac{1}{2} \|z - x\|^2` of rows `z`, with one `x` for each."""

    def __init__(self, x: Image) -> None:
        super().__init__()
        self.x = x

    def forward(self, x: Image) -> PerImage:
        return (x - self.x).square().flatten(1).sum(1) / 2

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        return self(x).detach(), (x - self.x).detach()


@dataclass(frozen=True)
class ProximalDescent(Solver):
    r"""`Descent` to a gradient of `tolerance` times the force at the start, or times one a pixel if that is less.

    Where `E` is convex the objective curves by 1 at least, so the gradient bounds the distance to the solution.

    Arguments:
        tolerance: The relative gradient, and the root mean square error of a pixel.
    """

    tolerance: float

    def init(self, energy: Energy, x: Image, noise: Noise) -> DescentState:
        state = self.descent.init(energy, x, noise)
        scale = state.scale.clamp(max=x[0].numel() ** 0.5)
        return replace(state, scale=scale, done=(-state.slope).sqrt() <= self.tolerance * scale)

    def step(self, energy: Energy, state: DescentState, noise: Noise) -> tuple[State, Info]:
        return self.descent.step(energy, state, noise)

    @property
    def descent(self) -> Descent:
        return Descent(self.tolerance, PROX_MEMORY)


@torch.no_grad()
def proximal(prior: Prior, x: Image, gamma: float | Tensor) -> Image:
    r"""Returns :math:`\arg\min_z \gamma E(z) + \frac{1}{2} \|z - x\|^2`, to about half the digits of the type.

    Arguments:
        prior: The energy `E`.
        x: Images `(B, *shape)`.
        gamma: The step, not negative, a number or one for each image.

    Raises:
        ValueError: The step is negative, not finite, or of a wrong shape.
    """
    step = _per_image(gamma, x, "gamma")
    stage = Stage(ProximalDescent(torch.finfo(x.dtype).eps ** 0.5), PROX_STEPS)
    objective = Sum({"prior": Scaled(prior, step), "anchor": Anchor(x)})
    outcome = run([stage], objective, x, Noise([]), images=len(x), records=1)
    if Status.INTERRUPTED in outcome.status:
        raise KeyboardInterrupt
    return outcome.x


@functools.cache
def _prior_class() -> type:
    import deepinv

    class EnergyPrior(deepinv.optim.Prior):
        def __init__(self, prior: Prior) -> None:
            super().__init__()
            self.prior, self.explicit_prior = prior, True

        def fn(self, x: Image, *args: Any, **kwargs: Any) -> PerImage:
            return self.prior(x)

        def grad(self, x: Image, *args: Any, **kwargs: Any) -> Image:
            if torch.is_grad_enabled() and x.requires_grad:
                return torch.autograd.grad(self.prior(x).sum(), x, create_graph=True)[0]
            return self.prior.value_and_grad(x)[1]

        def prox(self, x: Image, *args: Any, gamma: float | Tensor = 1.0, **kwargs: Any) -> Image:
            tracked = x.requires_grad or (isinstance(gamma, Tensor) and gamma.requires_grad)
            if tracked and torch.is_grad_enabled():
                raise RuntimeError(
                    "the proximal step of an emprior prior cannot be differentiated. Run under torch.no_grad(), or "
                    "unfold a method that takes gradient steps on the prior, such as PGD with g_first=True."
                )
            return proximal(self.prior, x, gamma)

    return EnergyPrior


@functools.cache
def _denoiser_class() -> type:
    import deepinv

    class EnergyDenoiser(deepinv.models.Denoiser):
        def __init__(self, prior: Prior | NetworkDenoiser) -> None:
            torch.nn.Module.__init__(self)  # the base moves itself to the CPU, and would move the prior
            self.prior = prior

        def forward(self, x: Image, sigma: float | Tensor, **kwargs: Any) -> Image:
            level = _per_image(sigma, x, "sigma")
            clean = self.prior.denoise(x, torch.where(level > 0, level, torch.full_like(level, 0.1)))
            return torch.where(column(level > 0, x), clean, x)

    return EnergyDenoiser


def _per_image(value: float | Tensor, x: Image, name: str) -> PerImage:
    values = torch.as_tensor(value, dtype=x.dtype, device=x.device).reshape(-1)
    if len(values) not in (1, len(x)):
        raise ValueError(
            f"{name} holds {len(values)} numbers, but x holds {len(x)} images. Pass one number, or one per image (B,)."
        )
    if not bool(((values >= 0) & values.isfinite()).all()):
        raise ValueError(f"{name} is {values.tolist()}, but it must be finite and not negative. Pass {name}=0.1, say.")
    return values.expand(len(x))


def _check(prior: object) -> Prior:
    if not isinstance(prior, Prior):
        raise TypeError(
            f"prior is a {type(prior).__name__}, expected an emprior.energy.Prior. Load one by its name: "
            "emprior.load_prior('cifar10')."
        )
    return prior
