r"""The randomness of an iteration, the same however its batch is dealt out."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence

import torch
from torch import Tensor

from emprior._noise import generator


class Draws:
    r"""Random rows, drawn in groups with one stream each.

    Row `i` of a batch belongs to group :math:`i \bmod G`. A process that holds some of the groups draws their rows
    as a process that holds them all would.

    Arguments:
        generators: The streams of the groups that are held, in order.
    """

    def __init__(self, generators: Sequence[torch.Generator]) -> None:
        self.generators = list(generators)

    @classmethod
    def keyed(cls, key: tuple[Hashable, ...], groups: Iterable[int], device: torch.device | str = "cpu") -> Draws:
        r"""Returns the streams of some groups, by their numbers, for a key such as (seed, iteration)."""
        return cls([generator(*key, group, device=device) for group in groups])

    def __len__(self) -> int:
        r"""The number of groups."""
        return len(self.generators)

    def normal(self, like: Tensor, *copies: int) -> Tensor:
        r"""Draws white noise for rows `(B, *shape)`, `(*copies, B, *shape)`."""
        shape = (*copies, len(like) // len(self), *like.shape[1:])
        return self._interleave(
            lambda random: torch.randn(shape, generator=random, device=like.device, dtype=like.dtype), len(copies)
        )

    def uniform(self, count: int) -> Tensor:
        r"""Draws numbers from `[0, 1)`, `(count,)`."""
        each = count // len(self)
        return self._interleave(lambda random: torch.rand(each, generator=random, device=random.device))

    def subset(self, rows: int, count: int) -> Tensor:
        r"""Chooses `count` of `rows` without repetition, `(count,)`, for each group among its own."""
        each, among = count // len(self), rows // len(self)
        return self._own(lambda random: torch.randperm(among, generator=random, device=random.device)[:each])

    def choice(self, rows: int, count: int) -> Tensor:
        r"""Chooses `count` of `rows` with repetition, `(count,)`, for each group among its own."""
        each, among = count // len(self), rows // len(self)
        return self._own(lambda random: torch.randint(among, (each,), generator=random, device=random.device))

    def _own(self, draw: Callable[[torch.Generator], Tensor]) -> Tensor:
        inside = self._interleave(draw)
        return inside * len(self) + torch.arange(len(inside), device=inside.device) % len(self)

    def _interleave(self, draw: Callable[[torch.Generator], Tensor], dim: int = 0) -> Tensor:
        return torch.stack([draw(random) for random in self.generators], dim + 1).flatten(dim, dim + 1)
