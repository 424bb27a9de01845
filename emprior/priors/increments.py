r"""Laws of one increment: closed-form energies, and the scale mixtures of Gaussians that they are."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from emprior._check import check_positive
from emprior._noise import Noise
from emprior.priors._linear import LOG_2PI


class Increments(ABC):
    r"""The law of one increment, a scale mixture of Gaussians that may be switched off,

    .. math:: u = \gamma \sqrt{w}\, n_1 + s\, n_2, \qquad \gamma \sim \mathrm{Bernoulli}(p), \quad
              n_1, n_2 \sim \mathcal{N}(0, 1),

    whose energy and slope are closed forms, and whose mixing variance `w` can be drawn, freely and given the slab
    :math:`\sqrt{w}\, n_1`, as an exact Gibbs sampler needs.
    """

    share: float = 1.0
    """The probability `p` of a jump."""

    width: float = 0.0
    """The standard deviation `s` of what is left where there is none."""

    @property
    @abstractmethod
    def variance(self) -> float:
        r"""The variance of the Gaussian that stands for the law in Wiener's filter."""

    @property
    @abstractmethod
    def curvature(self) -> float:
        r"""The Fisher information :math:`\mathbb{E}[(\log p)'(u)^2]`, or about that."""

    @abstractmethod
    def energy(self, u: Tensor) -> Tensor:
        r"""Returns :math:`-\log p(u)` elementwise, in nats and with every constant."""

    @abstractmethod
    def slope(self, u: Tensor) -> Tensor:
        r"""Returns the derivative of :meth:`energy`."""

    def energy_and_slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns :meth:`energy` and :meth:`slope`, which may have work in common."""
        return self.energy(u), self.slope(u)

    def soften(self, beta: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]] | None:
        r"""Returns :meth:`energy_and_slope` at inverse temperatures, with which increments are broadcast.

        See :meth:`emprior.energy.Prior.soften`; none for the law to the power of `beta`.
        """
        return None

    @abstractmethod
    def mix(self, noise: Noise, n: int) -> Tensor:
        r"""Draws mixing variances `w`, `(rows, n)`."""

    @abstractmethod
    def remix(self, slab: Tensor, noise: Noise) -> Tensor:
        r"""Draws mixing variances `w` given slabs `(rows, n)`."""

    def draw(self, noise: Noise, n: int) -> Tensor:
        r"""Draws increments, `(rows, n)`."""
        jump = noise.uniform(n) < self.share
        return jump * self.mix(noise, n).sqrt() * noise.normal(n) + self.width * noise.normal(n)


@dataclass(frozen=True)
class Gaussian(Increments):
    r"""The Gaussian law of standard deviation `scale`."""

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    @property
    def variance(self) -> float:
        return self.scale**2

    @property
    def curvature(self) -> float:
        return self.scale**-2

    def energy(self, u: Tensor) -> Tensor:
        return (u / self.scale).square() / 2 + LOG_2PI / 2 + math.log(self.scale)

    def slope(self, u: Tensor) -> Tensor:
        return u / self.scale**2

    def mix(self, noise: Noise, n: int) -> Tensor:
        return torch.full((len(noise), n), self.variance, dtype=noise.dtype, device=noise.device)

    def remix(self, slab: Tensor, noise: Noise) -> Tensor:
        return torch.full_like(slab, self.variance)


@dataclass(frozen=True)
class Laplace(Increments):
    r"""The Laplace law :math:`p(u) = e^{-|u| / b} / 2 b` of scale `b`, with :math:`w \sim \mathrm{Exp}(1 / 2 b^2)`.

    Given a slab, :math:`1 / w` is inverse Gaussian, of mean :math:`1 / b |u|` and shape :math:`1 / b^2`.

    References:
        | The Bayesian Lasso (Park and Casella, 2008)
        | https://doi.org/10.1198/016214508000000337
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)

    @property
    def variance(self) -> float:
        return 2 * self.scale**2

    @property
    def curvature(self) -> float:
        return self.scale**-2

    def energy(self, u: Tensor) -> Tensor:
        return u.abs() / self.scale + math.log(2 * self.scale)

    def slope(self, u: Tensor) -> Tensor:
        return u.sign() / self.scale

    def mix(self, noise: Noise, n: int) -> Tensor:
        return -2 * self.scale**2 * torch.log1p(-noise.uniform(n))

    def remix(self, slab: Tensor, noise: Noise) -> Tensor:
        r"""Draws by the roots of Michael, Schucany and Haas (1976), written for `w` so that nothing cancels at 0."""
        mean, q = self.scale * slab.abs(), (self.scale * noise.normal(slab.shape[1])).square() / 2
        long = mean + q + (q * (2 * mean + q)).sqrt()
        return torch.where(noise.uniform(slab.shape[1]) * (long + mean) < long, long, mean.square() / long)


