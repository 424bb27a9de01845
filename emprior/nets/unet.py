r"""A residual U-Net without normalisation, the trunk of the learned energies."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from emprior.nets.convolution import Conv2d


class ResidualBlock(nn.Module):
    r"""`h + conv(silu(conv(silu(normalise(h)))))`, with :func:`normalise` over the channels of each position."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = Conv2d(width, width, 3, padding=1)
        self.second = Conv2d(width, width, 3, padding=1)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.second(F.silu(self.first(F.silu(normalise(h)))))


def normalise(h: Tensor) -> Tensor:
    r"""Returns :math:`h / \sqrt{\mathrm{mean}_c h_c^2 + 0.01}`: smooth, and local, so that any image size works."""
    return h * (h.square().mean(1, keepdim=True) + 0.01).rsqrt()


def spread(h: Tensor) -> Tensor:
    r"""Turns `(B, 4 C, H, W)` into `(B, C, 2 H, 2 W)`, with the pixels of one position `C` channels apart."""
    batch, channels, height, width = h.shape
    h = h.permute(0, 2, 3, 1).reshape(batch, height, width, 2, 2, channels // 4)
    return h.transpose(2, 3).reshape(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


class UNet(nn.Module):
    r"""Fully convolutional residual U-Net, `(B, C, H, W)` to `(B, outputs, H / patch, W / patch)`.

    The image is cut into `patch` x `patch` pixels by a space-to-depth step, so that all of the
    arithmetic happens at `1 / patch` of the resolution; each further entry of `widths` halves it
    again. There is no normalisation layer: an energy must see the scale of its input. The way from
    input to output through the residual identities is linear, so that no activation can shut it.

    Arguments:
        channels: The number of image channels, `C`.
        outputs: The number of output channels.
        patch: The side of the space-to-depth patch, in pixels.
        widths: The number of feature channels of each level, finest first.
        blocks: The number of residual blocks of each level, on the way down and again on the way up.

    `H` and `W` must be multiples of `UNet.stride`.
    """

    def __init__(
        self,
        channels: int,
        outputs: int,
        patch: int = 2,
        widths: Sequence[int] = (64, 128, 128),
        blocks: int = 2,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.stride = patch * 2 ** (len(widths) - 1)
        pairs = list(pairwise(widths))

        def stage(width: int) -> nn.Sequential:
            return nn.Sequential(*(ResidualBlock(width) for _ in range(blocks)))

        self.stem = Conv2d(channels * patch**2, widths[0], 3, padding=1)
        self.down = nn.ModuleList(stage(w) for w in widths[:-1])
        self.shrink = nn.ModuleList(Conv2d(a, b, 2, stride=2) for a, b in pairs)
        self.bottom = stage(widths[-1])
        self.widen = nn.ModuleList(Conv2d(b, 4 * a, 1) for a, b in pairs)
        self.up = nn.ModuleList(stage(w) for w in widths[:-1])
        self.last = Conv2d(widths[0], outputs, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(F.pixel_unshuffle(x, self.patch))
        skips = []
        for stage, shrink in zip(self.down, self.shrink, strict=True):
            h = stage(h)
            skips.append(h)
            h = shrink(h)
        h = self.bottom(h)
        for stage, widen, skip in zip(reversed(self.up), reversed(self.widen), reversed(skips), strict=True):
            h = stage(skip + spread(widen(h)))
        return self.last(h)
