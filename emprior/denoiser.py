r"""A denoiser that knows its noise level: the matched baseline of a prior."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from tqdm import tqdm

from emprior._noise import Noise
from emprior._rows import column
from emprior._types import Image, PerImage

CHUNK = 64


class NetworkDenoiser(nn.Module):
    r"""The posterior mean under white noise, from the velocity of flow matching with independent noise,

    .. math:: D(x, \sigma) = \mathbb{E}[\mathrm{clean} \mid x] = \frac{z - s\, v(z, s) + 1}{2}, \qquad
              z = (1 - s)(2 x - 1), \quad \frac{s}{1 - s} = 2 \sigma.

    It is no prior: its field is not the gradient of an energy.

    References:
        | Flow Matching for Generative Modeling (Lipman et al., 2023)
        | https://arxiv.org/abs/2210.02747

    Arguments:
        velocity: The network `v`, images `(B, C, H, W)` in `[-1, 1]` and fractions `(B,)` to velocities.
        shape: The shape of one training image, `(C, H, W)`; a fully convolutional network takes others too.
        title: What messages call it.
    """

    def __init__(self, velocity: nn.Module, shape: tuple[int, ...], title: str = "denoiser") -> None:
        super().__init__()
        self.velocity = velocity.eval().requires_grad_(False)
        self.shape, self.title = shape, title

    def denoise(self, x: Image, sigma: float | PerImage) -> Image:
        r"""Returns the clean estimate of images `(B, C, H, W)` in `[0, 1]` under noise `sigma`, a number or `(B,)`."""
        level = 2 * torch.as_tensor(sigma, dtype=x.dtype, device=x.device).expand(len(x))
        s = level / (1 + level)
        share = column(s, x)
        z = (1 - share) * (2 * x - 1)
        return (z - share * self.velocity(z, s) + 1) / 2

    @torch.no_grad()
    def sample(self, n: int, *, seed: int = 0, steps: int = 100, progress: bool = False) -> Image:
        r"""Generates `n` images by Euler steps of :math:`dz = -v(z, s)\, ds` from noise to data.

        Image `i` depends on `(seed, i)` alone.
        """
        parts = [range(first, min(first + CHUNK, n)) for first in range(0, n, CHUNK)]
        with tqdm(total=steps * len(parts), disable=not progress, unit="step", leave=False) as bar:
            return torch.cat([self._generate(part, seed, steps, bar) for part in parts])

    def _generate(self, indices: range, seed: int, steps: int, bar: tqdm) -> Tensor:
        reference = next(self.velocity.parameters())
        z = Noise([(seed, "sample", i) for i in indices], reference.device, reference.dtype).normal(*self.shape)
        for step in range(steps):
            s = torch.full((len(z),), 1 - step / steps, device=z.device, dtype=z.dtype)
            z = z - self.velocity(z, s) / steps
            bar.update()
        return (z + 1) / 2
