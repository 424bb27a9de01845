r"""Energies and their algebra.

An energy is a scalar for each image, :math:`E(x)`, in nats and summed over pixels. It stands for the
density :math:`p(x) \propto \exp(-E(x))`, so that energies add where densities multiply:

.. math:: -\log p(x \mid y) = \underbrace{\tfrac{1}{2 \sigma^2} \|y - A x\|^2}_\mathrm{fidelity}
          + w \underbrace{E(x)}_\mathrm{prior} + \mathrm{const}.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from emprior._bands import Bands, Spectrum
from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage


class Energy(nn.Module, ABC):
    r"""A scalar per image.

    Energies add and scale: `fidelity + 2.0 * prior` is an energy whose terms keep their names.
    """

    coupled = False
    """Whether the samples of an image share one joint energy; see `emprior.Repulsion`."""

    @abstractmethod
    def forward(self, x: Image) -> PerImage:
        r"""Returns the energies `(B,)` of images `(B, *shape)`, in nats."""

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        r"""Returns :math:`E(x)` `(B,)` and :math:`\nabla E(x)` `(B, *shape)`, both detached from any graph."""
        with torch.enable_grad():
            leaf = x.detach().requires_grad_()
            value = self(leaf)
            (gradient,) = torch.autograd.grad(value.sum(), leaf)
        return value.detach(), gradient.detach()

    def terms(self, x: Image, value: PerImage | None = None) -> dict[str, PerImage]:
        r"""Returns the named parts of the energy, which add up to it.

        Arguments:
            x: Images `(B, *shape)`.
            value: The energies of the images, where they are known, so that one part can be what the others leave: the
                prior's, of a posterior.
        """
        return {self.name: self(x) if value is None else value}

    @property
    def name(self) -> str:
        return type(self).__name__.lower()

    def __add__(self, other: Energy) -> Sum:
        if not isinstance(other, Energy):
            return NotImplemented
        return Sum({**_named(self), **_named(other, avoid=_named(self))})

    def __mul__(self, weight: float) -> Scaled:
        if not isinstance(weight, int | float | Tensor):
            return NotImplemented
        return Scaled(self, weight)

    __rmul__ = __mul__


class Scaled(Energy):
    r"""The energy :math:`w E(x)`.

    Arguments:
        energy: The energy `E`.
        weight: The factor `w`, a number or one number per image `(B,)`.
    """

    def __init__(self, energy: Energy, weight: float | Tensor) -> None:
        super().__init__()
        self.energy, self.weight = energy, weight
        self.coupled = energy.coupled

    @property
    def name(self) -> str:
        return self.energy.name

    def forward(self, x: Image) -> PerImage:
        return self.weight * self.energy(x)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        value, gradient = self.energy.value_and_grad(x)
        weight = torch.as_tensor(self.weight, dtype=x.dtype, device=x.device)
        return weight * value, column(weight, x) * gradient


class Sum(Energy):
    r"""The energy :math:`\sum_k E_k(x)` of named terms."""

    def __init__(self, energies: Mapping[str, Energy]) -> None:
        super().__init__()
        self.energies = nn.ModuleDict(energies)
        self.coupled = any(energy.coupled for energy in energies.values())

    def parts(self) -> dict[str, Energy]:
        r"""Returns the terms by name."""
        return {name: energy for name, energy in self.energies.items() if isinstance(energy, Energy)}

    def forward(self, x: Image) -> PerImage:
        return torch.stack([energy(x) for energy in self.parts().values()]).sum(0)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        values, gradients = zip(*(energy.value_and_grad(x) for energy in self.parts().values()), strict=True)
        return torch.stack(values).sum(0), torch.stack(gradients).sum(0)

    def terms(self, x: Image, value: PerImage | None = None) -> dict[str, PerImage]:
        return {name: energy(x) for name, energy in self.parts().items()}


class Prior(Energy):
    r"""The energy of a density over images of a known shape.

    Arguments:
        shape: The shape of one image, `(C, H, W)`.
    """

    title: str
    """What messages and records call it; the name of its class, unless it has another."""

    curvature: float = 1.0
    """A typical large eigenvalue of the Hessian of `E`; samplers scale their steps by its inverse."""

    time_unit: float = 1.0
    """The step of :math:`-\nabla E` that a unit of transport time amounts to; see `emprior.solvers.Flow`."""

    typical: tuple[float, float] | None = None
    """The mean and the standard deviation of `E` over typical images, in nats, where they are known."""

    spectrum: Spectrum | None = None
    """The mean curvature of `E` at each frequency and colour, where it is known; chains move in a metric made of it."""

    beta: PerImage | None = None
    """What the curvatures of each row are to be multiplied by, `(B,)`, where rows of one batch are of several laws."""

    noise_limit: float = math.inf
    """The largest noise level that `denoise` knows, in public units; solvers with falling noise start below it."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape, self.title = tuple(shape), type(self).__name__
        self.settings: dict[str, dict[str, Any]] = {}
        """Settings of methods that were validated with this prior, by method."""

    @property
    def name(self) -> str:
        return "prior"

    def accepts(self, shape: tuple[int, ...]) -> bool:
        r"""Whether the energy is defined for images of `shape`."""
        return tuple(shape) == self.shape

    def precision(self, x: Image, sigma: float) -> Tensor | None:
        r"""Returns the curvature of the law of an image given its version under noise `sigma`, beside the noise's.

        It is that of each band of the :class:`emprior._bands.Bands` of rows like `x`, `(bands,)`, or None if it is
        unknown: by default the mean curvature of `E`, which it is for a Gaussian of independent bands. See
        :class:`emprior._restoration.Restoration` for what it is elsewhere.

        Arguments:
            x: Rows of its shape, `(B, *shape)`.
            sigma: The noise, in public units.
        """
        return None if self.spectrum is None else self.spectrum.on(Bands.of(x))

    def soften(self, beta: PerImage) -> Prior | None:
        r"""Returns the prior :math:`E_\beta` of replicas at inverse temperatures `beta`, one for each row.

        None stands for :math:`\beta E`, which lowers barriers. A prior whose modes are narrow rather than far apart
        knows a better way down; it has :math:`E_1 = E` and curvatures of about :math:`\beta` times those of `E`.
        """
        return None

    @abstractmethod
    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        r"""Returns :math:`\mathbb{E}[\mathrm{clean} \mid x]` for `x` = clean + `sigma` times white noise.

        Arguments:
            x: Noisy images, `(B, *shape)`.
            sigma: The noise's standard deviation in public units, a number or `(B,)`, at most `noise_limit`.
        """

    def restore(self, x: Image, sigma: float | PerImage) -> Image:
        r"""Returns the clean estimate of annealed starts, of whose errors :meth:`precision` tells; arguments as above.

        It is that of :meth:`denoise` where nothing else is said. What an annealed start adds noise to is no image yet
        but a draw, whose own noise an estimate that goes by the image takes off as well.
        """
        return self.denoise(x, sigma)

    @abstractmethod
    def start(self, noise: Noise, shape: tuple[int, ...] | None = None) -> Image:
        r"""Draws the rows that the flow to data begins from, `(rows, *shape)`, for a `shape` that is accepted."""

    @abstractmethod
    def sample(self, n: int, *, seed: int = 0) -> Image:
        r"""Draws `n` images `(n, *shape)` from :math:`\exp(-E)`."""


