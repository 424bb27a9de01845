r"""What a training step is fed with."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._noise import generator
from emprior.train.config import Config
from emprior.train.data import as_signed
from emprior.train.distributed import World, send
from emprior.train.draws import Draws
from emprior.train.pairing import assignments, transport_cost

REHEARSED = 0.5
"""The share of a batch that is drawn where a training is held to the prior that it began with."""

LEAST = 1e-4
"""The least `u` that a noise fraction is made of."""


@dataclass(frozen=True)
class Batch:
    r"""One iteration's draws.

    Arguments:
        x1: Images in `[-1, 1]`, `(B, C, H, W)`.
        x0: Noise, paired with them, `(B, C, H, W)`.
        s: Noise fractions, `(B,)`.
        random: The source of whatever else the iteration draws.
    """

    x1: Tensor
    x0: Tensor
    s: Tensor
    random: Draws


class Stream:
    r"""The batches of a training, of which each group is a function of (seed, iteration, group) alone.

    Row `i` of a batch belongs to group :math:`i \bmod G`, within which noise and data are paired, and is given to
    process :math:`i \bmod N`, which so takes whole groups. While one batch is learned from, a thread finds the
    optimal pairing of the next.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` as stored, where the training runs.
        coupled: Whether noise and data are paired.
        near: The noise fraction up to which they are not.
    """

    def __init__(self, config: Config, images: Tensor, coupled: bool, near: float) -> None:
        self.config, self.images, self.coupled, self.near = config, images, coupled, near
        self.world = World.current()
        self.groups = self.world.groups(config.train.groups or self.world.size)
        self.order: tuple[int, Tensor] | None = None
        self.thread = ThreadPoolExecutor(1, "pairing")
        self.upcoming: tuple[int, Batch, Future[Tensor] | None] | None = None

    def at(self, step: int) -> Batch:
        r"""Returns the batch of an iteration, and prepares the next."""
        if self.upcoming is None or self.upcoming[0] != step:
            self.upcoming = self._prepare(step)
        _, batch, pairing = self.upcoming
        if pairing is not None:
            order = send(pairing.result(), batch.x0.device)
            batch = Batch(batch.x1, batch.x0[order], batch.s, batch.random)
        self.upcoming = self._prepare(step + 1)
        return batch

    def _prepare(self, step: int) -> tuple[int, Batch, Future[Tensor] | None]:
        x1 = self.data(step)
        random = Draws.keyed((self.config.train.seed, step), self.groups, x1.device)
        x0 = random.normal(x1)
        s = self.fractions(random, len(x1))
        batch = Batch(x1, x0, s, random)
        if not self.coupled:
            return step, batch, None
        count = len(self.groups)
        parts = ((x0[i::count], x1[i::count], s[i::count] <= self.near) for i in range(count))
        return step, batch, self.thread.submit(assignments, [transport_cost(*part) for part in parts])

    def fractions(self, random: Draws, count: int) -> Tensor:
        r"""Draws noise fractions, `(count,)`: `u ** skew`, or for half of a training that is held, `hold * u ** 2`."""
        s, hold = random.uniform(count).clamp(min=LEAST).pow(self.config.transport.skew), self.config.train.hold
        if not hold:
            return s
        near = hold * random.uniform(count).clamp(min=LEAST).square()
        return torch.where(random.uniform(count) < REHEARSED, near, s)

    def data(self, step: int) -> Tensor:
        r"""Returns an iteration's images in `[-1, 1]`: epochs are permutations keyed by (seed, epoch)."""
        train, n, world = self.config.train, len(self.images), self.world
        first = step * train.batch_size
        positions = torch.arange(first + world.rank, first + train.batch_size, world.size)
        epochs = positions // n
        rows = torch.cat([self._permutation(e)[positions[epochs == e] % n] for e in epochs.unique().tolist()])
        x = as_signed(self.images[send(rows, self.images.device)])
        if self.config.data.flip:
            flips = Draws.keyed((train.seed, "flip", step), self.groups).uniform(len(x)) < 0.5
            x = torch.where(send(flips, x.device)[:, None, None, None], x.flip(-1), x)
        return x.contiguous(memory_format=torch.channels_last)

    def _permutation(self, epoch: int) -> Tensor:
        if self.order is None or self.order[0] != epoch:
            random = generator(self.config.train.seed, "epoch", epoch)
            self.order = (epoch, torch.randperm(len(self.images), generator=random))
        return self.order[1]
