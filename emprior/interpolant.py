r"""The paths from noise to data on which an energy is trained, and the clean images that they point to."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._check import make
from emprior._rows import column


class Interpolant(ABC):
    r"""A path from noise to data, and the gradient that an energy should have along it.

    At noise fraction :math:`s \in [0, 1]`, an image :math:`x_1` in `[-1, 1]` and white noise
    :math:`x_0 \sim \mathcal{N}(0, I)` meet at

    .. math:: x_s = k x_1 + s x_0, \qquad \nabla V(x_s) \approx \mathbb{E}[a x_0 - b x_1 \mid x_s],

    with coefficients `a`, `b`, `k` that depend on `s` and make an objective what it is. Where the conditional mean is
    met, both equations together give the clean estimate

    .. math:: \mathbb{E}[x_1 \mid x_s] = \frac{a x_s - s \nabla V(x_s)}{a k + s b}.
    """

    coupled = True
    """Whether noise and data are paired by optimal transport, beyond the zone near the data."""

    @abstractmethod
    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Returns :math:`(a, b, k)` at the noise fractions `s`, of any shape."""

    @property
    @abstractmethod
    def stiffness(self) -> float:
        r"""The curvature of `V` at data under their thermal noise, :math:`a / s` there."""

    @property
    def noise_limit(self) -> float:
        r"""The largest noise level that the path knows, :math:`s / k` at its end, in `[-1, 1]` units."""
        return math.inf

    @property
    def near(self) -> float:
        r"""The fraction up to which the data's own noise is learned, so that noise must be independent of data."""
        return 0.0

    def thermal(self, epsilon: float) -> float:
        r"""Returns the noise of the data at temperature `epsilon`, :math:`\sqrt{\epsilon / \kappa}`, in `[-1, 1]`."""
        return (epsilon / self.stiffness) ** 0.5

    def mix(self, x1: Tensor, x0: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`x_s` and the regression target :math:`a x_0 - b x_1` of the gradient there."""
        a, b, k = self.coefficients(column(s, x1))
        return k * x1 + column(s, x1) * x0, a * x0 - b * x1

    def gain(self, s: Tensor) -> Tensor:
        r"""Returns :math:`s / (a k + s b)`, the error of the clean estimate for a unit error of the gradient."""
        s = s.clamp(min=1e-6)
        a, b, k = self.coefficients(s)
        return s / (a * k + s * b)

    def endpoint(self, x: Tensor, gradient: Tensor, s: Tensor) -> Tensor:
        r"""Returns the clean estimate at `x`, for `s > 0`."""
        s = column(s, x)
        a, b, k = self.coefficients(s)
        return (a * x - s * gradient) / (a * k + s * b)

    def fraction(self, sigma: Tensor) -> Tensor:
        r"""Returns the `s` with :math:`s / k(s) = \sigma`, for noise levels `sigma` up to `noise_limit`."""
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(64):
            s = (low + high) / 2
            above = s > sigma * self.coefficients(s)[2]
            low, high = torch.where(above, low, s), torch.where(above, s, high)
        return (low + high) / 2


@dataclass(frozen=True)
class EnergyMatching(Interpolant):
    r"""Energy Matching: optimal transport, with a score zone near the data,

    .. math:: a = \min(1, s / \sigma_*), \qquad b = \mathrm{clip}((s - \sigma_*) / \delta, 0, 1), \qquad k = 1 - s b.

    For :math:`s \ge \sigma_* + \delta` this is optimal transport, :math:`k = 1 - s` and :math:`\nabla V = x_0 - x_1`.
    For :math:`s \le \sigma_*` it is, at temperature :math:`\epsilon`, the score of the data under the thermal noise
    :math:`\sqrt{\epsilon \sigma_*}`, and it vanishes on the data. :math:`\sigma_* = 0` gives the published path,
    transport throughout.

    References:
        | Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling
        | (Balcerak et al., 2025)
        | https://arxiv.org/abs/2504.10612

    Arguments:
        sigma_star: The width :math:`\sigma_*` of the score zone, a noise fraction in `[-1, 1]` units.
        blend: The width :math:`\delta > 0` of the passage from score to transport.

    Raises:
        ValueError: The zones do not fit into `[0, 1]`.
    """

    sigma_star: float = 0.06
    blend: float = 0.1

    def __post_init__(self) -> None:
        if not (0 <= self.sigma_star < 1 and self.blend > 0 and self.sigma_star + self.blend <= 1):
            raise ValueError(
                f"sigma_star is {self.sigma_star} and blend is {self.blend}, but the passage from score to transport "
                "must have a width and end by noise fraction 1: sigma_star=0.06, blend=0.1"
            )

    @property
    def stiffness(self) -> float:
        return float("inf") if self.sigma_star == 0 else 1 / self.sigma_star

    @property
    def near(self) -> float:
        return self.sigma_star + self.blend if self.sigma_star else 0.0

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.sigma_star == 0:
            return torch.ones_like(s), torch.ones_like(s), 1 - s
        a = (s / self.sigma_star).clamp(max=1)
        b = ((s - self.sigma_star) / self.blend).clamp(0, 1)
        return a, b, 1 - s * b


@dataclass(frozen=True)
class EquilibriumMatching(Interpolant):
    r"""Equilibrium Matching: transport that comes to rest on the data,

    .. math:: a = b = \lambda \min(1, s / \tau), \qquad k = 1 - s.

    References:
        | Equilibrium Matching: Generative Modeling with Implicit Energy-Based Models
        | (Wang and Du, 2025)
        | https://arxiv.org/abs/2510.02300

    Arguments:
        width: The fraction :math:`\tau` below which the target fades, 0.2 in the reference.
        scale: The factor :math:`\lambda` of the target.

    Raises:
        ValueError: An argument is out of range.
    """

    width: float = 0.2
    scale: float = 1.0
    coupled = False

    def __post_init__(self) -> None:
        if not (0 < self.width <= 1 and self.scale > 0):
            raise ValueError(f"width is {self.width} and scale is {self.scale}, expected 0 < width <= 1 and scale > 0")

    @property
    def stiffness(self) -> float:
        return self.scale / self.width

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        fade = self.scale * (s / self.width).clamp(max=1)
        return fade, fade, 1 - s


@dataclass(frozen=True)
class Denoising(Interpolant):
    r"""A gradient-step denoiser, :math:`\nabla V(x) = x - D(x)` for all noise levels up to 1 in `[-1, 1]` units,

    .. math:: a = s, \qquad b = 0, \qquad k = 1.

    It knows no more noise than that (0.5 in public units), so that continuations and annealed chains start there.

    References:
        | Gradient Step Denoiser for Convergent Plug-and-Play (Hurault et al., 2022)
        | https://arxiv.org/abs/2110.03220
    """

    coupled = False

    @property
    def stiffness(self) -> float:
        return 1.0

    @property
    def noise_limit(self) -> float:
        return 1.0

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return s, torch.zeros_like(s), torch.ones_like(s)


@dataclass(frozen=True)
class LogDensity(Interpolant):
    r"""The log density of images under the noise that they show, bent near the data so that they hold the mass,

    .. math:: a = \frac{(1 + \kappa^2)\, s}{s^2 + \kappa^2 \tau^2}, \qquad b = 0, \qquad
              k = 1 - \left( 1 - \frac{1}{2 L} \right) \mathrm{clip}\left( \frac{s - \nu}{1 - \nu}, 0, 1 \right).

    The targets of a path are :math:`c(s)\, \nabla \log p` with :math:`c = s a`. Where `c` changes with the noise,
    and the level is left to the image, no scalar has such a gradient (:class:`emprior._calibration.Calibration`).
    This `c` is constant but near the thermal noise :math:`\tau`, and
    :math:`V(x) = -(1 + \kappa^2) \log p_{\sigma(x)}(x)` at the level that makes `x` most likely. Without the factor
    all levels would be equally probable, and chains wander from the data; with it, in `d` dimensions,
    :math:`e^{-V}` holds the noise of an image within :math:`\sqrt{(1 + \kappa^2) / 2 \kappa^2 d}` of :math:`\tau`,
    in units of it. There, where :math:`c = 1`, `V` has at temperature 1 the gradient of the density of the data
    under that noise. Noise and data are independent.

    References:
        | Learning normalized image densities via dual score matching (Guth et al., 2025)
        | https://arxiv.org/abs/2506.05310

    Arguments:
        tau: The thermal noise :math:`\tau`, in `[-1, 1]`.
        core: The share :math:`\kappa` of it below which `V` is quadratic.
        near_data: The fraction :math:`\nu` up to which noise is added to whole images.
        limit: The largest noise level :math:`L`, in public units.

    Raises:
        ValueError: An argument is out of range.
    """

    tau: float = 0.0245
    core: float = 0.5
    near_data: float = 0.3
    limit: float = 3.25

    coupled = False

    def __post_init__(self) -> None:
        if not (0 < self.tau < 1 and 0 < self.core <= 1 and 0 <= self.near_data < 1 and self.limit > 0.5):
            raise ValueError(
                f"tau is {self.tau}, core {self.core}, near_data {self.near_data} and limit {self.limit}, but the "
                "first three must be between 0 and 1 and the last above 0.5: tau=0.0245, core=0.5, near_data=0.3, "
                "limit=3.25"
            )

    @property
    def stiffness(self) -> float:
        return self.tau**-2

    @property
    def noise_limit(self) -> float:
        return 2 * self.limit

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = (1 + self.core**2) * s / (s.square() + (self.core * self.tau) ** 2)
        faded = ((s - self.near_data) / (1 - self.near_data)).clamp(0, 1)
        return a, torch.zeros_like(s), 1 - (1 - 1 / (2 * self.limit)) * faded


OBJECTIVES: dict[str, type[Interpolant]] = {
    "energy_matching": EnergyMatching,
    "equilibrium_matching": EquilibriumMatching,
    "denoising": Denoising,
    "log_density": LogDensity,
}


def make_interpolant(objective: str, /, **arguments: float) -> Interpolant:
    r"""Makes a path by the name of its objective.

    Raises:
        ValueError: The name is unknown, or an argument is unknown or out of range.
    """
    return make(OBJECTIVES, "density.objective", objective, arguments)
