r"""What a training step is fed with."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from emprior._noise import generator
from emprior.train.config import Config
from emprior.train.distributed import World
from emprior.train.pairing import assignment, transport_cost


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
    random: torch.Generator


class Stream:
    r"""The batches of a training, each a function of (seed, iteration, rank) alone.

    While one is learned from, a thread finds the optimal pairing of the next.

    Arguments:
        config: The settings.
        images: The data, `(N, C, H, W)` uint8, where the training runs.
        coupled: Whether noise and data are paired.
        near: The noise fraction up to which they are not.
    """

    def __init__(self, config: Config, images: Tensor, coupled: bool, near: float) -> None:
        self.config, self.images, self.coupled, self.near = config, images, coupled, near
        self.world = World.current()
        self.order: tuple[int, Tensor] | None = None
        self.thread = ThreadPoolExecutor(1, "pairing")
        self.upcoming: tuple[int, Batch, Future[Tensor] | None] | None = None

    def at(self, step: int) -> Batch:
        r"""Returns the batch of an iteration, and prepares the next."""
        if self.upcoming is None or self.upcoming[0] != step:
            self.upcoming = self._prepare(step)
        _, batch, pairing = self.upcoming
        if pairing is not None:
            order = pairing.result().to(batch.x0.device)
            batch = Batch(batch.x1, batch.x0[order], batch.s, batch.random)
        self.upcoming = self._prepare(step + 1)
        return batch

    def _prepare(self, step: int) -> tuple[int, Batch, Future[Tensor] | None]:
        x1 = self.data(step)
        random = generator(self.config.train.seed, step, self.world.rank, device=x1.device)
        x0 = torch.randn(x1.shape, generator=random, device=x1.device)
        s = torch.rand(len(x1), generator=random, device=x1.device).clamp(min=1e-4).pow(self.config.transport.skew)
        batch = Batch(x1, x0, s, random)
        if not self.coupled:
            return step, batch, None
        return step, batch, self.thread.submit(assignment, transport_cost(x0, x1, alone=s <= self.near))

    def data(self, step: int) -> Tensor:
        r"""Returns an iteration's images in `[-1, 1]`: epochs are permutations keyed by (seed, epoch)."""
        train, n, world = self.config.train, len(self.images), self.world
        first = step * train.batch_size
        positions = torch.arange(first + world.rank, first + train.batch_size, world.size)
        epochs = positions // n
        rows = torch.cat([self._permutation(e)[positions[epochs == e] % n] for e in epochs.unique().tolist()])
        x = self.images[rows.to(self.images.device)].float().div(127.5).sub(1)
        if self.config.data.flip:
            flips = torch.rand(len(x), generator=generator(train.seed, "flip", step, world.rank)) < 0.5
            x = torch.where(flips.to(x.device)[:, None, None, None], x.flip(-1), x)
        return x.contiguous(memory_format=torch.channels_last)

    def _permutation(self, epoch: int) -> Tensor:
        if self.order is None or self.order[0] != epoch:
            random = generator(self.config.train.seed, "epoch", epoch)
            self.order = (epoch, torch.randperm(len(self.images), generator=random))
        return self.order[1]
