r"""A network of image and noise fraction, the trunk of the baselines that know their noise level."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from emprior._rows import column
from emprior.nets.potential import pad_to_multiple
from emprior.nets.unet import UNet


class Velocity(nn.Module):
    r"""The velocity of flow matching, :math:`v(x, s) \approx \mathbb{E}[x_0 - x_1 \mid x_s = x]`.

    The noise fraction enters as one more channel of the image. Everything else is the trunk of
    :class:`emprior.nets.InnerProductPotential`, so that the two have equal size.

    References:
        | FFDNet: Toward a Fast and Flexible Solution for CNN-Based Image Denoising (Zhang et al., 2018)
        | https://arxiv.org/abs/1710.04026

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
        self.field = UNet(channels + 1, channels * patch**2, patch, widths, blocks)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        r"""Maps images `(B, C, H, W)` at noise fractions `(B,)` to velocities `(B, C, H, W)`."""
        height, width = x.shape[-2:]
        level = column(s.to(x), x).expand(-1, 1, height, width)
        padded = pad_to_multiple(torch.cat([x, level], dim=1), self.field.stride)
        return F.pixel_shuffle(self.field(padded), self.field.patch)[..., :height, :width]


VELOCITIES: dict[str, Callable[..., nn.Module]] = {"velocity": Velocity}
