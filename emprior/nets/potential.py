r"""Networks that give one scalar per image, and the registry that names them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emprior.nets.unet import UNet


class Potential(nn.Module, ABC):
    r"""A scalar of a U-Net's output.

    Arguments:
        channels: The number of image channels.
        patch: The side of the space-to-depth patch, in pixels.
        widths: The feature channels of each level of the U-Net, finest first.
        blocks: The residual blocks of each level.
    """

    def __init__(
        self, channels: int = 3, patch: int = 2, widths: Sequence[int] = (64, 128, 256), blocks: int = 2
    ) -> None:
        super().__init__()
        self.field = UNet(channels, self.outputs(channels, patch, widths), patch, widths, blocks)
        self.stride = self.field.stride

    @staticmethod
    def outputs(channels: int, patch: int, widths: Sequence[int]) -> int:
        r"""Returns the output channels of the U-Net: those of an image in patches."""
        return channels * patch**2

    def forward(self, x: Tensor) -> Tensor:
        r"""Maps images `(B, C, H, W)` to potentials `(B,)`, padded by reflection to the stride."""
        return total(self.terms(pad_to_multiple(x, self.stride)))

    @abstractmethod
    def terms(self, x: Tensor) -> Tensor:
        r"""Returns what adds up to the potentials, `(B, ...)`, of images of a multiple of the stride."""


class InnerProductPotential(Potential):
    r"""The potential of an image-to-image network `f`,

    .. math:: V(x) = \langle x, f(x) \rangle, \qquad \nabla V(x) = f(x) + J_f(x)^\top x.

    A linear `f` makes `V` a quadratic form, which is the potential of optimal transport far from
    the data, so the network has only the rest to learn.

    References:
        | Should EBMs model the energy or the score? (Salimans and Ho, 2021)
        | https://openreview.net/forum?id=9AS-TF2jRNb
    """

    def terms(self, x: Tensor) -> Tensor:
        return x * F.pixel_shuffle(self.field(x), self.field.patch)


class LocalPotential(Potential):
    r"""The sum of one learned term for each patch `p`,

    .. math:: V(x) = \sum_p \phi_p(x),

    where :math:`\phi_p = \langle l_p(x), r_p(x) \rangle` is a product of two feature vectors of the image
    around the patch, bilinear so that the quadratic growth of `V` needs no large weights. `V` is
    extensive: it grows with the image, and its terms can be mapped.
    """

    @staticmethod
    def outputs(channels: int, patch: int, widths: Sequence[int]) -> int:
        return 2 * widths[0]

    def terms(self, x: Tensor) -> Tensor:
        left, right = self.field(x).chunk(2, dim=1)
        return left * right


class SquaredNormPotential(Potential):
    r"""The potential of an image-to-image network `f`,

    .. math:: V(x) = \frac{1}{2} \|f(x)\|^2, \qquad \nabla V(x) = J_f(x)^\top f(x).

    `f` learns what is not image in `x`. `V` is bounded below, and where `f` is small, so is the gradient, in
    every direction: what moves along the data costs little, whatever the errors of `f`.

    References:
        | Gradient Step Denoiser for Convergent Plug-and-Play (Hurault et al., 2022)
        | https://arxiv.org/abs/2110.03220
        | Should EBMs model the energy or the score? (Salimans and Ho, 2021)
        | https://openreview.net/forum?id=9AS-TF2jRNb
    """

    def terms(self, x: Tensor) -> Tensor:
        f = self.field(x)
        return f.to(torch.promote_types(f.dtype, torch.float32)).square() / 2


class LogNormPotential(SquaredNormPotential):
    r"""The logarithm of the norm of an image-to-image network `f`,

    .. math:: V(x) = \frac{(1 + \kappa^2)\, d}{2} \log \left( 1 + \frac{\|f(x)\|^2}{d\, \kappa^2 \tau^2} \right), \qquad
              \nabla V(x) = \frac{(1 + \kappa^2)\, J_f(x)^\top f(x)}{\kappa^2 \tau^2 + \|f(x)\|^2 / d},

    for the objective `log_density`: where `f` is the noise of `x`, the gradient is what it asks for, and the network
    has no range of lengths to learn.

    Arguments:
        channels, patch, widths, blocks: Of :class:`Potential`.
        tau, core: Those of :class:`emprior.interpolant.LogDensity`; training refuses others.
    """

    def __init__(
        self,
        channels: int = 3,
        patch: int = 2,
        widths: Sequence[int] = (64, 128, 256),
        blocks: int = 2,
        tau: float = 0.0245,
        core: float = 0.5,
    ) -> None:
        super().__init__(channels, patch, widths, blocks)
        self.tau, self.core = tau, core

    def forward(self, x: Tensor) -> Tensor:
        d, square = pad_to_multiple(x, self.stride)[0].numel(), 2 * super().forward(x)
        return (1 + self.core**2) * d / 2 * torch.log1p(square / (d * (self.core * self.tau) ** 2))


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    r"""Extends `(B, C, H, W)` to the right and below, by reflection, to a multiple of `multiple`."""
    height, width = x.shape[-2:]
    right, below = -width % multiple, -height % multiple
    return F.pad(x, (0, right, 0, below), mode="reflect") if right or below else x


def total(terms: Tensor) -> Tensor:
    r"""Sums `(B, ...)` to `(B,)`, in float32 at least: a potential is small beside its terms."""
    return terms.flatten(1).sum(1, dtype=torch.promote_types(terms.dtype, torch.float32))


POTENTIALS: dict[str, Callable[..., nn.Module]] = {
    "inner_product": InnerProductPotential,
    "local": LocalPotential,
    "log_norm": LogNormPotential,
    "squared_norm": SquaredNormPotential,
}
