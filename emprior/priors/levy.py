r"""Signals with independent increments, the discretised Lévy processes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NoReturn

import torch
from torch import Tensor

from emprior._bands import Bands, Spectrum
from emprior._check import check_positive
from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Prior
from emprior.priors._linear import as_variance
from emprior.priors.increments import Increments


class LevyPrior(Prior):
    r"""Signals whose increments are independent and of one law,

    .. math:: E(x) = -\sum_{k = 0}^{n - 1} \log p(u_k), \qquad u_0 = x_0, \quad u_k = x_k - x_{k - 1},

    in nats and with every constant, so that :math:`\exp(-E)` integrates to one. Denoising is Wiener's filter of a
    Gaussian of the law's `variance`, :math:`(I + \sigma^2 D^\top D / v)^{-1} x` with `D` the differences: exact for
    Gaussian increments, and the best linear estimate for others that have a variance. A law that softens itself for
    replicas does so for the signal.

    References:
        | An Introduction to Sparse Stochastic Processes (Unser and Tafti, 2014)
        | https://doi.org/10.1017/CBO9781107415805

    Arguments:
        law: The law of the increments.
        length: The number `n` of samples; a signal is an image one pixel high, `(1, 1, n)`.

    Raises:
        ValueError: The law has an atom, and so no energy.

    Examples:
        >>> prior = LevyPrior(Laplace(1.0), length=3)
        >>> x = torch.tensor([1.0, 3.0, 2.0]).reshape(1, 1, 1, 3)
        >>> float(prior(x)) - 3 * math.log(2)
        4.0
    """

    basis: Tensor
    frequencies: Tensor

    def __init__(self, law: Increments, length: int = 64) -> None:
        length = check_positive("length", length, whole=True)
        super().__init__((1, 1, length))
        if law.share < 1 and law.width == 0:
            raise ValueError(f"{law} has an atom at zero, and so no energy. Give it a width that is small in the data.")
        self.law = law
        self.curvature = 4 * law.curvature
        self.time_unit = 20 / self.curvature
        bands = Bands.of(torch.zeros(1, *self.shape, dtype=torch.float64))
        turn = (math.pi / 2 * bands.frequency).sin().square()
        bend = 4 * turn + (2 - (bands.frequency == 0).double()) * (1 - turn) / length
        self.spectrum = Spectrum(tuple(bands.frequency.tolist()), (tuple((law.curvature * bend).tolist()),))
        eye = torch.eye(length, dtype=torch.float64)
        difference = torch.diff(eye, prepend=torch.zeros_like(eye[:, :1]))
        frequencies, basis = torch.linalg.eigh(difference @ difference.mT)
        self.register_buffer("frequencies", frequencies)
        self.register_buffer("basis", basis)
        energy = law.energy(law.draw(Noise([("typical",)], dtype=torch.float64), 65536))
        self.typical = length * float(energy.mean()), length**0.5 * float(energy.std())

    def forward(self, x: Image) -> PerImage:
        return self.law.energy(self.increments(x)).flatten(1).sum(1)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        return _summed(*self.law.energy_and_slope(self.increments(x.detach())))

    def soften(self, beta: PerImage) -> Prior | None:
        softened = self.law.soften(beta.reshape(-1, 1, 1, 1))
        return None if softened is None else _Softened(self, softened)

    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        ratio = as_variance(sigma, x) / self.law.variance
        gain = 1 / (1 + ratio[..., None] * self.frequencies.to(x))
        basis = self.basis.to(x)
        return (x @ basis * gain) @ basis.mT

    def precision(self, x: Image, sigma: float) -> Tensor:
        r"""Returns the diagonal of the inverse covariance: the curvature of Gaussian signals of the same covariance."""
        assert self.spectrum is not None
        return self.spectrum.on(Bands.of(x)) / (self.law.curvature * self.law.variance)

    def start(self, noise: Noise, shape: tuple[int, ...] | None = None) -> Image:
        r"""Draws rows from the prior itself, `(rows, 1, 1, n)`."""
        return self.law.draw(noise, self.shape[-1]).cumsum(-1)[:, None, None]

    def sample(self, n: int, *, seed: int = 0) -> Image:
        return self.start(Noise([(seed, "sample", i) for i in range(n)], self.basis.device, self.basis.dtype))

    def increments(self, x: Image) -> Tensor:
        r"""Returns the increments of signals, `(B, 1, 1, n)`."""
        if tuple(x.shape[1:]) != self.shape:
            raise ValueError(f"x has shape {tuple(x.shape)}, expected signals (B, {str(self.shape)[1:]}. Reshape it.")
        return torch.diff(x, prepend=torch.zeros_like(x[..., :1]))


class _Softened(Prior):
    r"""The energies of signals under a law for each row; replicas ask it for no more.

    Arguments:
        prior: The prior.
        law: The energy and the slope of increments.
    """

    def __init__(self, prior: LevyPrior, law: Callable[[Tensor], tuple[Tensor, Tensor]]) -> None:
        super().__init__(prior.shape)
        self.prior, self.law = prior, law

    def forward(self, x: Image) -> PerImage:
        return self.law(self.prior.increments(x))[0].flatten(1).sum(1)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        return _summed(*self.law(self.prior.increments(x.detach())))

    def _refuse(self, *args: object, **kwargs: object) -> NoReturn:
        raise TypeError("a softened prior has an energy, but no denoiser and no draws. Ask the prior itself.")

    denoise = start = sample = _refuse


def _summed(energy: Tensor, slope: Tensor) -> tuple[PerImage, Image]:
    r"""Returns the energies of signals and their gradients, from those of increments."""
    return energy.flatten(1).sum(1), -torch.diff(slope, append=torch.zeros_like(slope[..., :1]))
