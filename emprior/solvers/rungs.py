r"""Replicas of rows as rows of one batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._noise import Noise
from emprior._types import Image, PerImage
from emprior.energy import Fidelity


@dataclass(frozen=True)
class Rungs:
    r"""How `K` replicas of `S B` rows lie in one batch: replica `k` of image `b` is image `k B + b` of `K B`.

    So a method that is given the batch learns for each replica of an image apart, from all its samples.

    Arguments:
        count: The number of replicas, `K`.
        images: The number of images, `B`.
    """

    count: int
    images: int

    def join(self, rows: Tensor) -> Tensor:
        r"""Returns replicas `(K, S B, ...)` as one batch `(S K B, ...)`."""
        return rows.unflatten(1, (-1, self.images)).transpose(0, 1).flatten(0, 2)

    def split(self, batch: Tensor) -> Tensor:
        r"""Returns a batch `(S K B, ...)` as replicas `(K, S B, ...)`."""
        return batch.unflatten(0, (-1, self.count, self.images)).transpose(0, 1).flatten(1, 2)

    def repeat(self, rows: Tensor) -> Tensor:
        r"""Returns the batch `(S K B, ...)` of replicas that are all the same, `(S B, ...)`."""
        return self.join(rows.expand(self.count, *rows.shape))


class RungNoise(Noise):
    r"""The streams of rows, from which each of their replicas is given numbers of its own.

    Arguments:
        noise: The streams of the `S B` rows.
        rungs: How their replicas lie in a batch.
    """

    def __init__(self, noise: Noise, rungs: Rungs) -> None:
        self.noise, self.rungs, self.device, self.dtype = noise, rungs, noise.device, noise.dtype

    def __len__(self) -> int:
        return self.rungs.count * len(self.noise)

    def normal(self, *shape: int) -> Tensor:
        return self.rungs.join(self.noise.normal(self.rungs.count, *shape).transpose(0, 1))

    def uniform(self, *shape: int) -> Tensor:
        return self.rungs.join(self.noise.uniform(self.rungs.count, *shape).transpose(0, 1))


class RungFidelity(Fidelity):
    r"""The data term of images of which there are replicas, all with the same measurements.

    Row `s K B + k B + b` of the batch belongs to image `b`, as it would in the data term itself with `S K` samples.

    Arguments:
        fidelity: The data term of `B` images.
        rungs: How their replicas lie in a batch.
    """

    def __init__(self, fidelity: Fidelity, rungs: Rungs) -> None:
        super().__init__()
        self.fidelity, self.images = fidelity, rungs.count * rungs.images
        self.measured, self.linear = fidelity.measured, fidelity.linear

    def forward(self, x: Image) -> PerImage:
        return self.fidelity(x)

    def value_and_grad(self, x: Image) -> tuple[PerImage, Image]:
        return self.fidelity.value_and_grad(x)

    def prox(self, x: Image, gamma: float | PerImage) -> Image:
        return self.fidelity.prox(x, gamma)

    def residual(self, x: Image) -> PerImage:
        return self.fidelity.residual(x)

    def count(self, x: Image) -> PerImage:
        return self.fidelity.count(x)

    def curve(self, v: Image) -> Image:
        return self.fidelity.curve(v)

    def hessian(self, like: Image) -> Tensor | None:
        return self.fidelity.hessian(like)

    def whiten(self, noise: Tensor) -> Image:
        return self.fidelity.whiten(noise)

    def solve(self, v: Image, gamma: float | PerImage) -> Image:
        return self.fidelity.solve(v, gamma)


def exchanged(swapped: Tensor) -> Tensor:
    r"""Returns which replica each is to be given, `(K, S B)`, from whether each is swapped with the next.

    Examples:
        >>> exchanged(torch.tensor([[True], [False], [False], [False]])).T
        tensor([[1, 0, 2, 3]])
    """
    own = torch.arange(len(swapped), device=swapped.device)[:, None]
    return own + swapped.long() - swapped.roll(1, 0).long()


def taken(replicas: Tensor, order: Tensor) -> Tensor:
    r"""Returns replicas `(K, S B, ...)` in another order for each row, `(K, S B)`."""
    return replicas[order, torch.arange(order.shape[1], device=order.device)]
