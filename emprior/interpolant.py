r"""The path from noise to data on which an energy is trained, and the clean image it points to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Interpolant:
    r"""Energy Matching's path from noise to data, with a score zone near the data.

    At noise fraction :math:`s`, an image :math:`x_1` in `[-1, 1]` and white noise
    :math:`x_0 \sim \mathcal{N}(0, I)` meet at

    .. math:: x_s = k x_1 + s x_0, \qquad \nabla V(x_s) \approx \mathbb{E}[a x_0 - b x_1 \mid x_s]

    with :math:`a = \min(1, s / \sigma_*)`, :math:`b = \mathrm{clip}((s - \sigma_*) / \delta, 0, 1)` and
    :math:`k = 1 - s b`. For :math:`s \ge \sigma_* + \delta` this is optimal transport,
    :math:`k = 1 - s` and :math:`\nabla V = x_0 - x_1`. For :math:`s \le \sigma_*` it is, at temperature
    :math:`\epsilon`, the score of the data under the thermal noise :math:`\sqrt{\epsilon \sigma_*}`,
    and it vanishes on the data. :math:`\sigma_* = 0` gives the published path, transport throughout.

    References:
        | Energy Matching: Unifying Flow Matching and Energy-Based Models for Generative Modeling
        | (Balcerak et al., 2025)
        | https://arxiv.org/abs/2504.10612

    Arguments:
        sigma_star: The width :math:`\sigma_*` of the score zone, a noise fraction in `[-1, 1]` units.
        blend: The width :math:`\delta > 0` of the passage from score to transport.
    """

    sigma_star: float = 0.06
    blend: float = 0.1

    def coefficients(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        r"""Returns :math:`(a, b, k)` at the noise fractions `s`, of any shape."""
        if self.sigma_star == 0:
            return torch.ones_like(s), torch.ones_like(s), 1 - s
        a = (s / self.sigma_star).clamp(max=1)
        b = ((s - self.sigma_star) / self.blend).clamp(0, 1)
        return a, b, 1 - s * b

    def mix(self, x1: Tensor, x0: Tensor, s: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns :math:`x_s` and the regression target :math:`a x_0 - b x_1` of the gradient there."""
        a, b, k = self.coefficients(_column(s, x1))
        return k * x1 + _column(s, x1) * x0, a * x0 - b * x1

    def gain(self, s: Tensor) -> Tensor:
        r"""Returns :math:`s / (a k + s b)`, the error of the clean estimate for a unit error of the gradient."""
        if self.sigma_star == 0:
            return s
        a, b, k = self.coefficients(s)
        small = s < self.sigma_star
        safe = torch.where(small, torch.ones_like(s), a * k + s * b)
        return torch.where(small, torch.full_like(s, self.sigma_star), s / safe)

    def endpoint(self, x: Tensor, gradient: Tensor, s: Tensor) -> Tensor:
        r"""Returns the clean estimate :math:`(a x - s \nabla V) / (a k + s b)` at `x`, for `s > 0`."""
        s = _column(s, x)
        a, b, k = self.coefficients(s)
        return (a * x - s * gradient) / (a * k + s * b)

    def fraction(self, sigma: Tensor) -> Tensor:
        r"""Returns the `s` with :math:`s / k(s) = \sigma`, for noise levels `sigma` in `[-1, 1]` units."""
        low, high = torch.zeros_like(sigma), torch.ones_like(sigma)
        for _ in range(64):
            s = (low + high) / 2
            above = s > sigma * self.coefficients(s)[2]
            low, high = torch.where(above, low, s), torch.where(above, s, high)
        return (low + high) / 2


def _column(s: Tensor, x: Tensor) -> Tensor:
    return s.reshape(-1, *(1,) * (x.ndim - 1)) if s.ndim else s