class Fidelity(Energy):
    r"""The energy of measurements given an image, with the linear algebra that stiff solvers need.

    It holds the measurements of `B` images and evaluates `S B` rows, the samples of each image,
    ordered sample by sample: row `s B + b` belongs to image `b`.
    """

    images: int
    """The number of images, `B`."""

    measured: tuple[int, ...]
    """The shape of the measurements of one image."""

    linear: bool
    """Whether `f` is quadratic, so that `prox`, `curve`, `whiten` and `solve` are exact."""

    @property
    def name(self) -> str:
        return "fidelity"

    @abstractmethod
    def prox(self, x: Image, gamma: float | PerImage) -> Image:
        r"""Returns :math:`\arg\min_z f(z) + \frac{1}{2 \gamma} \|z - x\|^2`.

        Arguments:
            x: Rows `(S B, *shape)`.
            gamma: The step, positive, a number or one for each row.
        """

    @abstractmethod
    def residual(self, x: Image) -> PerImage:
        r"""Returns the root mean square of :math:`(y - A x) / \sigma` for each row; about 1 at the truth."""

    @abstractmethod
    def count(self, x: Image) -> PerImage:
        r"""Returns the number of measurements that depend on the image, for each row, at least 1."""

    @abstractmethod
    def curve(self, v: Image) -> Image:
        r"""Returns :math:`H v`, with `H` the (Gauss-Newton) Hessian of `f`; zero where none is known."""

    def hessian(self, like: Image) -> Tensor | None:
        r"""Returns `H` as a matrix `(d, d)` in double precision, for rows of the shape of `like`, `(B, *shape)`.

        None where it is unknown, or not the same for all images. It takes `d` applications of the operator.
        """
        return None

    @abstractmethod
    def whiten(self, noise: Tensor) -> Image:
        r"""Maps white noise `(S B, *measured)` to rows of covariance `H`."""

    @abstractmethod
    def solve(self, v: Image, gamma: float | PerImage) -> Image:
        r"""Returns :math:`(I + \gamma H)^{-1} v`."""


class Posterior(Sum):
    r"""The energy :math:`f(x) + w E(x) + W(x)` of images given measurements.

    Arguments:
        fidelity: The data term `f`.
        prior: The prior energy `E`.
        weight: The factor `w`; 1 is Bayes' rule.
        interaction: An energy `W` between the samples of an image.
    """

    fidelity: Fidelity
    prior: Prior
    interaction: Energy | None

    def __init__(
        self, fidelity: Fidelity, prior: Prior, weight: float = 1.0, interaction: Energy | None = None
    ) -> None:
        energies: dict[str, Energy] = {"fidelity": fidelity, "prior": prior if weight == 1 else Scaled(prior, weight)}
        if interaction is not None:
            energies["interaction"] = interaction
        super().__init__(energies)
        self.fidelity, self.prior, self.weight, self.interaction = fidelity, prior, weight, interaction

    def terms(self, x: Image, value: PerImage | None = None) -> dict[str, PerImage]:
        if value is None:
            return super().terms(x)
        terms = {name: energy(x) for name, energy in self.parts().items() if name != "prior"}
        rest = value - torch.stack(list(terms.values())).sum(0)
        return {name: terms.get(name, rest) for name in self.parts()}


def _named(energy: Energy, avoid: Mapping[str, Energy] | None = None) -> dict[str, Energy]:
    named = energy.parts() if isinstance(energy, Sum) else {energy.name: energy}
    taken = dict(avoid or {})
    out: dict[str, Energy] = {}
    for name, part in named.items():
        fresh, count = name, 2
        while fresh in taken or fresh in out:
            fresh, count = f"{name}_{count}", count + 1
        out[fresh] = part
    return out
