r"""A small classifier whose last hidden layer describes images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import torch.nn.functional as F
from torch import Tensor, nn

from emprior.nets.potential import pad_to_multiple


class Classifier(nn.Module):
    r"""A residual convolutional classifier, and its features,

    .. math:: \mathrm{logits}(x) = W \phi(x) + b, \qquad \phi(x) = \operatorname{mean}_{hw} f(x).

    The image is cut into `patch` x `patch` pixels by a space-to-depth step; each further entry of `widths` halves
    the resolution of `f` and adds a residual block.

    References:
        | Deep Residual Learning for Image Recognition (He et al., 2016)
        | https://arxiv.org/abs/1512.03385

    Arguments:
        channels: The number of image channels.
        patch: The side of the space-to-depth patch, in pixels.
        widths: The feature channels of each resolution, finest first; the last is the dimension of the features.
        classes: The number of classes.
    """

    def __init__(
        self, channels: int = 3, patch: int = 2, widths: Sequence[int] = (48, 96, 128), classes: int = 10
    ) -> None:
        super().__init__()
        self.patch, self.dimension = patch, widths[-1]
        self.stem = _layer(channels * patch**2, widths[0])
        self.stages = nn.Sequential(*(nn.Sequential(_layer(a, b, 2), ResidualLayers(b)) for a, b in pairwise(widths)))
        self.head = nn.Linear(widths[-1], classes)

    def features(self, x: Tensor) -> Tensor:
        r"""Maps images `(B, C, H, W)` in `[0, 1]` to features `(B, dimension)`."""
        h = F.pixel_unshuffle(pad_to_multiple(2 * x - 1, self.patch), self.patch)
        return F.adaptive_avg_pool2d(self.stages(self.stem(h)), 1).flatten(1)

    def forward(self, x: Tensor) -> Tensor:
        r"""Maps images `(B, C, H, W)` in `[0, 1]` to logits `(B, classes)`."""
        return self.head(self.features(x))


class ResidualLayers(nn.Module):
    r"""`h + layer(layer(h))`, with a layer of convolution, batch normalisation and ReLU."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(_layer(width, width), _layer(width, width))

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)


def _layer(before: int, after: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, stride, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


FEATURES: dict[str, Callable[..., Classifier]] = {"classifier": Classifier}
