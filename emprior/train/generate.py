r"""Images from noise along the energy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from emprior._noise import generator
from emprior.train.negatives import langevin


def generate(
    potential: nn.Module,
    shape: tuple[int, ...],
    epsilon: float,
    *,
    seed: int,
    device: torch.device | str = "cpu",
    steps: int = 150,
    step_size: float = 0.01,
) -> Tensor:
    r"""Follows :math:`-\nabla V` from noise, warming from temperature 0 at :math:`t = 0.9` to `epsilon` at 1.

    Returns:
        Images in `[-1, 1]`, of `shape` `(B, C, H, W)`.
    """
    random = generator(seed, "generate", device=device)
    x = torch.randn(shape, generator=random, device=device)
    t = torch.arange(steps, device=device) * step_size
    heating = epsilon * ((t - 0.9) / 0.1).clamp(0, 1)
    return langevin(potential, x, heating, step_size, random)
