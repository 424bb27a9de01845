r"""Figures of a prior on held-out images, for its card."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from emprior._bands import Spectrum
from emprior._calibration import Calibration
from emprior._noise import Noise, generator
from emprior._restoration import Restoration
from emprior._rows import dot
from emprior._types import Image, PerImage
from emprior.denoiser import NetworkDenoiser
from emprior.metrics import psnr
from emprior.priors.network import NetworkPrior
from emprior.train.distributed import place
from emprior.train.frame import Frame, Gradient
from emprior.train.negatives import kinetic

LEVELS = (0.025, 0.05, 0.1, 0.25, 0.5)
"""The noise that denoising is judged at."""

RESTORED = (0.0125, 0.03, 0.075, 0.2, 0.5, 1.2, 3.0)
"""The noise that annealed starts are told of."""


def denoising_psnr(prior: NetworkPrior | NetworkDenoiser, images: Tensor, sigma: float, seed: int = 0) -> float:
    r"""Returns the mean PSNR, in dB, of the clean estimate of images `(B, C, H, W)` under noise `sigma`."""
    random = generator(seed, "denoising")
    noisy = images + sigma * torch.randn(images.shape, generator=random).to(images)
    clean = torch.cat([prior.denoise(part, sigma) for part in noisy.split(256)])
    return float(psnr(clean, images).mean())


def drift(prior: NetworkPrior, images: Tensor) -> PerImage:
    r"""Returns :math:`-\langle \nabla V(z), z \rangle / \|z\|^2` at `z = 2 x - 1`, `(B,)`.

    It is the rate at which the flow at temperature 0 moves an image outward; near 1 for an energy of transport alone,
    and 0 where images are stationary. It is in units of `V`: to compare energies of different curvature at the data,
    divide by it (`prior.interpolant.stiffness`).
    """
    z = 2 * images - 1
    gradients = torch.cat([prior.potential_gradient(part) for part in z.split(256)])
    return -dot(gradients, z) / dot(z, z)


def chain(prior: NetworkPrior, images: Tensor, steps: int = 1000, step_size: float = 1 / 6) -> dict[str, Any]:
    r"""Runs Langevin at the prior's temperature from clean images, and follows their statistics.

    Arguments:
        prior: The prior.
        images: Clean images in `[0, 1]`, `(B, C, H, W)`.
        steps: The steps, see :func:`emprior.train.negatives.kinetic`.
        step_size: The step, in units of the inverse curvature of `V` at the data (0.01 where that is infinite).

    Returns:
        At steps 0, 100 and `steps`: the standard deviation of all pixels in `[0, 1]`, the mean energy
        `V`, and the spread of `V` over images.
    """
    z = 2 * images - 1
    h = step_size / prior.interpolant.stiffness or 0.01
    marks = sorted({0, min(100, steps // 2), steps})
    return _follow(prior, prior.potential_gradient, z, lambda x: x, marks, h, momentum=0.0)


def framed_chain(
    prior: NetworkPrior, images: Tensor, steps: int = 100, step_size: float = 0.12, momentum: float = 0.85
) -> dict[str, Any]:
    r"""Runs chains that go far, from clean images under thermal noise, and follows their statistics.

    They move in the :class:`emprior.train.frame.Frame` of the prior's own spectrum, in which soft directions are
    crossed as soon as stiff ones. If the law of the prior is that of the data, nothing changes.

    Arguments:
        prior: The prior; its card holds a spectrum.
        images: Clean images in `[0, 1]`, `(B, C, H, W)`.
        steps: The steps, see :func:`emprior.train.negatives.kinetic`.
        step_size: The step, below 2.
        momentum: The share of the momenta that is kept at each step.

    Returns:
        At steps 0, 10, 30, 100 and so on up to `steps`: as :func:`chain`.

    Raises:
        ValueError: The prior has no spectrum.
    """
    if prior.spectrum is None:
        raise ValueError(
            "the prior has no spectrum to make a frame of. Have it put on its card: "
            "emprior evaluate prior --prior NAME --images PATH --write"
        )
    z = 2 * _thermal(prior, images, seed=0) - 1
    frame = Frame(prior.spectrum, prior.epsilon, z.new_zeros(len(z)), z)
    marks = sorted({0, steps, *(m for k in range(1, 7) for m in (10**k, 3 * 10**k) if m < steps)})
    gradient = frame.gradient(prior.potential_gradient)
    return _follow(prior, gradient, frame.split(z), frame.join, marks, step_size, momentum)


def _follow(
    prior: NetworkPrior,
    gradient: Gradient,
    z: Tensor,
    image: Callable[[Image], Image],
    marks: list[int],
    h: float,
    momentum: float,
) -> dict[str, Any]:
    noise = Noise([("chain", i) for i in range(len(z))], dtype=z.dtype)
    p = math.sqrt(prior.epsilon) * noise.normal(*z.shape[1:])
    out: dict[str, list[float]] = {"step": [], "pixel_std": [], "energy": [], "spread": []}
    for done, step in itertools.pairwise([0, *marks]):
        draws = (noise.normal(*z.shape[1:]) for _ in range(step - done))
        z, p = kinetic(gradient, z, p, draws, prior.epsilon, h, momentum) if step else (z, p)
        x = image(z)
        with torch.no_grad():
            v = torch.cat([prior.potential(part) for part in x.split(256)])
        figures = (step, float(x.std()) / 2, float(v.mean()), float(v.std(correction=0)))
        for key, value in zip(out, figures, strict=True):
            out[key].append(round(value, 4))
    return out


def energies(prior: NetworkPrior, images: Tensor, seed: int = 0) -> dict[str, float]:
    r"""Returns mean and spread of the energy, in nats, of images under the thermal noise that the density includes.

    The spread of a single image is 0.
    """
    with torch.no_grad():
        found = torch.cat([prior(part) for part in _thermal(prior, images, seed).split(256)])
    return {"mean": float(f"{found.mean():.6g}"), "spread": float(f"{found.std() if len(found) > 1 else 0:.4g}")}


def spectrum(prior: NetworkPrior, images: Tensor, seed: int = 0) -> dict[str, Any]:
    r"""Returns the mean curvature by frequency and colour at images under the noise that the density includes.

    See :class:`emprior._bands.Spectrum`. It costs three gradients for each image and band.
    """
    x = _thermal(prior, images, seed)

    def curve(v: Tensor) -> Tensor:
        return torch.cat([_curve(prior, *pair) for pair in zip(x.split(64), v.split(64), strict=True)])

    found = Spectrum.measure(curve, x)
    return {"frequency": _frequencies(found), "curvature": _rounded(found)}


def _rounded(found: Spectrum) -> list[list[float]]:
    return [[float(f"{c:.3g}") for c in row] for row in found.curvature]


def restoration(prior: NetworkPrior, images: Tensor, seed: int = 0) -> dict[str, Any]:
    r"""Returns how well :meth:`NetworkPrior.restore` does under each noise of `RESTORED`, by frequency and colour.

    A prior that knows less noise is measured up to its limit. See :class:`emprior._restoration.Restoration`. It costs a
    gradient for each image and level.
    """
    levels = [level for level in RESTORED if level < prior.noise_limit]
    levels += [prior.noise_limit] if prior.noise_limit <= RESTORED[-1] else []
    found = Restoration.measure(_in_parts(prior.restore), images, levels, seed)
    return {
        "sigma": levels,
        "frequency": _frequencies(found.curvature[0]),
        "curvature": [_rounded(level) for level in found.curvature],
    }


def calibration(prior: NetworkPrior, images: Tensor, told: Mapping[str, Any], seed: int = 0) -> dict[str, Any]:
    r"""Returns the gains of clean estimates under the noise of its :func:`restoration`, by frequency and colour.

    See :class:`emprior._calibration.Calibration`. It costs a gradient for each image and level.
    """
    found = Calibration.measure(Restoration.read(told), _in_parts(prior.restore), images, seed)
    return {"frequency": _frequencies(found.gains[0]), "gain": [_rounded(level) for level in found.gains]}


def _in_parts(estimate: Callable[[Image, float], Image]) -> Callable[[Image, float], Image]:
    return lambda x, sigma: torch.cat([estimate(part, sigma) for part in x.split(256)])


def _frequencies(found: Spectrum) -> list[float]:
    return [round(f, 4) for f in found.frequency]


def _curve(prior: NetworkPrior, x: Tensor, v: Tensor) -> Tensor:
    with torch.enable_grad():
        leaf = x.detach().requires_grad_()
        (gradient,) = torch.autograd.grad(prior(leaf).sum(), leaf, create_graph=True)
        return torch.autograd.grad((gradient * v).sum(), leaf)[0]


def _thermal(prior: NetworkPrior, images: Tensor, seed: int) -> Tensor:
    noise = torch.randn(images.shape, generator=generator(seed, "thermal")).to(images)
    return images + prior.interpolant.thermal(prior.epsilon) / 2 * noise


def denoising_figures(denoiser: NetworkPrior | NetworkDenoiser, images: Tensor) -> dict[str, Any]:
    r"""Returns the number of held-out images and the mean PSNR of denoising them at each of `LEVELS`."""
    levels = {str(s): round(denoising_psnr(denoiser, images, s), 2) for s in LEVELS}
    return {"images": len(images), "denoising_psnr": levels}


def _estimates(prior: NetworkPrior, images: Tensor) -> dict[str, Any]:
    r"""Returns how well clean estimates do and what puts them right, and tells the prior."""
    told = restoration(prior, images)
    found = calibration(prior, images, told)
    prior.restoration = Restoration.read(told)
    prior.calibration = Calibration.read(prior.restoration, found)
    return {"restoration": told, "calibration": found}


def measure(
    model: NetworkPrior | NetworkDenoiser, images: Tensor, device: str | torch.device = "cpu", few: int = 64
) -> dict[str, Any]:
    r"""Returns the figures of a card.

    Clean estimates are told the noise with gains that are measured on the same images: a few flatter themselves.

    Arguments:
        model: The prior or denoiser.
        images: Held-out images in `[0, 1]`, `(B, C, H, W)`.
        device: Where to compute.
        few: How many of them the spectrum and the chains are of.
    """
    chosen = place(device)
    model, images = model.to(chosen), images.to(chosen)
    if not isinstance(model, NetworkPrior):
        return denoising_figures(model, images)
    estimates = _estimates(model, images)
    return denoising_figures(model, images) | {
        "energy": energies(model, images),
        "spectrum": spectrum(model, images[:few]),
        **estimates,
        "drift": round(float(drift(model, images).mean()), 4),
        "chain": {"images": min(few, len(images)), **chain(model, images[:few], 300)},
    }


def measure_essentials(
    prior: NetworkPrior, images: Tensor, device: str | torch.device = "cpu", few: int = 64
) -> dict[str, Any]:
    r"""Returns the figures of a card that samplers use, of training images; arguments as of :func:`measure`."""
    chosen = place(device)
    prior, images = prior.to(chosen), images.to(chosen)
    return {
        "images": len(images),
        "measured_on": "training images",
        "energy": energies(prior, images),
        "spectrum": spectrum(prior, images[:few]),
        **_estimates(prior, images),
    }