@dataclass(frozen=True)
class StudentT(Increments):
    r"""Student's law of :math:`\nu` degrees of freedom,

    .. math:: p(u) \propto \left(1 + \frac{u^2}{\nu s^2}\right)^{-(\nu + 1) / 2}, \qquad
              w = \frac{\nu s^2}{\chi^2_\nu}, \quad
              w \mid u = \frac{\nu s^2 + u^2}{\chi^2_{\nu + 1}}.

    Arguments:
        degrees: The degrees of freedom :math:`\nu`, a whole number; up to 2 there is no variance.
        scale: The scale `s`.
    """

    degrees: int = 2
    scale: float = 1.0

    def __post_init__(self) -> None:
        check_positive("degrees", self.degrees, whole=True)
        check_positive("scale", self.scale)

    @property
    def variance(self) -> float:
        r"""The variance, or :math:`(\nu + 2) s^2` where there is none."""
        nu = self.degrees
        return self.scale**2 * (nu / (nu - 2) if nu > 2 else nu + 2)

    @property
    def curvature(self) -> float:
        return (self.degrees + 1) / (self.degrees + 3) / self.scale**2

    def energy(self, u: Tensor) -> Tensor:
        nu, s = self.degrees, self.scale
        constant = math.lgamma(nu / 2) - math.lgamma((nu + 1) / 2) + math.log(math.pi * nu) / 2 + math.log(s)
        return (nu + 1) / 2 * torch.log1p((u / s).square() / nu) + constant

    def slope(self, u: Tensor) -> Tensor:
        return (self.degrees + 1) * u / (self.degrees * self.scale**2 + u.square())

    def mix(self, noise: Noise, n: int) -> Tensor:
        return self.degrees * self.scale**2 / noise.normal(n, self.degrees).square().sum(-1)

    def remix(self, slab: Tensor, noise: Noise) -> Tensor:
        chi = noise.normal(slab.shape[1], self.degrees + 1).square().sum(-1)
        return (self.degrees * self.scale**2 + slab.square()) / chi


@dataclass(frozen=True)
class BernoulliLaplace(Increments):
    r"""Jumps of the Laplace law with probability `p`, and else none, up to Gaussian noise of a small `width`,

    .. math:: p(u) = (1 - p)\, \mathcal{N}(u; 0, s^2) + p\, \frac{e^{s^2 / 2 b^2}}{2 b} \left[
              e^{-u / b}\, \Phi\!\left(\frac{u}{s} - \frac{s}{b}\right)
              + e^{u / b}\, \Phi\!\left(-\frac{u}{s} - \frac{s}{b}\right)\right].

    The derivatives of the two :math:`\Phi` cancel, so that :math:`-(\log p)'` is the mean of :math:`u / s^2`,
    :math:`1 / b` and :math:`-1 / b`, weighted as the three terms are. At an inverse temperature :math:`\beta` it has as
    many jumps, and the width :math:`s / \sqrt{\beta}`.

    Arguments:
        scale: The scale `b` of jumps.
        share: The probability `p` of a jump, below 1.
        width: The standard deviation `s`. At 0 the law has an atom: it can be drawn from, but has no energy.
    """

    scale: float = 1.0
    share: float = 0.1
    width: float = 0.01

    def __post_init__(self) -> None:
        check_positive("scale", self.scale)
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}, expected a probability between 0 and 1. Try share=0.1.")
        if not 0 <= self.width < math.inf:
            raise ValueError(f"width is {self.width}, expected a standard deviation. Try width={self.scale / 100}.")

    @property
    def variance(self) -> float:
        return 2 * self.share * self.scale**2 + self.width**2

    @property
    def curvature(self) -> float:
        return (1 - self.share) / self.width**2

    def energy(self, u: Tensor) -> Tensor:
        return self.energy_and_slope(u)[0]

    def slope(self, u: Tensor) -> Tensor:
        return self.energy_and_slope(u)[1]

    def energy_and_slope(self, u: Tensor) -> tuple[Tensor, Tensor]:
        return self._widened(u, u.new_tensor(check_positive("width", self.width)))

    def soften(self, beta: Tensor) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
        return partial(self._widened, width=self.width * beta.rsqrt())

    def mix(self, noise: Noise, n: int) -> Tensor:
        return Laplace(self.scale).mix(noise, n)

    def remix(self, slab: Tensor, noise: Noise) -> Tensor:
        return Laplace(self.scale).remix(slab, noise)

    def _widened(self, u: Tensor, width: Tensor) -> tuple[Tensor, Tensor]:
        r"""Returns the energy and the slope at a width, by

        .. math:: p(u) = e^{-q} \left( e^{-t_+^2 / 2} \left( \frac{1 - p}{s \sqrt{2 \pi}} + \frac{p}{4 b}\,
                  \mathrm{erfcx} \frac{v + r}{\sqrt{2}} \right) + \frac{p}{4 b}\, e(t) \right), \qquad
                  v = \frac{|u|}{s}, \quad r = \frac{s}{b}, \quad t = v - r,

        with :math:`q = r v - r^2 / 2` and :math:`e = \mathrm{erfc}(-t / \sqrt{2})` for :math:`t \ge 0`, else
        :math:`q = v^2 / 2` and :math:`e = \mathrm{erfcx}(-t / \sqrt{2})`: no factor overflows. Those that vanish are
        kept from numbers so small that they are slow.
        """
        u, sign = u.where(u >= 0, -u), torch.where(u >= 0, 1.0, -1.0).to(u)
        v, r, slab = u / width, width / self.scale, self.share / (4 * self.scale)
        t = v - r
        near = (-t.clamp(min=0).square() / 2).clamp(min=math.log(torch.finfo(u.dtype).tiny) + 15).exp()
        flat = near * ((1 - self.share) * math.exp(-LOG_2PI / 2) / width)
        falling = near * slab * torch.special.erfcx((v + r) / 2**0.5)
        side = torch.where(t >= 0, torch.special.erfc(-t / 2**0.5), torch.special.erfcx(-t.clamp(max=0) / 2**0.5))
        whole = flat + falling + slab * side
        slope = (flat * v / width + (slab * side - falling) / self.scale) / whole
        return torch.where(t >= 0, r * v - r.square() / 2, v.square() / 2) - whole.log(), sign * slope
