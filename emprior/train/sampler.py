r"""What the contrast compares."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from emprior._bands import Spectrum
from emprior.train.config import Config
from emprior.train.data import as_signed
from emprior.train.distributed import World
from emprior.train.negatives import Gradient, ReplayBuffer, fresh_negatives, start_chains
from emprior.train.stream import Batch
from emprior.train.views import view_holes, view_noise


class Sampler:
    r"""Draws data under the prior's thermal noise, and samples of the model.

    Each group of the batch has its own share of the negatives and of the replay chains. Row `i` of either belongs to
    group :math:`i \bmod G` and to process :math:`i \bmod N`.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` as stored, where the training runs.
        gradient: The gradient of `V`.
        thermal: The standard deviation of the noise of the data at the density's temperature, in `[-1, 1]`.
        spectrum: The frame of the replay chains, if they have one.
    """

    def __init__(
        self, config: Config, images: Tensor, gradient: Gradient, thermal: float, spectrum: Spectrum | None = None
    ) -> None:
        self.images, self.gradient, self.thermal, self.spectrum = images, gradient, thermal, spectrum
        self.epsilon, self.world = config.density.epsilon, World.current()
        share, whole = self.world.size, config.contrast
        self.settings = replace(whole, chains=whole.chains // share, batch_size=whole.batch_size // share)
        self.sigma, self.holes = (self.world.deal(of(whole)).to(images.device) for of in (view_noise, view_holes))
        self.chains: Tensor | None = None

    def draw(self, batch: Batch) -> tuple[Tensor, Tensor]:
        r"""Returns positives and negatives in `[-1, 1]`, `(B, C, H, W)` each; the chains go on in place."""
        random = batch.random
        if self.settings.negatives == "fresh":
            positives = batch.x1 + self.thermal * random.normal(batch.x1)
            return positives, fresh_negatives(self.settings, self.epsilon, self.gradient, positives, random)
        young = self.chains is None
        if self.chains is None:
            self.chains = start_chains(self.origins(), self.sigma, self.holes, self.thermal, self.epsilon, random)
        buffer = ReplayBuffer(
            self.settings, self.epsilon, self.thermal, self.sigma, self.holes, self.chains, self.spectrum
        )
        if young:
            buffer.age(self.gradient, random)
        return buffer.draw(self.gradient, batch.x1, random)

    def origins(self) -> Tensor:
        r"""Returns the images at which the replay chains start, the first of the data."""
        rows = torch.arange(self.settings.chains) * self.world.size + self.world.rank
        return as_signed(self.images[rows.to(self.images.device) % len(self.images)])
