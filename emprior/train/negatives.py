r"""Samples of the model, for the contrast."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from emprior._rows import column
from emprior._schedule import heat
from emprior.train.config import Contrast

Gradient = Callable[[Tensor], Tensor]


def langevin(gradient: Gradient, x: Tensor, epsilon: Tensor, step_size: float, generator: torch.Generator) -> Tensor:
    r"""Runs one Langevin step at a temperature for each schedule entry.

    .. math:: x \leftarrow x - h \nabla V(x) + \sqrt{2 h \epsilon_k}\, n_k

    Arguments:
        gradient: The gradient of `V`.
        x: Images in `[-1, 1]`, `(B, C, H, W)`.
        epsilon: The temperature of each step, `(K,)` or `(K, B)`.
        step_size: The step `h`.
        generator: The source of `n`.
    """
    for temperature in epsilon:
        n = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
        scale = column((2 * step_size * temperature).sqrt(), x)
        x = x - step_size * gradient(x) + scale * n
    return x


class ReplayBuffer:
    r"""Persistent chains at the prior's temperature, each beside the data it started from.

    Contrasting a chain with its own origin, under fresh thermal noise, leaves the expected gradient as it
    is and takes the spread between images out of it: a chain stays near its origin for long, and what the
    two differ by is the drift.

    References:
        | Training Restricted Boltzmann Machines using Approximations to the Likelihood Gradient
        | (Tieleman, 2008)
        | Implicit Generation and Modeling with Energy-Based Models (Du and Mordatch, 2019)
        | https://arxiv.org/abs/1903.08689

    Arguments:
        settings: The contrast.
        epsilon: The temperature of the chains.
        thermal: The standard deviation of the noise of the data under that temperature, in `[-1, 1]`.
        chains: The chains and their origins, `(N, 2, C, H, W)`, changed in place.
    """

    def __init__(self, settings: Contrast, epsilon: float, thermal: float, chains: Tensor) -> None:
        self.settings, self.epsilon, self.thermal, self.chains = settings, epsilon, thermal, chains

    def age(self, gradient: Gradient, generator: torch.Generator) -> None:
        r"""Runs the chains before their first use, each batch of them for another share of `settings.age` steps.

        Young chains stand where they started, and a contrast with them alone does not see where old ones go.
        """
        parts = torch.arange(len(self.chains), device=self.chains.device).split(self.settings.batch_size)
        for index, rows in enumerate(parts):
            steps = round(self.settings.age * (index + 1) / len(parts))
            epsilon = torch.full((steps,), self.epsilon, device=self.chains.device)
            self.chains[rows, 0] = langevin(gradient, self.chains[rows, 0], epsilon, self.settings.step_size, generator)

    def draw(self, gradient: Gradient, data: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        r"""Advances a random batch of chains and returns their origins and them.

        Arguments:
            gradient: The gradient of `V`.
            data: Clean images from which some chains restart, `(B, C, H, W)`.
            generator: The source of all randomness.
        """
        c = self.settings
        device = self.chains.device
        rows = torch.randperm(len(self.chains), generator=generator, device=device)[: c.batch_size]
        x, origin = self.chains[rows].unbind(1)
        restarts = torch.rand(len(x), generator=generator, device=device) < c.restart
        donors = data[torch.randint(len(data), (len(x),), generator=generator, device=device)]
        restarts = column(restarts, x)
        x, origin = torch.where(restarts, donors, x), torch.where(restarts, donors, origin)
        epsilon = torch.full((c.langevin_steps,), self.epsilon, device=device)
        x = langevin(gradient, x, epsilon, c.step_size, generator)
        self.chains[rows] = torch.stack([x, origin], dim=1)
        return origin + self.thermal * torch.randn(x.shape, generator=generator, device=device), x


def fresh_negatives(
    settings: Contrast, epsilon: float, gradient: Gradient, data: Tensor, generator: torch.Generator
) -> Tensor:
    r"""Runs the published negatives: half from noise, half from data, all steps each time.

    Those from noise are carried at temperature 0 to :math:`t = \tau_*`, then linearly to `epsilon` at
    :math:`t = 1`, with :math:`t` the accumulated step; those from data stay at `epsilon`.
    """
    c = settings
    half = c.batch_size // 2
    shape = data.shape[1:]
    noise = torch.randn(half, *shape, generator=generator, device=data.device)
    donors = torch.randint(len(data), (c.batch_size - half,), generator=generator, device=data.device)
    warmth = [heat(k * c.step_size, c.tau_star, c.step_size) for k in range(c.langevin_steps)]
    temperature = torch.full((c.langevin_steps, c.batch_size), epsilon, device=data.device)
    temperature[:, :half] *= torch.tensor(warmth, device=data.device)[:, None]
    return langevin(gradient, torch.cat([noise, data[donors]]), temperature, c.step_size, generator)
